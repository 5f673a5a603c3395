"""What chat-nest-server (npm, 1.1.1) answered to 52 requests, and what must be answered here.

An answer that was right stays right: a stream's events are equal byte for byte once the data of `start` and `done`,
which were empty, is taken out; a refusal has the same status and the same text in `error`. Where an answer differs on
purpose, the case says how, and docs/compatibility.md says why.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from asgi_servers import serve
from raw_client import HELLO, JSON, Reply, connect
from scripted_provider import (
    CLOSE,
    DONE,
    Script,
    ScriptedProvider,
    chunk,
    delta,
    failure,
    finish,
    stream,
    usage,
)

from chat_nest import Timeouts, create_chat_handler

COMPATIBILITY = Path(__file__).parents[2] / "docs" / "compatibility.md"

START, PING, DONE_EVENT = "event: start\ndata: \n\n", "event: ping\ndata: \n\n", "event: done\ndata: \n\n"
PAYLOAD = "Invalid messages payload"
TOO_LARGE = "Request too large. Please shorten your message."
NO_BUDGET = "Daily AI budget exceeded. Try again tomorrow."

JSON_TOKENS = ["5", '{"a":1}', '"quoted"', "null", "data: x", "event: done", ": c", "\\n", "[DONE]"]
LINE_TOKENS = ["line1\n", "line2\n\n", "\n", "a\r\nb", "\tindented", "end\n"]
SPACE_TOKENS = [" lead", "trail ", "   ", " ", "x"]
UNICODE_TOKENS = ["né", "日本語", "🎉👩\u200d👩\u200d👧", "\u2028", "\x00", "\ufb00", "e\u0301"]


def token(text: str) -> str:
    """A token event as JavaScript's JSON.stringify has it."""
    return f"event: token\ndata: {json.dumps(text, ensure_ascii=False)}\n\n"


def tokens(texts: Sequence[str]) -> str:
    return START + "".join(map(token, texts)) + DONE_EVENT


def toks(count: int) -> list[str]:
    return [f"tok{index} " for index in range(count)]


def error(message: str) -> str:
    return f'event: error\ndata: {{"message":{json.dumps(message)}}}\n\n'


def says(*texts: str, reason: str = "stop") -> Script:
    return stream(*(chunk(text) for text in texts), finish(reason), usage(5, len(texts)), DONE)


def crlf_split(*texts: str) -> Script:
    """The same answer with CRLF line ends, a few bytes a write, so that characters are cut too."""
    events = b"".join([*(chunk(text) for text in texts), finish(), usage(5, len(texts)), DONE])
    whole = events.replace(b"\n", b"\r\n")
    return stream(*(whole[at : at + 3] for at in range(0, len(whole), 3)))


def user(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


Page = Literal["html", "json", "none"]


@dataclass
class Said:
    """An answer: a stream's events, or a refusal's status, its text in `error`, and what its body is."""

    status: int = 200
    events: str = ""
    error: str | None = None
    page: Page = "none"


def refused(status: int, text: str | None = None) -> Said:
    return Said(status, error=text, page="json")


def page(status: int) -> Said:
    return Said(status, page="html")


@dataclass
class Case:
    name: str
    npm: Said
    body: object = field(default_factory=lambda: HELLO)
    ours: Said | None = None
    """None where it is the same."""
    method: str = "POST"
    path: str = "/api/chat"
    headers: dict[str, str] = field(default_factory=lambda: JSON)
    scripts: Callable[[asyncio.Event], list[Script]] = lambda _: [says("tok0 ")]
    """Given an event that is set when the first ping has come."""
    max_tokens: int | None = None
    """What the provider must be asked for."""


ONE = Said(events=tokens(["tok0 "]))
WORDS = "hello " * 5_000

CASES = [
    # Bodies.
    Case("bad_json", page(400), b'{"messages":[', ours=refused(400, PAYLOAD)),
    Case("body_array", refused(400, PAYLOAD), []),
    Case("empty_body", refused(400, PAYLOAD), b""),
    Case("json_null", page(400), b"null", ours=refused(400, PAYLOAD)),
    Case("json_scalar", page(400), b'"x"', ours=refused(400, PAYLOAD)),
    Case("no_content_type", page(500), headers={}, ours=refused(415)),
    Case("text_plain", page(500), headers={"content-type": "text/plain"}, ours=refused(415)),
    Case("too_big_body", page(413), user("x" * 400_000), ours=refused(413)),
    # Messages.
    Case("no_messages", refused(400, PAYLOAD), {}),
    Case("messages_not_array", refused(400, PAYLOAD), {"messages": "hello"}),
    Case("messages_object", refused(400, PAYLOAD), {"messages": {"role": "user", "content": "hello"}}),
    Case(
        "messages_empty",
        Said(
            events=START
            + error(
                "400 Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead."
            )
        ),
        {"messages": []},
        ours=refused(400, PAYLOAD),
    ),
    Case("messages_null_item", page(500), {"messages": [None]}, ours=refused(400, PAYLOAD)),
    Case("messages_string_item", Said(events=tokens(toks(5))), {"messages": ["hello"]}, ours=refused(400, PAYLOAD)),
    Case(
        "message_no_content", Said(events=tokens(toks(5))), {"messages": [{"role": "user"}]}, ours=refused(400, PAYLOAD)
    ),
    # Profiles and limits.
    Case("profile_constructor", page(500), {**HELLO, "profile": "constructor"}, ours=ONE, max_tokens=400),
    Case("profile_empty_string", ONE, {**HELLO, "profile": ""}, max_tokens=400),
    Case("profile_legacy_upper", ONE, {**HELLO, "profile": "BUDGET"}, max_tokens=150),
    Case("profile_null_falls_to_ai", ONE, {**HELLO, "profile": None, "aiUsageProfile": "constrained"}, max_tokens=150),
    Case("profile_number", ONE, {**HELLO, "profile": 7}, max_tokens=400),
    Case("profile_unknown", ONE, {**HELLO, "profile": "platinum"}, max_tokens=400),
    Case(
        "profile_wins_over_ai",
        ONE,
        {**HELLO, "profile": "constrained", "aiUsageProfile": "balanced"},
        max_tokens=150,
    ),
    Case("budget_zero", refused(429, NO_BUDGET), {**HELLO, "dailyTokenLimit": 0}, ours=refused(400)),
    Case("budget_nan_string", refused(429, NO_BUDGET), {**HELLO, "dailyTokenLimit": "abc"}, ours=refused(400)),
    Case("mtpr_nan_string", ONE, {**HELLO, "maxTokensPerRequest": "abc"}, ours=refused(400)),
    Case("mtpr_below_output", refused(429, TOO_LARGE), {**HELLO, "maxTokensPerRequest": 100}, ours=ONE),
    Case("request_just_fits", ONE, user(WORDS[:6_592]), max_tokens=400),
    Case("request_too_large", refused(429, TOO_LARGE), user(WORDS)),
    # HTTP.
    Case("get", page(404), None, ours=refused(405), method="GET"),
    Case("head", Said(404), None, ours=Said(405), method="HEAD"),
    Case("options_preflight", Said(204), None, ours=Said(204), method="OPTIONS"),
    Case("path_404", page(404), path="/api/chat/x", ours=refused(404)),
    Case("path_trailing_slash_case", ONE, path="/API/Chat/"),
    # Streams.
    Case("happy", Said(events=tokens(toks(3))), scripts=lambda _: [says(*toks(3))]),
    Case("happy_keepalive_conn", ONE, headers={**JSON, "connection": "keep-alive"}),
    Case("finish_length", Said(events=tokens(toks(2))), scripts=lambda _: [says(*toks(2), reason="length")]),
    Case("tokens_json", Said(events=tokens(JSON_TOKENS)), scripts=lambda _: [says(*JSON_TOKENS)]),
    Case("tokens_newlines", Said(events=tokens(LINE_TOKENS)), scripts=lambda _: [says(*LINE_TOKENS)]),
    Case("tokens_space", Said(events=tokens(SPACE_TOKENS)), scripts=lambda _: [says(*SPACE_TOKENS)]),
    Case("tokens_unicode", Said(events=tokens(UNICODE_TOKENS)), scripts=lambda _: [says(*UNICODE_TOKENS)]),
    Case("upstream_crlf_split", Said(events=tokens(UNICODE_TOKENS)), scripts=lambda _: [crlf_split(*UNICODE_TOKENS)]),
    Case(
        "heartbeat_16s",
        Said(events=START + PING + token("tok0 ") + DONE_EVENT),
        scripts=lambda pinged: [
            stream(delta({"role": "assistant"}), pinged, chunk("tok0 "), finish(), usage(5, 1), DONE)
        ],
    ),
    Case(
        "heartbeat_before_headers",
        Said(events=START + PING + token("tok0 ") + DONE_EVENT),
        scripts=lambda pinged: [[pinged, *stream(chunk("tok0 "), finish(), usage(5, 1), DONE)]],
    ),
    # The provider fails.
    Case(
        "upstream_401",
        Said(events=START + error("401 mock upstream error 401 for key sk-te*****key")),
        ours=refused(502),
        scripts=lambda _: [failure(401, "mock upstream error 401 for key sk-te*****key")],
    ),
    Case(
        "upstream_404",
        Said(events=START + error("404 mock upstream error 404 for key sk-te*****key")),
        ours=refused(502),
        scripts=lambda _: [failure(404, "mock upstream error 404 for key sk-te*****key")],
    ),
    Case(
        "upstream_429_retries",
        Said(events=START + error("429 mock upstream error 429 for key sk-te*****key")),
        ours=refused(503),
        scripts=lambda _: [failure(429, "mock upstream error 429 for key sk-te*****key")],
    ),
    Case(
        "upstream_500_retries",
        Said(events=START + error("500 mock upstream error 500 for key sk-te*****key")),
        ours=refused(502),
        scripts=lambda _: [failure(500, "mock upstream error 500 for key sk-te*****key")],
    ),
    Case("upstream_500_then_ok", ONE, scripts=lambda _: [failure(500), says("tok0 ")]),
    Case(
        "upstream_badjson",
        Said(
            events=START
            + token("tok0 ")
            + token("tok1 ")
            + error('Unexpected token \'o\', "{"id": oops" is not valid JSON')
        ),
        ours=Said(events=START + token("tok0 ") + token("tok1 "), error="upstream_protocol"),
        scripts=lambda _: [stream(chunk("tok0 "), chunk("tok1 "), b'data: {"id": oops\n\n', DONE)],
    ),
    Case(
        "upstream_drop",
        Said(events=START + token("tok0 ") + token("tok1 ") + error("terminated")),
        ours=Said(events=START + token("tok0 ") + token("tok1 "), error="upstream_truncated"),
        scripts=lambda _: [stream(chunk("tok0 "), chunk("tok1 "), CLOSE)],
    ),
    Case(
        "upstream_midstream_error",
        Said(events=START + token("tok0 ") + token("tok1 ") + error("mock mid-stream failure")),
        ours=Said(events=START + token("tok0 ") + token("tok1 "), error="upstream_error"),
        scripts=lambda _: [
            stream(chunk("tok0 "), chunk("tok1 "), b'data: {"error":{"message":"mock mid-stream failure"}}\n\n', CLOSE)
        ],
    ),
    Case(
        "upstream_no_done",
        Said(events=tokens(toks(2))),
        ours=Said(events=START + token("tok0 ") + token("tok1 "), error="upstream_truncated"),
        scripts=lambda _: [stream(chunk("tok0 "), chunk("tok1 "))],
    ),
]


def without_data(events: str) -> str:
    """The events with the data of `start` and `done` taken out; both must have some, and pings in a row are one."""
    events, starts = re.subn(r"^event: start\ndata: \{[^\n]+\}\n\n", START, events)
    events, dones = re.subn(r"event: done\ndata: \{[^\n]+\}\n\n$", DONE_EVENT, events)
    assert starts == 1, events
    assert dones == events.count("event: done\n")
    return re.sub(f"(?:{PING})+", PING, events)


async def read(reply: Reply, pinged: asyncio.Event) -> None:
    while await reply.piece():
        if PING.encode() in reply.raw:
            pinged.set()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_golden(case: Case):
    pinged = asyncio.Event()
    beating = case.name.startswith("heartbeat")
    timeouts = Timeouts(commit=0.05, heartbeat=0.4) if beating else Timeouts(commit=15.0)
    async with ScriptedProvider(*case.scripts(pinged)) as provider:
        handler = create_chat_handler(
            api_key="sk-te-golden-key", base_url=provider.url, timeouts=timeouts, preset="npm"
        )
        async with serve(handler) as port, connect(port) as client:
            reply = await client.request(case.method, case.path, case.body, case.headers)
            await read(reply, pinged)

        expected = case.ours or case.npm
        assert reply.status == expected.status
        if expected.events:
            assert_stream(reply, expected)
        elif expected.page == "json":
            assert_refusal(reply, expected)
        else:
            assert reply.raw == b""
        if case.max_tokens is not None:
            assert provider.requests[-1].json()["max_tokens"] == case.max_tokens
        if expected.status < 500 and not expected.events:
            assert not provider.requests, "a refused request costs nothing"
        assert reply.headers["access-control-allow-origin"] == "*"
        assert b"sk-te" not in reply.raw
        assert b"mock" not in reply.raw


def assert_stream(reply: Reply, expected: Said) -> None:
    assert reply.headers["content-type"] == "text/event-stream"
    events = reply.raw.decode()
    if expected.error is None:
        assert without_data(events) == expected.events
        return
    head, name, data = events.rpartition("event: error\ndata: ")
    assert name
    assert without_data(head) == expected.events
    assert data.endswith("}\n\n")
    assert json.loads(data)["code"] == expected.error
    assert json.loads(data)["message"]


def assert_refusal(reply: Reply, expected: Said) -> None:
    assert reply.headers["content-type"] == "application/json"
    answered = json.loads(reply.raw)
    if expected.error is not None:
        assert answered["error"] == expected.error
    assert answered["error"]
    assert answered["code"]
    assert answered["request_id"] == reply.headers["x-request-id"]


async def test_mtpr_below_output_is_a_ceiling_for_prompt_and_output_together():
    async with ScriptedProvider(says("tok0 ")) as provider:
        async with (
            serve(create_chat_handler(api_key="k", base_url=provider.url, preset="npm")) as port,
            connect(port) as client,
        ):
            reply = await client.post({**HELLO, "maxTokensPerRequest": 100})
            await reply.body()
        assert 50 < provider.requests[0].json()["max_tokens"] < 100


def test_every_captured_answer_is_here():
    assert len(CASES) == len({case.name for case in CASES}) == 52


def test_every_deviation_is_documented():
    text = COMPATIBILITY.read_text()
    undocumented = [case.name for case in CASES if case.ours is not None and f"`{case.name}`" not in text]
    assert not undocumented
    named = set(re.findall(r"`([a-z]+_[a-z0-9_]+|get|head)`", text))
    same = {case.name for case in CASES if case.ours is None}
    assert not (named & same), "the page lists cases that do not differ"
