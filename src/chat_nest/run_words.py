"""What a run says and how it ends, as bytes for other processes of the same version."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from chat_nest.deltas import Delta
from chat_nest.protocols import Finale

_encode = msgspec.msgpack.Encoder().encode


class Said(Struct, frozen=True, array_like=True, tag="said"):
    """The batches of a run from number `first` on."""

    first: int
    batches: list[list[Delta]]


class Ended(Struct, frozen=True, array_like=True, tag="ended"):
    finale: Finale


def write(value: Struct) -> bytes:
    """A struct that is `array_like` as MessagePack; as JSON where a text holds half of a surrogate pair."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value)).encode()


def reader(kind: Any) -> Callable[[bytes], Any]:
    """A function that reads what `write` wrote of a `kind`, which may be a union. It raises msgspec.DecodeError."""
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(kind, dec_hook=_no_such_type)

    def read(data: bytes) -> Any:
        return msgspec.convert(json.loads(data), kind) if data[:1] == b"[" else decoder.decode(data)

    return read


def _no_such_type(kind: type, value: object) -> object:
    """Nothing but an ending's `error` is of a type that can't be read, and that is None: see `Finale`."""
    raise NotImplementedError
