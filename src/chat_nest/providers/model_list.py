"""Parse a provider's list of models, and suggest similar names for a model that is not in it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import msgspec

MOST_NAMES = 3
"""The most similar names in one piece of advice."""
SIMILAR = 0.7
"""The least ratio of difflib for similar names."""


class _Model(msgspec.Struct):
    id: Any = None
    name: Any = None


class _List(msgspec.Struct):
    data: list[_Model] | None = None
    """The list of OpenAI and Anthropic."""
    models: list[_Model] | None = None
    """The list of Gemini and Ollama."""


def model_names(body: bytes) -> frozenset[str]:
    """Return the names in the response to a request for the list of models; none if it is not understood."""
    return frozenset(listed_names(body))


def listed_names(body: bytes) -> list[str]:
    """Return the same names in the server's order."""
    try:
        found = msgspec.json.decode(body, type=_List)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return []
    names = [model.id or model.name for model in (*(found.data or ()), *(found.models or ()))]
    return [name.removeprefix("models/") for name in names if isinstance(name, str)]


def unlisted(models: Iterable[str], listed: frozenset[str]) -> str:
    """Return advice for the operator with the `models` that are not among `listed`; empty if all are."""
    missing = [model for model in dict.fromkeys(models) if listed and not _is_listed(model, listed)]
    return " ".join(_advice(model, listed) for model in missing)


def _is_listed(model: str, listed: frozenset[str]) -> bool:
    """Return whether a model is listed.

    Ollama's `:latest` may be left out; Anthropic's `-0` and `-latest` are aliases.
    """
    stem = model.removesuffix("-latest").removesuffix("-0")
    dated = f"{stem}-20"
    return model in listed or f"{model}:latest" in listed or any(name.startswith(dated) for name in listed)


def _advice(model: str, listed: frozenset[str]) -> str:
    known = {name.lower().removesuffix(":latest"): name for name in sorted(listed)}
    near = [known[name] for name in get_close_matches(model.lower(), known, n=MOST_NAMES, cutoff=SIMILAR)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"The provider's list of models does not have {model}.{hint}"
