"""The journal: endings that could not be stored, on disk until they are, so that they survive their process.

Each process has one file, created when an ending first fails. An ending is one line; another line marks it as
delivered. A lock shows whether a file's process is alive, and which process has taken over the file of a dead one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Literal

import msgspec
from msgspec import Struct

from chat_nest.core.claims import Claim
from chat_nest.core.limits import Unit
from chat_nest.core.records import Record
from chat_nest.core.usage import Source

log = logging.getLogger("chat_nest.ledger")

SUFFIX = ".journal"


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one claim ends: `settle` and `release` are the store's own; `post` reserves the claim first.

    Landing an entry twice has the same effect as landing it once.
    """

    ending: Literal["settle", "release", "post"]
    claim: Claim
    actual: Mapping[Unit, int] | None = None
    source: Source = "assumed"
    record: Record | None = None

    @property
    def key(self) -> str:
        return f"{self.ending} {self.claim.owner} {self.claim.id}"


class _Line(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    entry: Entry | None = None
    landed: str = ""
    """The key of an entry that has landed."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Line).decode


class JournalFile:
    """One file, locked while it is open. Not for several threads at once.

    `open` has the entries that have not landed, by their keys. Every method blocks, and raises OSError.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.open: dict[str, Entry] = {}
        self._fd = fd

    def add(self, entry: Entry) -> None:
        """Append the entry; return when it is on the disk and survives a crash of the machine."""
        if entry.key not in self.open:
            self._append(_Line(entry=entry))
            os.fsync(self._fd)
            self.open[entry.key] = entry

    def land(self, key: str) -> bool:
        """Mark an entry as landed; with the last one the file is removed. Return whether it was removed."""
        if self.open.pop(key, None) is not None and self.open:
            self._append(_Line(landed=key))  # if this is lost in a crash, the entry lands once more
        if not self.open:
            self.path.unlink(missing_ok=True)
            self.close()
        return not self.open

    def read(self) -> None:
        """Read the open entries in a dead process's file; set aside unreadable lines."""
        data = b""
        while piece := os.pread(self._fd, 1 << 20, len(data)):
            data += piece
        *lines, torn = data.split(b"\n")
        if torn:
            log.warning("%s: its last entry was cut off by a crash: that lease decides", self.path)
            os.ftruncate(self._fd, len(data) - len(torn))
        for line in lines:
            try:
                found = _decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self._set_aside(line)
                continue
            if found.entry is not None:
                self.open[found.entry.key] = found.entry
            self.open.pop(found.landed, None)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _append(self, line: _Line) -> None:
        size = os.fstat(self._fd).st_size
        data = _encode(line) + b"\n"
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError("the disk took only a part of it")
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)  # half a line would spoil the next one
            raise

    def _set_aside(self, line: bytes) -> None:
        aside = self.path.with_suffix(".corrupt")
        log.error("%s: a line can't be read and was put into %s", self.path, aside.name)
        with contextlib.suppress(OSError), os.fdopen(_create(aside, os.O_APPEND), "ab") as file:
            file.write(line + b"\n")


class Journal:
    """The journals of all processes that use one directory, which is made when it is first needed.

    Its files are readable by their user only (mode 0600) and hold claims and amounts, never a prompt or a key. The
    methods block and may be called from several threads. Raises ValueError if the directory can't be used.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).absolute()
        if sys.platform == "win32":
            raise ValueError("a journal needs a POSIX system")
        found = next(path for path in (self.directory, *self.directory.parents) if path.exists())
        if not found.is_dir() or not os.access(found, os.W_OK | os.X_OK):
            raise ValueError(f"the journal can't be kept in {self.directory}: it must be a directory to write in")
        self._own: JournalFile | None = None
        self._adopted: list[JournalFile] = []
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        """Keep the entry durably. Raises OSError."""
        with self._lock:
            if any(entry.key in file.open for file in self._adopted):
                return
            if self._own is None:
                self._own = self._new_file()
            try:
                self._own.add(entry)
            except OSError:
                self._drop_if_empty()
                raise

    def land(self, key: str) -> None:
        """Mark the entry as landed. Raises OSError."""
        with self._lock:
            if self._own is not None and key in self._own.open and self._own.land(key):
                self._own = None
            for file in [file for file in self._adopted if key in file.open]:
                if file.land(key):
                    self._adopted.remove(file)

    def adopt(self) -> Sequence[Entry]:
        """Take over the files of dead processes, and return what did not land. Raises OSError."""
        found: list[Entry] = []
        with self._lock:
            for path in sorted(self.directory.glob(f"*{SUFFIX}")):
                file = _lock_dead(path)
                if file is None:
                    continue
                try:
                    file.read()
                    if not file.open:
                        path.unlink(missing_ok=True)
                except OSError:
                    file.close()
                    raise
                if not file.open:
                    file.close()
                    continue
                log.warning("%s: its process died: %d endings are landed for it", path, len(file.open))
                self._adopted.append(file)
                found += file.open.values()
        return found

    def close(self) -> int:
        """Leave the open entries to the next process; return their number. The journal can be used again afterwards."""
        with self._lock:
            files = [*self._adopted, *([self._own] if self._own is not None else [])]
            self._adopted, self._own = [], None
            for file in files:
                file.close()
            return sum(len(file.open) for file in files)

    def _drop_if_empty(self) -> None:
        """Remove a file that a disk created but could not write to: no landing would ever remove it."""
        if self._own is not None and not self._own.open:
            own, self._own = self._own, None
            with contextlib.suppress(OSError):
                own.path.unlink(missing_ok=True)
            own.close()

    def _new_file(self) -> JournalFile:
        """Lock the file before it gets the name by which other processes find it."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{os.getpid()}-{token_hex(4)}"
        hidden, path = self.directory / f".{name}", self.directory / f"{name}{SUFFIX}"
        fd = _create(hidden, os.O_EXCL | os.O_APPEND)
        try:
            _lock(fd)
            hidden.rename(path)
            directory = os.open(self.directory, os.O_RDONLY)
            try:
                os.fsync(directory)  # makes the name durable, too
            finally:
                os.close(directory)
        except BaseException:
            os.close(fd)
            hidden.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise
        return JournalFile(path, fd)


def _create(path: Path, flags: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)


def _lock(fd: int) -> None:
    """Lock the file. Raises BlockingIOError if a live process has it."""
    import fcntl  # noqa: PLC0415 - not there on Windows

    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_dead(path: Path) -> JournalFile | None:
    """Return the file, if its process is dead and no other process has taken it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return None  # gone, or another user's
    try:
        _lock(fd)
        if os.fstat(fd).st_ino == path.stat().st_ino:  # else it was finished and removed meanwhile
            return JournalFile(path, fd)
    except OSError:
        pass
    os.close(fd)
    return None
