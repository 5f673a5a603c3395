"""Wire dialects: each file parses bodies, encodes batches, refuses, and has the facts of its format.

The built-in ones are here by their name in the configuration. Each takes an optional path. `frames`, `fields`,
`options`, `turns` and `collected` have what all formats share. AG-UI and the AI SDK also have the same loop over a
batch. It stands in both files: a shared loop would call back for each delta, and a format would no longer be one file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, Protocol

from chat_nest.core.protocols import Dialect
from chat_nest.dialects.ag_ui import AGUI
from chat_nest.dialects.ai_sdk import AISDK
from chat_nest.dialects.anthropic import Anthropic
from chat_nest.dialects.blog import Blog
from chat_nest.dialects.facts import Facts
from chat_nest.dialects.native import Native
from chat_nest.dialects.openai import OpenAI
from chat_nest.dialects.responses import Responses

__all__ = [
    "AGUI",
    "AISDK",
    "DIALECTS",
    "Anthropic",
    "Blog",
    "DialectName",
    "Native",
    "OpenAI",
    "Responses",
    "name_of",
    "named",
]

DialectName = Literal["native", "openai", "responses", "ai_sdk", "ag_ui", "anthropic", "blog"]


class BuiltIn(Protocol):
    """The class of a built-in dialect, with what else is known of its format."""

    @property
    def facts(self) -> Facts: ...
    def __call__(self, *given: Any, **named: Any) -> Dialect: ...


DIALECTS: Mapping[str, BuiltIn] = {
    "native": Native,
    "openai": OpenAI,
    "responses": Responses,
    "ai_sdk": AISDK,
    "ag_ui": AGUI,
    "anthropic": Anthropic,
    "blog": Blog,
}


def named(dialect: Dialect | DialectName) -> Dialect:
    """Return the dialect with this name, at its default path.

    Raises ValueError, which lists the names, for another name.
    """
    if not isinstance(dialect, str):
        return dialect
    if dialect not in DIALECTS:
        near = get_close_matches(re.sub(r"[\s-]+", "_", dialect.strip().lower()), DIALECTS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        msg = f"there is no dialect {dialect!r}: {hint}there are {', '.join(DIALECTS)}"
        raise ValueError(msg)
    return DIALECTS[dialect]()


def name_of(dialect: Dialect) -> str:
    """Return the name of a built-in dialect, and the class of any other, for logs and metrics."""
    kind = type(dialect)
    return _NAMES.get(kind) or kind.__name__


_NAMES: Mapping[object, str] = {kind: name for name, kind in DIALECTS.items()}
