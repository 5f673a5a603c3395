"""Read the values of every section, from the environment and the file, and convert them by their rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from chat_nest.core.limits import NO_LIMIT
from chat_nest.server.config.schema import NAMED, SECTIONS, TOP, KeyRules, Rule
from chat_nest.server.config.sources import Path, Sources, hint, is_table

ABOVE = "put it above the first [section]: in TOML a key belongs to the section that it follows"


def read(file: str, environ: Mapping[str, str]) -> tuple[Sources, dict[str, dict[str, Any]]]:
    """Return the values by section, converted; those above all sections are under "". Raises ConfigError."""
    sources = Sources(file, environ)
    top = {key: value for key, value in sources.values.items() if key in TOP}
    values = {"": _table(sources, (), top, TOP)}
    values |= {section: _section(sources, section, keys) for section, keys in SECTIONS.items()}
    _refuse_unknown_sections(sources)
    sources.raise_problems()
    return sources, values


def _section(sources: Sources, section: str, keys: KeyRules) -> dict[str, Any]:
    tables = sources.values.get(section, {})
    if section not in NAMED:
        return _table(sources, (section,), tables, keys)
    if not is_table(tables):
        sources.problem((section,), f"must be tables with a name each: [{section}.NAME]")
        return {}
    return {name: _table(sources, (section, name), table, keys) for name, table in tables.items()}


def _table(sources: Sources, path: Path, table: Any, keys: KeyRules) -> dict[str, Any]:
    """Return the table's converted values; wrong values are noted and left out."""
    if path and path[-1] in TOP and not is_table(table):
        sources.problem(path, ABOVE)
        return {}
    if not is_table(table):
        inside = f", with keys such as {next(iter(keys))}" if path[0] in NAMED else ""
        sources.problem(path, f"must be a table: [{'.'.join(path)}]{inside}")
        return {}
    values: dict[str, Any] = {}
    for key, value in table.items():
        here = (*path, key)
        rule = keys.get(key)
        if rule is None and key in TOP:
            sources.problem(here, ABOVE)
            continue
        if rule is None:
            sources.problem(here, f"there is no such key{hint(key, keys)}")
            continue
        try:
            values[key] = _converted(value, rule, from_variable=here in sources.variables)
        except (msgspec.ValidationError, OverflowError):
            says = rule.says.replace('"', "") if here in sources.variables else rule.says  # no quotes in a variable
            sources.problem(here, f"must be {says}")
    return values


def _converted(value: Any, rule: Rule, *, from_variable: bool) -> Any:
    """Return the value in the rule's type. Raises ValidationError or OverflowError."""
    number = rule.range
    if number is None:
        return msgspec.convert(value, rule.type, strict=not from_variable)
    if number.optional and value == NO_LIMIT:
        return None
    if number.whole and isinstance(value, str) and not value.isdecimal():
        raise msgspec.ValidationError  # msgspec takes "5.0" and "1e3" for whole numbers, too
    converted = msgspec.convert(value, rule.type, strict=not from_variable)
    if not number.holds(converted):
        raise msgspec.ValidationError
    return converted


def _refuse_unknown_sections(sources: Sources) -> None:
    for name in sources.values:
        if name in SECTIONS or name in TOP:
            continue
        homes = [f"[{section}]" for section, keys in SECTIONS.items() if name in keys and section not in NAMED]
        advice = f"; it belongs into {' or '.join(homes)}" if homes else hint(name, (*SECTIONS, *TOP))
        sources.problem((name,), f"there is no such section{advice}")
