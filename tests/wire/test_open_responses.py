"""Open Responses: its compliance tests, written anew, and its schema for every event and object of ours.

https://github.com/openresponses/openresponses. Its own runner comes with no package; the requests and conditions below
are those of its seven core tests (`image-input` is one of them) and of its 22 models of events, as the package
openresponses-types has them.
"""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import openresponses_types.types as models
import pytest
from asgi_servers import serve
from dialect_tools import whatwg
from msgspec.structs import replace
from pictures import png
from raw_client import ask

from chat_nest import BALANCED, create_chat_handler
from chat_nest.core.deltas import FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.core.errors import UpstreamIdle
from chat_nest.core.usage import Usage
from chat_nest.testing import ScriptedProvider as Scripted
from chat_nest.testing import Step, answer

EVENTS = {
    next(iter(model.model_fields["type"].annotation)).value: model
    for name, model in vars(models).items()
    if name.endswith("StreamingEvent")
}
"""The models of the events by their type."""
PROFILE = replace(BALANCED, model="p:gpt-4o-mini", allow_tools=True, allow_images=True, allow_system_prompt=True)
USED = [FinishDelta("stop"), UsageDelta(Usage(input_tokens=9, output_tokens=20))]
TEXT = answer("Ahoy ", "there ", "matey", input_tokens=9)
CALL: list[Step] = [
    [ToolCallDelta(0, '{"location":', "call-a", "get_weather"), ToolCallDelta(0, '"San Francisco, CA"}')],
    [FinishDelta("tool_calls"), UsageDelta(Usage(input_tokens=9, output_tokens=20))],
]
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a place",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
}


def said(role: str, content: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content}


HEART = {"type": "input_image", "image_url": f"data:image/png;base64,{b64encode(png(32, 32)).decode()}"}
CORE: dict[str, tuple[list[Step], dict[str, Any]]] = {
    "basic-response": (TEXT, {"input": [said("user", "Say hello in three words.")]}),
    "streaming-response": (TEXT, {"input": [said("user", "Count from 1 to 5.")], "stream": True}),
    "system-prompt": (TEXT, {"input": [said("system", "You are a pirate."), said("user", "Say hello.")]}),
    "tool-calling": (CALL, {"input": [said("user", "How is the weather?")], "tools": [WEATHER]}),
    "tool-calling-streaming": (
        CALL,
        {"input": [said("user", "How is the weather?")], "tools": [WEATHER], "stream": True},
    ),
    "image-input": (TEXT, {"input": [said("user", [{"type": "input_text", "text": "What is it?"}, HEART])]}),
    "multi-turn": (
        TEXT,
        {"input": [said("user", "I am Alice."), said("assistant", "Hello Alice!"), said("user", "Who am I?")]},
    ),
}


async def answered(script: list[Step], body: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the final object and the events, which are valid by the schema."""
    handler = create_chat_handler(
        providers={"p": Scripted(script)}, profiles={"balanced": PROFILE}, dialects=("responses",)
    )
    async with serve(handler) as port:
        reply = await ask(port, {"model": "balanced", **body}, path="/v1/responses")
        assert reply.status == 200, reply.raw
        if not body.get("stream"):
            return await reply.json(), []
    events = [json.loads(event.data) for event in whatwg(reply.raw)]
    for event in events:
        EVENTS[event["type"]].model_validate_json(json.dumps(event), strict=True)
    return events[-1].get("response", {}), events


@pytest.mark.parametrize("test", CORE)
async def test_the_core_of_compliance(test: str) -> None:
    script, body = CORE[test]
    response, events = await answered(script, body)
    models.ResponseResource.model_validate_json(json.dumps(response), strict=True)
    assert response["output"]
    assert response["status"] == "completed"
    assert bool(events) == bool(body.get("stream"))
    if "tools" in body:
        [call] = response["output"]
        assert (call["type"], json.loads(call["arguments"])) == ("function_call", {"location": "San Francisco, CA"})
    if "tools" in body and events:
        kinds = [event["type"] for event in events]
        assert "response.function_call_arguments.delta" in kinds
        assert "response.function_call_arguments.done" in kinds
        items = [event["item"]["type"] for event in events if event["type"].startswith("response.output_item.")]
        assert items == ["function_call", "function_call"]


THOUGHT: list[Step] = [[ReasoningDelta("Hm, ")], [ReasoningDelta("Bonn.")], [TextDelta("Bonn")], USED]
OTHERS: dict[str, list[Step]] = {
    "reasoning": THOUGHT,
    "text and calls": [[TextDelta("Let me see")], *CALL],
    "length": [[TextDelta("Bo")], [FinishDelta("length")]],
    "filtered": [[TextDelta("Bo")], [FinishDelta("content_filter")]],
    "failed": [[TextDelta("Bo")], UpstreamIdle()],
    "nothing": [USED],
}


WAYS = [(kind, stream) for kind in OTHERS for stream in (True, False) if stream or kind != "failed"]
"""A whole answer that failed has no object."""


@pytest.mark.parametrize(("kind", "stream"), WAYS)
async def test_every_other_answer_is_valid(kind: str, stream: bool) -> None:
    response, _ = await answered(OTHERS[kind], {"input": "Where?", "stream": stream})
    models.ResponseResource.model_validate_json(json.dumps(response), strict=True)
