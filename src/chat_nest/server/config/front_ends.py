"""Wire formats and their paths: from the config's [dialects] to the dialects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from chat_nest.asgi.routing import Routes
from chat_nest.asgi.usage_route import USAGE_PATHS
from chat_nest.core.protocols import Dialect
from chat_nest.dialects import DIALECTS
from chat_nest.dialects.anthropic import Anthropic
from chat_nest.dialects.blog import Blog
from chat_nest.dialects.frames import BudgetStatus
from chat_nest.dialects.openai import OpenAI
from chat_nest.dialects.responses import Responses
from chat_nest.server.config.sources import Sources

PATHS: Mapping[str, str] = {name: dialect.facts.path for name, dialect in DIALECTS.items()}
TAKEN = ("/", "/healthz", "/readyz", "/version", "/api/info", "/openapi.json", *USAGE_PATHS)
"""The server's own paths."""


def resolve_dialects(sources: Sources, table: Mapping[str, Any]) -> dict[str, str]:
    """Return the path of each enabled dialect. Notes problems."""
    paths: dict[str, str] = {}
    for name in DIALECTS:
        given = table.get(name, DIALECTS[name].facts.is_on)
        if given not in (False, "false"):
            paths[name] = PATHS[name] if given in (True, "true") else given
    if not paths:
        sources.problem(("dialects",), "at least one must be on")
    dialects: list[Dialect] = []
    for name, made in zip(paths, make_dialects(paths, blog_get=table.get("blog_get", False)), strict=True):
        dialects.append(made)
        if any((route.path.rstrip("/").lower() or "/") in TAKEN for route in made.routes):
            sources.problem(("dialects", name), "must be another path: the server uses this one itself")
        try:
            Routes(dialects)
        except ValueError as error:
            dialects.pop()
            sources.problem(("dialects", name), f"must be another path: {error}")
    if paths.get("native") != PATHS["native"]:
        sources.notes.append(f"dialects.native: the page at / can chat only if this is {PATHS['native']}")
    return paths


def make_dialects(
    paths: Mapping[str, str],
    *,
    blog_get: bool,
    responses_store: bool = True,
    budget_status: BudgetStatus = 429,
) -> list[Dialect]:
    """Return a dialect for each name, at its path."""
    made: dict[str, Callable[[str], Dialect]] = {
        **DIALECTS,
        "blog": partial(Blog, get=blog_get),
        "openai": partial(OpenAI, budget_status=budget_status),
        "responses": partial(Responses, store=responses_store, budget_status=budget_status),
        "anthropic": partial(Anthropic, budget_status=budget_status),
    }
    return [made[name](path) for name, path in paths.items()]
