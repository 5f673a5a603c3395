"""The type, size in pixels and page count of an image or PDF in base64, read from the few bytes that hold them.

PNG (W3C, 11.2.1), JPEG (ITU-T T.81, B.2.2), GIF89a, WebP (RFC 9649), PDF (ISO 32000-1).
"""

from __future__ import annotations

import re
from binascii import Error, a2b_base64
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

PDF: Final = "application/pdf"
IMAGES: Final = ("image/png", "image/jpeg", "image/webp", "image/gif")
MEDIA_TYPES: Final = (*IMAGES, PDF)
ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

MAX_SEGMENTS: Final = 1_024
"""The most JPEG segments before the one with its size."""
SLICE: Final = 1 << 18
"""Characters that are searched for pages in one slice: about 0.4 ms."""
UNSEEN_PAGE: Final = 1_000
"""Bytes of a PDF per page that is hidden by compression."""
MAX_UNSEEN: Final = 100
MAX_PAGES: Final = 1_000
"""https://ai.google.dev/gemini-api/docs/document-processing: no provider that we know reads more."""

_HEAD: Final = 1_024
_FRAMES: Final = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
"""A JPEG's start-of-frame markers; 0xC4, 0xC8 and 0xCC are other markers."""
_PAGE: Final = re.compile(rb"/Type\s{0,8}/Page(?![A-Za-z])")
_COMPRESSED: Final = re.compile(rb"/Type\s{0,8}/ObjStm")


class Media(Struct, frozen=True, kw_only=True, gc=False):
    """`type` is one of MEDIA_TYPES, or empty for anything else; pixels are 0 if the file does not state them."""

    type: str = ""
    width: int = 0
    height: int = 0


def is_base64(data: bytes) -> bool:
    """Return whether `data` is base64 (RFC 4648, section 4); its padding may be missing."""
    text = data.rstrip(b"=")
    return len(data) - len(text) <= 2 and len(text) % 4 != 1 and not text.translate(None, ALPHABET)


def decoded_size(data: bytes) -> int:
    """Return the number of bytes that `data`, which is base64, encodes."""
    end = data[-2:].count(b"=")
    return 3 * (len(data) - end) // 4


def look(data: bytes) -> Media:
    """Return the media found in the first bytes of `data`, which is base64."""
    head = _at(data, 0, _HEAD)
    if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR":
        return _sized("image/png", head[16:20], head[20:24])
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _sized("image/gif", head[7:5:-1], head[9:7:-1])
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _webp(head)
    if head.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if b"%PDF-" in head:
        return Media(type=PDF)
    return Media()


def _sized(kind: str, width: bytes, height: bytes) -> Media:
    return Media(type=kind, width=int.from_bytes(width, "big"), height=int.from_bytes(height, "big"))


def _webp(head: bytes) -> Media:
    kind, sizes = head[12:16], int.from_bytes(head[21:25], "little")
    width = height = 0
    if kind == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        width, height = (sizes & 0x3FFF) + 1, (sizes >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return Media(type="image/webp", width=width, height=height)


def _jpeg(data: bytes) -> Media:
    """Walk over the segments, by their lengths, to the frame header."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        segment = _at(data, at, 9)
        if len(segment) < 9 or segment[0] != 0xFF:
            break
        if segment[1] == 0xFF:  # fill bytes
            at += 1
        elif segment[1] in _FRAMES:
            return _sized("image/jpeg", segment[7:9], segment[5:7])
        elif segment[1] == 0xDA:  # the picture itself
            break
        else:
            at += 2 + int.from_bytes(segment[2:4], "big")
    return Media(type="image/jpeg")


def pages(data: bytes) -> Iterator[int]:
    """Yield, after each slice of work, an upper bound of the pages of the PDF `data` (base64) read so far.

    Pages in compressed objects are hidden: the bound is then one page per 1,000 bytes, and at most 100.
    """
    found, compressed, before = 0, False, b""
    for start in range(0, len(data), SLICE):
        piece = before + _decoded(data[start : start + SLICE])
        whole = len(piece) - 32
        found += sum(1 for match in _PAGE.finditer(piece) if match.start() < whole or start + SLICE >= len(data))
        compressed = compressed or _COMPRESSED.search(piece) is not None
        before = piece[max(whole, 0) :]
        unseen = min(3 * len(data) // 4 // UNSEEN_PAGE + 1, MAX_UNSEEN) if compressed else 1
        yield min(max(found, unseen), MAX_PAGES)


def _at(data: bytes, start: int, length: int) -> bytes:
    """Decode `length` bytes from byte `start` on; fewer at the end."""
    first = start // 3 * 4
    return _decoded(data[first : first + 4 * (length // 3 + 2)])[start % 3 :][:length]


def _decoded(text: bytes) -> bytes:
    text = text.rstrip(b"=")
    whole = len(text) // 4 * 4
    rest = text[whole:]
    try:
        return a2b_base64(text[:whole]) + (a2b_base64(rest + b"=" * (4 - len(rest))) if len(rest) > 1 else b"")
    except Error:
        return b""
