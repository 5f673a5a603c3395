"""Join the arguments of a call that come as pieces, each with a JSON path: `$.city`, `$.stops[1]['street name']`."""

from __future__ import annotations

import math
import re
from typing import Final, cast

import msgspec

from chat_nest.core.errors import UpstreamProtocol
from chat_nest.providers.loose import field, json_text

MAX_STEPS: Final = 64
"""The most steps of a path."""

_STEP: Final = re.compile(r"""\.([^.\[\]]+)|\[(\d{1,9})\]|\['((?:[^'\\]|\\.)*)'\]|\["((?:[^"\\]|\\.)*)"\]""", re.DOTALL)
_ESCAPE: Final = re.compile(r"""\\(['"\\/])""")
_Key = str | int
_Node = dict[_Key, object]


class ArgumentPieces:
    """Collects the arguments of one call, whose `id` and `name` came with its first piece.

    The text of one path is joined; another value replaces the one before. Objects and arrays are made as paths name
    them.
    """

    def __init__(self, id: str, name: str) -> None:
        self.id = id
        self.name = name
        self._root: _Node = {}

    def add(self, pieces: object) -> None:
        """Take the pieces of an event. Raises UpstreamProtocol for a path or a value that has no meaning."""
        for piece in cast("list[object]", pieces) if isinstance(pieces, list) else [pieces]:
            value = _value(piece)
            if value is not _NONE:
                self._set(_steps(field(piece, "jsonPath")), value)

    def fill(self, arguments: str) -> None:
        """Take arguments that came as the JSON of an object. Raises UpstreamProtocol for another value."""
        try:
            value = _node(msgspec.json.decode(arguments))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise UpstreamProtocol from None
        if not isinstance(value, dict):
            raise UpstreamProtocol
        self._root |= cast("_Node", value)

    def text(self) -> str:
        """Return the arguments as JSON. Raises UpstreamProtocol for an array with a gap, or too deep a value."""
        try:
            return json_text(_made(self._root))
        except RecursionError:
            raise UpstreamProtocol from None

    def _set(self, steps: list[_Key], value: object) -> None:
        node = self._root
        for step in steps[:-1]:
            inner = node.setdefault(step, {})
            if not isinstance(inner, dict):
                raise UpstreamProtocol
            node = cast("_Node", inner)
        known = node.get(steps[-1])
        if isinstance(known, dict):
            raise UpstreamProtocol
        if isinstance(known, list) and isinstance(value, str):
            cast("list[str]", known).append(value)
        else:
            node[steps[-1]] = _node(value)


_NONE: Final = object()


def _value(piece: object) -> object:
    """Return the value of a piece; _NONE if it only announces or ends a path."""
    text, number, truth = (field(piece, name) for name in ("stringValue", "numberValue", "boolValue"))
    if isinstance(text, str):
        return text
    if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
        return int(number) if float(number).is_integer() and abs(number) < 1 << 53 else number
    if isinstance(truth, bool):
        return truth
    if any(value is not None for value in (text, number, truth)):
        raise UpstreamProtocol
    return None if isinstance(piece, dict) and "nullValue" in piece else _NONE


def _steps(path: object) -> list[_Key]:
    steps: list[_Key] = []
    if not isinstance(path, str) or not path.startswith("$"):
        raise UpstreamProtocol
    at = 1
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None or len(steps) == MAX_STEPS:
            raise UpstreamProtocol
        name, index, single, double = step.groups()
        quoted = single if single is not None else double
        steps.append(int(index) if index is not None else name or _ESCAPE.sub(r"\1", quoted or ""))
        at = step.end()
    if not steps or isinstance(steps[0], int):
        raise UpstreamProtocol
    return steps


def _node(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return {key: _node(inner) for key, inner in cast("dict[str, object]", value).items()}
    if isinstance(value, list):
        items = cast("list[object]", value)
        return {at: _node(inner) for at, inner in enumerate(items)} if items else ()
    return value


def _made(node: object) -> object:
    """Return the value that the steps built: texts are lists of pieces, objects and arrays are dictionaries."""
    if isinstance(node, list):
        return "".join(cast("list[str]", node))
    if not isinstance(node, dict):
        return node
    inner = {key: _made(value) for key, value in cast("_Node", node).items()}
    if not any(isinstance(key, int) for key in inner):
        return inner
    if sorted(inner, key=str) != sorted(range(len(inner)), key=str):
        raise UpstreamProtocol
    return [inner[at] for at in range(len(inner))]
