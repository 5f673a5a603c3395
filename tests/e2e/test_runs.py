"""Runs of several real processes: followed, stopped and attached to from any of them, by their caller only."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import signal
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from raw_client import HELLO, JSON, Cut, ask, connect, settled
from scripted_provider import DONE, HANG, ScriptedProvider, chunk, finish, stream, usage
from served_workers import a_user, get, start, stop, workers, settings

KINDS = pytest.mark.parametrize("kind", ["local", "redis"])
DOCUMENT = Path(__file__).parents[2] / "docs/runs.md"
LAST = re.compile(rb"\nid: (\S+)\n\n")


async def begun(client, user, **headers):
    """Begin a chat, read its first token; the run's id."""
    reply = await client.post(headers={**JSON, **user, **headers})
    assert reply.status == 200, await reply.body()
    run = (await reply.event()).json()["id"]
    assert (await reply.event()).name == "token"
    return run, reply


async def found(worker, run, user):
    """Wait until another worker knows of the run that has just begun."""
    while True:
        async with connect(worker.port) as client:
            reply = await client.request("GET", f"/api/chat/{run}/stream", headers=user)
            if reply.status == 200:
                return
        await asyncio.sleep(0.01)


def texts(raw):
    return "".join(json.loads(data) for data in re.findall(rb"event: token\ndata: (.*)\n", raw))


@KINDS
async def test_cut_anywhere_and_read_on_at_any_worker_nothing_is_lost_or_doubled(kind, tmp_path):
    chance = random.Random(kind)
    said = [f"{number} " for number in range(120)]

    def script():
        steps = []
        for text in said:
            steps += [chunk(text), 0.002]
        return stream(*steps, finish(), usage(9, 120), DONE)

    async with ScriptedProvider(*(script() for _ in range(6))) as provider, workers(tmp_path, provider, kind) as all:
        user = a_user()

        async def one(number):
            own = random.Random(number)
            raw, run, last, tries = b"", "", b"", 0
            while True:
                tries += 1
                assert tries < 60
                async with connect(own.choice(all).port) as client:
                    if not run:
                        reply = await client.post(headers={**JSON, **user})
                        run = (await reply.event()).json()["id"]
                    else:
                        headers = {**user, **({"last-event-id": last.decode()} if last else {})}
                        reply = await client.request("GET", f"/api/chat/{run}/stream", headers=headers)
                        if reply.status == 404:  # not written there yet
                            assert not last
                            await asyncio.sleep(0.02)
                            continue
                    assert reply.status == 200
                    for _ in range(own.randint(0, 30)):
                        try:
                            event = await reply.event()
                        except Cut:
                            break
                        if event is None or event.name in ("done", "error"):
                            break
                    own.choice([client.reset, client.finish])()
                    whole = reply.raw[: reply.raw.rfind(b"\n\n") + 2]  # what a reader of events has
                    seen = list(LAST.finditer(whole))
                    if not seen:
                        continue
                    raw += whole[: seen[-1].end()]
                    last = seen[-1][1]
                    if b"event: done" in whole or b"event: error" in whole:
                        return raw

        for raw in await asyncio.gather(*(one(chance.random()) for _ in range(6))):
            assert texts(raw) == "".join(said)
            assert raw.count(b"event: done") == 1
            assert b"event: error" not in raw
        assert len(provider.requests) == 6


@KINDS
async def test_any_worker_stops_a_run_for_its_caller_only_and_charges_received_tokens(kind, tmp_path):
    async with ScriptedProvider(stream(chunk("one "), HANG)) as provider, workers(tmp_path, provider, kind) as all:
        user = a_user()
        for number, worker in enumerate(all[1:]):
            async with connect(all[0].port) as client:
                run, reply = await begun(client, user)
                await found(worker, run, user)
                for path in ("stream", "stop"):
                    other = await (stop(worker, run, a_user()) if path == "stop" else status(worker, run, a_user()))
                    assert other == 404
                assert not provider.requests[number].connection.closed.done()
                assert await stop(worker, run, user) == 204
                ended = await reply.event()
                assert (ended.name, ended.json()["code"]) == ("error", "stopped")
            await provider.requests[number].connection.closed
            assert await stop(worker, run, user) == 204  # it has ended
            again = await get(worker, f"/api/chat/{run}/stream", user)
            assert b'"code":"stopped"' in again.raw
        assert 0 < (await settled(all[2].port, headers=user))["tokens_per_day"]["used"] < 3 * 70


async def status(worker, run, user):
    return (await get(worker, f"/api/chat/{run}/stream", user)).status


@KINDS
async def test_an_answer_without_resume_is_also_stopped_from_any_worker(kind, tmp_path):
    policy = {"CHAT_NEST_PROFILES_BALANCED_ON_DISCONNECT": "cancel"}
    async with (
        ScriptedProvider(stream(chunk("one "), HANG)) as provider,
        workers(tmp_path, provider, kind, 2, **policy) as (one, two),
    ):
        user = a_user()
        async with connect(one.port) as client:
            run, reply = await begun(client, user)
            while await stop(two, run, user) != 204:  # the first worker has begun to listen
                assert not provider.requests[0].connection.closed.done()
            assert (await reply.event()).json()["code"] == "stopped"
        assert await stop(two, run, user) == 404


@KINDS
async def test_row27_the_same_key_attaches_at_another_worker(kind, tmp_path):
    go_on = asyncio.Event()
    script = stream(chunk("one "), go_on, chunk("two"), finish(), usage(9, 2), DONE)
    async with ScriptedProvider(script) as provider, workers(tmp_path, provider, kind, 2) as (one, two):
        user = a_user()
        headers = {**JSON, **user, "idempotency-key": "k"}
        async with connect(one.port) as client, connect(two.port) as other:
            run, reply = await begun(client, user, **{"idempotency-key": "k"})
            await found(two, run, user)
            second = await other.post(HELLO, headers=headers)
            assert (await second.event()).json()["id"] == run
            assert (await second.event()).json() == "one "
            go_on.set()
            assert (await second.event()).json() == "two"
            assert (await second.event()).name == "done"
            assert (await reply.until("done")).name == "done"
        assert len(provider.requests) == 1
        assert (await settled(two.port, headers=user))["tokens_per_day"]["used"] == 11


@KINDS
async def test_row48_after_its_process_is_killed_readers_get_an_error_and_the_hold_is_charged(kind, tmp_path):
    async with (
        ScriptedProvider(stream(chunk("one "), HANG)) as provider,
        workers(tmp_path, provider, kind, 2) as (a, b),
    ):
        user = a_user()
        async with connect(a.port) as client, connect(b.port) as other:
            run, _ = await begun(client, user)
            await found(b, run, user)
            reply = await other.request("GET", f"/api/chat/{run}/stream", headers=user)
            await reply.until("token")
            await a.kill()
            ended = await reply.until("error")
            assert ended.json()["code"] == "lost"
            assert await reply.event() is None
        late = await get(b, f"/api/chat/{run}/stream", user)
        assert late.status == 404 or b'"code":"lost"' in late.raw
        used = (await get_usage(b, user))["tokens_per_day"]
        assert used["used"] + used["held"] >= 400  # the whole hold: charged when its lease runs out


async def get_usage(worker, user):
    reply = await get(worker, "/api/usage", user)
    return {limit["name"]: limit for limit in json.loads(reply.raw)["limits"]}


async def test_a_frozen_worker_does_not_hide_runs_of_other_workers(tmp_path):
    async with (
        ScriptedProvider(stream(chunk("one "), HANG)) as provider,
        workers(tmp_path, provider, "local", 3) as all,
    ):
        user = a_user()
        async with connect(all[0].port) as client, connect(all[1].port) as other:
            run, _ = await begun(client, user)
            await begun(other, user)  # so that it listens
            await found(all[2], run, user)
            all[1].process.send_signal(signal.SIGSTOP)
            await found(all[2], run, user)
            unknown = await get(all[2], "/api/chat/nosuch/stream", user)
            assert unknown.status == 503
            assert json.loads(unknown.raw)["code"] == "runs_unavailable"
            assert await stop(all[2], run, user) == 204


@KINDS
async def test_a_chat_is_found_by_the_clients_own_id_also_while_a_worker_is_frozen(kind, tmp_path):
    more = {"CHAT_NEST_DIALECTS_AI_SDK": "true"}
    async with (
        ScriptedProvider(stream(chunk("one "), HANG)) as provider,
        workers(tmp_path, provider, kind, 3, **more) as (one, two, three),
    ):
        user = a_user()
        message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}
        body = {"id": "chat", "messages": [message], "trigger": "submit-message"}
        async with connect(one.port) as client, connect(two.port) as other:
            await begun(other, user)  # so that it listens
            two.process.send_signal(signal.SIGSTOP)
            reply = await client.post(body, path="/api/ai", headers={**JSON, **user})
            while b"text-delta" not in reply.raw:
                await reply.piece()
            async with connect(three.port) as third:
                while True:
                    again = await third.request("GET", "/api/ai/chat/stream", headers=user)
                    if again.status == 200:
                        break
                    assert again.status in ((404,) if kind == "redis" else ()), await again.body()
                    await again.body()
                while b'"delta":"one "' not in again.raw:
                    await again.piece()
                assert (await ask(three.port, b"", path="/api/ai/chat/stop", headers={**JSON, **user})).status == 204
                while await again.piece():
                    pass
                while await reply.piece():
                    pass


async def test_without_readers_it_is_cut_at_its_cap_and_charged_no_more(tmp_path):
    script = stream(*[chunk("word "), 0.002] * 200, finish(), usage(9, 1_000), DONE)
    # A model whose tokens are counted exactly: others are cut only where their bound is certainly passed.
    more = {"CHAT_NEST_PROFILES_BALANCED_MAX_OUTPUT_TOKENS": "100", "CHAT_NEST_MODEL": "gpt-4o-mini"}
    async with ScriptedProvider(script) as provider, workers(tmp_path, provider, "local", 1, **more) as (one,):
        user = a_user()
        async with connect(one.port) as client:
            reply = await client.post(headers={**JSON, **user})
            run = (await reply.event()).json()["id"]
            client.reset()
        used = (await settled(one.port, headers=user))["tokens_per_day"]["used"]
        assert used < 100 + 70
        whole = await get(one, f"/api/chat/{run}/stream", user)
        assert b'"finish_reason":"length"' in whole.raw
        assert len(texts(whole.raw)) == 100 * len("word ")


async def test_the_workers_of_one_command_know_each_others_runs(tmp_path):
    async with ScriptedProvider(stream(chunk("one "), HANG)) as provider:
        environ = {**settings(tmp_path, provider), "CHAT_NEST_RUNS_URL": "memory://"}
        parent = await start(tmp_path, "--workers", "4", **environ)
        try:
            await parent.started()
            await asyncio.gather(*(ask_health(parent) for _ in range(20)))
            user = a_user()
            runs = []
            for _ in range(4):
                async with connect(parent.port) as client:
                    run, _ = await begun(client, user)
                    client.reset()
                runs.append(run)
            statuses = await asyncio.gather(*(open_stream(parent, run, user) for run in runs * 10))
            assert statuses == [200] * 40
            assert await asyncio.gather(*(stop(parent, run, user) for run in runs)) == [204] * 4
            await asyncio.gather(*(provider.requests[number].connection.closed for number in range(4)))
            parent.process.send_signal(signal.SIGTERM)
            assert await parent.process.wait() == 0
        finally:
            await parent.kill()


async def ask_health(worker):
    return await get(worker, "/healthz", {})


async def open_stream(worker, run, user):
    """Ask again after a 503, as a client does: on a busy machine another worker may answer too late."""
    while True:
        async with connect(worker.port) as client:
            reply = await client.request("GET", f"/api/chat/{run}/stream", headers=user)
            if reply.status == 200:
                await reply.until("token")
            if reply.status != 503:
                return reply.status


# docs/runs.md


def examples():
    return re.findall(r"```bash\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


async def bash(example, port, user, run=""):
    """What an example of the document prints."""
    [(name, value)] = user.items()
    program = example.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("curl -s", f"curl -H '{name}: {value}' -s")
    process = await asyncio.create_subprocess_exec("bash", "-c", program, env={**os.environ, "RUN": run}, stdout=PIPE)
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said


async def test_the_commands_of_the_document_work_as_described(tmp_path):
    if shutil.which("curl") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("curl is not installed")
    come_back, stopping, again = examples()
    rest = asyncio.Event()
    async with (
        ScriptedProvider(
            stream(chunk("one "), rest, chunk("two"), finish(), usage(9, 2), DONE),
            stream(chunk("one "), HANG),
            stream(*[chunk("word "), 0.01] * 100, finish(), usage(9, 100), DONE),
        ) as provider,
        workers(tmp_path, provider, "local", 2) as (one, two),
    ):
        user = a_user()
        async with connect(one.port) as client:
            run, _ = await begun(client, user)
            client.reset()
        rest.set()
        read = await bash(come_back, two.port, user, run)
        assert (texts(read), read.count(b"event: done")) == ("two", 1)
        async with connect(one.port) as client:
            run, _ = await begun(client, user)
            assert await bash(stopping, two.port, user, run) == b"204\n"
        both = await bash(again, one.port, user)
        assert texts(both).count("word") == 200
        assert both.count(b"event: done") == 2
        assert len(provider.requests) == 3
