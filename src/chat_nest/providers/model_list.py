"""A provider's list of models, and the names in it that are like one that it does not hold."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import msgspec

MOST_NAMES = 3
"""Similar names in one piece of advice."""
SIMILAR = 0.7
"""From which ratio of difflib two names are similar."""


class _Model(msgspec.Struct):
    id: Any = None
    name: Any = None


class _List(msgspec.Struct):
    data: list[_Model] | None = None
    """OpenAI's and Anthropic's."""
    models: list[_Model] | None = None
    """Gemini's and Ollama's."""


def model_names(body: bytes) -> frozenset[str]:
    """The names in the answer to a request for the list of models; none where it is not understood."""
    try:
        found = msgspec.json.decode(body, type=_List)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return frozenset()
    names = [model.id or model.name for model in (*(found.data or ()), *(found.models or ()))]
    return frozenset(name.removeprefix("models/") for name in names if isinstance(name, str))


def unlisted(models: Iterable[str], listed: frozenset[str]) -> str:
    """Advice for the operator, which names the `models` that are not among `listed`; empty where none is missing."""
    missing = [model for model in dict.fromkeys(models) if listed and not _is_listed(model, listed)]
    return " ".join(_advice(model, listed) for model in missing)


def _is_listed(model: str, listed: frozenset[str]) -> bool:
    """Ollama takes a name without its `:latest`; Anthropic lists dated names, not their aliases `-0` and `-latest`."""
    stem = model.removesuffix("-latest").removesuffix("-0")
    dated = f"{stem}-20"
    return model in listed or f"{model}:latest" in listed or any(name.startswith(dated) for name in listed)


def _advice(model: str, listed: frozenset[str]) -> str:
    known = {name.lower().removesuffix(":latest"): name for name in sorted(listed)}
    near = [known[name] for name in get_close_matches(model.lower(), known, n=MOST_NAMES, cutoff=SIMILAR)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"The provider's list of models does not have {model}.{hint}"
