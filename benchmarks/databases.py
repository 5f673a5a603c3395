"""A Redis and a PostgreSQL server of our own, as durable as the documents ask, and bare commits of SQLite."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import Failed, Missing, cpu_seconds, family, free_port


class Database:
    """One server process with its data in a directory of its own; both go with `stop`."""

    def __init__(self, url: str, directory: Path, command: list[str | Path], ready: Callable[[], bool]) -> None:
        self.url, self._directory = url, directory
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, start_new_session=True)
        give_up = time.monotonic() + 15
        while not ready():
            if self._process.poll() is not None or time.monotonic() > give_up:
                said = (directory / "log").read_text(errors="replace")[-2_000:]
                self.stop()
                raise Failed(f"{command[0]} did not start.\n{said}")
            time.sleep(0.02)

    def cpu_seconds(self) -> float:
        """User and system time of the server's processes."""
        return cpu_seconds(family(self._process.pid))

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory)


def start_redis(directory: str | None) -> Database:
    """Raises Missing where there is no redis-server."""
    program = shutil.which("redis-server", path=os.environ.get("PATH", "") + ":/usr/bin")
    if program is None:
        raise Missing("Redis is one of the stores: apt-get install -y redis-server")
    port, place = free_port(), Path(tempfile.mkdtemp(prefix="bench-redis-", dir=directory))
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(place), "--save", "", "--appendonly", "yes"]

    def ready() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    return Database(f"redis://127.0.0.1:{port}", place, [program, *options], ready)


def start_postgres(directory: str | None) -> Database:
    """Raises Missing where there is no PostgreSQL."""
    found = shutil.which("initdb")
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    programs = Path(found).resolve().parent if found else places[-1] if places else None
    if programs is None or not shutil.which("setpriv"):
        raise Missing("PostgreSQL is one of the stores: apt-get install -y postgresql")
    place, user = Path(tempfile.mkdtemp(prefix="bench-postgres-", dir=directory)), []
    if os.getuid() == 0:  # the server refuses to run as root
        entry = pwd.getpwnam("postgres")
        os.chown(place, entry.pw_uid, entry.pw_gid)
        user = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    made = subprocess.run(
        [*user, programs / "initdb", "-D", place / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8",
         "--locale=C"],
        cwd="/", capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        raise Failed(f"initdb failed.\n{made.stderr.decode(errors='replace')}")
    port = free_port()
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    command = [*user, programs / "postgres", "-D", place / "data", f"--port={port}", "--listen_addresses=127.0.0.1",
               "--unix_socket_directories="]  # fmt: skip
    ask = [programs / "pg_isready", "-q", "-d", url]
    return Database(url, place, command, lambda: subprocess.run(ask, check=False).returncode == 0)


class Commits:
    """What the SQLite store can't do without: a commit that is on the disk when it returns."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "CREATE TABLE one (n)"):
            self._connection.execute(statement)

    def commit(self) -> None:
        self._connection.execute("INSERT INTO one VALUES (1)")

    def close(self) -> None:
        self._connection.close()
