"""What is measured. One more stack is one more entry: how to start it, where to post what, and how its tokens look."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.processes import Missing

HERE = Path(__file__).parent
CERTIFICATE = HERE / "build/standin.pem"
"""The certificate of the provider's stand-in, for calls over TLS."""
Prepare = Callable[[Path, int, str], list[str]]
"""(its own directory, its port, the provider's base URL without /v1) -> the command that serves; files are written."""


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """A server between the client and the provider. `mark` and `done` as in load.c."""

    name: str
    prepare: Prepare | None
    """None: no server in between."""
    path: str
    body: Callable[[str], Any]
    """The request, with the text that steers the stand-in in its last message."""
    mark: str
    done: str
    tls: bool = False
    """Whether the provider is asked over TLS."""
    one_event_a_token: bool = True
    scenarios: frozenset[str] | None = None
    """Those that it takes part in; None: all."""
    start_seconds: float = 15.0
    pinned: bool = True
    """Whether it has one core; else it has all."""


# ---- bodies: five messages, about 5 kB

SENTENCES = (
    "I am writing a small web page that shows an answer word by word, as the model produces it.",
    "The server sends Server-Sent Events, and every event holds one JSON string with the next piece of text.",
    "Yesterday a colleague asked me what happens when the reader closes the tab in the middle of an answer.",
    'The log said "connection reset by peer" and nothing else, which did not help us very much.',
    "We would like the request to the provider to stop at once, because every token after that costs money.",
    "On a caf\u00e9's slow network the words arrive in lumps \u2014 sometimes twenty of them at a time.",
    "Please explain which of the two sides has to notice it first, and what each of them should then do.",
    "Our budget is 70,000 tokens a day for each visitor, and it must hold when fifty of them press the key together.",
    "Short paragraphs are best, and a list where there is really something to count:\n1. the cause\n2. the cure\n",
)


def paragraph(first: int) -> str:
    return " ".join(SENTENCES[(first + i) % len(SENTENCES)] for i in range(11))


def conversation(steering: str) -> list[dict[str, str]]:
    turns = [{"role": "assistant" if i % 2 else "user", "content": paragraph(2 * i)} for i in range(5)]
    turns[-1]["content"] += f"\nbench:{steering},id=########"
    return turns


def openai_body(steering: str) -> Any:
    return {
        "model": "gpt-4o-mini",
        "messages": conversation(steering),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


PROMPT_BYTES = 400_000
"""Of a large prompt, about 90,000 tokens."""


def large(body: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same request after a document that makes it PROMPT_BYTES long."""

    def with_document(steering: str) -> Any:
        made = body(steering)
        pieces: list[str] = []
        while len(pieces) * 900 < PROMPT_BYTES:
            pieces.append(paragraph(3 * len(pieces)))
        document = {"role": "user", "content": " ".join(pieces)[:PROMPT_BYTES]}
        return made | {"messages": [document, {"role": "assistant", "content": "I read it."}, *made["messages"]]}

    return with_document


def native_body(steering: str) -> Any:
    # A stamped token counts as six: an answer of them has more than the balanced profile's 400.
    return {"messages": conversation(steering), "profile": "expanded" if "stamp=1" in steering else "balanced"}


# ---- servers

NGINX = """\
worker_processes 1;
master_process off;
daemon off;
pid nginx.pid;
error_log error.log;
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  upstream provider {{ server {provider}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen {listen};
    location / {{
      proxy_pass {scheme}://provider;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


def nginx_program() -> str | None:
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def check_machine() -> None:
    """Raises Missing."""
    if not sys.platform.startswith("linux"):
        raise Missing("The benchmarks read /proc and pin processes to cores: they need Linux.")
    if not nginx_program():
        raise Missing("nginx is the floor that everything is compared with: apt-get install -y nginx-light")
    if not shutil.which("taskset"):
        raise Missing("taskset pins processes to cores: apt-get install -y util-linux")


def nginx(directory: Path, port: int, provider: str) -> list[str]:
    return nginx_in(directory, f"127.0.0.1:{port}", provider)


def nginx_in(directory: Path, listen: str, provider: str) -> list[str]:
    """`listen` is what stands behind that word in nginx.conf, and may hold further lines."""
    scheme, _, address = provider.partition("://")
    (directory / "nginx.conf").write_text(NGINX.format(listen=listen, scheme=scheme, provider=address))
    return [nginx_program() or "nginx", "-p", str(directory), "-e", "error.log", "-c", "nginx.conf"]


# Everything as it comes, except that no limit refuses: one address makes all the requests.
CHAT_NEST = """\
[store]
url = "{store}"

[providers.standin]
kind = "openai"
base_url = "{provider}/v1"
api_key = "none"

[profiles.balanced]
model = "standin:gpt-4o-mini"
max_output_tokens = 400
tokens_per_request = 1_000_000
tokens_per_day = 1_000_000_000_000_000
requests_per_minute = 100_000_000

[profiles.expanded]
open = true
model = "standin:gpt-4o-mini"
max_output_tokens = 4096
tokens_per_request = 1_000_000
tokens_per_day = 1_000_000_000_000_000
requests_per_minute = 100_000_000

[hard_caps]
tokens_per_request = 1_000_000
tokens_per_day = 1_000_000_000_000_000
requests_per_minute = 100_000_000
"""


def chat_nest(store: str, programs: Path = Path(sys.executable).parent, *, more: str = "", workers: int = 1) -> Prepare:
    """`more` is TOML that comes before the rest of the configuration."""

    def prepare(directory: Path, port: int, provider: str) -> list[str]:
        (directory / "config.toml").write_text(more + CHAT_NEST.format(store=store, provider=provider))
        listen = ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
        quiet = ["--log-level", "warning"]  # none of the others writes a line for each request
        return [str(programs / "chat-nest"), "serve", "--config", "config.toml", *listen, *quiet]

    return prepare


def trusting(prepare: Prepare) -> Prepare:
    """The same, where the stand-in's certificate is one that the system trusts."""

    def with_certificate(directory: Path, port: int, provider: str) -> list[str]:
        return ["env", f"SSL_CERT_FILE={CERTIFICATE}", *prepare(directory, port, provider)]

    return with_certificate


def fast_api(_directory: Path, port: int, provider: str) -> list[str]:
    """`benchmarks/embedded.py` under uvicorn."""
    serve = [
        sys.executable,
        "-m",
        "uvicorn",
        "--app-dir",
        str(HERE.parent),
        "benchmarks.embedded:app",
        "--no-access-log",
    ]
    return ["env", f"STANDIN={provider}", *serve, "--host", "127.0.0.1", "--port", str(port)]


OPENAI: dict[str, Any] = {
    "path": "/v1/chat/completions",
    "body": openai_body,
    "mark": '"delta":{"content":"',
    "done": "data: [DONE]",
}
NATIVE: dict[str, Any] = {"path": "/api/chat", "body": native_body, "mark": 'data: "', "done": "event: done"}

DIRECT = "no server"
FLOOR = "nginx"
TLS = "chat-nest memory, TLS"
STACKS = (
    Stack(name=DIRECT, prepare=None, **OPENAI),
    Stack(name=FLOOR, prepare=nginx, **OPENAI),
    Stack(name="chat-nest memory", prepare=chat_nest("memory://"), **NATIVE),
    Stack(name="chat-nest sqlite", prepare=chat_nest("sqlite:///chat-nest.db"), **NATIVE),
    Stack(name="chat-nest in FastAPI", prepare=fast_api, **NATIVE),
    Stack(name="nginx, TLS", prepare=nginx, tls=True, **OPENAI),
    Stack(name=TLS, prepare=trusting(chat_nest("memory://")), tls=True, **NATIVE),
)
"""With TLS: to the provider only."""


def beside(checkout: Path) -> Stack:
    """Another checkout's Chat Nest, set up there by `scripts/setup`, to compare two commits in one run."""
    return Stack(name="beside memory", prepare=chat_nest("memory://", checkout / ".venv/bin"), **NATIVE)
