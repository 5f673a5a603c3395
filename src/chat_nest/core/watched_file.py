"""A file that is read again when it changes, such as a file of keys."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from chat_nest.core.errors import LimiterUnavailable

LOOK_SECONDS = 1.0
"""The maximum age of the last check of the file."""
MAX_BYTES = 8 << 20
"""Tens of thousands of keys: parsing holds the interpreter for a few hundredths of a second."""

Content = TypeVar("Content")


class WatchedFile(Generic[Content]):
    """The parsed content of a file, checked for changes at most once a second, in a thread.

    If the file is gone, unreadable or invalid, it has no content, because it may have revoked callers meanwhile. With
    `keeps` its last content stays in force instead. `parse` raises ValueError, which must not repeat the file's text.
    Raises ValueError if the file can't be used from the start.
    """

    def __init__(
        self,
        path: str | Path,
        parse: Callable[[bytes], Content],
        clock: Callable[[], float] = time.monotonic,
        *,
        keeps: bool = False,
        logger: str = "chat_nest.identity",
    ) -> None:
        self._path = Path(path).absolute()
        self._parse = parse
        self._clock = clock
        self._keeps = keeps
        self._log = logging.getLogger(logger)
        self.content: Content | None = None
        """The last content read; None if it is no longer in force."""
        self._seen: tuple[int, int, int] | None = None
        self._trouble = ""
        self._looked_at = 0.0
        self._looking: asyncio.Task[None] | None = None
        try:
            self._read()
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {_said(error)}") from None
        self._looked_at = clock()

    def recent(self) -> Content | None:
        """Return the content if the last check is recent enough, else None: then call `current`."""
        return self.content if self._clock() - self._looked_at < LOOK_SECONDS else None

    async def current(self) -> Content:
        """Return the content. Raises LimiterUnavailable if it is unknown."""
        if self._clock() - self._looked_at >= LOOK_SECONDS:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(asyncio.to_thread(self._look))
            await asyncio.shield(self._looking)  # other calls may wait for it, too
        if self.content is None:
            raise LimiterUnavailable(retry_after=LOOK_SECONDS)
        return self.content

    def _look(self) -> None:
        began = self._clock()
        try:
            changed = self._read()
        except (OSError, ValueError) as error:
            self._seen = None
            if not self._keeps:
                self.content = None
            if (trouble := _said(error)) != self._trouble:
                effect = (
                    "its last content stays in force" if self._keeps else "all requests are refused until it is fixed"
                )
                self._log.error("%s: %s: %s", self._path, trouble, effect)
            self._trouble = trouble
        else:
            if changed:
                self._log.info("%s has changed and was read again", self._path)
            self._trouble = ""
        self._looked_at = began

    def _read(self) -> bool:
        """Return whether the file had changed. Raises OSError, ValueError."""
        with self._path.open("rb") as file:
            found = os.fstat(file.fileno())
            seen = (found.st_mtime_ns, found.st_ino, found.st_size)
            if seen == self._seen:
                return False
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"may have at most {MAX_BYTES} bytes")
        self.content = self._parse(data)
        self._seen = seen
        return True


def _said(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return f"can't be read: {error.strerror}" if isinstance(error, OSError) else str(error)
