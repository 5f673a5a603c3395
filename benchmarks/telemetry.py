"""Chat Nest with metrics and traces, beside the same without them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from benchmarks.stacks import NATIVE, Prepare, Stack, chat_nest

COST_ONLY = frozenset(("burst-1", "burst-200", "paced"))
PRICED = '[prices."standin:gpt-4o-mini"]\ninput = 0.15\noutput = 0.6\n\n'
METRICS = "[metrics]\nenabled = true\n\n"


class _Collector(BaseHTTPRequestHandler):
    """Takes every span and keeps none."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _in_files(prepare: Prepare) -> Prepare:
    """The same, with the counters in memory-mapped files, as those of several workers are."""

    def with_folder(directory: Path, port: int, provider: str) -> list[str]:
        (directory / "counters").mkdir(exist_ok=True)
        return [
            "env",
            f"PROMETHEUS_MULTIPROC_DIR={directory / 'counters'}",
            *prepare(directory, port, provider),
        ]

    return with_folder


@contextmanager
def collector() -> Generator[str]:
    """Yield the URL of a collector of spans that runs meanwhile on this process's core."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces"
    finally:
        server.shutdown()


def traces(endpoint: str, sample: str) -> str:
    """Return the section of a configuration that traces this share of the requests."""
    return f'[traces]\nendpoint = "{endpoint}"\nsample = {sample}\n\n'


@contextmanager
def stacks() -> Generator[list[Stack]]:
    """Yield the stacks, while their spans have a collector."""

    def stack(name: str, more: str, *, in_files: bool = False) -> Stack:
        prepare = chat_nest("sqlite:///chat-nest.db", more=PRICED + more)
        return Stack(name=name, prepare=_in_files(prepare) if in_files else prepare, scenarios=COST_ONLY, **NATIVE)

    with collector() as endpoint:
        yield [
            stack("nothing on", ""),
            stack("metrics", METRICS),
            stack("metrics in files", METRICS, in_files=True),
            stack("metrics in files, 1 % traced", METRICS + traces(endpoint, "0.01"), in_files=True),
            stack("metrics in files, all traced", METRICS + traces(endpoint, "1"), in_files=True),
        ]
