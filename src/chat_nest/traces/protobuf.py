"""The few messages of OTLP that a span is made of, in Protocol Buffers' wire format: https://protobuf.dev/programming-guides/encoding

A message is the fields that it has, in any order, so what spans have in common is encoded once and put in front of the
rest. The numbers are those of opentelemetry/proto/trace/v1/trace.proto, common.proto and resource.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

SERVER, CLIENT = 2, 3
"""Kinds of a span."""
_NAME, _KIND, _ATTRIBUTE, _EVENT, _STATUS = 5, 6, 9, 11, 15
_ERROR: Final = b"\x18\x02"
"""A Status with code = STATUS_CODE_ERROR."""
_BEGIN: Final = struct.Struct("<2s16s2s8scQcQ2sI")
_DOUBLE: Final = struct.Struct("<d")
time: Final = struct.Struct("<Q").pack
"""Return the time of an event, in Unix nanoseconds."""


def varint(value: int) -> bytes:
    """Return a whole number that is not negative."""
    if value < 0x80:
        return bytes((value,))
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def field(number: int, content: bytes) -> bytes:
    """Return a field that is a message, a text or bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def begin(trace_id: bytes, span_id: bytes, began: int, ended: int, flags: int) -> bytes:
    """Return the beginning of a Span: its ids, its times in Unix nanoseconds, and its flags."""
    return _BEGIN.pack(b"\x0a\x10", trace_id, b"\x12\x08", span_id, b"\x39", began, b"\x41", ended, b"\x85\x01", flags)


def parent(span_id: bytes) -> bytes:
    """Return a Span's parent_span_id."""
    return b"\x22\x08" + span_id


def described(name: str, kind: int, texts: Mapping[str, str], *, is_error: bool) -> bytes:
    """Return a Span's name, kind, status and attributes, without those of empty texts."""
    status = field(_STATUS, _ERROR) if is_error else b""
    return field(_NAME, name.encode()) + bytes((_KIND << 3, kind)) + status + attributes(_ATTRIBUTE, texts)


def attributes(number: int, texts: Mapping[str, str]) -> bytes:
    """Return attributes as fields with this number, without those of empty texts."""
    return b"".join(field(number, _key(key) + _value(field(1, text.encode()))) for key, text in texts.items() if text)


class Attribute:
    """An attribute of spans that has another value in each. What stands before the value depends on its length only."""

    __slots__ = ("_before_double", "_before_number", "_before_text", "_key")

    def __init__(self, key: str) -> None:
        self._key = _key(key)
        self._before_text = dict[int, bytes]()
        self._before_number = dict[int, bytes]()
        self._before_double = self._whole(b"\x21" + bytes(8))[:-8]

    def of_text(self, text: str) -> bytes:
        """Return it with a text; the texts of one attribute have few lengths."""
        content = text.encode()
        before = self._before_text.get(len(content))
        if before is None:
            before = self._whole(field(1, content)).removesuffix(content)
            self._before_text[len(content)] = before
        return before + content

    def of_texts(self, texts: Iterable[str]) -> bytes:
        """Return it with an array of texts."""
        return self._whole(field(5, b"".join(field(1, field(1, text.encode())) for text in texts)))

    def of_number(self, value: int) -> bytes:
        """Return it with a whole number that is not negative."""
        content = varint(value)
        before = self._before_number.get(len(content))
        if before is None:
            before = self._before_number[len(content)] = self._whole(b"\x18" + content).removesuffix(content)
        return before + content

    def of_double(self, value: float) -> bytes:
        """Return it with a floating-point number."""
        return self._before_double + _DOUBLE.pack(value)

    def _whole(self, value: bytes) -> bytes:
        return field(_ATTRIBUTE, self._key + _value(value))


def event(name: str) -> bytes:
    """Return an event of a Span up to its time, which `time` returns."""
    return field(_EVENT, field(2, name.encode()) + b"\x09" + bytes(8))[:-8]


def export_request(resource: Mapping[str, str], scope: str, spans: Iterable[bytes]) -> bytes:
    """Return an ExportTraceServiceRequest with these Spans, of one resource and one instrumentation scope."""
    of_scope = field(1, field(1, scope.encode())) + b"".join(field(2, span) for span in spans)
    return field(1, field(1, attributes(1, resource)) + field(2, of_scope))


def _key(key: str) -> bytes:
    return field(1, key.encode())


def _value(content: bytes) -> bytes:
    return field(2, content)
