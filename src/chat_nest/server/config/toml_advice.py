"""Advice for a line that is not TOML: common mistakes of beginners."""

from __future__ import annotations

import re

_QUOTES = 'text needs straight quotes, such as "none"'
_MISTAKES = (
    (r"\[\[?[^\]\"']*[^\]\"'\w.\s-]", 'a name that is not letters, digits, - and _ needs quotes: [prices."NAME"]'),
    (r"[\w-]+\s*:", "write KEY = VALUE, and a section as [NAME]"),
    (r"[{]", "this is JSON: write KEY = VALUE, and a section as [NAME]"),
    (r"[^=]+=\s*[+-]?\d+(,\d{3})+(?!\d)", "write thousands with underscores, such as 50_000"),
    (r"[^=]+=\s*\d+\s*[a-zA-Z%]", f"a number has no unit; {_QUOTES}"),
    (r"[^=]+=\s*(True|False|TRUE|FALSE)\b", "true and false are in lower case"),
    (r"[^=]+=\s*[^\s\"'\[{\d+.#-]", _QUOTES),
)


def toml_advice(line: str) -> str:
    """Return how to correct the line at which a TOML parser stopped, without repeating it; else an empty string."""
    line = line.strip()
    return next((advice for pattern, advice in _MISTAKES if re.match(pattern, line)), "")
