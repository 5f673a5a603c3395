"""The routes of the operators' listener, as one table: the server and its OpenAPI document both read it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, cast
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct

from chat_nest.core.errors import BadRequest
from chat_nest.core.protocols import HasControls
from chat_nest.server.admin.spend import Spend
from chat_nest.server.app import ServerApp
from chat_nest.server.operator import Operator

MOST_REASON = 512

Kind = Literal["string", "boolean", "integer", "number", "array", "object"]
_TYPES: Mapping[Kind, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}
_RULES: Mapping[Kind, str] = {
    "string": "must be a string",
    "boolean": "must be true or false",
    "integer": "must be a whole number",
    "number": "must be a number",
    "array": "must be a list of strings",
    "object": "must be an object",
}

json = msgspec.json.Encoder().encode


class Field(Struct, frozen=True):
    """A field of a request's body, or of its query."""

    name: str
    meaning: str
    kind: Kind = "string"

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON Schema. Lists are of strings, and objects of numbers."""
        more: Mapping[Kind, Any] = {
            "array": {"items": {"type": "string"}},
            "object": {"additionalProperties": {"type": ["number", "null", "string"]}},
        }
        return {"type": self.kind, **more.get(self.kind, {})}


class Reply(Struct, frozen=True):
    body: bytes
    status: int = 200


class AdminRequest(Struct, frozen=True, kw_only=True):
    """A request of an operator with a correct key. `by` names the operator in the audit trail."""

    app: ServerApp
    spend: Spend
    by: str
    fields: Mapping[str, Any]
    """Of the body, or of the query of a GET."""
    id: str = ""
    """Of the path."""

    @property
    def operator(self) -> Operator:
        """What does the acts, in the store."""
        store, zone = self.app.handler.store, ZoneInfo(self.app.config.server.time_zone)
        controls = store.controls if isinstance(store, HasControls) else None
        return Operator(store, zone, by=self.by, controls=controls)

    def text(self, name: str) -> str:
        """Return a field of text; an empty string if it is not there."""
        return str(self.fields.get(name, ""))


Serve = Callable[[AdminRequest], Awaitable[Reply]]


class AdminRoute(Struct, frozen=True, kw_only=True):
    method: Literal["GET", "POST", "DELETE"]
    path: str
    """With {id} for a part."""
    summary: str
    serve: Serve | None = None
    """None: the answer is the metrics' own, or a stream."""
    streams: bool = False
    """Whether the answer is the stream of the operators' page."""
    fields: Sequence[Field] = ()
    needs_key: bool = True

    def match(self, path: str) -> str | None:
        """Return the id in the path, or an empty string if the route has none; None if it is another path."""
        if "{id}" not in self.path:
            return "" if path == self.path else None
        found = re.fullmatch(re.escape(self.path).replace(r"\{id\}", "([^/]+)"), path)
        return found and found[1]


def checked(fields: Mapping[str, Any], known: Sequence[Field]) -> dict[str, Any]:
    """Return the fields that are not null. Raises BadRequest for an unknown one, and for one of a wrong type."""
    kinds: dict[str, Kind] = {field.name: field.kind for field in known}
    found = {name: value for name, value in fields.items() if value is not None}
    for name, value in found.items():
        if name not in kinds:
            there = f"; there are {', '.join(kinds)}" if kinds else ""
            raise BadRequest(f"has a field that is not known here{there}", field="body")
        kind = kinds[name]
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
            raise BadRequest(_RULES[kind], field=name)
        if isinstance(value, list) and not all(isinstance(each, str) for each in cast("list[object]", value)):
            raise BadRequest(_RULES[kind], field=name)
    reason = str(found.get("reason", ""))
    if len(reason) > MOST_REASON or not reason.isprintable():
        raise BadRequest(f"must be at most {MOST_REASON} printable characters", field="reason")
    return found
