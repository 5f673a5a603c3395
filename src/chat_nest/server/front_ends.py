"""Which wire formats the server speaks, and where: from the config's [dialects] to the dialects themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chat_nest.asgi.handler import USAGE_PATHS
from chat_nest.asgi.routes import Routes
from chat_nest.dialects.blog import Blog
from chat_nest.dialects.built_in import DIALECTS as BUILT_IN
from chat_nest.protocols import Dialect
from chat_nest.server.schema import DIALECTS
from chat_nest.server.sources import Sources

PATHS: Mapping[str, str] = {
    "native": "/api/chat",
    "openai": "/v1",
    "ai_sdk": "/api/ai",
    "ag_ui": "/api/ag-ui",
    "anthropic": "/v1/messages",
    "blog": "/chat",
}
OFF = frozenset({"blog"})
"""Off unless switched on."""
TAKEN = ("/", "/healthz", "/readyz", "/api/info", "/openapi.json", *USAGE_PATHS)
"""Paths of the server's own."""


def resolve_dialects(sources: Sources, table: Mapping[str, Any]) -> dict[str, str]:
    """The path of each dialect that is on. Notes problems."""
    paths: dict[str, str] = {}
    for name in DIALECTS:
        given = table.get(name, name not in OFF)
        if given not in (False, "false"):
            paths[name] = PATHS[name] if given in (True, "true") else given
    if not paths:
        sources.problem(("dialects",), "at least one must be on")
    dialects: list[Dialect] = []
    for name, made in zip(paths, make_dialects(paths, blog_get=table.get("blog_get", False)), strict=True):
        dialects.append(made)
        if any((route.path.rstrip("/").lower() or "/") in TAKEN for route in made.routes):
            sources.problem(("dialects", name), "must be another path: the server has something of its own there")
        try:
            Routes(dialects)
        except ValueError as error:
            dialects.pop()
            sources.problem(("dialects", name), f"must be another path: {error}")
    if paths.get("native") != PATHS["native"]:
        sources.notes.append(f"dialects.native: the page at / can chat only if this is {PATHS['native']}")
    return paths


def make_dialects(paths: Mapping[str, str], *, blog_get: bool) -> list[Dialect]:
    """A dialect for each name, at its path."""
    return [Blog(path, get=blog_get) if name == "blog" else BUILT_IN[name](path) for name, path in paths.items()]
