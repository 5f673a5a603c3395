from __future__ import annotations

import json
from base64 import b64encode

import pytest
from dialect_tools import STORY, ending, told, whatwg
from inline_snapshot import snapshot
from pictures import png

from chat_nest.core.deltas import ReasoningDelta, TextDelta, ToolCallDelta
from chat_nest.dialects.ai_sdk import AISDK
from chat_nest.core.errors import BadRequest, BudgetExceeded, ChatError, RateLimited, Stopped, UpstreamIdle
from chat_nest.core.messages import ChatRequest, Message, ToolCall
from chat_nest.core.protocols import Dialect

HELLO = {"id": "1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}
ai_sdk: Dialect = AISDK()


def encoder():
    return ai_sdk.encoder(ChatRequest(messages=()), "run-1")


def parse(**fields: object) -> ChatRequest:
    return ai_sdk.parse(json.dumps({"id": "c", "trigger": "submit-message", "messages": [HELLO], **fields}).encode())


def types(stream: bytes) -> list[str]:
    return [json.loads(seen.data)["type"] for seen in whatwg(stream) if seen.data != "[DONE]"]


def test_a_whole_stream() -> None:
    assert told(encoder()).decode() == snapshot("""\
data: {"type":"start","messageId":"run-1"}

data: {"type":"start-step"}

data: {"type":"reasoning-start","id":"0"}

data: {"type":"reasoning-delta","id":"0","delta":"Hm"}

data: {"type":"reasoning-delta","id":"0","delta":"."}

data: {"type":"reasoning-end","id":"0"}

data: {"type":"text-start","id":"1"}

data: {"type":"text-delta","id":"1","delta":"It is "}

data: {"type":"text-delta","id":"1","delta":"19\u202f°C\\n"}

data: {"type":"text-end","id":"1"}

data: {"type":"tool-input-start","toolCallId":"call-a","toolName":"weather"}

data: {"type":"tool-input-delta","toolCallId":"call-a","inputTextDelta":"{\\"city\\""}

data: {"type":"tool-input-delta","toolCallId":"call-a","inputTextDelta":":\\"Bonn\\"}"}

data: {"type":"tool-input-start","toolCallId":"call-b","toolName":"clock"}

data: {"type":"tool-input-available","toolCallId":"call-a","toolName":"weather","input":{"city":"Bonn"}}

data: {"type":"tool-input-available","toolCallId":"call-b","toolName":"clock","input":{}}

data: {"type":"finish-step"}

data: {"type":"finish","finishReason":"tool-calls","messageMetadata":{"usage":{"inputTokens":12,"outputTokens":34,"totalTokens":46},"remaining":{"tokens_per_day":69954,"requests_per_minute":29}}}

data: [DONE]

""")


def test_an_answer_without_a_token() -> None:
    assert told(encoder(), [], "stop").decode() == snapshot("""\
data: {"type":"start","messageId":"run-1"}

data: {"type":"start-step"}

data: {"type":"finish-step"}

data: {"type":"finish","finishReason":"stop","messageMetadata":{"usage":{"inputTokens":12,"outputTokens":34,"totalTokens":46},"remaining":{"tokens_per_day":69954,"requests_per_minute":29}}}

data: [DONE]

""")


def test_a_part_ends_when_another_begins() -> None:
    answering = encoder()
    batches = [[TextDelta("a"), ReasoningDelta("b")], [ReasoningDelta("c"), TextDelta("d")], [TextDelta("e")]]
    sent = b"".join(answering.encode(batch) for batch in batches) + answering.finish(ending())
    assert types(sent) == snapshot(
        [
            "text-start",
            "text-delta",
            "text-end",
            "reasoning-start",
            "reasoning-delta",
            "reasoning-delta",
            "reasoning-end",
            "text-start",
            "text-delta",
            "text-delta",
            "text-end",
            "finish-step",
            "finish",
        ]
    )
    ids = [json.loads(seen.data)["id"] for seen in whatwg(sent) if '"id"' in seen.data]
    assert ids == ["0"] * 3 + ["1"] * 4 + ["2"] * 4


def test_an_input_that_is_not_json_is_an_error_of_the_call() -> None:
    answering = encoder()
    answering.encode([ToolCallDelta(0, '{"city', "call-a", "weather")])
    assert whatwg(answering.finish(ending()))[0].data == snapshot(
        '{"type":"tool-input-error","toolCallId":"call-a","toolName":"weather","input":"{\\"city","errorText":"The model wrote an input that is not JSON"}'
    )


def test_an_error_in_the_stream_and_a_ping() -> None:
    assert encoder().fail(Stopped()).decode() == 'data: {"type":"abort"}\n\ndata: [DONE]\n\n'
    assert encoder().fail(UpstreamIdle()).decode() == snapshot("""\
data: {"type":"error","errorText":"The model provider stopped answering"}

data: [DONE]

""")
    assert encoder().heartbeat() == b": ping\n"


def test_the_header_that_the_transport_looks_for() -> None:
    assert (b"x-vercel-ai-ui-message-stream", b"v1") in encoder().headers


@pytest.mark.parametrize(
    ("reason", "told_as"), [("tool_calls", "tool-calls"), ("content_filter", "content-filter"), ("other", "other")]
)
def test_finish_reasons(reason: str, told_as: str) -> None:
    assert json.loads(whatwg(encoder().finish(ending(reason=reason)))[-2].data)["finishReason"] == told_as


def test_a_refusal_is_a_sentence() -> None:
    errors = [
        BadRequest("must be a string", field="messages[0].parts[0].text"),
        RateLimited(),
        BudgetExceeded(),
        ChatError(),
    ]
    answers = [ai_sdk.refuse(error, "r1") for error in errors]
    assert [(answer.status, answer.body.decode()) for answer in answers] == snapshot(
        [
            (400, "messages[0].parts[0].text: must be a string"),
            (429, "Rate limit exceeded. Please slow down."),
            (429, "Daily AI budget exceeded. Try again tomorrow."),
            (500, "AI request failed"),
        ]
    )
    assert {answer.headers for answer in answers} == {((b"content-type", b"text/plain; charset=utf-8"),)}


# Requests in.


def test_a_whole_request() -> None:
    tool = {"type": "tool-weather", "toolCallId": "call-a", "state": "output-available", "input": {"city": "Bonn"}}
    body = {
        "id": "chat-1",
        "trigger": "submit-message",
        "messageId": "m",
        "profile": "expanded",
        "model": "gpt-4o-mini",
        "system": "be brief",
        "tools": {"weather": {"description": "Tells it", "parameters": {"type": "object"}}, "clock": {}},
        "maxOutputTokens": 50,
        "messages": [
            {"id": "1", "role": "user", "metadata": {"x": 1}, "parts": [{"type": "text", "text": "Cold?"}]},
            {
                "id": "2",
                "role": "assistant",
                "parts": [
                    {"type": "step-start"},
                    {"type": "reasoning", "text": "hm", "state": "done"},
                    {"type": "text", "text": "Let me see."},
                    {**tool, "output": {"degrees": 19}},
                    {
                        "type": "dynamic-tool",
                        "toolName": "clock",
                        "toolCallId": "call-b",
                        "input": {},
                        "state": "output-error",
                        "errorText": "no clock",
                    },
                    {"type": "step-start"},
                    {"type": "text", "text": "19 degrees."},
                    {"type": "data-weather", "data": {"a": 1}},
                    {"type": "tool-clock", "toolCallId": "call-c", "state": "input-available", "input": {}},
                ],
            },
            {"id": "3", "role": "user", "parts": [{"type": "text", "text": "And"}, {"type": "text", "text": "now?"}]},
        ],
    }
    request = ai_sdk.parse(json.dumps(body).encode())
    assert request == ChatRequest(
        messages=(
            Message(role="user", content="Cold?"),
            Message(
                role="assistant",
                content="Let me see.",
                tool_calls=(
                    ToolCall(id="call-a", name="weather", arguments='{"city":"Bonn"}'),
                    ToolCall(id="call-b", name="clock", arguments="{}"),
                ),
            ),
            Message(role="tool", content='{"degrees":19}', tool_call_id="call-a"),
            Message(role="tool", content="no clock", tool_call_id="call-b"),
            Message(role="assistant", content="19 degrees."),
            Message(role="user", content="And\nnow?"),
        ),
        profile="expanded",
        model="gpt-4o-mini",
        system_prompt="be brief",
        system_field="system",
        max_output_tokens=50,
        tools=request.tools,
        chat_id="chat-1",
    )
    assert [(tool.name, tool.description) for tool in request.tools] == [("weather", "Tells it"), ("clock", "")]


def test_tool_results_without_a_new_question_are_accepted() -> None:
    """`sendAutomaticallyWhen` sends the answer back with the results of its calls, and no new question."""
    part = {"type": "tool-weather", "toolCallId": "a", "state": "output-available", "input": {}, "output": "19"}
    asked = parse(messages=[HELLO, {"id": "2", "role": "assistant", "parts": [part]}]).messages
    assert [message.role for message in asked] == ["user", "assistant", "tool"]


def test_a_single_message_is_accepted() -> None:
    body = {"id": "c", "message": HELLO}
    assert ai_sdk.parse(json.dumps(body).encode()).messages == (Message(role="user", content="hello"),)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "parts": []}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].parts"),
        ({"messages": [{"role": "user", "parts": ["x"]}]}, "messages[0].parts[0]"),
        ({"messages": [{"role": "user", "parts": [{}]}]}, "messages[0].parts[0].type"),
        ({"messages": [{"role": "user", "parts": [{"type": "text"}]}]}, "messages[0].parts[0].text"),
        ({"messages": [{"role": "user", "parts": []}]}, "messages[0]"),
        ({"messages": [{"role": "user", "parts": [{"type": "data-x"}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "parts": [{"type": "file", "url": 1}]}]}, "messages[0].parts[0].url"),
        ({"messages": [HELLO, {"role": "assistant", "parts": [{"type": "text", "text": "x"}]}]}, "messages[1]"),
        (
            {
                "messages": [
                    HELLO,
                    {"role": "assistant", "parts": [{"type": "tool-a", "state": "output-available", "output": 1}]},
                ]
            },
            "messages[1].parts[0].toolCallId",
        ),
        ({"id": 5}, "id"),
        ({"tools": [{}]}, "tools"),
        ({"tools": {"a b": {}}}, "tools.name"),
        ({"tools": {f"t{n}": {} for n in range(129)}}, "tools"),
        ({"profile": 5}, "profile"),
        ({"model": ["secret"]}, "model"),
        ({"system": {}}, "system"),
        ({"apiKey": "secret"}, "apiKey"),
        ({"maxOutputTokens": 1.5}, "maxOutputTokens"),
    ],
)
def test_rows_12_to_19_a_bad_field_is_named_and_never_echoed(fields: dict[str, object], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    assert caught.value.field == field
    assert "secret" not in caught.value.message


def test_parts_are_sent_in_order() -> None:
    assert types(told(encoder(), STORY)) == snapshot(
        [
            "start",
            "start-step",
            "reasoning-start",
            "reasoning-delta",
            "reasoning-delta",
            "reasoning-end",
            "text-start",
            "text-delta",
            "text-delta",
            "text-end",
            "tool-input-start",
            "tool-input-delta",
            "tool-input-delta",
            "tool-input-start",
            "tool-input-available",
            "tool-input-available",
            "finish-step",
            "finish",
        ]
    )


CALLED = {"type": "tool-call", "toolCallId": "a", "toolName": "weather", "input": {"city": "Bonn"}}
PNG = b64encode(png(4, 3)).decode()


def test_model_messages() -> None:
    """As useDataStreamRuntime of assistant-ui sends them."""
    request = parse(
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Where?"},
                    {"type": "file", "data": PNG, "mediaType": "image/png"},
                    {"type": "image", "image": f"data:image/png;base64,{PNG}"},
                ],
            },
            {"role": "assistant", "content": [{"type": "reasoning", "text": "Hm"}, CALLED]},
            {
                "role": "tool",
                "content": [
                    {
                        "type": "tool-result",
                        "toolCallId": "a",
                        "toolName": "weather",
                        "output": {"type": "json", "value": {"degrees": 19}},
                    }
                ],
            },
            {"role": "user", "content": [{"type": "text", "text": "And tomorrow?"}]},
        ]
    )
    first, called, result, last = request.messages
    assert (first.content, [(each.media_type, each.width) for each in first.attachments]) == (
        "Where?",
        [("image/png", 4), ("image/png", 4)],
    )
    assert called.tool_calls == (ToolCall(id="a", name="weather", arguments='{"city":"Bonn"}'),)
    assert (result.role, result.tool_call_id, result.content) == ("tool", "a", '{"degrees":19}')
    assert last.content == "And tomorrow?"


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ({"output": {"type": "text", "value": "19"}}, "19"),
        ({"output": {"type": "error-text", "value": "no such city"}}, "no such city"),
        ({"output": {"type": "error-json", "value": ["no"]}}, '["no"]'),
        ({"output": {"type": "execution-denied"}}, "The user did not allow this call."),
        ({"output": {"type": "content", "value": [{"type": "text", "text": "19"}]}}, "19"),
        ({"result": {"degrees": 19}}, '{"degrees":19}'),
    ],
)
def test_results_of_model_messages(output: dict[str, object], said: str) -> None:
    result = {"type": "tool-result", "toolCallId": "a", "toolName": "weather", **output}
    called = {"role": "assistant", "content": [CALLED]}
    request = parse(messages=[HELLO, called, {"role": "tool", "content": [result]}, HELLO])
    assert request.messages[2].content == said


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "tool", "content": "19"}, "messages[0].role"),
        ({"role": "user", "content": [CALLED]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "tool", "content": [{"type": "tool-result"}]}, "messages[0].content[0].toolCallId"),
        (
            {"role": "tool", "content": [{"type": "tool-result", "toolCallId": "a", "output": {"type": "x"}}]},
            "messages[0].content[0].output.type",
        ),
    ],
)
def test_model_messages_that_are_wrong(message: dict[str, object], field: str) -> None:
    with pytest.raises(BadRequest) as wrong:
        parse(messages=[message])
    assert wrong.value.field == field
