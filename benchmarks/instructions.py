"""Count the instructions of a request and of a token with callgrind: other work on the machine changes nothing.

    scripts/bench instructions [--metrics] [--traces SHARE] [--beside DIR]

Everything is real, as in `chat-nest serve` with its defaults and a store in memory: the server's protocol, the
pipeline, the HTTP client. Only the two sockets are not there, so that the kernel's part is not counted, and neither is
that of the event loop's polling. The same program runs twice, with a few requests and with more; the difference is what
those cost. `--beside` counts another checkout's code as well, with this environment. `--metrics` counts with metrics
on, in files, as with several workers, but without their look each second, which is no part of a request. `--traces`
counts with this share of the requests traced, and the sending of their spans. It needs valgrind, and
some minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks.processes import Missing
from benchmarks.stacks import CHAT_NEST, native_body
from benchmarks.telemetry import METRICS, PRICED, collector, traces

ROOT = Path(__file__).parent.parent
WARM_UP, FEW, MANY = 20, 5, 25
"""Requests."""
TOKENS = 200
"""Of the longer answers, whose tokens come one by one."""
FIRST, LAST, OVER = "the client's bytes", "the provider's bytes", "the answer is over"
"""What this program sees of a request."""
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = (
    '{"id":"chatcmpl-BqGk2","object":"chat.completion.chunk","created":1751000000,"model":"gpt-4o-mini-2024-07-18",'
    '"service_tier":"default","system_fingerprint":"fp_34a54ae93c","choices":[{"index":0,"delta":%s,"logprobs":null,'
    '"finish_reason":%s}],"usage":null,"obfuscation":"pT3kQ9"}'
)
USAGE = (
    '{"object":"chat.completion.chunk","choices":[],'
    '"usage":{"prompt_tokens":1200,"completion_tokens":1,"total_tokens":1201}}'
)


class NoSocket:
    def fileno(self) -> int:
        return -1


class Wire(asyncio.Transport):
    """A socket that takes everything."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2), "socket": NoSocket()})
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    resume_reading = abort = close = pause_reading

    def is_closing(self) -> bool:
        return False


class Loop(uvloop.Loop):
    """Connects to a provider that this program plays."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[tuple[Any, Wire]] = []

    async def create_connection(self, make: Callable[[], Any], *_: Any, **_others: Any) -> Any:
        protocol, wire = make(), Wire()
        protocol.connection_made(wire)
        self.opened.append((protocol, wire))
        return wire, protocol


def event(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


async def until(true: Callable[[], object]) -> None:
    while not true():  # noqa: ASYNC110 - what is counted must not know that it is watched
        await asyncio.sleep(0)


async def serve(
    requests: int,
    tokens: int,
    directory: Path,
    telemetry: str,
    *,
    mark: Callable[[str], None] = lambda _: None,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Answer `requests` requests, after the first ones that fill what is computed once.

    `mark` gets FIRST, LAST and OVER of each of them, `done` is called when all are answered.
    """
    from chat_nest.server.app import build  # noqa: PLC0415 - of the checkout that is counted
    from chat_nest.server.config.settings import load  # noqa: PLC0415
    from chat_nest.server.http.context import ServerContext  # noqa: PLC0415
    from chat_nest.server.http.protocol import ServerConnection  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    config = directory / "config.toml"
    config.write_text(CHAT_NEST.format(store="memory://", provider="http://127.0.0.1:1") + telemetry)
    app = build(load(str(config), {}))
    app.handler.start()
    if app.metrics is not None:
        from chat_nest.metrics import observer  # noqa: PLC0415

        observer.SAMPLE_SECONDS = 1e9
        if hasattr(app.metrics, "keep_sampling"):
            keeps_sampling = asyncio.create_task(app.metrics.keep_sampling())
            await asyncio.sleep(0)
            assert not keeps_sampling.done()
    with contextlib.suppress(ImportError):  # an older checkout
        from chat_nest.traces import export  # noqa: PLC0415

        export.BATCH_SECONDS = 1e9  # what is sent by the clock is sent at the end
    client = Wire()
    connection = ServerConnection(ServerContext(app))
    connection.connection_made(client)
    body = msgspec.json.encode(native_body(f"tokens={tokens}"))
    length = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    request = b"POST /api/chat HTTP/1.1\r\nhost: 127.0.0.1:8080\r\n" + length + body
    word = event(CHUNK % ('{"content":" word"}', "null"))
    end = event(CHUNK % ("{}", '"stop"')) + event(USAGE) + event("[DONE]") + b"0\r\n\r\n"
    for number in range(WARM_UP + requests):
        if number == WARM_UP:
            gc.collect()
            gc.disable()
        client.written.clear()
        for _, wire in loop.opened:
            wire.written.clear()
        counts = number >= WARM_UP
        if counts:
            mark(FIRST)
        connection.data_received(request)
        await until(lambda: loop.opened and loop.opened[0][1].written)
        provider = loop.opened[0][0]
        if counts:
            mark(LAST)
        provider.data_received(HEAD + word)
        await until(lambda: b"event: token" in b"".join(client.written))
        for _ in range(tokens - 2):
            provider.data_received(word)
        provider.data_received((word if tokens > 1 else b"") + end)
        await until(lambda: not (connection.answering or app.running))
        if counts:
            mark(OVER)
        assert b"".join(client.written).count(b"event: token") == tokens
    done()
    await app._telemetry.aclose()  # noqa: SLF001 - the last spans belong to the requests
    os._exit(0)  # the end of the interpreter is not counted


def count(checkout: Path, requests: int, tokens: int, telemetry: str) -> int:
    """Return the instructions of a process that answers so many requests."""
    with tempfile.TemporaryDirectory() as directory:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={directory}/out", sys.executable]
        command += ["-m", "benchmarks.instructions", "--serve", str(requests), str(tokens), directory, telemetry]
        environ = environment(checkout)
        if METRICS in telemetry:
            environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False)
        found = re.search(r"^(?:summary|totals): (\d+)", (Path(directory) / "out").read_text(), re.MULTILINE)
        if done.returncode or found is None:
            raise RuntimeError(done.stderr)
        return int(found[1])


def environment(checkout: Path) -> dict[str, str]:
    """Return the environment of a program that counts this checkout's code."""
    return os.environ | {"PYTHONPATH": f"{checkout / 'src'}{os.pathsep}{ROOT}", "PYTHONHASHSEED": "1"}


def figures(checkout: Path, telemetry: str) -> tuple[float, float]:
    """Return the instructions of a request with one token, and of each further token."""

    def a_request(tokens: int) -> float:
        few, many = (count(checkout, requests, tokens, telemetry) for requests in (FEW, MANY))
        return (many - few) / (MANY - FEW)

    request, longer = a_request(1), a_request(TOKENS)
    return request, (longer - request) / (TOKENS - 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--beside", type=Path, metavar="DIR", help="a checkout of another commit")
    parser.add_argument("--metrics", action="store_true", help="with metrics on, in files")
    parser.add_argument("--traces", metavar="SHARE", help="with this share of the requests traced, from 0 to 1")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        requests, tokens, directory, telemetry = asked.serve
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(serve(int(requests), int(tokens), Path(directory), telemetry))
    if not shutil.which("valgrind"):
        raise Missing("Instructions are counted by valgrind: apt-get install -y valgrind")
    with collector() as endpoint:
        telemetry = (
            PRICED + METRICS * asked.metrics + (traces(endpoint, asked.traces) if asked.traces else "")
        )  # metrics count what an answer cost, so that it has a price without them, too
        for checkout in (ROOT, *([asked.beside.resolve()] if asked.beside else [])):
            request, token = figures(checkout, telemetry)
            print(f"{checkout}: {request:,.0f} instructions a request of 1 token, {token:,.0f} each further token")
    return 0


if __name__ == "__main__":
    sys.exit(main())
