"""A real PostgreSQL server for tests: one a test process, or the one at DATABASE_URL; each user of it makes a database."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from ports import free_port

_numbers = itertools.count()


class PostgresServer:
    """A server in a directory of its own, which goes with it. Without fsync: it survives its own crash, not the machine's.

    `disk_mb` is the size of a disk of its own, in memory; see `can_mount`.
    """

    def __init__(self, disk_mb: int = 0) -> None:
        self._programs = find_programs()
        self._directory = Path(tempfile.mkdtemp(prefix="chat-nest-postgres-"))
        self._mounted = bool(disk_mb)
        if disk_mb:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={disk_mb}m", "none", self._directory], check=True)
        self._process: subprocess.Popen | None = None
        self._as_user: list[str] = []
        if os.getuid() == 0:  # the server refuses to run as root
            user = next(name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()})
            entry = pwd.getpwnam(user)
            os.chown(self._directory, entry.pw_uid, entry.pw_gid)
            self._as_user = [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        run = ["setpriv", *self._as_user] if self._as_user else []
        subprocess.run(
            [*run, self._programs / "initdb", "-D", self._directory / "data", "-U", "postgres", "-A", "trust",
             "-E", "UTF8", "--locale=C", "--no-sync", *(["--wal-segsize=1"] if disk_mb else [])],
            check=True, stdout=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        self.start()

    @property
    def running(self) -> subprocess.Popen:
        """The server's process, once it was started."""
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.running.pid

    def start(self) -> None:
        """Start it unless it runs, and wait until it answers."""
        if self._process is None or self._process.poll() is not None:
            self._run()
        give_up = time.monotonic() + 240
        while subprocess.run([self._programs / "pg_isready", "-q", "-d", self.url]).returncode:
            if self.running.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self._directory / 'log').read_text()}")
            time.sleep(0.02)

    def _run(self) -> None:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "16MB",
            "max_connections": 100,
            "log_min_messages": "fatal",
        }
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                # It ends with us, however we end.
                ["setpriv", "--pdeathsig", "QUIT", *self._as_user, self._programs / "postgres",
                 "-D", self._directory / "data", *(f"--{name}={value}" for name, value in settings.items())],
                cwd="/", stdout=log, stderr=log, start_new_session=True,  # away from Ctrl-C
            )  # fmt: skip

    @contextlib.contextmanager
    def full_disk(self):
        """Leave no room on its disk while this is open. The server may end by itself; `start` starts it again."""
        balloon = self._directory / "balloon"
        with balloon.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4_096))
        try:
            yield
        finally:
            balloon.unlink()

    def crash(self) -> None:
        """What `pg_ctl stop -m immediate` does: no checkpoint, no goodbye."""
        self.running.send_signal(signal.SIGQUIT)
        self.running.wait()

    def become_standby(self) -> None:
        """Restart as a standby, which can be read only. It has no primary, and waits for `promote`."""
        self.running.send_signal(signal.SIGINT)
        self.running.wait()
        (self._directory / "data" / "standby.signal").touch()
        self.start()

    def promote(self) -> None:
        """End being a standby."""
        run = ["setpriv", *self._as_user] if self._as_user else []
        command: list[str | Path] = [*run, self._programs / "pg_ctl", "promote", "-D", self._directory / "data"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def signal_all(self, number: int) -> None:
        """Signal the server and its children, which answer for it."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in (self.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def remove(self) -> None:
        if self.running.poll() is None:
            self.signal_all(signal.SIGCONT)
            self.crash()
        if self._mounted:
            subprocess.run(["umount", "--lazy", self._directory], check=True)
        shutil.rmtree(self._directory)


@functools.cache
def can_mount() -> bool:
    """Whether a disk can be mounted here: as root, outside most containers."""
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


@functools.cache
def shared_url() -> str:
    """The URL of a database of our own on a server that lives as long as this process."""
    url = os.environ.get("DATABASE_URL")
    if not url:
        server = PostgresServer()
        atexit.register(server.remove)
        url = server.url
    name, remove = new_database(url)
    atexit.register(remove)
    return name


def new_database(url: str):
    """Make a database beside the one at `url`. Return its URL, and what removes it."""
    import psycopg

    name = f"chat_nest_test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")

    def remove() -> None:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    return urlunsplit(urlsplit(url)._replace(path=f"/{name}")), remove


def empty(url: str) -> None:
    """Forget all counters, reservations and requests."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT to_regclass('chat_nest.counters') IS NOT NULL").fetchone() == (True,):
            connection.execute(
                "DELETE FROM chat_nest.counters; DELETE FROM chat_nest.reservations; DELETE FROM chat_nest.requests;"
                "DELETE FROM chat_nest.controls; DELETE FROM chat_nest.firsts; DELETE FROM chat_nest.reports;"
                "DELETE FROM chat_nest.acts"
            )


def rows(url: str, query: str):
    """What the query returns; of several statements, the last one's rows."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []


def find_programs() -> Path:
    """The directory of initdb and postgres; Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if found:
        candidates.append(Path(found).resolve().parent)
    for directory in reversed(candidates):
        if (directory / "initdb").exists() and (directory / "postgres").exists() and shutil.which("setpriv"):
            return directory
    message = "needs PostgreSQL (Debian: apt install postgresql; scripts/test does it as root)"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
