"""The dialects that come with Chat Nest, by the name that a configuration calls them: each takes its path, if any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Literal

from chat_nest.dialects.ag_ui import AGUI
from chat_nest.dialects.ai_sdk import AISDK
from chat_nest.dialects.anthropic import Anthropic
from chat_nest.dialects.blog import Blog
from chat_nest.dialects.native import Native
from chat_nest.dialects.openai import OpenAI
from chat_nest.protocols import Dialect

DialectName = Literal["native", "openai", "ai_sdk", "ag_ui", "anthropic", "blog"]

DIALECTS: Mapping[str, Callable[..., Dialect]] = {
    "native": Native,
    "openai": OpenAI,
    "ai_sdk": AISDK,
    "ag_ui": AGUI,
    "anthropic": Anthropic,
    "blog": Blog,
}


def named(dialect: Dialect | DialectName) -> Dialect:
    """The dialect with this name, at its own path. Raises ValueError, which lists the names, for another."""
    if not isinstance(dialect, str):
        return dialect
    if dialect not in DIALECTS:
        near = get_close_matches(dialect, DIALECTS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        msg = f"there is no dialect {dialect!r}: {hint}there are {', '.join(DIALECTS)}"
        raise ValueError(msg)
    return DIALECTS[dialect]()
