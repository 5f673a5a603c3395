"""Small real files, made by hand: what a PNG, a JPEG, a WebP, a GIF and a PDF must have to be one."""

from __future__ import annotations

import random
import struct
import zlib
from base64 import b64encode


def png(width: int = 2, height: int = 1, *, padding: int = 0) -> bytes:
    """A grey image; with `padding` bytes that don't compress, in a text chunk, as an editor's metadata."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x80" * width) * height
    text = chunk(b"tEXt", b"Comment\0" + random.Random(7).randbytes(padding)) if padding else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + text + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def jpeg(width: int, height: int, *, profile: int = 0) -> bytes:
    """The segments of a JPEG up to its picture, with a thumbnail of another size and a colour profile before it."""

    def segment(marker: int, data: bytes) -> bytes:
        return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data

    def frame(wide: int, high: int) -> bytes:
        return segment(0xC2, struct.pack(">BHHB", 8, high, wide, 1) + b"\1\x11\0")

    thumbnail = b"Exif\0\0" + b"\xff\xd8" + frame(160, 120) + b"\xff\xd9"
    profiles = b"".join(segment(0xE2, b"\0" * 65_000) for _ in range(profile // 65_000))
    return b"\xff\xd8" + segment(0xE1, thumbnail) + profiles + b"\xff" + frame(width, height) + b"\xff\xda\0\2\xff\xd9"


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0;"


def webp(width: int, height: int, kind: bytes) -> bytes:
    """Of one of the three kinds: VP8 (lossy), VP8L (lossless), VP8X (extended)."""
    data = {
        b"VP8 ": b"\x30\x01\0\x9d\x01\x2a" + struct.pack("<HH", width, height),
        b"VP8L": b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14),
        b"VP8X": b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"),
    }[kind]
    body = b"WEBP" + kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def pdf(pages: int, *, between: bytes = b"") -> bytes:
    kids = b" ".join(b"%d 0 R" % (number + 3) for number in range(pages))
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [%b] /Count %d >>" % (kids, pages)]
    objects += [b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>" + between] * pages
    numbered = [b"%d 0 obj %b endobj\n" % (number + 1, each) for number, each in enumerate(objects)]
    return b"%PDF-1.4\n" + b"".join(numbered) + b"trailer << /Root 1 0 R >>\n%%EOF\n"


def base64(data: bytes) -> str:
    return b64encode(data).decode()


def url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64(data)}"
