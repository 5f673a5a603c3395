from __future__ import annotations

import json

import pytest
from dialect_tools import ending, told, whatwg
from inline_snapshot import snapshot

from chat_nest.core.deltas import TextDelta, ToolCallDelta
from chat_nest.dialects.ag_ui import AGUI
from chat_nest.core.errors import BadRequest, BudgetExceeded, UpstreamIdle
from chat_nest.core.messages import ChatRequest, Message, ToolCall
from chat_nest.core.protocols import Dialect

HELLO = {"id": "1", "role": "user", "content": "hello"}
ag_ui: Dialect = AGUI()


def encoder():
    return ag_ui.encoder(ChatRequest(messages=(), echo=("thread-1", "their-run")), "run-1")


def parse(**fields: object) -> ChatRequest:
    return ag_ui.parse(json.dumps({"threadId": "t", "runId": "r", "messages": [HELLO], **fields}).encode())


def test_a_whole_stream() -> None:
    assert told(encoder()).decode() == snapshot("""\
data: {"type":"RUN_STARTED","threadId":"thread-1","runId":"their-run"}

data: {"type":"REASONING_START","messageId":"run-1-0"}

data: {"type":"REASONING_MESSAGE_START","messageId":"run-1-0","role":"reasoning"}

data: {"type":"REASONING_MESSAGE_CONTENT","messageId":"run-1-0","delta":"Hm"}

data: {"type":"REASONING_MESSAGE_CONTENT","messageId":"run-1-0","delta":"."}

data: {"type":"REASONING_MESSAGE_END","messageId":"run-1-0"}

data: {"type":"REASONING_END","messageId":"run-1-0"}

data: {"type":"TEXT_MESSAGE_START","messageId":"run-1-1","role":"assistant"}

data: {"type":"TEXT_MESSAGE_CONTENT","messageId":"run-1-1","delta":"It is "}

data: {"type":"TEXT_MESSAGE_CONTENT","messageId":"run-1-1","delta":"19\u202f°C\\n"}

data: {"type":"TEXT_MESSAGE_END","messageId":"run-1-1"}

data: {"type":"TOOL_CALL_START","toolCallId":"call-a","toolCallName":"weather","parentMessageId":"run-1-1"}

data: {"type":"TOOL_CALL_ARGS","toolCallId":"call-a","delta":"{\\"city\\""}

data: {"type":"TOOL_CALL_ARGS","toolCallId":"call-a","delta":":\\"Bonn\\"}"}

data: {"type":"TOOL_CALL_START","toolCallId":"call-b","toolCallName":"clock","parentMessageId":"run-1-1"}

data: {"type":"TOOL_CALL_ARGS","toolCallId":"call-b","delta":"{}"}

data: {"type":"TOOL_CALL_END","toolCallId":"call-a"}

data: {"type":"TOOL_CALL_END","toolCallId":"call-b"}

data: {"type":"RUN_FINISHED","threadId":"thread-1","runId":"their-run","usage":[{"model":"gpt-4o-mini","inputTokens":12,"outputTokens":34,"totalTokens":46,"reasoningTokens":6,"cachedInputTokens":5,"cacheWriteInputTokens":0}]}

""")


def test_an_answer_without_a_token() -> None:
    assert told(encoder(), [], "stop").decode() == snapshot("""\
data: {"type":"RUN_STARTED","threadId":"thread-1","runId":"their-run"}

data: {"type":"RUN_FINISHED","threadId":"thread-1","runId":"their-run","usage":[{"model":"gpt-4o-mini","inputTokens":12,"outputTokens":34,"totalTokens":46,"reasoningTokens":6,"cachedInputTokens":5,"cacheWriteInputTokens":0}]}

""")


def test_calls_without_text_share_one_message() -> None:
    calls = [ToolCallDelta(0, "{}", "call-a", "weather"), ToolCallDelta(1, "{}", "call-b", "clock")]
    events = [json.loads(seen.data) for seen in whatwg(told(encoder(), [calls]))]
    assert [event["parentMessageId"] for event in events if event["type"] == "TOOL_CALL_START"] == ["run-1", "run-1"]
    ended = [event["toolCallId"] for event in events if event["type"] == "TOOL_CALL_END"]
    assert ended == ["call-a", "call-b"]


def test_an_error_in_the_stream_and_a_ping() -> None:
    assert encoder().fail(UpstreamIdle()).decode() == snapshot("""\
data: {"type":"RUN_ERROR","message":"The model provider stopped answering","code":"upstream_idle"}

""")
    assert encoder().heartbeat() == b": ping\n"


def test_missing_ids_are_generated() -> None:
    answering = ag_ui.encoder(ChatRequest(messages=()), "run-1")
    assert json.loads(whatwg(answering.start("m"))[0].data)["runId"] == "run-1"


def test_refusals() -> None:
    errors = [BadRequest("must be a string", field="threadId"), BudgetExceeded()]
    answers = [ag_ui.refuse(error, "r1") for error in errors]
    assert [(answer.status, answer.body.decode()) for answer in answers] == snapshot(
        [
            (400, '{"message":"must be a string","code":"bad_request","field":"threadId","request_id":"r1"}'),
            (
                200,
                """\
data: {"type":"RUN_STARTED","threadId":"r1","runId":"r1"}

data: {"type":"RUN_ERROR","message":"Daily AI budget exceeded. Try again tomorrow.","code":"budget_exceeded"}

""",
            ),
        ]
    )


def test_a_whole_request() -> None:
    call = {"id": "call-a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    body = {
        "threadId": "thread-1",
        "runId": "their-run",
        "state": {"a": 1},
        "messages": [
            {"id": "1", "role": "developer", "content": "be brief"},
            {"id": "2", "role": "user", "content": [{"type": "text", "text": "Cold?"}]},
            {"id": "3", "role": "reasoning", "content": "hm"},
            {"id": "4", "role": "assistant", "toolCalls": [call]},
            {"id": "5", "role": "activity", "activityType": "PLAN", "content": {}},
            {"id": "6", "role": "tool", "toolCallId": "call-a", "content": "19"},
        ],
        "tools": [{"name": "weather", "description": "Tells it", "parameters": {"type": "object"}}],
        "context": [{"description": "Page", "value": "weather"}],
        "forwardedProps": {"profile": "expanded", "model": "gpt-4o-mini", "other": 1},
    }
    request = ag_ui.parse(json.dumps(body).encode())
    assert request == ChatRequest(
        messages=(
            Message(role="developer", content="be brief"),
            Message(role="user", content="Cold?"),
            Message(role="assistant", content="", tool_calls=(ToolCall(id="call-a", name="weather", arguments="{}"),)),
            Message(role="tool", content="19", tool_call_id="call-a"),
        ),
        profile="expanded",
        model="gpt-4o-mini",
        system_prompt="Page: weather",
        tools=request.tools,
        chat_id="thread-1",
        echo=("thread-1", "their-run"),
    )
    assert [tool.name for tool in request.tools] == ["weather"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"threadId": 5}, "threadId"),
        ({"runId": "r" * 257}, "runId"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "Reasoning"}]}, "messages[0].role"),
        ({"messages": [{"role": "reasoning"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].toolCallId"),
        ({"tools": [{"name": ""}]}, "tools[0].name"),
        ({"tools": [{"name": "a", "description": 5}]}, "tools[0].description"),
        ({"context": [{"description": "secret"}]}, "context[0].value"),
        ({"forwardedProps": []}, "forwardedProps"),
        ({"forwardedProps": {"model": {}}}, "forwardedProps.model"),
        ({"headers": {"x": "y"}}, "headers"),
    ],
)
def test_rows_12_to_19_a_bad_field_is_named_and_never_echoed(fields: dict[str, object], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    assert caught.value.field == field
    assert "secret" not in caught.value.message


def test_a_text_starts_once() -> None:
    sent = told(encoder(), [[TextDelta("a")], [TextDelta("b"), TextDelta("c")]], "stop")
    assert sent.count(b"TEXT_MESSAGE_START") == sent.count(b"TEXT_MESSAGE_END") == 1
    assert ending().reason == "stop"
