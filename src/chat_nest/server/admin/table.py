"""Every route of the operators' listener, and its OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chat_nest import __version__
from chat_nest.server.admin import acts, key_acts, views
from chat_nest.server.admin.activity import activity
from chat_nest.server.admin.forecast import forecast
from chat_nest.server.admin.routes import AdminRequest, AdminRoute, Field, Reply, json

V1 = "/admin/v1"
SCOPED = (*acts.SCOPE, acts.REASON)
MOST = Field("most", "how many, from 1 to 10000; without it 50")
DAYS = "how many days, today among them, from 1 to 92; without it "
BY = Field("by", "model, profile or group; without it model")


def _get(path: str, summary: str, serve: Any, **more: Any) -> AdminRoute:
    return AdminRoute(method="GET", path=path, summary=summary, serve=serve, **more)


def _post(path: str, summary: str, serve: Any, fields: Sequence[Field] = ()) -> AdminRoute:
    return AdminRoute(method="POST", path=f"{V1}/{path}", summary=summary, serve=serve, fields=fields)


async def _openapi(_asked: AdminRequest) -> Reply:
    return Reply(json(document()))


ROUTES = (
    _get("/healthz", "Whether the process runs; without a key.", views.healthz, needs_key=False),
    _get("/openapi.json", "This document.", _openapi),
    _get("/metrics", "The metrics of all workers, for Prometheus.", None),
    _get(f"{V1}/standing", "How the limits of all callers and of groups stand.", views.standing),
    _get(f"{V1}/forecast", "When these limits will be used up, at the pace so far.", forecast),
    _get(f"{V1}/running", "The running answers, in every server of the store.", views.running_answers),
    _get(f"{V1}/controls", "The pauses, blocks and grants in force.", views.controls),
    _get(f"{V1}/audit", "The newest acts of operators.", views.audit, fields=(MOST,)),
    _get(f"{V1}/activity", "What all processes do now, and the last hour.", activity),
    _get(
        f"{V1}/spend",
        "Dollars, tokens and requests of each day, from the records.",
        views.spend,
        fields=(BY, Field("days", DAYS + "30")),
    ),
    _get(
        f"{V1}/callers",
        "The callers with the highest cost, from the records.",
        views.callers,
        fields=(Field("days", DAYS + "1"), Field("most", "how many, from 1 to 100; without it 20")),
    ),
    _get(f"{V1}/live", "The operators' page's Server-Sent Events.", None, streams=True),
    _get(f"{V1}/keys", "The API keys of callers: their rights and states, and never a key.", key_acts.keys),
    _get(f"{V1}/providers", "Readiness, resting keys and breakers, in the process that answers.", views.providers),
    _post("running/{id}/stop", "Stop a running answer. 202: it has not ended yet.", acts.stop, (acts.REASON,)),
    _post("pause", "Refuse new requests of one scope.", acts.pause, (*SCOPED, acts.FOR, acts.STOP)),
    _post("resume", "End a pause, with the same scope.", acts.resume, SCOPED),
    _post(
        "block",
        "Refuse a caller or a network.",
        acts.block,
        (acts.CALLER, acts.ADDRESS, acts.FOR, acts.STOP, acts.REASON),
    ),
    _post("unblock", "End a block.", acts.unblock, (acts.CALLER, acts.ADDRESS, acts.REASON)),
    _post("reset", "Give back the present hour, day and month.", acts.reset, (*acts.OWNER, acts.LIMIT, acts.REASON)),
    _post("grant", "Raise one limit once.", acts.grant, (*acts.OWNER, *acts.UNITS, acts.PER, acts.REASON)),
    _post(
        "withdraw",
        "End a grant or a reset.",
        acts.withdraw,
        (Field("name", "of the grant, as in the controls"), acts.REASON),
    ),
    _post("keys", "Make an API key. 201: it is in the answer, once.", key_acts.create, (*key_acts.FIELDS, acts.REASON)),
    _post(
        "keys/{id}/rotate",
        "Replace an API key by one with the same rights and counters. 201: it is in the answer, once.",
        key_acts.rotate,
        (key_acts.OVERLAP, key_acts.EXPIRES, acts.REASON),
    ),
    AdminRoute(
        method="DELETE",
        path=f"{V1}/keys/{{id}}",
        summary="Revoke an API key.",
        serve=key_acts.revoke,
        fields=(acts.REASON,),
    ),
    _post("reload", "Read the configuration again, in all workers.", acts.reload, (acts.REASON,)),
)


def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    error = {
        "type": "object",
        "required": ["error", "code"],
        "properties": {name: {"type": "string"} for name in ("error", "code", "field")},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Chat Nest, operators' listener", "version": __version__},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": {"Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: AdminRoute) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    kind = "text/event-stream" if route.streams else "text/plain" if route.serve is None else "application/json"
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": {kind: {}}}}
    responses["default"] = {"description": "It was refused, or failed.", "content": content}
    operation: dict[str, Any] = {"summary": route.summary, "responses": responses}
    if not route.needs_key:
        operation["security"] = []
    parameters: list[dict[str, Any]] = []
    if "{id}" in route.path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}})
    if route.method == "GET":
        parameters += [{"name": field.name, "in": "query", **_described(field)} for field in route.fields]
    elif route.fields:
        properties = {field.name: {**field.schema, "description": field.meaning} for field in route.fields}
        schema = {"type": "object", "additionalProperties": False, "properties": properties}
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return operation | ({"parameters": parameters} if parameters else {})


def _described(field: Field) -> dict[str, Any]:
    return {"description": field.meaning, "schema": field.schema}
