"""The dialects that come with Chat Nest, by the name that a configuration calls them: each takes its path, if any."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chat_nest.dialects.ag_ui import AGUI
from chat_nest.dialects.ai_sdk import AISDK
from chat_nest.dialects.anthropic import Anthropic
from chat_nest.dialects.blog import Blog
from chat_nest.dialects.native import Native
from chat_nest.dialects.openai import OpenAI
from chat_nest.protocols import Dialect

DIALECTS: Mapping[str, Callable[..., Dialect]] = {
    "native": Native,
    "openai": OpenAI,
    "ai_sdk": AISDK,
    "ag_ui": AGUI,
    "anthropic": Anthropic,
    "blog": Blog,
}


def named(dialect: Dialect | str) -> Dialect:
    """The dialect with this name, at its own path. Raises ValueError, which lists the names, for another."""
    if not isinstance(dialect, str):
        return dialect
    made = DIALECTS.get(dialect)
    if made is None:
        msg = f"there is no dialect {dialect!r}: there are {', '.join(DIALECTS)}"
        raise ValueError(msg)
    return made()
