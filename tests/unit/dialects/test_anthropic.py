from __future__ import annotations

from typing import Any

import json

import pytest
from dialect_tools import ending, told, whatwg
from inline_snapshot import snapshot

from chat_nest.core.deltas import TextDelta, ToolCallDelta
from chat_nest.dialects.anthropic import Anthropic
from chat_nest.core.errors import (
    BadRequest,
    BudgetExceeded,
    ChatError,
    LimiterUnavailable,
    RateLimited,
    RequestTooLarge,
    UpstreamIdle,
)
from chat_nest.core.messages import ChatRequest, Message, Options, Thought, ToolCall
from chat_nest.core.protocols import Dialect
from chat_nest.core.usage import Usage

HELLO = {"role": "user", "content": "hello"}
anthropic: Dialect = Anthropic()


def encoder(**fields: Any):
    return anthropic.encoder(ChatRequest(messages=(), **fields), "run-1")


def parse(**fields: object) -> ChatRequest:
    return anthropic.parse(json.dumps({"model": "m", "max_tokens": 50, "messages": [HELLO], **fields}).encode())


def test_a_whole_stream() -> None:
    assert told(encoder()).decode() == snapshot("""\
event: message_start
data: {"type":"message_start","message":{"id":"msg_run-1","type":"message","role":"assistant","model":"gpt-4o-mini","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":0,"output_tokens":0}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Hm"}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"."}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"It is "}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"19\u202f°C\\n"}}

event: content_block_stop
data: {"type":"content_block_stop","index":1}

event: content_block_start
data: {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"call-a","name":"weather","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\\"city\\""}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":":\\"Bonn\\"}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":2}

event: content_block_start
data: {"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"call-b","name":"clock","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":"{}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":3}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":5,"output_tokens":34}}

event: message_stop
data: {"type":"message_stop"}

""")


def test_an_answer_without_a_token() -> None:
    assert told(encoder(), [], "stop").decode() == snapshot("""\
event: message_start
data: {"type":"message_start","message":{"id":"msg_run-1","type":"message","role":"assistant","model":"gpt-4o-mini","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":0,"output_tokens":0}}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":5,"output_tokens":34}}

event: message_stop
data: {"type":"message_stop"}

""")


def test_a_whole_answer() -> None:
    assert told(encoder(stream=False)).decode() == snapshot(
        '{"id":"msg_run-1","type":"message","role":"assistant","model":"gpt-4o-mini","content":[{"type":"thinking","thinking":"Hm.","signature":""},{"type":"text","text":"It is 19\u202f°C\\n"},{"type":"tool_use","id":"call-a","name":"weather","input":{"city":"Bonn"}},{"type":"tool_use","id":"call-b","name":"clock","input":{}}],"stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":5,"output_tokens":34}}'
    )


def test_an_input_that_is_no_object_is_kept() -> None:
    for arguments in ("[1]", '{"a'):
        sent = told(encoder(stream=False), [[ToolCallDelta(0, arguments, "call-a", "weather")]])
        assert json.loads(sent)["content"][0]["input"] == {"arguments": arguments}


def test_cached_tokens_are_apart_from_the_input() -> None:
    usage = Usage(input_tokens=100, cached_input_tokens=60, cache_write_tokens=30, output_tokens=5)
    last = json.loads(whatwg(encoder().finish(ending(usage=usage)))[0].data)
    assert last["usage"] == {
        "input_tokens": 10,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 60,
        "output_tokens": 5,
    }


def test_an_error_in_the_stream_and_a_ping() -> None:
    assert encoder().fail(UpstreamIdle()).decode() == snapshot("""\
event: error
data: {"type":"error","error":{"type":"timeout_error","message":"The model provider stopped answering"}}

""")
    assert encoder().heartbeat().decode() == snapshot("""\
event: ping
data: {"type":"ping"}

""")


@pytest.mark.parametrize(
    ("reason", "told_as"), [("stop", "end_turn"), ("length", "max_tokens"), ("content_filter", "refusal")]
)
def test_stop_reasons(reason: str, told_as: str) -> None:
    assert json.loads(whatwg(encoder().finish(ending(reason=reason)))[0].data)["delta"]["stop_reason"] == told_as


def test_refusals() -> None:
    errors = [
        BadRequest("must be a string", field="system"),
        RateLimited(),
        BudgetExceeded(),
        RequestTooLarge(),
        LimiterUnavailable(),
        ChatError(),
    ]
    answers = [anthropic.refuse(error, "r1") for error in errors]
    assert [(answer.status, answer.body.decode()) for answer in answers] == snapshot(
        [
            (
                400,
                '{"type":"error","error":{"type":"invalid_request_error","message":"system: must be a string"},"request_id":"r1"}',
            ),
            (
                429,
                '{"type":"error","error":{"type":"rate_limit_error","message":"Rate limit exceeded. Please slow down."},"request_id":"r1"}',
            ),
            (
                429,
                '{"type":"error","error":{"type":"rate_limit_error","message":"Daily AI budget exceeded. Try again tomorrow."},"request_id":"r1"}',
            ),
            (
                400,
                '{"type":"error","error":{"type":"invalid_request_error","message":"Request too large. Please shorten your message."},"request_id":"r1"}',
            ),
            (
                503,
                '{"type":"error","error":{"type":"overloaded_error","message":"The service is busy. Please try again."},"request_id":"r1"}',
            ),
            (500, '{"type":"error","error":{"type":"api_error","message":"AI request failed"},"request_id":"r1"}'),
        ]
    )
    assert [answer.status for answer in answers if (b"x-should-retry", b"false") not in answer.headers] == [503]


def test_a_whole_request() -> None:
    body = {
        "model": "gpt-4o-mini",
        "max_tokens": 50,
        "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Cold?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Bonn"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "19"}]},
                    {"type": "text", "text": "and now?"},
                ],
            },
        ],
        "tools": [{"name": "weather", "description": "Tells it", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "stream": True,
        "temperature": 1,
        "stop_sequences": ["x"],
        "metadata": {"user_id": "u"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    request = anthropic.parse(json.dumps(body).encode())
    assert request == ChatRequest(
        messages=(
            Message(role="user", content="Cold?"),
            Message(
                role="assistant",
                content="Let me see.",
                tool_calls=(ToolCall(id="a", name="weather", arguments='{"city":"Bonn"}'),),
                thoughts=(Thought(text="hm", signature="s"),),
            ),
            Message(role="tool", content="19", tool_call_id="a"),
            Message(role="user", content="and now?"),
        ),
        model="gpt-4o-mini",
        system_prompt="be brief",
        system_field="system",
        max_output_tokens=50,
        temperature=1.0,
        tools=request.tools,
        options=Options(stop=("x",), parallel_calls=False),
        tool_choice="required",
    )
    assert bytes(request.tools[0].parameters) == b'{"type":"object"}'


def test_the_least_request_is_not_streamed() -> None:
    assert not parse().stream


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": [{"type": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": [{"type": ["text"]}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "secret"}]}]},
            "messages[0]",
        ),
        ({"messages": [HELLO, {"role": "assistant", "content": "Once"}]}, "messages[1]"),
        (
            {"messages": [HELLO, {"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}]},
            "messages[1].content[0].name",
        ),
        ({"system": 5}, "system"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"type": "web_search", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "a", "input_schema": 5}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "tool", "name": "secret"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "x"}}, "tool_choice.type"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"mcp_servers": [{"url": "http://secret"}]}, "mcp_servers"),
        ({"stream": 1}, "stream"),
    ],
)
def test_rows_12_to_19_a_bad_field_is_named_and_never_echoed(fields: dict[str, object], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    assert caught.value.field == field
    assert "secret" not in caught.value.message


def test_every_block_that_starts_stops() -> None:
    sent = told(encoder(), [[TextDelta("a")], [TextDelta("b")]], "stop")
    assert sent.count(b"event: content_block_start") == sent.count(b"event: content_block_stop") == 1
