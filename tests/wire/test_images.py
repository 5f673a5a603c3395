"""Images and files from every wire format to every kind of provider, over real sockets.

The bodies are what clients send: openai-python and the AI SDK (`image_url`, `file`), Responses (`input_image`,
`input_file`), Claude Code (`image` and `document` in messages and tool results,
https://platform.claude.com/docs/en/build-with-claude/vision), useChat (`file` parts), AG-UI
(https://docs.ag-ui.com/sdk/js/core/multimodal-inputs).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from asgi_servers import serve
from msgspec.structs import replace
from pictures import base64, gif, jpeg, pdf, png, url, webp
from raw_client import Reply, ask, connect, settled
from scripted_provider import Request, ScriptedProvider, Step, answer, piece, head, END

from chat_nest import BALANCED, create_chat_handler
from chat_nest.core.protocols import Provider
from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.providers.gemini import GeminiProvider
from chat_nest.providers.ollama import OllamaProvider
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers.responses import ResponsesProvider

DIALECTS = ("native", "openai", "responses", "ai_sdk", "ag_ui", "anthropic")
PNG, PDF = png(640, 480), pdf(2)
Json = dict[str, Any]


def events(*values: Json) -> bytes:
    return b"".join(b"event: x\ndata: %b\n\n" % json.dumps(value).encode() for value in values)


def script(body: bytes, media_type: str = "text/event-stream") -> list[Step]:
    return [head(content_type=media_type), piece(body), END]


ANTHROPIC = script(
    events(
        {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    )
)
COUNTS = {"promptTokenCount": 5, "candidatesTokenCount": 1}
GEMINI = script(
    events({"candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}], "usageMetadata": COUNTS})
)
LAST = {"message": {"content": "Hi"}, "done": True, "done_reason": "stop", "prompt_eval_count": 5, "eval_count": 1}
OLLAMA = script(json.dumps(LAST).encode() + b"\n", "application/x-ndjson")


class Kind:
    """A kind of provider: `found` are the media types and the base64 of what a request of its format brings."""

    def __init__(self, make: Callable[[str], Provider], model: str, answer: list[Step]) -> None:
        self.make, self.model, self.answer = make, model, answer


DONE = {"type": "response.completed", "response": {"usage": {"input_tokens": 5, "output_tokens": 1}}}
RESPONSES = script(events({"type": "response.output_text.delta", "output_index": 0, "delta": "Hi"}, DONE))
KINDS = {
    "responses": Kind(lambda url: ResponsesProvider("k", url), "gpt-5-mini", RESPONSES),
    "openai": Kind(lambda url: OpenAIProvider("k", url), "gpt-4o", answer("Hi")),
    "anthropic": Kind(lambda url: AnthropicProvider("k", url.removesuffix("/v1")), "claude-sonnet-4-5", ANTHROPIC),
    "gemini": Kind(lambda url: GeminiProvider("k", url), "gemini-2.5-flash", GEMINI),
    "ollama": Kind(lambda url: OllamaProvider(None, url.removesuffix("/v1")), "llava", OLLAMA),
}


def sent(kind: str, request: Request) -> list[Any]:
    """What a provider got, in its words, turned into texts and (media type, base64) pairs in their order."""
    body = request.json()

    def read(part: Any) -> Any:
        if isinstance(part, str):
            return part
        if "text" in part:
            return part["text"]
        match kind:
            case "responses":
                return tuple((part.get("image_url") or part["file_data"]).removeprefix("data:").split(";base64,"))
            case "openai" if part["type"] == "image_url":
                return tuple(part["image_url"]["url"].removeprefix("data:").split(";base64,"))
            case "openai":
                return tuple(part["file"]["file_data"].removeprefix("data:").split(";base64,"))
            case "anthropic" if part["type"] == "tool_result":
                return [read(each) for each in part["content"]]
            case "anthropic":
                assert part["type"] == ("document" if part["source"]["media_type"] == "application/pdf" else "image")
                return part["source"]["media_type"], part["source"]["data"]
            case _:
                return part["inlineData"]["mimeType"], part["inlineData"]["data"]

    if kind == "gemini":
        return [read(part) for part in body["contents"][-1]["parts"]]
    message = body["input"][-1] if kind == "responses" else body["messages"][-1]
    if kind == "ollama":
        return [message["content"], *(("image/png", image) for image in message.get("images", []))]
    content = message["content"]
    return [content] if isinstance(content, str) else [read(part) for part in content]


def user(path: str, *said: Any) -> Json:
    """A body of the format at `path`: texts, and bytes of a PNG or a PDF."""
    files = [each for each in said if isinstance(each, bytes)]
    assert files

    def part(each: str | bytes) -> Json:
        is_pdf = isinstance(each, bytes) and each.startswith(b"%PDF")
        kind = "application/pdf" if is_pdf else "image/png"
        match path, each:
            case "/v1/responses", str():
                return {"type": "input_text", "text": each}
            case "/v1/responses", bytes():
                if is_pdf:
                    return {"type": "input_file", "filename": "a.pdf", "file_data": url(each, kind)}
                return {"type": "input_image", "image_url": url(each), "detail": "auto"}
            case _, str():
                return {"type": "text", "text": each}
            case "/v1/messages", bytes():
                source = {"type": "base64", "media_type": kind, "data": base64(each)}
                return {"type": "document" if is_pdf else "image", "source": source}
            case "/api/ai", bytes():
                return {"type": "file", "mediaType": kind, "filename": "a", "url": url(each, kind)}
            case "/api/ag-ui", bytes():
                source = {"type": "data", "mimeType": kind, "value": base64(each)}
                return {"type": "document" if is_pdf else "image", "source": source}
            case _, bytes():
                if is_pdf:
                    return {"type": "file", "file": {"filename": "a.pdf", "file_data": url(each, kind)}}
                return {"type": "image_url", "image_url": {"url": url(each)}}
        raise AssertionError(path)

    parts = [part(each) for each in said]
    if path == "/v1/responses":
        return {"input": [{"role": "user", "content": parts}]}
    content = "parts" if path == "/api/ai" else "content"
    return {"messages": [{"id": "1", "role": "user", content: parts}], "max_tokens": 99}


PATHS = ("/api/chat", "/v1/chat/completions", "/v1/responses", "/api/ai", "/api/ag-ui", "/v1/messages")


@asynccontextmanager
async def chat(*kinds: str, **options: Any) -> AsyncIterator[tuple[int, Mapping[str, ScriptedProvider]]]:
    """A chat with a profile for each kind of provider, and these providers."""
    more = {"allow_images": True, "allow_tools": True, "allow_system_prompt": True, "requests_per_minute": None}
    more |= options.pop("limits", {})
    async with AsyncExitStack() as stack:
        served = {kind: await stack.enter_async_context(ScriptedProvider(KINDS[kind].answer)) for kind in kinds}
        profiles = {
            kind: replace(BALANCED, **{"name": kind, "open": True, "model": f"{kind}:{KINDS[kind].model}", **more})
            for kind in kinds
        }
        providers = {kind: KINDS[kind].make(provider.url) for kind, provider in served.items()}
        handler = create_chat_handler(
            profiles=profiles, default_profile=kinds[0], providers=providers, dialects=DIALECTS, **options
        )
        yield await stack.enter_async_context(serve(handler)), served


async def post(port: int, path: str, body: Json, kind: str = "") -> Reply:
    chosen: Json = {"profile": kind} if path in ("/api/chat", "/api/ai") else {"model": kind}
    if path == "/api/ag-ui":
        chosen = {"forwardedProps": {"profile": kind}}
    return await ask(port, {**body, **chosen} if kind else body, path=path)


@pytest.mark.parametrize("path", PATHS)
async def test_an_image_and_a_file_reach_every_provider_in_its_words_and_in_their_places(path: str) -> None:
    async with chat(*KINDS) as (port, served):
        for kind, provider in served.items():
            reply = await post(port, path, user(path, "Before", PNG, "After"), kind)
            assert reply.status == 200, (kind, reply.raw)
            got = sent(kind, provider.requests[0])
            image = ("image/png", base64(PNG))
            assert got == (["Before\nAfter", image] if kind == "ollama" else ["Before", image, "After"]), kind
            reply = await post(port, path, user(path, PDF, "What is it?"), kind)
            if kind == "ollama":
                assert (reply.status, b"takes no PDF" in reply.raw) == (400, True)
                continue
            assert reply.status == 200, (kind, reply.raw)
            assert sent(kind, provider.requests[1]) == [("application/pdf", base64(PDF)), "What is it?"], kind


@pytest.mark.parametrize("path", PATHS)
async def test_a_profile_without_images_refuses_a_new_one_by_name_and_calls_no_provider(path: str) -> None:
    async with chat("openai", limits={"allow_images": False}) as (port, served):
        reply = await post(port, path, user(path, "What is it?", PNG))
        assert reply.status == 400
        assert b"see allow_images of the profile" in reply.raw
        if path in ("/api/chat", "/v1/chat/completions", "/v1/responses"):
            assert b'"images_not_supported"' in reply.raw
        assert served["openai"].requests == []
        assert (await settled(port))["tokens_per_day"]["used"] == 0


HISTORY = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url(PNG)}}],
    },
    {"role": "user", "content": "Hello?"},
]


@pytest.mark.parametrize(
    ("limits", "picture"),
    [
        ({"allow_images": False}, url(PNG)),
        ({"model": "openai:gpt-3.5-turbo"}, url(PNG)),
        ({"max_image_bytes": 1_024}, url(png(padding=9_000))),
        ({}, "https://example.com/a.png"),
        ({}, "http://169.254.169.254/latest"),
        ({}, "data:image/png;base64,!"),
        ({}, url(b"<svg/>", "image/svg+xml")),
        ({"allow_image_urls": True, "model": "gemini:gemini-2.5-flash"}, "https://example.com/a.png"),
    ],
)
async def test_an_image_that_is_refused_once_becomes_a_text_in_the_next_turn(limits: Json, picture: str) -> None:
    kind = str(limits.get("model", "openai")).partition(":")[0]
    new = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "?"}],
    }
    async with chat(kind, limits=limits) as (port, served):
        reply = await ask(port, {"messages": [new]}, path="/v1/chat/completions")
        error = (await reply.json())["error"]
        assert (reply.status, error["param"]) == (400, "messages[0].content[0].image_url.url")
        assert picture not in str(error)
        again = {"messages": [new, {"role": "user", "content": "Hello?"}]}
        assert (await ask(port, again, path="/v1/chat/completions")).status == 200
        said = served[kind].requests[0].body.decode()
    assert "[An image stood here. It was left out.]" in said
    assert picture not in said


async def test_a_url_is_passed_on_where_the_profile_allows_it_and_never_fetched() -> None:
    async with (
        ScriptedProvider() as elsewhere,
        chat("openai", "anthropic", limits={"allow_image_urls": True}) as (port, served),
    ):
        there = "https://example.com/a.png?b=%22"
        body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": there}}]}]}
        for kind in served:
            assert (await post(port, "/v1/chat/completions", body, kind)).status == 200
        assert served["openai"].requests[0].json()["messages"][0]["content"][0]["image_url"] == {"url": there}
        source = served["anthropic"].requests[0].json()["messages"][0]["content"][0]["source"]
        assert source == {"type": "url", "url": there}
        assert elsewhere.opened == 0


async def test_the_type_of_an_image_is_read_from_its_first_bytes() -> None:
    """https://github.com/anthropics/claude-code/issues/35234: a wrong media type is a 400 of the provider's."""
    async with chat("anthropic") as (port, served):
        for data, kind in ((jpeg(9, 9), "image/jpeg"), (webp(9, 9, b"VP8X"), "image/webp"), (gif(9, 9), "image/gif")):
            assert (await post(port, "/v1/messages", user("/v1/messages", data))).status == 200
            assert sent("anthropic", served["anthropic"].requests[-1]) == [(kind, base64(data))]


CALLED = [
    {"role": "user", "content": "Look at a.png"},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "Read", "input": {"path": "a.png"}}]},
]


async def test_an_image_in_a_tools_result_reaches_every_provider() -> None:
    """What Claude Code sends when its Read tool opened a picture."""
    source = {"type": "base64", "media_type": "image/png", "data": base64(PNG)}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "image", "source": source}]}
    tool = {"name": "Read", "input_schema": {"type": "object"}}
    body = {"max_tokens": 99, "tools": [tool], "messages": [*CALLED, {"role": "user", "content": [result]}]}
    async with chat(*KINDS) as (port, served):
        for kind, provider in served.items():
            reply = await post(port, "/v1/messages", body, kind)
            assert reply.status == 200, (kind, reply.raw)
            request = provider.requests[0]
            assert base64(PNG).encode() in request.body
            if kind == "anthropic":
                assert sent(kind, request) == [[("image/png", base64(PNG))]]
            elif kind in ("openai", "ollama"):  # a tool's message is only text there
                assert [message["role"] for message in request.json()["messages"]][-2:] == ["tool", "user"]


async def test_a_body_with_images_is_larger_than_one_of_text_alone() -> None:
    large = [png(9, 9, padding=700_000), jpeg(30, 20, profile=1_000_000)]
    async with chat("anthropic") as (port, served):
        assert (await post(port, "/v1/messages", user("/v1/messages", "Compare", *large))).status == 200
        got = sent("anthropic", served["anthropic"].requests[0])
        assert got[1:] == [("image/png", base64(large[0])), ("image/jpeg", base64(large[1]))]
        words = {"messages": [{"role": "user", "content": "words " * 50_000}], "max_tokens": 9}
        reply = await post(port, "/v1/messages", words)
        assert (reply.status, b"prompt is too long" in reply.raw) == (400, True)


async def test_a_thread_with_too_many_or_too_large_images_continues_and_reports_dropped_ones() -> None:
    images = [png(9, 9, padding=40_000 + index) for index in range(5)]
    large = png(9, 9, padding=300_000)
    turns: list[Json] = []
    for data in (large, *images):
        turns += [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url(data)}}]},
            {"role": "assistant", "content": "Nice."},
        ]
    body = {"messages": [*turns, {"role": "user", "content": "Which was best?"}]}
    async with chat("openai", limits={"max_images": 3, "max_image_bytes": 100_000}) as (port, served):
        reply = await ask(port, body)
        assert json.loads(reply.raw.decode().split("event: done\ndata: ")[1].split("\n")[0])["dropped_images"] == 3
        sent_on = served["openai"].requests[0].body.decode()
    assert [base64(each) in sent_on for each in (large, *images)] == [False, False, False, True, True, True]
    assert sent_on.count("It was left out.") == 3


async def test_old_images_go_before_old_turns_when_a_request_has_no_room_for_them() -> None:
    turns: list[Json] = []
    for number in range(4):
        picture = {"type": "image_url", "image_url": {"url": url(png(1_024, 1_024))}}
        turns += [
            {"role": "user", "content": [{"type": "text", "text": f"Question {number}"}, picture]},
            {"role": "assistant", "content": f"Answer {number}"},
        ]
    body = {"messages": [*turns[:-1]]}
    limits = {"tokens_per_request": 2_400, "max_output_tokens": 200}  # 765 tokens an image
    async with chat("openai", limits=limits) as (port, served):
        reply = await ask(port, body)
        assert json.loads(reply.raw.decode().split("event: done\ndata: ")[1].split("\n")[0])["dropped_images"] == 2
        messages = served["openai"].requests[0].json()["messages"]
    assert len(messages) == 7
    assert ["image_url" in str(message) for message in messages if message["role"] == "user"] == [
        False,
        False,
        True,
        True,
    ]


async def test_images_are_reserved_before_the_answer_and_counted_for_the_caller() -> None:
    def prompt(width: int, height: int) -> Json:
        return user("/v1/messages", "Hi", png(width, height))

    async with chat("anthropic", "openai") as (port, served):
        for kind, size, tokens in (("anthropic", (1_000, 1_000), 1_304), ("openai", (1_024, 1_024), 765)):
            counts = []
            for body in (prompt(*size), {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}):
                reply = await post(port, "/v1/messages/count_tokens", body, kind)
                counts.append((await reply.json())["input_tokens"])
            assert counts[0] - counts[1] == tokens, kind
        assert all(provider.requests == [] for provider in served.values())


async def test_the_same_key_with_another_image_is_another_request() -> None:
    async with chat("openai") as (port, _):
        headers = {"content-type": "application/json", "idempotency-key": "k1"}
        first, second = (user("/api/chat", png(9, 9, padding=20_000 + each)) for each in range(2))
        assert (await ask(port, first, headers=headers)).status == 200
        assert (await ask(port, second, headers=headers)).status == 409
        assert (await ask(port, first, headers=headers)).status == 200


async def test_a_kept_answer_keeps_no_image() -> None:
    async with chat("openai") as (port, _):
        reply = await post(port, "/v1/responses", user("/v1/responses", "What is it?", PNG))
        id = (await reply.json())["id"]
        async with connect(port) as client:
            listed = await (await client.request("GET", f"/v1/responses/{id}/input_items")).json()
        assert listed["data"][0]["content"][0]["text"].endswith("[An image stood here. It was left out.]")
        body = {"input": "And now?", "previous_response_id": id}
        assert (await post(port, "/v1/responses", body)).status == 200


@pytest.mark.parametrize(
    ("part", "rule"),
    [
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "input_audio is not offered here"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "is not offered here"),
        ({"type": "file", "file": {"file_data": url(b"PK\3\4", "application/zip")}}, "must be a PNG, JPEG"),
    ],
)
async def test_attachments_that_no_provider_accepts_are_refused_by_name(part: Json, rule: str) -> None:
    async with chat("openai") as (port, served):
        reply = await ask(port, {"messages": [{"role": "user", "content": [part]}]}, path="/v1/chat/completions")
        assert (reply.status, rule in reply.raw.decode()) == (400, True)
        assert served["openai"].requests == []


@pytest.mark.parametrize(
    ("path", "turn", "field"),
    [
        (
            "/v1/messages",
            {"content": [{"type": "image", "source": {"type": "base64", "data": "AAAA", "media_type": {}}}]},
            "messages[0].content[0].source.media_type",
        ),
        (
            "/v1/messages",
            {"content": [{"type": "document", "source": {"data": "AAAA"}}]},
            "messages[0].content[0].source.type",
        ),
        (
            "/api/ai",
            {"id": "1", "parts": [{"type": "file", "mediaType": 7, "url": "https://a.example/b.png"}]},
            "messages[0].parts[0].mediaType",
        ),
    ],
)
async def test_a_media_type_or_a_source_of_another_kind_is_named(path: str, turn: Json, field: str) -> None:
    async with chat("openai") as (port, served):
        reply = await post(port, path, {"messages": [{"role": "user", **turn}], "max_tokens": 5}, "openai")
        assert (reply.status, field in reply.raw.decode()) == (400, True)
        assert served["openai"].requests == []


async def test_a_text_file_is_text() -> None:
    async with chat("openai") as (port, served):
        notes = url(b"Buy milk", "text/plain")
        part = {"type": "file", "mediaType": "text/plain", "filename": "notes.txt", "url": notes}
        body = {"messages": [{"id": "1", "role": "user", "parts": [part, {"type": "text", "text": "Sum up"}]}]}
        assert (await post(port, "/api/ai", body)).status == 200
        assert sent("openai", served["openai"].requests[0]) == ["notes.txt:\nBuy milk\nSum up"]
