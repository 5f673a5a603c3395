"""A server that reads its configuration again while answers run: by `chat-nest reload` and by SIGHUP."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from asyncio.subprocess import PIPE, STDOUT
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import forked_command
import processes
from forked_command import COMMAND
import pytest
from processes import until
from raw_client import HELLO, ask, connect, settled, standing
from scripted_provider import DONE, ScriptedProvider, answer, chunk, finish, stream, usage
from redis_servers import RedisServer
from serve_command import Command, command
from store_link import StoreLink

STREAMS = 100
CONFIG = """
[providers.one]
kind = "openai"
base_url = "{url}"
api_key = "{key}"

[profiles.balanced]
model = "one:scripted"
max_output_tokens = 100
tokens_per_day = {tokens}
requests_per_minute = 100_000
"""


def write(folder: Path, url: str, *, key: str = "sk-one", tokens: int = 1_000_000, more: str = "") -> None:
    (folder / "chat.toml").write_text(CONFIG.format(url=url, key=key, tokens=tokens) + more)


def serving(folder: Path, *options: str, **environ: str):
    return command(folder, "", "", "--config", "chat.toml", *options, **environ)


async def audit(folder: Path) -> list[dict[str, str]]:
    """The trail of acts."""
    code, said = await run(folder, "audit", "--json")
    assert code == 0, said
    return json.loads(said)


async def reload(folder: Path) -> tuple[int, str]:
    """The exit code and the output of the command."""
    return await run(folder, "reload")


async def run(folder: Path, *arguments: str) -> tuple[int, str]:
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await forked_command.run(
        *(*arguments, "--config", "chat.toml"), cwd=folder, env=clean, stdout=PIPE, stderr=STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


def workers(served: Command) -> set[int]:
    return processes.workers(served.process.pid)


async def serve_all(served: Command, count: int) -> None:
    """Wait until each worker serves: only then does a reload not wait for one that starts."""
    await until(lambda: count == 1 or len(workers(served)) == count)


@pytest.mark.parametrize("count", [1, 3])
async def test_a_limit_and_a_provider_change_while_a_hundred_streams_run(tmp_path, count):
    go_on = asyncio.Event()
    slow = stream(chunk("one"), go_on, chunk("two"), finish(), usage(3, 2), DONE)
    async with (
        ScriptedProvider(slow) as old,
        ScriptedProvider(answer("new")) as new,
        AsyncExitStack() as stack,
    ):
        write(tmp_path, old.url)
        served = await stack.enter_async_context(serving(tmp_path, "--workers", str(count)))
        clients = [await stack.enter_async_context(connect(served.port)) for _ in range(STREAMS)]
        replies = await asyncio.gather(*(client.post(HELLO) for client in clients))
        for reply in replies:
            assert (await reply.event()).name == "start"
            assert "one" in (await reply.event()).data

        write(tmp_path, new.url, key="sk-two", tokens=1_000)  # less than the streams hold
        code, said = await reload(tmp_path)
        assert (code, said) == (0, "chat-nest: in force: providers.one, profiles.balanced\n")
        assert {(await standing(served.port))["tokens_per_day"]["limit"] for _ in range(20)} == {1_000}
        refused = await ask(served.port)
        assert refused.status == 429
        assert refused.headers["x-request-id"]
        [act] = await audit(tmp_path)
        assert (act["act"], act["target"], act["detail"]) == (
            "reload", "configuration", "providers.one, profiles.balanced"
        )  # fmt: skip
        assert act["by"].startswith("cli:")

        write(tmp_path, new.url, key="sk-two", tokens=1_000_000)
        assert (await reload(tmp_path))[0] == 0
        assert b"new" in (await ask(served.port)).raw
        assert new.requests[0].headers["authorization"] == "Bearer sk-two"
        assert old.active >= STREAMS

        go_on.set()
        ends = [[event.name for event in await reply.events() if event.name != "ping"] for reply in replies]
        assert {tuple(names) for names in ends} == {("token", "done")}
        await old.idle()  # its connections were kept for the streams, and then closed
        assert len(old.requests) == STREAMS
        used = (await settled(served.port))["tokens_per_day"]["used"]
        assert used == STREAMS * 5 + 6
        assert len(served.said.split(b"Traceback")) == 1


@pytest.mark.parametrize("count", [1, 2])
async def test_a_wrong_file_changes_nothing_and_names_the_line(tmp_path, count):
    async with ScriptedProvider(answer("x")) as provider:
        write(tmp_path, provider.url, tokens=1_000)
        async with serving(tmp_path, "--workers", str(count)) as served:
            assert (await standing(served.port))["tokens_per_day"]["limit"] == 1_000
            write(tmp_path, provider.url, tokens=2_000, more="tokens_per_hour = -1\nunheard_of = 1\n")
            code, said = await reload(tmp_path)
            assert code == 2
            assert re.search(
                r"^chat-nest: chat\.toml:1[0-9]: profiles\.balanced\.tokens_per_hour: must be ", said, re.M
            )
            assert re.search(r"^chat-nest: chat\.toml:1[0-9]: profiles\.balanced\.unheard_of: there is no", said, re.M)
            assert said.endswith("chat-nest: nothing has changed\n")
            await served.until(rb"ERROR chat_nest\.server: reload: chat\.toml:1[0-9]: profiles\.balanced\.unheard_of")
            assert {(await standing(served.port))["tokens_per_day"]["limit"] for _ in range(10)} == {1_000}

            (tmp_path / "chat.toml").unlink()
            os.kill(served.process.pid, signal.SIGHUP)
            await served.until(rb"reload: chat\.toml: there is no such file\n")
            assert (await reload(tmp_path))[0] == 2
            assert (await standing(served.port))["tokens_per_day"]["limit"] == 1_000


async def test_settings_that_need_a_restart_are_named_and_the_rest_is_in_force(tmp_path):
    async with ScriptedProvider(answer("x")) as provider:
        write(tmp_path, provider.url)
        async with serving(tmp_path) as served, connect(served.port) as client:
            await (await client.request("GET", "/version")).body()
            more = '[server]\nhost = "0.0.0.0"\nport = 1\norigins = ["https://example.com"]\n'
            more += '[store]\nurl = "sqlite:///other.db"\nlease = 30\n[timeouts]\nstore = 2\n'
            write(tmp_path, provider.url, more=more)
            code, said = await reload(tmp_path)
            assert code == 0
            in_force, restart, note = said.splitlines()
            assert "not in the audit trail: the servers use another store than the configuration has now" in note
            assert in_force == "chat-nest: in force: server.origins"
            assert restart == "chat-nest: a restart is needed for server.host, store.url, store.lease, timeouts.store"
            await served.until(rb"a restart is needed for server\.host, store\.url, store\.lease, timeouts\.store\n")
            # The same connection, which nothing has closed.
            reply = await client.request("GET", "/api/usage", headers={"origin": "https://example.com"})
            assert reply.headers["access-control-allow-origin"] == "https://example.com"
            await reply.body()
            # The address in use is still loopback's, so its own names stay the only ones.
            assert (await client.request("GET", "/api/usage", headers={"host": "evil.example"})).status == 403
            assert not (tmp_path / "other.db").exists()


async def test_hosts_callers_and_routes_change(tmp_path):
    async with ScriptedProvider(answer("x")) as provider:
        write(tmp_path, provider.url)
        async with serving(tmp_path) as served:
            assert (await ask(served.port)).status == 200
            more = '[server]\nallowed_hosts = ["chat.example"]\ntrusted_proxies = ["127.0.0.1"]\n'
            more += 'caller_header = "x-user"\nmax_body_bytes = 50\n[dialects]\nopenai = "/models/v1"\n'
            write(tmp_path, provider.url, more=more)
            assert (await reload(tmp_path))[0] == 0
            assert (await ask(served.port)).status == 403
            known = {"host": "chat.example", "x-user": "ada", "content-type": "application/json"}
            assert (await ask(served.port, headers=known)).status == 413
            nobody = {"host": "chat.example", "content-type": "application/json"}
            assert (await ask(served.port, b"{}", headers=nobody)).status == 401
            async with connect(served.port) as client:
                assert (await client.request("GET", "/models/v1/models", headers=known)).status == 200
            async with connect(served.port) as client:
                reply = await client.request("GET", "/openapi.json", headers=known)
                assert "/models/v1/models" in (await reply.json())["paths"]


async def test_a_worker_that_dies_is_replaced_with_the_configuration_in_force(tmp_path):
    async with ScriptedProvider(answer("x")) as provider:
        write(tmp_path, provider.url, tokens=1_000)
        async with serving(tmp_path, "--workers", "2") as served:
            await serve_all(served, 2)
            write(tmp_path, provider.url, tokens=2_000)
            assert (await reload(tmp_path))[0] == 0
            write(tmp_path, provider.url, tokens=3_000)  # not in force
            for pid in workers(served):
                os.kill(pid, signal.SIGKILL)
            await served.until(rb"takes its place", times=2)
            for _ in range(20):
                assert (await standing(served.port))["tokens_per_day"]["limit"] == 2_000


@pytest.mark.parametrize("count", [1, 2])
async def test_sighup_twice_in_a_row_and_the_last_file_is_in_force(tmp_path, count):
    async with ScriptedProvider(answer("x")) as provider:
        write(tmp_path, provider.url, tokens=1_000)
        async with serving(tmp_path, "--workers", str(count)) as served:
            for tokens in (2_000, 3_000):
                write(tmp_path, provider.url, tokens=tokens)
                os.kill(served.process.pid, signal.SIGHUP)
            assert (await reload(tmp_path))[0] == 0
            assert {(await standing(served.port))["tokens_per_day"]["limit"] for _ in range(10)} == {3_000}
            assert served.process.returncode is None


@pytest.mark.parametrize("count", [1, 2])
async def test_a_reload_by_sighup_is_in_the_audit_trail_once_and_without_values(tmp_path, count):
    async with ScriptedProvider(answer("x")) as provider:
        write(tmp_path, provider.url)
        async with serving(tmp_path, "--workers", str(count)) as served:
            await serve_all(served, count)
            write(tmp_path, provider.url, tokens=-1)
            os.kill(served.process.pid, signal.SIGHUP)
            await served.until(rb"reload: the configuration in force has not changed\n")
            write(tmp_path, provider.url, key="sk-canary", tokens=2_000)
            os.kill(served.process.pid, signal.SIGHUP)
            await served.until(rb"reload: changed ")
            while not (acts := await audit(tmp_path)):
                pass
    [act] = acts
    assert (act["by"], act["act"], act["target"]) == ("signal", "reload", "configuration")
    assert act["detail"] == "providers.one, profiles.balanced"
    assert "canary" not in json.dumps(act)


async def test_a_reload_by_sighup_while_the_store_is_down_is_in_force_and_logged(tmp_path, store):
    async with ScriptedProvider(answer("x")) as provider:
        more = f'[store]\nurl = "redis://127.0.0.1:{store.port}"\n'
        write(tmp_path, provider.url, more=more)
        async with serving(tmp_path) as served:
            store.cut()
            write(tmp_path, provider.url, tokens=2_000, more=more)
            os.kill(served.process.pid, signal.SIGHUP)
            await served.until(rb"reload: changed profiles\.balanced\n")
            await served.until(rb"the reload by SIGHUP is not in the audit trail: the store does not answer\n")


@pytest.mark.parametrize("count", [1, 2])
async def test_a_draining_server_refuses_a_reload_with_the_reason(tmp_path, count):
    go_on = asyncio.Event()
    script = stream(chunk("one"), go_on, chunk("two"), finish(), usage(3, 2), DONE)
    async with ScriptedProvider(script) as provider:
        write(tmp_path, provider.url)
        async with serving(tmp_path, "--workers", str(count)) as served, connect(served.port) as client:
            reply = await client.post(HELLO)
            assert (await reply.event()).name == "start"
            served.process.send_signal(signal.SIGTERM)
            await served.until(rb"waiting for 1 answers to end")
            os.kill(served.process.pid, signal.SIGHUP)
            await served.until(rb"reload: the server is about to end\n")
            code, said = await reload(tmp_path)
            assert (code, said.splitlines()[0]) == (1, "chat-nest: the server is about to end")
            go_on.set()
            assert [event.name for event in await reply.events()][-1] == "done"
            assert await served.ended() == 0


async def test_without_a_server_the_command_explains_the_alternative(tmp_path):
    write(tmp_path, "http://127.0.0.1:9/v1")
    code, said = await reload(tmp_path)
    assert code == 1
    assert "no running server" in said
    assert "SIGHUP" in said
    async with serving(tmp_path) as served:
        await served.kill()
    code, said = await reload(tmp_path)  # its socket is left
    assert code == 1
    assert "no running server" in said


async def test_keys_of_callers_and_providers_change_with_their_files(tmp_path):
    async with ScriptedProvider(answer("x")) as provider:
        keys = tmp_path / "keys.txt"
        keys.write_text("sk-first\n")
        table = f'[providers.one]\nkind = "openai"\nbase_url = "{provider.url}"\napi_keys_file = "keys.txt"\n'
        profile = '[profiles.balanced]\nmodel = "one:scripted"\n'
        (tmp_path / "chat.toml").write_text(table + profile)
        async with serving(tmp_path) as served:
            assert (await ask(served.port)).status == 200
            keys.write_text("sk one with blanks\n")
            code, said = await reload(tmp_path)
            assert code == 2
            assert "chat.toml:4: providers.one.api_keys_file: keys.txt: line 1: must be one key" in said
            assert "sk one" not in said
            (tmp_path / "second.txt").write_text("sk-second\n")
            (tmp_path / "chat.toml").write_text(table.replace("keys.txt", "second.txt") + profile)
            assert (await reload(tmp_path))[0] == 0
            assert (await ask(served.port)).status == 200
            sent = [request.headers["authorization"] for request in provider.requests]
            assert sent == ["Bearer sk-first", "Bearer sk-second"]


# What systemd is told.


@contextmanager
def service_manager(folder: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(folder / "n"))
        listening.setblocking(False)
        yield listening


async def told(listening: socket.socket, state: bytes) -> bytes:
    """Wait for this state, and skip others."""
    while not (said := await asyncio.get_running_loop().sock_recv(listening, 4_096)).startswith(state):
        pass
    return said


@pytest.mark.parametrize("count", [1, 2])
async def test_systemd_hears_of_the_start_a_reload_life_and_the_end(tmp_path, count):
    async with ScriptedProvider(answer("x")) as provider:
        write(tmp_path, provider.url)
        with service_manager(tmp_path) as listening:
            environ = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "200000"}
            async with serving(tmp_path, "--workers", str(count), **environ) as served:
                await told(listening, b"READY=1")
                assert (await ask(served.port)).status == 200
                os.kill(served.process.pid, signal.SIGHUP)
                assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", await told(listening, b"RELOADING=1"))
                await told(listening, b"READY=1")
                for _ in range(3):
                    await told(listening, b"WATCHDOG=1")
                served.process.send_signal(signal.SIGTERM)
                await told(listening, b"STOPPING=1")
                assert await served.ended() == 0


async def test_the_version_is_reported(tmp_path):
    async with ScriptedProvider(answer("x")) as provider:
        write(tmp_path, provider.url)
        async with serving(tmp_path) as served, connect(served.port) as client:
            version = await (await client.request("GET", "/version")).json()
    process = await asyncio.create_subprocess_exec(COMMAND, "--version", stdout=PIPE)
    said, _ = await process.communicate()
    assert said.decode() == f"chat-nest, version {version['version']}\n"
    assert json.dumps(version) != "{}"


# Faults.


@pytest.fixture
async def store():
    """The way to a real Redis, which a test can cut."""
    server = RedisServer()
    link = StoreLink(server.port)
    await link.repair()
    yield link
    link.cut()
    server.stop()


@pytest.mark.parametrize("count", [1, 2])
async def test_a_reload_needs_no_store(tmp_path, store, count):
    go_on = asyncio.Event()
    slow = stream(chunk("one"), go_on, chunk("two"), finish(), usage(3, 2), DONE)
    async with ScriptedProvider(slow) as provider:
        write(tmp_path, provider.url, tokens=1_000)
        environ = {"CHAT_NEST_STORE_URL": f"redis://127.0.0.1:{store.port}"}
        async with serving(tmp_path, "--workers", str(count), **environ) as served, connect(served.port) as client:
            reply = await client.post(HELLO)
            assert (await reply.event()).name == "start"
            store.cut()
            write(tmp_path, provider.url, tokens=2_000)
            assert (await reload(tmp_path))[0] == 0
            assert (await ask(served.port)).status == 503
            await store.repair()
            go_on.set()
            assert [event.name for event in await reply.events()][-1] == "done"
            async with asyncio.timeout(120):
                while (again := await ask(served.port)).status == 503:
                    await asyncio.sleep(0.1)
            assert again.status == 200
            found = (await settled(served.port))["tokens_per_day"]
            assert (found["limit"], found["used"]) == (2_000, 10)


async def test_a_worker_killed_in_the_middle_stops_no_reload(tmp_path):
    async with ScriptedProvider(answer("x")) as provider:
        write(tmp_path, provider.url, tokens=1_000)
        async with serving(tmp_path, "--workers", "2") as served:
            await serve_all(served, 2)
            assert (await reload(tmp_path))[0] == 0  # both serve by now
            frozen = min(workers(served))
            os.kill(frozen, signal.SIGSTOP)
            write(tmp_path, provider.url, tokens=2_000)
            reloading = asyncio.create_task(reload(tmp_path))
            await until(lambda: open_control(served))
            os.kill(frozen, signal.SIGKILL)
            assert (await reloading)[0] == 0
            for _ in range(20):
                assert (await standing(served.port))["tokens_per_day"]["limit"] == 2_000


def open_control(served: Command) -> bool:
    """Whether the parent has taken a client of its control socket: it has a second descriptor for that path."""
    taken = Path("/proc/net/unix").read_text().count(f"-{served.process.pid}.sock")
    return taken > 1
