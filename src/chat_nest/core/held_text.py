"""Long base64 texts (images, files) of a JSON body, taken out while the body arrives and held beside it.

    {"url":"data:image/png;base64,iVBORw0KGgo..."}   becomes   {"url":"data:image/png;base64,<held 0 HASH>"}

Images are far longer than the rest of a request; without them only a short text is searched, parsed and walked. Each
piece is processed as it arrives, so no step grows with the body. A text that is too long, or one too many, is dropped
as it arrives, and only its length is kept: an old image must not end a conversation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, cast

from msgspec import Struct

from chat_nest.core.errors import BodyTooLarge
from chat_nest.core.media import ALPHABET, PDF, look, pages

WINDOW: Final = 4_096
"""Bytes examined at once: a run of base64 that fills such a block is taken out."""
_ESCAPE: Final = re.compile(rb"\\(.)", re.DOTALL)
_MARK: Final = re.compile(r"<held (\d{1,6}) ([0-9a-f]{32})>")
_WHOLE: Final = re.compile(r"(?:data:([^,]{0,256}?);base64,)?<held (\d{1,6}) ([0-9a-f]{32})>(={0,2})")


class Uploads(Struct, frozen=True, kw_only=True):
    """The room for texts beside a body's JSON: the last `number` texts of `size` characters are kept."""

    number: int
    size: int
    most: int
    """Bytes of a whole body."""


class HeldText:
    """One run of base64. `data` is empty if it was dropped; `length` is its original length."""

    __slots__ = ("_hash", "data", "digest", "length", "page_bound", "prefix")

    def __init__(self) -> None:
        self.data = bytearray()
        self.digest = ""
        self.length = 0
        self.page_bound = 0
        """See `media.pages`; 0 unless it is a PDF."""
        self._hash = blake2b(digest_size=16)

    def add(self, piece: bytes, most: int) -> None:
        self.length += len(piece)
        self._hash.update(piece)
        if self.length <= most:
            self.data += piece
        else:
            self.data = bytearray()

    def close(self) -> None:
        self.digest = self._hash.hexdigest()


class Held:
    """A JSON string that is one held text, perhaps as a data URL of `media_type` (None: it is not such a URL)."""

    __slots__ = ("body", "media_type", "padding", "text")

    def __init__(self, media_type: str | None, text: HeldText, padding: str, body: HeldBody) -> None:
        self.media_type = media_type
        self.text = text
        self.padding = padding
        """The padding after the text: none, one or two `=`."""
        self.body = body


class HeldBody(bytes):
    """A body's JSON with marks in place of held texts. At most `room` characters may be put back into it."""

    held: list[HeldText]
    room: int


class Lifter:
    """Reads a body piece by piece. `most` is the maximum length of its JSON. Raises BodyTooLarge."""

    def __init__(self, uploads: Uploads, most: int) -> None:
        self._uploads = uploads
        self._most = most
        self._pending = bytearray()
        self._json = bytearray()
        self._held: list[HeldText] = []
        self._kept: list[HeldText] = []
        self._open: HeldText | None = None

    def feed(self, data: bytes) -> None:
        pending = self._pending
        pending += data
        at = 0
        while len(pending) - at >= WINDOW:
            window = bytes(pending[at : at + WINDOW])
            whole = window.rstrip(b"\\") or window  # never cut an escape in two
            at += len(whole)
            self._take(whole)
        del pending[:at]

    def end(self) -> HeldBody:
        self._take(bytes(self._pending), last=True)
        body = HeldBody(self._json)
        body.held = self._held
        body.room = self._most - len(body)
        return body

    def _take(self, window: bytes, *, last: bool = False) -> None:
        if b"\\/" in window:  # as PHP writes a slash
            window = _ESCAPE.sub(lambda match: b"/" if match[1] == b"/" else match[0], window)
        # A search for a space, which prose has, costs next to nothing.
        if not last and b" " not in window and not window.translate(None, ALPHABET):
            if self._open is None:
                self._begin()
            self._add(window)
            return
        if self._open is not None:
            rest = window.lstrip(ALPHABET)
            self._add(window[: len(window) - len(rest)])
            window = rest
            self._end()
        self._json += window
        if len(self._json) > self._most:
            raise BodyTooLarge(
                f"The body may have at most {self._most} bytes without its images",
                size=len(self._json),
                most=self._most,
            )

    def _begin(self) -> None:
        """Remove what the run has so far from the JSON."""
        self._open = HeldText()
        before = self._json.rstrip(ALPHABET)
        start = len(before)
        if (start - len(before.rstrip(b"\\"))) % 2:  # an escape's letters are not part of the run
            start += 5 if self._json.startswith(b"u", start) else 1
        self._add(bytes(self._json[start:]))
        del self._json[start:]

    def _add(self, piece: bytes) -> None:
        assert self._open is not None
        if piece:
            self._open.add(piece, self._uploads.size)

    def _end(self) -> None:
        held, self._open = self._open, None
        assert held is not None
        held.close()
        self._json += b"<held %d %b>" % (len(self._held), held.digest.encode())
        self._held.append(held)
        if held.data:
            self._kept.append(held)
            if len(self._kept) > self._uploads.number:
                self._kept.pop(0).data = bytearray()


def scan(held: HeldText) -> Iterator[None]:
    """Yield between slices of the work that a PDF needs: see `media.pages`."""
    if look(bytes(held.data[:2_048])).type == PDF:
        for bound in pages(bytes(held.data)):
            held.page_bound = bound
            yield


def with_held(value: Any, body: HeldBody) -> Any:
    """Return a parsed value with its marks replaced: Held if a string is nothing else, else the text itself.

    Raises BodyTooLarge if the text is longer than the JSON of a body may be.
    """
    if isinstance(value, dict):
        members: dict[str, Any] = cast("Any", value)
        return {name: with_held(item, body) for name, item in members.items()}
    if isinstance(value, list):
        items: list[Any] = cast("Any", value)
        return [with_held(item, body) for item in items]
    if type(value) is not str or "<held " not in value:
        return value
    if (match := _WHOLE.fullmatch(value)) and (held := _of(match[2], match[3], body)) is not None:
        return Held(match[1], held, match[4], body)

    def put_back(match: re.Match[str]) -> str:
        held = _of(match[1], match[2], body)
        return match[0] if held is None else _put_back(held, body)

    return _MARK.sub(put_back, value)


def restored(held: Held) -> str:
    """Return the text of a string that was held although it is not an image. Raises BodyTooLarge if it was dropped."""
    prefix = "" if held.media_type is None else f"data:{held.media_type};base64,"
    return prefix + _put_back(held.text, held.body) + held.padding


def _of(index: str, digest: str, body: HeldBody) -> HeldText | None:
    held = body.held[int(index)] if int(index) < len(body.held) else None
    return held if held is not None and held.digest == digest else None


def _put_back(held: HeldText, body: HeldBody) -> str:
    body.room -= held.length
    if body.room < 0 or not held.data:
        raise BodyTooLarge("The body holds a text that is too long")
    return held.data.decode()
