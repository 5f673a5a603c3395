"""A file that decides who may ask, read again when it changes."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from chat_nest.errors import LimiterUnavailable

log = logging.getLogger("chat_nest.identity")

LOOK_SECONDS = 1.0
"""How old what is known of the file may be."""
MAX_BYTES = 8 << 20
"""Tens of thousands of keys: parsing holds the interpreter for a few hundredths of a second."""

Content = TypeVar("Content")


class WatchedFile(Generic[Content]):
    """The parsed content of a file, looked at again at most once a second, in a thread.

    A file that is gone, or can't be read or parsed any more, closes the door: whom it has shut out meanwhile can't be
    known. `parse` raises ValueError, which must not repeat what the file holds. Raises ValueError where the file can't
    be used from the start.
    """

    def __init__(
        self, path: str | Path, parse: Callable[[bytes], Content], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = Path(path).absolute()
        self._parse = parse
        self._clock = clock
        self._content: Content | None = None
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
        """The content, if it is known well enough; else ask `current`."""
        return self._content if self._clock() - self._looked_at < LOOK_SECONDS else None

    async def current(self) -> Content:
        """The content. Raises LimiterUnavailable where it can't be known."""
        if self._clock() - self._looked_at >= LOOK_SECONDS:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(asyncio.to_thread(self._look))
            await asyncio.shield(self._looking)  # others may wait for it, too
        if self._content is None:
            raise LimiterUnavailable(retry_after=LOOK_SECONDS)
        return self._content

    def _look(self) -> None:
        began = self._clock()
        try:
            changed = self._read()
        except (OSError, ValueError) as error:
            self._content = self._seen = None
            if (trouble := _said(error)) != self._trouble:
                log.error("%s: %s: nobody is let in until it is mended", self._path, trouble)  # noqa: TRY400
            self._trouble = trouble
        else:
            if changed:
                log.info("%s has changed and was read again", self._path)
            self._trouble = ""
        self._looked_at = began

    def _read(self) -> bool:
        """Whether there was something new to read. Raises OSError, ValueError."""
        with self._path.open("rb") as file:
            found = os.fstat(file.fileno())
            seen = (found.st_mtime_ns, found.st_ino, found.st_size)
            if seen == self._seen:
                return False
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"may have at most {MAX_BYTES} bytes")
        self._content = self._parse(data)
        self._seen = seen
        return True


def _said(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return f"can't be read: {error.strerror}" if isinstance(error, OSError) else str(error)
