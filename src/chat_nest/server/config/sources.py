"""The place of each value of the configuration: a line of the file, or an environment variable."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, TypeGuard

from chat_nest.server.config.schema import NAMED, PERCENTS, SECTIONS, TEXTS, TOP
from chat_nest.server.config.toml_advice import toml_advice

Path = tuple[str, ...]
"""The tables and the key that lead to a value: ("profiles", "balanced", "model")."""

PREFIX = "CHAT_NEST_"
FEW = 20
CONFIG_VARIABLE = "CHAT_NEST_CONFIG"
MODEL_VARIABLE = "CHAT_NEST_MODEL"


class ConfigError(Exception):
    """The configuration is not valid. `problems` are sentences with the place, the rule and what to do."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Sources:
    """The values of the config file, overridden by the environment.

    `values` holds both; the file's are not yet converted.
    """

    def __init__(self, file: str, environ: Mapping[str, str]) -> None:
        self.file = file
        self.problems: list[str] = []
        self.notes: list[str] = []
        """Remarks on settings that are valid."""
        self.text = _read(file) if file else ""
        self.values: dict[str, Any] = _parse(file, self.text)
        self.variables: dict[Path, str] = {}
        """The values from the environment, each with its variable."""
        for variable, value in sorted(environ.items()):
            if variable.startswith(PREFIX) and variable not in (CONFIG_VARIABLE, MODEL_VARIABLE):
                self._overlay(variable, value)

    def problem(self, path: Path, sentence: str) -> None:
        """Note that the value at `path` breaks a rule; the sentence follows the path."""
        self.problems.append(f"{self.where(path)}: {sentence}")

    def refused(self, path: Path, error: Exception) -> None:
        """Note why a part refuses the value at `path`. The leading name of the key is left out: the place has it."""
        sentence = str(error)
        for name in (dotted_path(path), path[-1]):
            if re.match(rf"{re.escape(name)}[: ]", sentence):
                sentence = sentence[len(name) :].lstrip(": ")
                break
        self.problem(path, sentence)

    def raise_problems(self) -> None:
        """Raise ConfigError with all noted problems, if there are any."""
        if self.problems:
            raise ConfigError(self.problems)

    def where(self, path: Path) -> str:
        """Return the place and the dotted path of a value, or of the nearest table that should hold it."""
        dotted = dotted_path(path)
        if path in self.variables:
            return f"{self.variables[path]} (in a file: {dotted})"
        if not self.file:
            return dotted
        line = _nearest(self._lines, path)
        return f"{self.file}:{line}: {dotted}" if line else f"{self.file}: {dotted}"

    @cached_property
    def _lines(self) -> Mapping[Path, int]:
        return lines_of(self.text)

    def _overlay(self, variable: str, value: str) -> None:
        path = self._path_of(variable.removeprefix(PREFIX))
        if path is None:
            self.problems.append(f"{variable}: there is no such setting{hint(variable, self._known_variables())}")
            return
        *tables, key = path
        table: Any = self.values
        for name in tables:
            table = table.setdefault(name, {}) if is_table(table) else None  # a wrong table is reported elsewhere
        if is_table(table):
            listed = bool(tables) and SECTIONS[tables[0]][key] in (TEXTS, PERCENTS)
            table[key] = [part.strip() for part in value.split(",") if part.strip()] if listed else value
            self.variables[path] = variable

    def _path_of(self, rest: str) -> Path | None:
        """Convert SERVER_PORT to (server, port), and PROVIDERS_MY_ONE_API_KEY to (providers, my_one, api_key)."""
        if rest.isupper() and rest.lower() in TOP:
            return (rest.lower(),)
        for section, keys in SECTIONS.items():
            start = f"{section}_".upper()
            if not rest.startswith(start):
                continue
            rest = rest.removeprefix(start)
            for key in keys:
                if section not in NAMED and rest == key.upper():
                    return section, key
                if section in NAMED and rest.endswith(f"_{key}".upper()) and len(rest) > len(key) + 1:
                    return section, self._name(section, rest[: -len(key) - 1]), key
        return None

    def _name(self, section: str, shouted: str) -> str:
        """Return the file's name for the spelling of a variable, else a new name in lower case."""
        names = self.values.get(section)
        for name in names if is_table(names) else ():
            if re.sub(r"[^A-Z0-9]", "_", name.upper()) == shouted:
                return name
        return shouted.lower()

    def _known_variables(self) -> list[str]:
        known = [CONFIG_VARIABLE, MODEL_VARIABLE, *(f"{PREFIX}{key}".upper() for key in TOP)]
        for section, keys in SECTIONS.items():
            found = self.values.get(section)
            names = [*(found if is_table(found) else ()), *DEFAULT_NAMES.get(section, ())]
            middles = [f"{section}_{name}" for name in names] if section in NAMED else [section]
            known += [f"{PREFIX}{middle}_{key}".upper() for middle in middles for key in keys]
        return known


DEFAULT_NAMES = {
    "providers": ("openai", "demo"),
    "profiles": ("constrained", "balanced", "expanded"),
}


def is_table(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def dotted_path(path: Path) -> str:
    return ".".join(part if re.fullmatch(r"[\w-]+", part, re.ASCII) else repr(part) for part in path)


def hint(name: str, known: Iterable[str]) -> str:
    """Return a suggestion to follow an unknown name: the nearest known name, else all if they are few."""
    known = list(known)
    return near(name, known) or (f"; there are {', '.join(known)}" if 0 < len(known) <= FEW else "")


def near(name: str, known: Iterable[str]) -> str:
    """Return a suggestion to follow an unknown name: the nearest known name, in any case, or nothing."""
    spelt = {re.sub(r"[\s-]+", "_", each.strip().lower()): each for each in known}
    same = spelt.get(re.sub(r"[\s-]+", "_", name.strip().lower()))
    found = [same] if same else get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def line_of(text: str, path: Path) -> int:
    """Return the line, from 1, of the value at `path`, or else of the nearest table above it; 0 if neither is there."""
    return _nearest(lines_of(text), path)


def _nearest(lines: Mapping[Path, int], path: Path) -> int:
    return next((lines[path[:depth]] for depth in range(len(path), 0, -1) if path[:depth] in lines), 0)


def lines_of(text: str) -> Mapping[Path, int]:
    """Return the line, from 1, where each table and each key first appears. tomllib does not report lines.

    A statement is the fewest lines that parse by themselves: several for an array or a string over several lines.
    """
    found: dict[Path, int] = {}
    table: Path = ()
    lines = text.split("\n")
    begins = 0
    while begins < len(lines):
        end, values = _statement(lines, begins)
        if lines[begins].lstrip(" \t").startswith("["):  # the head of a table, for the keys below it
            paths = _paths((), values)
            table = max(paths, key=len, default=())
        else:
            paths = _paths(table, values)
        for path in paths:
            found.setdefault(path, begins + 1)
        begins = end
    return found


def _statement(lines: list[str], begins: int) -> tuple[int, Mapping[str, Any]]:
    """Return the line after the statement that begins at this line, both from 0, and its value."""
    for end in range(begins + 1, len(lines) + 1):
        with suppress(ValueError):  # inside a statement of several lines
            return end, tomllib.loads("\n".join(lines[begins:end]))
    return len(lines), {}


def _paths(above: Path, value: Any) -> list[Path]:
    """Return the path of each table and each key in `value`."""
    if isinstance(value, list):  # [[NAME]]
        tables = filter(is_table, value)  # pyright: ignore[reportUnknownArgumentType]
        return [path for table in tables for path in _paths(above, table)]
    if not is_table(value):
        return []
    paths: list[Path] = []
    for name, inner in value.items():
        paths += [(*above, name), *_paths((*above, name), inner)]
    return paths


def _read(file: str) -> str:
    try:
        return FilePath(file).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([f"{file}: there is no such file"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{file}: must be UTF-8 text"]) from None
    except OSError as error:
        raise ConfigError([f"{file}: can't be read: {error.strerror}"]) from None


def _parse(file: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and a number of thousands of digits
        found = re.search(r"at line (\d+), column (\d+)", str(error))
        lines = text.split("\n")
        number = int(found[1]) if found else len(text.splitlines())
        said = re.sub(r" \(at .*\)$", "", str(error))
        if said == "Cannot overwrite a value":
            said = "this key is there twice"
        elif advice := toml_advice(lines[number - 1] if found else ""):
            said += f": {advice}"
        raise ConfigError([f"{file}:{number}: this is not TOML: {said}"]) from None
