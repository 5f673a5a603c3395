"""The log lines of `chat-nest serve`: formats, the request's id on each, and one line for a request."""

from __future__ import annotations

import asyncio
import json
import logging
import sys

import pytest
from raw_client import HELLO, connect
from scripted_provider import ScriptedProvider, answer
from serve_command import command

from chat_nest.core.request_log import CURRENT, EventLine, RequestLog
from chat_nest.server.logs import JsonFormatter, LineFormatter


def record(message, *arguments, exc_info=None):
    return logging.LogRecord("chat_nest.x", logging.WARNING, __file__, 1, message, arguments, exc_info)


@pytest.fixture
def in_a_request():
    facts = RequestLog()
    facts.id = "abc123"
    token = CURRENT.set(facts)
    yield facts
    CURRENT.reset(token)


def test_every_line_of_a_request_has_its_id_once(in_a_request):
    assert LineFormatter().format(record("the store failed")).endswith(": the store failed id=abc123")
    assert LineFormatter().format(record("request %s: gone", "abc123")).endswith(": request abc123: gone")
    assert json.loads(JsonFormatter().format(record("gone")))["id"] == "abc123"


def test_a_json_line_is_one_object_with_the_events_values(in_a_request):
    line = JsonFormatter().format(
        record(EventLine("finished", {"id": "abc123", "seconds": 1.5, "profile": 'a"\n\x1b'}))
    )
    assert "\n" not in line and "\x1b" not in line
    found = json.loads(line)
    assert {name: found[name] for name in ("level", "logger", "message", "id", "seconds", "profile")} == {
        "level": "warning",
        "logger": "chat_nest.x",
        "message": "finished",
        "id": "abc123",
        "seconds": 1.5,
        "profile": 'a"\n\x1b',
    }


def test_a_json_line_has_the_traceback_inside():
    try:
        raise KeyError("x")
    except KeyError:
        line = JsonFormatter().format(record("failed", exc_info=sys.exc_info()))
    assert "\n" not in line
    assert "KeyError" in json.loads(line)["exception"]


async def test_one_line_joins_the_http_request_and_the_ending_of_its_chat(tmp_path):
    environ = {
        "CHAT_NEST_LOG_FORMAT": "json",
        "CHAT_NEST_LOG_REQUESTS": "true",
        "CHAT_NEST_PROFILES_BALANCED_ON_DISCONNECT": "finish",
        "CHAT_NEST_SERVER_CORS_ORIGINS": "https://canary.example",
    }
    release = asyncio.Event()
    first, *rest = answer("Hello", 3)
    scripts = (answer("Hello", 3), [first, rest[0], release, *rest[1:]])
    async with ScriptedProvider(*scripts) as provider, command(tmp_path, provider.url, **environ) as served:  # type: ignore[arg-type]
        async with connect(served.port) as client:
            reply = await client.post(HELLO)
            await reply.body()
            id = reply.headers["x-request-id"]
            canary = {"user-agent": "canary", "cookie": "canary"}
            for method, path in (
                ("GET", "/canary?canary"),
                ("PATCH", "/api/chat"),
                ("GET", "/readyz"),
                ("GET", "/api/chat/canary/stream"),
            ):
                await (await client.request(method, path, headers=canary)).body()
            await (
                await client.request("POST", "/api/chat", b'{"canary', headers={"content-type": "application/json"})
            ).body()
        # An answer that goes on without its reader has a line of its own.
        async with connect(served.port) as client:
            reply = await client.post(HELLO)
            left = reply.headers["x-request-id"]
            await reply.event()
        await served.until(rb'"message": "request".*' + left.encode())
        release.set()
        await served.until(rb'"message": "finished".*' + left.encode())
        served.process.terminate()
        await served.ended()
    lines = [json.loads(line) for line in served.said.decode().splitlines() if line.startswith("{")]
    events = [line for line in lines if line["message"] in ("request", "finished", "refused")]
    (ours,) = [line for line in lines if line.get("id") == id]
    assert {name: ours[name] for name in ("message", "method", "route", "status", "http", "reason", "profile")} == {
        "message": "finished",
        "method": "POST",
        "route": "/api/chat",
        "status": 200,
        "http": "1.1",
        "reason": "stop",
        "profile": "balanced",
    }
    assert ours["peer"].startswith("127.0.0.1:")
    assert ours["total"] >= ours["seconds"]
    shown = [(line["message"], line.get("method"), line.get("route"), line.get("status")) for line in events]
    assert sorted(shown[:6]) == [  # a line comes when its request is over, which may be after the next one's
        ("finished", "POST", "/api/chat", 200),
        ("refused", "POST", "/api/chat", 400),
        ("request", "GET", "/api/chat/{id}", 404),
        ("request", "GET", "/readyz", 200),
        ("request", "GET", "other", 404),
        ("request", "PATCH", "/api/chat", 405),
    ]
    assert [line["message"] for line in events if line.get("id") == left] == ["request", "finished"]
    assert "canary" not in "".join(json.dumps(line) for line in events)


async def test_nothing_is_printed_by_an_application_that_configures_no_logging(tmp_path):
    program = (
        "import asyncio, logging, chat_nest\n"
        "from chat_nest.testing import ScriptedProvider, answer, collect\n"
        "chat = chat_nest.create_chat_handler(providers={'p': ScriptedProvider(answer('a'))}, model='p:m')\n"
        "asyncio.run(collect(chat, {'messages': [{'role': 'user', 'content': 'Hello'}]}))\n"
        "logging.getLogger('chat_nest.pipeline').error('not printed')\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    assert said == b""
    assert process.returncode == 0
