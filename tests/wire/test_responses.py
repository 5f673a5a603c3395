"""Responses over real sockets: each event and object is as OpenAI's own document has it; what is kept comes back."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgi_servers import serve
from dialect_tools import whatwg
from msgspec.structs import replace
from openai_schemas import flaws
from raw_client import JSON, ask, connect, settled
from scripted_provider import DONE, HANG, ScriptedProvider, answer, chunk, delta, failure, finish, stream, usage

from chat_nest import BALANCED, create_chat_handler
from chat_nest.core.messages import Caller
from chat_nest.providers.responses import ResponsesProvider

PATH = "/v1/responses"
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
TOOLS = {"input": "Cold?", "tools": [WEATHER]}


def call(index: int, arguments: str, id: str = "", name: str = "") -> bytes:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    piece = {"index": index, "function": function, **({"id": id, "type": "function"} if id else {})}
    return delta({"tool_calls": [piece]})


CALLS = stream(
    delta({"reasoning_content": "Hm."}),
    chunk("Let me "),
    chunk("see."),
    call(0, '{"ci', "call-a", "weather"),
    call(0, 'ty":"Bonn"}'),
    call(1, "", "call-b", "weather"),
    finish("tool_calls"),
    usage(9, 20),
    DONE,
)
ANSWERS = {
    "text": (answer("Hello ", 3, input_tokens=9), "completed"),
    "calls": (CALLS, "completed"),
    "refusal": (stream(delta({"refusal": "I can't."}), finish(), usage(9, 3), DONE), "completed"),
    "length": (stream(chunk("Hel"), finish("length"), usage(9, 3), DONE), "incomplete"),
    "filtered": (stream(chunk("Hel"), finish("content_filter"), usage(9, 3), DONE), "incomplete"),
    "nothing": (stream(finish(), usage(9, 0), DONE), "completed"),
    "cut": (stream(chunk("Hel"), call(0, '{"ci', "call-a", "weather")), "failed"),
}


def who(scope: Any) -> Caller:
    return Caller(id=dict(scope["headers"]).get(b"x-who", b"ada").decode())


@asynccontextmanager
async def chat(*scripts: Any, limits: dict[str, Any] | None = None, **more: Any):
    async with ScriptedProvider(*scripts) as provider:
        profile = replace(BALANCED, allow_tools=True, allow_system_prompt=True, **(limits or {}))
        handler = create_chat_handler(
            base_url=provider.url,
            api_key="k",
            profiles={"balanced": profile},
            identify=who,
            dialects=("responses", "openai"),
            **more,
        )
        async with serve(handler) as port:
            yield provider, port


async def call_(port: int, method: str, path: str, **headers: str):
    async with connect(port) as client:
        reply = await client.request(method, path, b"" if method == "POST" else None, headers={**JSON, **headers})
        await reply.body()
        return reply


def events(raw: bytes) -> list[dict[str, Any]]:
    """The events, each of which is in order and as OpenAI's document has it."""
    found: list[dict[str, Any]] = []
    for seen in whatwg(raw):
        data = json.loads(seen.data)
        assert seen.name == data["type"]
        assert not flaws("ResponseStreamEvent", data), data
        found.append(data)
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    return found


def without_times(response: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in response.items() if name not in ("created_at", "completed_at")}


@pytest.mark.parametrize("name", ANSWERS)
async def test_each_event_and_object_is_as_openai_has_it(name):
    script, status = ANSWERS[name]
    async with chat(script) as (_, port):
        reply = await ask(port, {**TOOLS, "stream": True, "metadata": {"a": "b"}}, path=PATH)
        assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream")
        told = events(reply.raw)
        assert [each["type"] for each in told[:2]] == ["response.created", "response.in_progress"]
        assert told[-1]["type"] == f"response.{status}"
        final = told[-1]["response"]
        assert (final["status"], final["metadata"]) == (status, {"a": "b"})
        done = [each["item"] for each in told if each["type"] == "response.output_item.done"]
        if status != "failed":
            assert done == final["output"]
            assert final["usage"]["input_tokens"] == 9
        else:
            assert not [item for item in done if item["type"] == "function_call"], "a client would run it"
            assert told[-2]["type"] == "error"
        for response in (each["response"] for each in told if "response" in each):
            assert set(response) == set(final), "every field, from the first event on"
        texts = "".join(each["delta"] for each in told if each["type"] == "response.output_text.delta")
        written = "".join(part["text"] for item in final["output"] for part in item.get("content", ()))
        assert texts == written
        again = await call_(port, "GET", f"{PATH}/{final['id']}")
        assert again.status == 200
        assert not flaws("Response", await again.json())
        assert await again.json() == final

        whole = await ask(port, {**TOOLS, "metadata": {"a": "b"}}, path=PATH)
    if status == "failed":
        assert whole.status == 424, "it may have been billed, so no client repeats it"
        assert not flaws("ErrorResponse", await whole.json())
    else:
        said = await whole.json()
        assert not flaws("Response", said)
        assert [item["type"] for item in said["output"]] == [item["type"] for item in final["output"]]
        assert set(said) == set(final)


async def test_a_call_without_arguments_has_an_empty_object():
    async with chat(CALLS) as (_, port):
        told = events((await ask(port, {**TOOLS, "stream": True}, path=PATH)).raw)
    calls = [item for item in told[-1]["response"]["output"] if item["type"] == "function_call"]
    assert [item["arguments"] for item in calls] == ['{"city":"Bonn"}', "{}"]
    for item in calls:
        pieces = [each for each in told if each["type"] == "response.function_call_arguments.delta"]
        assert "".join(each["delta"] for each in pieces if each["item_id"] == item["id"]) == item["arguments"]


@pytest.mark.parametrize("stream_", [True, False])
@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (failure(401), 502, "upstream_auth"),
        (failure(429, retry_after="60"), 503, "upstream_rate_limited"),
        (failure(400), 502, "upstream_rejected"),
    ],
)
async def test_an_error_before_the_stream(script, status, code, stream_):
    async with chat(script) as (_, port):
        reply = await ask(port, {"input": "Hi", "stream": stream_}, path=PATH)
    said = await reply.json()
    assert (reply.status, said["error"]["code"]) == (status, code)
    assert not flaws("ErrorResponse", said)


# Chat Completions, by the same document.


@pytest.mark.parametrize("name", ANSWERS)
async def test_chat_completions_are_as_openai_has_them(name):
    script, status = ANSWERS[name]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    body = {"messages": [{"role": "user", "content": "Cold?"}], "tools": tools}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with chat(script) as (_, port):
        streamed = await ask(port, {**body, **options}, path="/v1/chat/completions")
        whole = await ask(port, body, path="/v1/chat/completions")
        models = await call_(port, "GET", "/v1/models")
        model = await call_(port, "GET", "/v1/models/balanced")
    *chunks, last = [seen.data for seen in whatwg(streamed.raw)]
    assert (last == "[DONE]") is (status != "failed")
    for each in chunks:
        assert not flaws("CreateChatCompletionStreamResponse", json.loads(each)), each
    if status == "failed":
        assert not flaws("ErrorResponse", json.loads(last))
        assert not flaws("ErrorResponse", await whole.json())
    else:
        assert not flaws("CreateChatCompletionResponse", await whole.json())
    assert not flaws("ListModelsResponse", await models.json())
    assert not flaws("Model", await model.json())


# What reaches the model.


@pytest.mark.parametrize("name", ["summary", "generate_summary"])
async def test_a_summary_of_the_reasoning_is_requested_and_relayed(name):
    def event(kind, **fields):
        return f"data: {json.dumps({'type': f'response.{kind}', **fields})}\n\n".encode()

    at = {"output_index": 0, "item_id": "rs_0", "summary_index": 0}
    script = stream(
        event("reasoning_summary_text.delta", **at, delta="Hm."),
        event("output_text.delta", output_index=1, item_id="m", delta="Hi"),
        event("completed", response={"status": "completed", "usage": {"input_tokens": 9, "output_tokens": 3}}),
    )
    async with ScriptedProvider(script) as server:
        handler = create_chat_handler(
            providers={"p": ResponsesProvider("k", server.url)},
            profiles={"balanced": replace(BALANCED, model="p:gpt-5")},
            dialects=("responses",),
        )
        async with serve(handler) as port:
            reply = await ask(port, {"input": "Hi", "reasoning": {name: "concise"}, "stream": False}, path=PATH)
        (sent,) = [request.json() for request in server.requests]
    assert sent["reasoning"] == {"summary": "concise"}
    found = await reply.json()
    assert found["reasoning"]["summary"] == "concise"
    assert found["output"][0]["summary"] == [{"type": "summary_text", "text": "Hm."}]


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
@pytest.mark.parametrize("summary", ["Hm.", ""], ids=["summary", "none"])
async def test_encrypted_reasoning_goes_back_to_the_provider_that_made_it(summary, whole):
    def event(kind, **fields):
        return f"data: {json.dumps({'type': f'response.{kind}', **fields})}\n\n".encode()

    usage = {"input_tokens": 9, "output_tokens": 3}
    thought = {"type": "reasoning", "id": "rs_theirs", "encrypted_content": "gAAAAsecret"}
    thought["summary"] = [{"type": "summary_text", "text": summary}] if summary else []
    call = {"type": "function_call", "id": "fc_theirs", "call_id": "c1", "name": "weather", "arguments": "{}"}
    at = {"output_index": 0, "item_id": "rs_theirs", "summary_index": 0}
    said = [event("reasoning_summary_text.delta", **at, delta=summary)] if summary else []
    script = stream(
        *said,
        event("output_item.done", output_index=0, item=thought),
        event("output_item.added", output_index=1, item={**call, "arguments": ""}),
        event("output_item.done", output_index=1, item=call),
        event("completed", response={"status": "completed", "usage": usage, "output": [thought, call]}),
    )
    body = {
        "model": "balanced",
        "store": False,
        "stream": not whole,
        "tools": [WEATHER],
        "include": ["reasoning.encrypted_content"],
    }
    user = {"role": "user", "content": "Cold?"}
    async with ScriptedProvider(script) as server:
        handler = create_chat_handler(
            providers={"p": ResponsesProvider("k", server.url)},
            profiles={"balanced": replace(BALANCED, model="p:gpt-5", allow_tools=True, tokens_per_request=None)},
            dialects=("responses", "openai", "anthropic"),
        )
        async with serve(handler) as port:
            reply = await ask(port, {**body, "input": [user]}, path=PATH)
            found = json.loads(reply.raw) if whole else json.loads(reply.raw.rsplit(b"data: ", 1)[1])["response"]
            result = {"type": "function_call_output", "call_id": "c1", "output": "19"}
            turn = [user, *found["output"], result]
            await ask(port, {**body, "input": turn}, path=PATH)
            await ask(port, {**body, "input": [*turn, {"role": "assistant", "content": "No."}, user]}, path=PATH)
            await ask(
                port, {**{name: value for name, value in body.items() if name != "include"}, "input": [user]}, path=PATH
            )
            other = {"messages": [user], "max_tokens": 50, "stream": not whole}
            others = [await ask(port, other, path=path) for path in ("/v1/chat/completions", "/v1/messages")]
        first, again, later, without = [request.json() for request in server.requests[:4]]
    assert [item["type"] for item in found["output"]] == ["reasoning", "function_call"]
    assert found["output"][0]["encrypted_content"] == "gAAAAsecret"
    assert not flaws("Response", found)
    assert first["include"] == ["reasoning.encrypted_content"]
    assert "include" not in without
    assert [(each.status, b"gAAAAsecret" in each.raw) for each in others] == [(200, False)] * 2
    assert again["input"][1:] == [
        {"type": "reasoning", "summary": thought["summary"], "encrypted_content": "gAAAAsecret"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "19"},
    ]
    assert "reasoning" not in [item.get("type") for item in later["input"]], "an earlier turn's is not needed"


async def test_items_become_messages():
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Cold?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "id": "fc_2", "call_id": "b", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "19"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "20"}]},
    ]
    body = {
        "input": items,
        "instructions": "Be kind.",
        "tools": [{**WEATHER, "strict": True}],
        "max_output_tokens": 50,
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
        "top_p": 0.5,
        "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}},
    }
    async with chat(answer("Hi")) as (provider, port):
        said = await (await ask(port, body, path=PATH)).json()
        asked = provider.requests[0].json()
    calls = [{"id": id, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for id in "ab"]
    assert asked["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Cold?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "content": "19", "tool_call_id": "a"},
        {"role": "tool", "content": "20", "tool_call_id": "b"},
    ]
    assert asked["tools"][0]["function"]["strict"] is True
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert (asked["parallel_tool_calls"], asked["top_p"], asked["max_tokens"]) == (False, 0.5, 50)
    assert asked["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert not flaws("Response", said)
    assert (said["instructions"], said["text"]["format"]["name"]) == ("Be kind.", "a")
    assert (said["temperature"], said["max_output_tokens"]) == (0.7, 50), "what holds, not what is usual"


async def test_only_allowed_tools_are_sent_to_the_model():
    other = {**WEATHER, "name": "clock"}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "clock"}]}
    async with chat(answer("Hi")) as (provider, port):
        await ask(port, {"input": "Hi", "tools": [WEATHER, other], "tool_choice": choice}, path=PATH)
        asked = provider.requests[0].json()
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["clock"]
    assert asked["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *(
            ({"tools": [{"type": kind}]}, "tools[0].type")
            for kind in ("web_search", "web_search_preview_2025_03_11", "file_search", "mcp", "custom", "no_such")
        ),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include[0]"),
        ({"truncation": "never"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].image_url",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "1"}]}, "input[0]"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"reasoning": {"effort": "all"}}, "reasoning.effort"),
    ],
)
async def test_unsupported_fields_are_refused_by_name(fields, param):
    async with chat(answer("Hi")) as (provider, port):
        reply = await ask(port, {"input": "Hi", **fields}, path=PATH)
        said = await reply.json()
        assert (reply.status, said["error"]["param"]) == (400, param)
        assert not provider.requests
    if fields.get("tools", [{}])[0].get("type", "no_such") != "no_such":
        assert "is not offered here" in said["error"]["message"]


async def test_a_long_conversation_is_refused_where_it_may_not_be_trimmed():
    items = [{"role": role, "content": "x"} for role in ("user", "assistant") * 5] + [{"role": "user", "content": "y"}]
    async with chat(answer("Hi"), limits={"max_messages": 6}) as (provider, port):
        trimmed = await (await ask(port, {"input": items}, path=PATH)).json()
        assert trimmed["truncation"] == "auto"
        assert len(provider.requests[0].json()["messages"]) < len(items)
        refused = await ask(port, {"input": items, "truncation": "disabled"}, path=PATH)
        assert (refused.status, (await refused.json())["error"]["param"]) == (400, "input")
        assert len(provider.requests) == 1


# What is kept.


async def test_a_conversation_continues_from_a_kept_answer():
    async with chat(CALLS, answer("19 degrees")) as (provider, port):
        first = await (await ask(port, {**TOOLS, "instructions": "Be kind."}, path=PATH)).json()
        assert first["store"] is True
        outputs = [{"type": "function_call_output", "call_id": id, "output": "19"} for id in ("call-a", "call-b")]
        body = {"input": outputs, "previous_response_id": first["id"], "tools": [WEATHER]}
        second = await (await ask(port, body, path=PATH)).json()
        assert second["previous_response_id"] == first["id"]
        roles = [message["role"] for message in provider.requests[1].json()["messages"]]
        assert roles == ["user", "assistant", "tool", "tool"], "without the instructions of the time before"
        again = await ask(port, {"input": "Sure?", "previous_response_id": second["id"]}, path=PATH)
        assert again.status == 200
        roles = [message["role"] for message in provider.requests[2].json()["messages"]]
        assert roles == ["user", "assistant", "tool", "tool", "assistant", "user"]


async def test_items_of_kept_answers_can_be_referred_to():
    async with chat(CALLS, answer("19 degrees")) as (provider, port):
        first = await (await ask(port, TOOLS, path=PATH)).json()
        items = [{"role": "user", "content": "Cold?"}]
        items += [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
        items += [{"type": "function_call_output", "call_id": id, "output": "19"} for id in ("call-a", "call-b")]
        assert (await ask(port, {"input": items}, path=PATH)).status == 200
        said = provider.requests[1].json()["messages"]
        assert [message["role"] for message in said] == ["user", "assistant", "tool", "tool"]
        assert len(said[1]["tool_calls"]) == 2
        eves = await ask(port, {"input": items}, path=PATH, headers={**JSON, "x-who": "eve"})
        assert (eves.status, (await eves.json())["error"]["param"]) == (400, "input[1].id")


@pytest.mark.parametrize("store", [True, False])
async def test_store_in_the_answer_is_the_value_in_force(store):
    async with chat(answer("Hi")) as (_, port):
        said = await (await ask(port, {"input": "Hi", "store": store}, path=PATH)).json()
        assert said["store"] is store
        assert (await call_(port, "GET", f"{PATH}/{said['id']}")).status == (200 if store else 404)
        on = await ask(port, {"input": "On", "previous_response_id": said["id"]}, path=PATH)
        assert on.status == (200 if store else 404)
        if not store:
            assert (await on.json())["error"]["code"] == "previous_response_not_found"


async def test_a_kept_answer_is_its_callers_alone():
    async with chat(answer("Hi")) as (_, port):
        said = await (await ask(port, {"input": "Hi"}, path=PATH)).json()
        path = f"{PATH}/{said['id']}"
        eve = {"x-who": "eve"}
        for method, below in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
            reply = await call_(port, method, path + below, **eve)
            assert reply.status == 404
            assert not flaws("ErrorResponse", await reply.json())
        assert (await call_(port, "GET", f"{path}?stream=true", **eve)).status == 404
        on = await ask(port, {"input": "On", "previous_response_id": said["id"]}, path=PATH, headers={**JSON, **eve})
        assert on.status == 404
        assert (await call_(port, "GET", path)).status == 200


async def test_input_items_are_listed_in_pages():
    items = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    async with chat(answer("Hi")) as (_, port):
        said = await (await ask(port, {"input": items}, path=PATH)).json()
        path = f"{PATH}/{said['id']}/input_items"
        newest = await (await call_(port, "GET", path)).json()
        assert not flaws("ResponseItemList", newest)
        assert [item["content"][0]["text"] for item in newest["data"]] == ["c", "b", "a"]
        page = await (await call_(port, "GET", f"{path}?order=asc&limit=2")).json()
        assert ([item["role"] for item in page["data"]], page["has_more"]) == (["user", "assistant"], True)
        rest = await (await call_(port, "GET", f"{path}?order=asc&limit=2&after={page['last_id']}")).json()
        assert ([item["role"] for item in rest["data"]], rest["has_more"]) == (["user"], False)
        assert (await call_(port, "GET", f"{path}?limit=x")).status == 400


async def test_a_deleted_answer_is_gone():
    async with chat(answer("Hi")) as (_, port):
        said = await (await ask(port, {"input": "Hi"}, path=PATH)).json()
        path = f"{PATH}/{said['id']}"
        gone = await call_(port, "DELETE", path)
        assert (gone.status, (await gone.json())["deleted"]) == (200, True)
        assert (await call_(port, "GET", path)).status == 404
        assert (await call_(port, "DELETE", path)).status == 404


@pytest.mark.parametrize("policy", ["cancel", "finish"])
async def test_a_reader_continues_after_its_last_event(policy):
    go_on = asyncio.Event()
    script = stream(chunk("one "), chunk("two "), go_on, chunk("three"), finish(), usage(9, 3), DONE)
    async with chat(script, limits={"on_disconnect": policy}) as (provider, port), connect(port) as client:
        reply = await client.post({"input": "Hi", "stream": True}, path=PATH)
        while b"two " not in reply.raw:
            await reply.piece()
        id = json.loads(whatwg(reply.raw)[0].data)["response"]["id"]
        halfway = await (await call_(port, "GET", f"{PATH}/{id}")).json()
        assert halfway["status"] == "in_progress"
        assert not flaws("Response", halfway)
        assert (await call_(port, "DELETE", f"{PATH}/{id}")).status == 400
        if policy == "finish":
            client.reset()
        go_on.set()
        back = await call_(port, "GET", f"{PATH}/{id}?stream=true&starting_after=5")
        everything = await call_(port, "GET", f"{PATH}/{id}?stream=true")
        told = events(everything.raw)
        assert told[-1]["type"] == "response.completed"
        assert [json.loads(seen.data) for seen in whatwg(back.raw)] == told[6:]
        assert provider.opened == 1


@pytest.mark.parametrize("store", [True, False])
async def test_cancel_ends_the_stream_closes_the_provider_and_returns_the_partial_answer(store):
    async with chat(stream(chunk("one "), HANG)) as (provider, port), connect(port) as client:
        reply = await client.post({"input": "Hi", "stream": True, "store": store}, path=PATH)
        while b"one " not in reply.raw:
            await reply.piece()
        id = json.loads(whatwg(reply.raw)[0].data)["response"]["id"]
        assert (await call_(port, "POST", f"{PATH}/{id}/cancel", **{"x-who": "eve"})).status == 404
        cancelled = await call_(port, "POST", f"{PATH}/{id}/cancel")
        said = await cancelled.json()
        assert (cancelled.status, said["status"]) == (200, "cancelled")
        assert not flaws("Response", said)
        await provider.closed(0)
        await reply.body()
        told = events(reply.raw)
        assert [each["type"] for each in told[-2:]] == ["error", "response.failed"]
        assert (told[-2]["code"], told[-1]["response"]["status"]) == ("stopped", "cancelled")
        if store:
            assert said["output"][0]["content"][0]["text"] == "one "
            assert said["output"][0]["status"] == "incomplete"
        assert 0 < (await settled(port))["tokens_per_day"]["used"] < 100


@pytest.mark.parametrize("store", [True, False])
async def test_leaving_closes_the_provider_whether_it_is_kept_or_not(store):
    async with chat(stream(chunk("one "), HANG)) as (provider, port):
        async with connect(port) as client:
            reply = await client.post({"input": "Hi", "stream": True, "store": store}, path=PATH)
            while b"one " not in reply.raw:
                await reply.piece()
            client.reset()
        await provider.closed(0)
        assert 0 < (await settled(port))["tokens_per_day"]["used"] < 100


async def test_other_paths_and_methods_below_it():
    async with chat(answer("Hi")) as (_, port):
        for method, path, status in (
            ("GET", PATH, 405),
            ("PUT", f"{PATH}/resp_{'a' * 24}", 405),
            ("GET", f"{PATH}/resp_{'a' * 24}/cancel", 405),
            ("GET", f"{PATH}/resp_{'a' * 24}/other", 404),
            ("GET", f"{PATH}/other", 404),
        ):
            reply = await call_(port, method, path)
            assert reply.status == status, path
            assert not flaws("ErrorResponse", await reply.json())


async def test_a_request_with_the_same_key_reads_the_same_answer():
    go_on = asyncio.Event()
    body, key = {"input": "Hi", "stream": True}, {**JSON, "idempotency-key": "k-1"}
    script = stream(chunk("one "), go_on, chunk("two"), finish(), usage(9, 3), DONE)
    async with chat(script) as (provider, port), connect(port) as client:
        reply = await client.post(body, path=PATH, headers=key)
        while b"one " not in reply.raw:
            await reply.piece()
        again = asyncio.create_task(ask(port, body, path=PATH, headers=key))
        async with connect(port) as other:
            second = await other.post(body, path=PATH, headers=key)
            while b"one " not in second.raw:
                await second.piece()
            go_on.set()
            await second.body()
        await reply.body()
        told = events(reply.raw)
        assert events(second.raw) == events((await again).raw) == told
        assert told[-1]["response"]["output"][0]["content"][0]["text"] == "one two"
        assert provider.opened == 1


async def test_a_page_of_another_origin_deletes_and_cancels_nothing():
    async with chat(answer("Hi"), origins=["https://mine.example"]) as (_, port):
        said = await (
            await ask(port, {"input": "Hi"}, path=PATH, headers={**JSON, "origin": "https://mine.example"})
        ).json()
        path = f"{PATH}/{said['id']}"
        for method, below in (("DELETE", ""), ("POST", "/cancel")):
            assert (await call_(port, method, path + below, origin="https://other.example")).status == 403
            assert (await call_(port, method, path + below, origin="https://mine.example")).status in (200, 404)
