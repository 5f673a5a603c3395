"""Identify the tool calls of one answer, in every form that servers send them.

A call can have an index, an id and a name, and servers leave out, repeat or reuse each of them. The rule: a new id
begins a call, and so does a name without index or id. A piece with neither belongs to the call at its index, else to
the latest call.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from typing import Final

import msgspec

from chat_nest.core.deltas import Delta, ToolCallDelta
from chat_nest.core.errors import UpstreamProtocol
from chat_nest.providers.loose import json_text, whole_text

MAX_CALLS: Final = 128
"""The most tool calls of one answer. An answer with more is refused."""
MAX_ID: Final = 8_192
"""Characters of an id that is passed on: some servers keep a signature in it. A longer id is replaced."""

Index = int | str | None


class _Call:
    __slots__ = ("id", "index", "name", "number", "pieces", "repeats")

    def __init__(self, index: Index) -> None:
        self.index = index
        self.id = ""
        """The server's id."""
        self.name = ""
        self.number = -1
        """The index of the call in the deltas; -1 until its name is known."""
        self.pieces: list[str] = []
        self.repeats = False
        """Whether each piece has all arguments so far."""

    def is_open(self) -> bool:
        """Return whether more arguments must follow: there are some, and they are not yet JSON."""
        text = "".join(self.pieces)
        return bool(text) and not (text.rstrip().endswith(("}", "]")) and _is_json(text))

    def new_in(self, arguments: str) -> str:
        """Return what a piece adds.

        Some servers begin with `{}` or `null`, some send all arguments again at the end, and some in each piece. A
        piece that begins like the arguments so far is no such repetition if a value may follow them, as in `{"a":`.
        """
        if not self.pieces:
            return "" if arguments.strip() in ("", "{}", "null") else arguments
        if not (arguments.startswith("{") and self.pieces[0].startswith("{")):
            return arguments
        if not self.is_open():
            return ""
        text = "".join(self.pieces)
        if arguments.startswith(text) and (self.repeats or not text.rstrip().endswith((":", "[", ","))):
            self.repeats = True
            return arguments[len(text) :]
        return arguments

    def has_all(self, arguments: str) -> bool:
        """Return whether these are the call's arguments, perhaps with other blanks."""
        text = "".join(self.pieces)
        return text == arguments or (
            _is_json(text) and _is_json(arguments) and msgspec.json.decode(text) == msgspec.json.decode(arguments)
        )


class Calls:
    """Collects the calls of one answer.

    `prefix` begins the ids of calls without a usable id; an empty prefix is replaced by one that no other answer has.
    `taken` holds the ids of the conversation so far: a client that keeps results by id would confuse a call that reuses
    one of them with the earlier call.
    """

    def __init__(self, prefix: str, taken: Collection[str] = ()) -> None:
        self.begun = 0
        self.awaited = False
        """Whether a call was announced that is not among the calls, because it is not yet whole."""
        self._prefix = prefix
        self._taken = set(taken)
        self._calls: list[_Call] = []
        self._by_index: dict[Index, _Call] = {}
        self._by_id: dict[str, _Call] = {}

    def __len__(self) -> int:
        """Return the number of calls, also of those without a name yet."""
        return len(self._calls)

    def piece(self, index: Index, id: str, name: str, arguments: str, deltas: list[Delta]) -> None:
        """Take a piece of a call, and append what is now known of the call. Raises UpstreamProtocol at MAX_CALLS."""
        call = self._of(index, id, name, arguments)
        if call is None:
            if not (id or name or arguments):
                return
            call = self._new(index)
        if index is not None:
            self._by_index[index] = call
        if id:
            self._by_id.setdefault(id, call)
            call.id = call.id or id
        call.name = call.name or name
        arguments = arguments and call.new_in(arguments)
        if arguments:
            call.pieces.append(arguments)
        if call.number < 0:
            if call.name:
                self._begin(call, deltas)
        elif arguments:
            deltas.append(ToolCallDelta(call.number, arguments))

    def whole(self, id: str, name: str, arguments: str, deltas: list[Delta]) -> None:
        """Take a call that came in one piece. The same call with the same id is a repetition."""
        known = self._by_id.get(id) if id else None
        if known is not None and known.name == name and known.has_all(arguments):
            return
        if not (id or name) and arguments in ("", "{}"):
            return
        call = self._new(None)
        call.id, call.name = id, name
        if id:
            self._by_id.setdefault(id, call)
        call.pieces.append(arguments)
        if name:
            self._begin(call, deltas)

    def end(self) -> None:
        """Raise UpstreamProtocol for a call that can't be made, because its name never came."""
        if any(call.number < 0 for call in self._calls):
            raise UpstreamProtocol

    def _new(self, index: Index) -> _Call:
        if len(self._calls) == MAX_CALLS:
            raise UpstreamProtocol
        call = _Call(index)
        self._calls.append(call)
        return call

    def _of(self, index: Index, id: str, name: str, arguments: str) -> _Call | None:
        """Return the call that a piece belongs to; None for a new call."""
        known = self._by_id.get(id) if id else None
        if known is not None:
            if index is not None and index != known.index and name:
                return None  # this server gives every call the same id
            return known if _goes_on(known, name, arguments, named=True) else None
        at = self._by_index.get(index) if index is not None else None
        latest = self._calls[-1] if self._calls else None
        if id:
            call = at if index is not None else latest
            if call is None:
                return None
            if call.id:  # it has another id: some servers make up a new id for each piece
                goes_on = call.is_open() or (call.name and arguments and not call.pieces)
                return call if not name and goes_on else None
            return call if _goes_on(call, name, arguments, named=False) else None
        if at is not None:
            return at if _goes_on(at, name, arguments, named=True) else None
        if latest is not None and name and not latest.name and None in (index, latest.index):
            return latest  # its name, without the index that its beginning had
        if latest is None or (name and (index is not None or name != latest.name or not latest.is_open())):
            return None
        if index is not None and (not latest.name or (latest.pieces and not latest.is_open())):
            return None
        return latest

    def _begin(self, call: _Call, deltas: list[Delta]) -> None:
        call.number = self.begun
        self.begun += 1
        id = call.id
        if not id or id in self._taken or len(id) > MAX_ID or not id.isprintable():
            self._prefix = self._prefix or f"call_{secrets.token_hex(6)}"
            id = f"{self._prefix}_{call.number}"
        self._taken.add(id)
        name = whole_text(call.name).replace("\0", "\ufffd")
        deltas.append(ToolCallDelta(call.number, "".join(call.pieces), id, name))


def _goes_on(call: _Call, name: str, arguments: str, *, named: bool) -> bool:
    """Return whether a piece with this name may continue the call. Names come whole, and some servers repeat them.

    `named` is True if an index or id says that it does.
    """
    if not name or not call.name:
        return True
    if name != call.name:
        return False
    return call.is_open() or (named and (not (call.pieces and arguments.strip()) or call.has_all(arguments)))


# Parse the fields of a call in the forms that servers write.


def as_index(value: object) -> Index:
    """Return an index as it came; a number in a string, or with a fraction of zero, becomes an integer."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < MAX_CALLS else value or None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def as_name(value: object) -> str:
    """Return an id or a name. An id may be a number."""
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else ""


def as_arguments(value: object) -> str:
    """Return arguments as text. Some servers write the object itself, or null for none."""
    if isinstance(value, str):
        return value
    return json_text(value) if value is not None else ""


def raw_arguments(value: msgspec.Raw) -> str:
    """Return arguments as text, from their JSON: an object as it was written, the text of a string, `{}` for null."""
    text = bytes(value).decode().strip()
    if text.startswith('"'):
        try:
            text = msgspec.json.decode(text, type=str).strip()
        except msgspec.MsgspecError:  # it has half of a surrogate pair
            text = whole_text(json.loads(text))
    return "{}" if text in ("", "null") else text


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True
