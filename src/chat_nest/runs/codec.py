"""The byte format of a run's batches and ending, for other processes of the same version."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from chat_nest.core.deltas import Delta
from chat_nest.core.protocols import Finale

_encode = msgspec.msgpack.Encoder().encode


class Said(Struct, frozen=True, array_like=True, tag="said"):
    """The batches of a run from number `first` on."""

    first: int
    batches: list[list[Delta]]


class Ended(Struct, frozen=True, array_like=True, tag="ended"):
    finale: Finale


def write(value: Struct) -> bytes:
    """Return an `array_like` struct as MessagePack, or as JSON if a text holds half of a surrogate pair."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value)).encode()


def reader(kind: Any) -> Callable[[bytes], Any]:
    """Return a decoder of what `write` wrote for a `kind`, which may be a union. It raises msgspec.DecodeError."""
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(kind, dec_hook=_no_such_type)

    def read(data: bytes) -> Any:
        return msgspec.convert(json.loads(data), kind) if data[:1] == b"[" else decoder.decode(data)

    return read


def _no_such_type(kind: type, value: object) -> object:
    """Refuse any other type: only an ending's `error` is of such a type, and that is None. See `Finale`."""
    raise NotImplementedError
