"""The proxies of deploy/ as an operator runs them, with their own files: TLS and HTTP/2 in front of a served port.

async with proxy("caddy", tmp_path, served.port) as front, front.client("127.0.0.2") as client:
    assert (await client.get("/healthz")).status_code == 200
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from ports import free_port

DEPLOY = Path(__file__).parents[1] / "deploy"
NAME = "chat.example.com"
FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@dataclass
class Front:
    port: int
    trust: ssl.SSLContext

    def client(self, source: str = "127.0.0.1") -> httpx.AsyncClient:
        """A client that connects from this address."""
        transport = httpx.AsyncHTTPTransport(verify=self.trust, http2=True, local_address=source)
        return httpx.AsyncClient(transport=transport, base_url=f"https://localhost:{self.port}", timeout=60)


@asynccontextmanager
async def proxy(kind: str, folder: Path, upstream: int) -> AsyncIterator[Front]:
    """Run nginx or Caddy with its file of deploy/, of which only names, ports and certificates are changed."""
    program = shutil.which(kind, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        assert not os.environ.get("CI"), f"{kind} is missing, and in CI no test may be left out"
        pytest.skip(f"{kind} is not installed")
    folder.mkdir()
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(folder / "chain.pem", append=True)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    port = free_port()
    configure = {"nginx": _nginx, "caddy": _caddy}[kind]
    with (folder / "errors.log").open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *(program, *configure(folder, port, upstream)),
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
            stdin=asyncio.subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        while True:
            assert process.returncode is None, (folder / "errors.log").read_text()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                break
        yield Front(port, trust)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _nginx(folder: Path, port: int, upstream: int) -> tuple[str, ...]:
    text = (DEPLOY / "nginx" / "chat-nest.conf").read_text()
    text, changed = re.subn(r"server \{\n    listen 80;.*?\n\}\n", "", text, count=1, flags=re.DOTALL)
    assert changed, "the redirection of port 80, which a test may not listen on"
    changes = {
        r"^    listen \[::\]:443 .*\n": "",
        r"listen 443\b": f"listen 127.0.0.1:{port}",
        r"127\.0\.0\.1:8000": f"127.0.0.1:{upstream}",
        rf"server_name {re.escape(NAME)}": "server_name localhost",
        r"/etc/letsencrypt/\S+/fullchain\.pem": f"{folder}/chain.pem",
        r"/etc/letsencrypt/\S+/privkey\.pem": f"{folder}/key.pem",
    }
    temporary = "".join(f"{name}_temp_path {folder}/{name};\n" for name in FOLDERS)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors.log;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}{_changed(text, changes)} }}\n"
    )
    return "-e", f"{folder}/errors.log", "-c", f"{folder}/nginx.conf"


def _caddy(folder: Path, port: int, upstream: int) -> tuple[str, ...]:
    text = (DEPLOY / "caddy" / "Caddyfile").read_text()
    changes = {
        rf"^{re.escape(NAME)} \{{": f"https://localhost:{port} {{\n\ttls {folder}/chain.pem {folder}/key.pem\n\tbind 127.0.0.1",
        r"127\.0\.0\.1:8000": f"127.0.0.1:{upstream}",
    }
    options = "{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n"
    (folder / "Caddyfile").write_text(options + _changed(text, changes))
    return "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"


def _to(new: str) -> Callable[[re.Match[str]], str]:
    return lambda _: new


def _changed(text: str, changes: dict[str, str]) -> str:
    for pattern, new in changes.items():
        text, count = re.subn(pattern, _to(new), text, flags=re.MULTILINE)
        assert count, pattern
    return text
