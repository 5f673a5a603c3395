"""The operators' listener of two workers on SQLite: keys, metrics, acts, a reload, and its end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families
from postgres_server import new_database, shared_url
from raw_client import HELLO, JSON, ask, connect
from redis_servers import RedisServer
from scripted_provider import DONE, ScriptedProvider, answer, chunk, finish, stream, usage
from serve_command import command

KEY = "k3y-0123456789abcdef0123456789abcdef"
OTHER = "0th-0123456789abcdef0123456789abcdef"
AUTH = {"authorization": f"Bearer {KEY}"}
ADMIN = re.compile(rb"Admin +at http://127\.0\.0\.1:(\d+)")
CONFIG = """
[providers.p]
kind = "openai"
base_url = "{url}"
api_key = "sk-scripted"
[profiles.balanced]
model = "p:m"
requests_per_minute = "none"
concurrent_streams = "none"
tokens_per_day = "none"
[prices."p:m"]
input = 1.0
output = 2.0
[limits]
tokens_per_day = {tokens}
[store]
url = "sqlite:///{folder}/store.db"
[admin]
listen = "{listen}"
key_file = "{folder}/keys"
[metrics]
enabled = true
"""


def write(folder, provider, *, tokens=1_000_000, listen="127.0.0.1:0", keys=(KEY, OTHER)):
    (folder / "keys").write_text("# of operators\n" + "\n".join(keys) + "\n")
    text = CONFIG.format(url=provider.url, folder=folder, tokens=tokens, listen=listen)
    (folder / "chat.toml").write_text(text)
    return "--config", str(folder / "chat.toml")


async def get(port, path, headers=AUTH, method="GET", body=b""):
    async with connect(port) as client:
        reply = await client.request(method, path, body, headers=headers)
        await reply.body()
        return reply


async def act(port, path, status=200, **fields):
    reply = await get(port, f"/admin/v1/{path}", {**AUTH, **JSON}, "POST", json.dumps(fields).encode())
    assert reply.status == status, (path, reply.raw)
    return json.loads(reply.raw)


async def seen(port, path):
    reply = await get(port, f"/admin/v1/{path}")
    assert reply.status == 200, reply.raw
    return json.loads(reply.raw)


async def until(port, status):
    """Ask until this many answers in a row have the status: with two workers, both have it then."""
    in_a_row = 0
    while in_a_row < 12:
        in_a_row = in_a_row + 1 if (await ask(port)).status == status else 0


def requests_of(text):
    counted = [family for family in text_string_to_metric_families(text) if family.name == "chat_nest_requests"]
    return {sample.labels["code"]: sample.value for family in counted for sample in family.samples}


async def check_keys(served, admin):
    for headers in ({}, {"authorization": f"Bearer {KEY}x"}, {"authorization": "Basic " + KEY}):
        for path in ("/metrics", "/admin/v1/running", "/openapi.json", "/nothing"):
            reply = await get(admin, path, headers)
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert json.loads(reply.raw)["code"] == "unauthorized"
            assert KEY.encode() not in reply.raw
    assert (await get(admin, "/healthz", {})).status == 200
    for key in (KEY, OTHER):
        assert (await get(admin, "/admin/v1/running", {"authorization": f"Bearer {key}"})).status == 200
    assert (await get(served.port, "/metrics")).status == 404
    assert (await get(served.port, "/admin/v1/running")).status == 404
    refused = await get(admin, "/metrics", method="POST")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    assert json.loads((await get(admin, "/nothing")).raw)["code"] == "not_found"


async def check_metrics(served, admin, provider):
    """Answers on connections of their own: both workers count some, and soon any of them shows the sum."""
    for _ in range(6):
        assert (await ask(served.port)).status == 200
    in_a_row = 0
    while in_a_row < 6:
        shown = requests_of((await get(admin, "/metrics")).raw.decode())
        assert shown.get("ok", 0) <= 6
        in_a_row = in_a_row + 1 if shown == {"ok": 6} else 0
    assert len(provider.requests) == 6
    [limit] = (await seen(admin, "standing"))["limits"]
    assert (limit["name"], limit["scope"], limit["limit"], limit["held"]) == ("tokens_per_day", "all", 1_000_000, 0)
    assert limit["room"] == limit["limit"] - limit["used"] < limit["limit"]
    [found] = (await seen(admin, "forecast"))["forecasts"]
    assert (found["name"], found["used"], found["limit"]) == ("tokens_per_day", limit["used"], 1_000_000)
    assert found["expected"] is None or found["expected"] >= limit["used"]  # None in the first half hour of a day
    assert found["full_at"] is None


async def check_views(served, admin):
    """What all workers did, whichever of them answers; and what was spent, from the records."""
    while len((await seen(admin, "activity"))["processes"]) < 2:
        await asyncio.sleep(0.05)
    for _ in range(4):
        found = await seen(admin, "activity")
        while sum(found["minutes"]["answered"]) != 6:  # the other worker reports every two seconds
            found = await seen(admin, "activity")
        assert found["providers"]["p"]["calls"] == 6
        assert (found["store"]["kind"], found["store"]["status"], found["unsettled"]) == ("sqlite", "ok", 0)
    for by, name in (("model", "p:m"), ("profile", "balanced"), ("group", "")):
        spent = await seen(admin, f"spend?by={by}&days=3")
        [one] = spent["series"]
        assert (one["name"], one["requests"], len(spent["dates"])) == (name, [0, 0, 6], 3)
        assert one["usd"][-1] == pytest.approx(one["tokens"][-1] * 1e-6 + 18e-6)  # 3 of each answer cost twice as much
    [caller] = (await seen(admin, "callers?days=2"))["callers"]
    assert (caller["requests"], caller["errors"], len(caller["caller"])) == (6, 0, 16)
    for path in ("spend?days=93", "spend?by=caller", "spend?days=x", "callers?most=101", "callers?canary=1"):
        reply = await get(admin, f"/admin/v1/{path}")
        assert (reply.status, b"canary" in reply.raw) == (400, False), path


async def check_page(admin):
    """The page needs no key, and its stream does; the key is in no URL."""
    page = await get(admin, "/", {})
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "trusted-types 'none'" in page.headers["content-security-policy"]
    assert (await get(admin, "/parts.css", {})).status == 200
    assert (await get(admin, "/chat.js", {})).status == 401
    assert (await get(admin, "/", {}, "POST")).status == 405
    assert (await get(admin, "/admin/v1/live", {})).status == 401
    async with connect(admin) as client:
        reply = await client.request("GET", "/admin/v1/live", headers=AUTH)
        assert reply.headers["content-type"] == "text/event-stream"
        for name in ("activity", "standing", "running", "controls", "audit"):
            assert "code" not in (await reply.until(name)).json()


async def check_stops(served, admin):
    clients = [connect(served.port) for _ in range(4)]
    opened = [await client.__aenter__() for client in clients]
    try:
        replies = [await client.post(HELLO) for client in opened]
        for reply in replies:
            await reply.until("token")
        runs = {reply.headers["x-request-id"] for reply in replies}
        shown = (await seen(admin, "running"))["running"]
        assert {each["run"] for each in shown} == runs
        assert "Hello" not in json.dumps(shown)
        [limit] = (await seen(admin, "standing"))["limits"]
        assert limit["held"] > 0
        first, *others = replies
        id = first.headers["x-request-id"]
        assert await act(admin, f"running/{id}/stop", reason="a loop") == {"run": id, "stopped": True}
        assert (await first.until("error")).json()["code"] == "stopped"
        assert {each["run"] for each in (await seen(admin, "running"))["running"]} == runs - {id}
        assert (await act(admin, f"running/{id}/stop", 404))["code"] == "not_found"
        await act(admin, "pause", all=True, stop_running=True)
        for reply in others:
            assert (await reply.until("error")).json()["code"] == "stopped"
    finally:
        for client in clients:
            await client.__aexit__(None, None, None)


async def check_acts(served, admin):
    await until(served.port, 503)
    [pause] = (await seen(admin, "controls"))["pauses"]
    assert (pause["name"], pause["stop_running"]) == ("all", True)
    await act(admin, "resume", all=True)
    await until(served.port, 200)
    await act(admin, "block", address="127.0.0.0/8", **{"for": "1h"})
    await until(served.port, 403)
    await act(admin, "unblock", address="127.0.0.0/8")
    await until(served.port, 200)
    await act(admin, "grant", all=True, tokens=500, reason="a demo")
    while (await seen(admin, "standing"))["limits"][0]["limit"] != 1_000_500:
        await asyncio.sleep(0.05)
    [granted] = (await seen(admin, "controls"))["grants"]
    assert (granted["owner"], granted["limit"], granted["amount"], granted["unit"]) == (
        "all",
        "tokens_per_day",
        500,
        "tokens",
    )
    assert (await act(admin, "reset", all=True))["reset"] != []
    await act(admin, "withdraw", name=granted["name"], reason="a mistake")
    assert (await act(admin, "withdraw", 400, name=granted["name"]))["field"] == "name"
    assert [each["kind"] for each in (await seen(admin, "controls"))["grants"]] == ["reset"]
    acts = (await seen(admin, "audit?most=8"))["acts"]
    assert [each["act"] for each in acts] == [
        "withdraw",
        "reset",
        "grant",
        "unblock",
        "block",
        "resume",
        "pause",
        "stop",
    ]
    assert re.fullmatch(r"admin:[0-9a-f]{8}", acts[0]["by"])


async def check_refusals(admin):
    for path, fields, field in (
        ("pause", {}, "body"),
        ("pause", {"all": True, "provider": "p"}, "body"),
        ("pause", {"provider": "canary"}, "provider"),
        ("pause", {"all": True, "for": "canary"}, "for"),
        ("pause", {"all": "canary"}, "all"),
        ("pause", {"all": True, "reason": "canary" * 100}, "reason"),
        ("pause", {"all": True, "canary": 1}, "body"),
        ("block", {"address": "canary"}, "address"),
        ("block", {"address": "0.0.0.0/0"}, "address"),
        ("grant", {"all": True}, "body"),
        ("grant", {"all": True, "tokens": True}, "tokens"),
        ("grant", {"all": True, "tokens": -1}, "tokens"),
        ("grant", {"all": True, "tokens": 1, "per": "canary"}, "per"),
        ("reset", {"all": True, "limit": "canary"}, "limit"),
    ):
        said = await act(admin, path, 400, **fields)
        assert (said["code"], said["field"]) == ("bad_request", field), (path, fields, said)
        assert "canary" not in json.dumps(said)
    assert (await get(admin, "/admin/v1/audit?most=0")).status == 400
    assert (await get(admin, "/admin/v1/pause", {**AUTH, **JSON}, "POST", b"{")).status == 400
    assert (await get(admin, "/admin/v1/pause", AUTH, "POST", b"{}")).status == 415
    assert [each["name"] for each in (await seen(admin, "controls"))["pauses"]] == []


async def check_reload(folder, served, admin, provider):
    write(folder, provider, tokens=2_000, keys=(KEY,))
    assert (await act(admin, "reload"))["changed"] == ["admin.key", "limits.tokens_per_day"]
    assert (await get(admin, "/admin/v1/running", {"authorization": f"Bearer {OTHER}"})).status == 401
    (folder / "chat.toml").write_text("[limits]\ntokens_per_day = 'canary'\n")
    said = await act(admin, "reload", 422)
    assert said["code"] == "config_wrong"
    assert "limits.tokens_per_day" in said["error"]
    assert "canary" not in json.dumps(said)
    assert (await seen(admin, "providers"))["providers"]["p"]["breaker"] == "closed"


async def test_two_workers_obey_their_operators(tmp_path):
    never = asyncio.Event()
    slow = stream(chunk("Hel"), never, finish(), usage(5, 2), DONE)
    async with ScriptedProvider(*[answer("Hello", 3)] * 6, *[slow] * 4, answer("Hello", 3)) as provider:
        options = write(tmp_path, provider)
        async with command(tmp_path, provider.url, "sk-x", "--workers", "2", *options) as served:
            admin = int((await served.until(ADMIN.pattern))[1])
            while len(provider.checks) < 2:
                await asyncio.sleep(0.01)
            await check_keys(served, admin)
            await check_metrics(served, admin, provider)
            await check_views(served, admin)
            await check_page(admin)
            await check_stops(served, admin)
            await check_acts(served, admin)
            await check_refusals(admin)
            await check_reload(tmp_path, served, admin, provider)
            assert KEY.encode() not in served.said
            served.process.send_signal(signal.SIGTERM)
            assert await served.ended() == 0
            with pytest.raises(ConnectionRefusedError):
                async with connect(admin):
                    pass


@pytest.fixture
def server_url(request):
    """The URL of a store that is a server of its own."""
    if request.param == "redis":
        server = RedisServer()
        yield server.url
        server.stop()
        return
    url, remove = new_database(shared_url())
    yield url
    remove()


@pytest.mark.parametrize("server_url", ["redis", "postgres"], indirect=True)
async def test_the_operators_server_shows_the_work_of_two_workers_as_one(tmp_path, server_url):
    async with ScriptedProvider(answer("Hello", 3)) as provider:
        options = write(tmp_path, provider)
        store = {"CHAT_NEST_STORE_URL": server_url}
        async with command(tmp_path, provider.url, "sk-x", "--workers", "2", *options, **store) as served:
            admin = int((await served.until(ADMIN.pattern))[1])
            for _ in range(6):
                assert (await ask(served.port)).status == 200
            found = await seen(admin, "activity")
            while len(found["processes"]) < 2 or sum(found["minutes"]["answered"]) != 6:
                found = await seen(admin, "activity")
            assert found["providers"]["p"]["calls"] == 6
            assert found["providers"]["p"]["first_token_seconds"]["median"] > 0
            if server_url.startswith("postgres"):
                [caller] = (await seen(admin, "callers"))["callers"]
                assert caller["requests"] == 6
                assert [each["requests"] for each in (await seen(admin, "spend?days=1"))["series"]] == [[6]]
            else:
                reply = await get(admin, "/admin/v1/spend")
                assert (reply.status, json.loads(reply.raw)["code"]) == (404, "not_found")


async def test_a_port_in_use_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        async with ScriptedProvider(answer("Hello", 3)) as provider:
            options = write(tmp_path, provider, listen=listen)
            async with command(tmp_path, provider.url, "sk-x", *options, wait=False) as served:
                assert await served.ended() == 1
                assert b"is in use: stop what listens there, or choose another with listen in [admin]" in served.said


async def over(path, method, target, body=b""):
    """The status and the body of an answer on the Unix socket."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    head = f"{method} {target} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
    writer.write(head.encode() + b"\r\n" + body)
    said = await reader.read()
    writer.close()
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)


async def test_a_unix_socket_replaces_a_dead_one_serves_a_drain_and_goes_with_the_server(tmp_path):
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    slow = stream(chunk("Hel"), asyncio.Event(), finish(), usage(5, 2), DONE)
    async with ScriptedProvider(slow) as provider:
        options = write(tmp_path, provider, listen=f"unix:{path}")
        memory = {"CHAT_NEST_STORE_URL": "memory://"}
        async with (
            command(tmp_path, provider.url, "sk-x", *options, **memory) as served,
            connect(served.port) as client,
        ):
            assert path.stat().st_mode & 0o777 == 0o660
            assert await over(path, "GET", "/admin/v1/running") == (200, {"running": []})
            async with command(tmp_path, provider.url, "sk-x", *options, wait=False, **memory) as second:
                assert await second.ended() == 1
                assert b"a.sock is in use: name another path with listen in [admin]" in second.said
            reply = await client.post(HELLO)
            await reply.until("token")
            served.process.send_signal(signal.SIGTERM)
            await served.until(rb"waiting for 1 answers")
            status, found = await over(path, "GET", "/admin/v1/running")
            assert (status, [each["run"] for each in found["running"]]) == (200, [reply.headers["x-request-id"]])
            target = f"/admin/v1/running/{reply.headers['x-request-id']}/stop"
            assert (await over(path, "POST", target, b'{"reason": "the drain takes too long"}'))[0] == 200
            assert (await reply.until("error")).json()["code"] == "stopped"
            assert await served.ended() == 0
        assert not path.exists()
