"""TLS in front of the provider's stand-in: nginx, with a certificate made for this run."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.processes import Failed, Missing, Server, free_port
from benchmarks.stacks import CERTIFICATE, nginx_in

LISTEN = """127.0.0.1:{port} ssl;
    ssl_certificate {certificate};
    ssl_certificate_key {key}"""


class Terminator:
    """On the core of the process that makes it, which is the load's: it takes no time from what is measured."""

    def __init__(self, standin_port: int) -> None:
        key = make_certificate()
        self._directory = Path(tempfile.mkdtemp(prefix="tls-", dir=CERTIFICATE.parent))
        port = free_port()
        listen = LISTEN.format(port=port, certificate=CERTIFICATE, key=key)
        command = nginx_in(self._directory, listen, f"http://127.0.0.1:{standin_port}")
        self._server = Server("the TLS terminator", command, port=port, core=None, directory=self._directory)
        self.url = f"https://127.0.0.1:{port}"
        try:
            self._server.wait_until_open()
        except Failed:
            self.stop()
            raise

    def stop(self) -> None:
        self._server.stop()
        shutil.rmtree(self._directory)


def make_certificate() -> Path:
    """Write CERTIFICATE, for 127.0.0.1, and its key beside it. Raises Missing where there is no openssl."""
    if not shutil.which("openssl"):
        raise Missing("openssl makes the stand-in's certificate: apt-get install -y openssl")
    key = CERTIFICATE.with_suffix(".key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=stand-in", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", CERTIFICATE],
        check=True, capture_output=True,
    )  # fmt: skip
    return key
