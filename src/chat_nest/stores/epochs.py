"""Epochs of stores, kept outside the store to detect one that was emptied or replaced.

An epoch is a random text that a store (on a Redis Cluster, each of its partitions) gets when it is first used. It
disappears with the rest of the data when the store is emptied. A file on this machine keeps it, so that a process that
starts later detects the change, too. The file has one line for each part, `PART EPOCH`; of several lines of a part the
last one counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import threading
from hashlib import sha256
from pathlib import Path

from chat_nest.core.errors import StoreEmptied

log = logging.getLogger(__name__)

ACCEPT = "chat-nest store accept-empty"
"""The command by which an operator accepts an emptied store as it is."""
_LINE = re.compile(r"([\w-]{1,64}) ([\w-]{1,64})")


class Epochs:
    """The epochs of one store, by part. `path` is the file that keeps them; without one they end with the process.

    `accept` is the command that the error for an emptied store names. The methods block, and may be called from several
    threads.
    """

    def __init__(self, path: Path | None = None, accept: str = ACCEPT) -> None:
        self.path = None if path is None else path.absolute()
        self._accept = accept
        self._known: dict[str, str] = {}
        self._read = False
        self._failing = False
        self._lock = threading.Lock()

    def known(self, part: str = "0") -> str:
        """Return the part's epoch, "" if none is known. Raises OSError or ValueError for a broken file."""
        with self._lock:
            if not self._read:
                self._load()
            return self._known.get(part, "")

    def seen(self, part: str = "0") -> str | None:
        """Return the part's epoch without blocking; None if it is unknown, or the file was not yet read."""
        return self._known.get(part)

    def remembers(self) -> bool:
        """Return whether any part's epoch is known. Raises OSError or ValueError for a broken file."""
        self.known()
        return bool(self._known)

    def believe(self, part: str, known: str, found: str) -> None:
        """Remember the epoch that a call found, which began when `known` was known. Return when it is on the disk.

        Raises StoreEmptied if another call has found a different one meanwhile.
        """
        with self._lock:
            now = self._known.get(part, "")
            if now == found:
                return
            if now != known:
                raise self.emptied()
            self._known[part] = found
            try:
                self._append(f"{part} {found}")
                self._failing = False
            except OSError as error:
                if not self._failing:
                    log.error(  # noqa: TRY400 - no trace needed
                        "%s can't be written (%s): if the store is emptied while no process runs, none will notice",
                        *(self.path, error.strerror),
                    )
                self._failing = True

    def emptied(
        self, why: str = "it was emptied or replaced, and what was spent is not known any more"
    ) -> StoreEmptied:
        """Return the error of a store without the remembered epoch."""
        return StoreEmptied(f"{why}: restore its data, or start from zero with `{self._accept}`")

    def _load(self) -> None:
        if self.path is not None:
            try:
                text = self.path.read_text("ascii")
            except FileNotFoundError:
                text = ""
            *lines, _ = text.split("\n")  # text after the last line feed was cut off by a crash
            found = [match for line in lines if (match := _LINE.fullmatch(line)) is not None]
            if any(lines) and not found:
                raise ValueError("the file of the store's epoch can't be read")
            self._known = {match[1]: match[2] for match in found}
        self._read = True

    def _append(self, line: str) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_new = not self.path.exists()
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, f"\n{line}\n".encode())  # a line that a crash cut off is not joined to this one
            os.fsync(fd)
        finally:
            os.close(fd)
        if is_new:
            with contextlib.suppress(OSError):  # some systems can't sync a directory
                directory = os.open(self.path.parent, os.O_RDONLY)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)


async def known_epoch(epochs: Epochs, part: str) -> str:
    """Return `Epochs.known` without blocking the event loop."""
    return await asyncio.to_thread(epochs.known, part)


def epoch_path(directory: str | Path | None, kind: str, *names: object) -> Path | None:
    """Return the file for a store of this kind and names; None without a directory."""
    if directory is None:
        return None
    return Path(directory) / f"{kind}-{sha256(repr(names).encode()).hexdigest()[:16]}.epoch"
