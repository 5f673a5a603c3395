"""Where each value of the configuration stands: a line of the file, or a variable of the environment."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path as FilePath
from typing import Any, TypeGuard

from chat_nest.server.schema import NAMED, SECTIONS, TEXTS, TOP

Path = tuple[str, ...]
"""The tables and the key that lead to a value: ("profiles", "balanced", "model")."""

PREFIX = "CHAT_NEST_"
FEW = 20
CONFIG_VARIABLE = "CHAT_NEST_CONFIG"
MODEL_VARIABLE = "CHAT_NEST_MODEL"


class ConfigError(Exception):
    """The configuration can't be used. `problems` are sentences that say where, what the rule is and what to do."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Sources:
    """The config file's values under the environment's. `values` holds both; file values are not converted yet."""

    def __init__(self, file: str, environ: Mapping[str, str]) -> None:
        self.file = file
        self.problems: list[str] = []
        self.notes: list[str] = []
        """What is not wrong, but worth telling."""
        self.text = _read(file) if file else ""
        self.values: dict[str, Any] = _parse(file, self.text)
        self.variables: dict[Path, str] = {}
        """The values that come from the environment, and the variable that each came from."""
        for variable, value in sorted(environ.items()):
            if variable.startswith(PREFIX) and variable not in (CONFIG_VARIABLE, MODEL_VARIABLE):
                self._overlay(variable, value)

    def problem(self, path: Path, sentence: str) -> None:
        """Note that the value at `path` breaks a rule; the sentence goes on after the path."""
        self.problems.append(f"{self.where(path)}: {sentence}")

    def refused(self, path: Path, error: Exception) -> None:
        """Note why a part refuses the value at `path`. The name of the key in front is left out: the place has it."""
        sentence = str(error)
        for name in (dotted_path(path), path[-1]):
            if re.match(rf"{re.escape(name)}[: ]", sentence):
                sentence = sentence[len(name) :].lstrip(": ")
                break
        self.problem(path, sentence)

    def raise_problems(self) -> None:
        """Raises ConfigError with all that was noted, if anything was."""
        if self.problems:
            raise ConfigError(self.problems)

    def where(self, path: Path) -> str:
        """The place and the dotted path of a value, or of the nearest table that should hold it."""
        dotted = dotted_path(path)
        if path in self.variables:
            return f"{self.variables[path]} (in a file: {dotted})"
        if not self.file:
            return dotted
        line = line_of(self.text, path)
        return f"{self.file}:{line}: {dotted}" if line else f"{self.file}: {dotted}"

    def _overlay(self, variable: str, value: str) -> None:
        path = self._path_of(variable.removeprefix(PREFIX))
        if path is None:
            self.problems.append(f"{variable}: there is no such setting{hint(variable, self._known_variables())}")
            return
        *tables, key = path
        table: Any = self.values
        for name in tables:
            table = table.setdefault(name, {}) if is_table(table) else None  # a wrong table is told elsewhere
        if is_table(table):
            listed = bool(tables) and SECTIONS[tables[0]][key] is TEXTS
            table[key] = [part.strip() for part in value.split(",") if part.strip()] if listed else value
            self.variables[path] = variable

    def _path_of(self, rest: str) -> Path | None:
        """SERVER_PORT to (server, port); PROVIDERS_MY_ONE_API_KEY to (providers, my_one, api_key)."""
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
        """The name in the file that the environment's spelling means, else a new one in lower case."""
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
    """A suggestion to go behind an unknown name: the nearest known one, else all if they are few."""
    known = list(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(known)}" if 0 < len(known) <= FEW else ""


def line_of(text: str, path: Path) -> int:
    """The line, from 1, on which the value at `path` begins, or else the nearest table above it; 0 if none is there.

    tomllib tells no lines. A statement ends where the text up to there parses, so the first such prefix that holds the
    path ends with the statement that we look for. Only errors pay for this.
    """
    lines = text.split("\n")
    found = 0
    for depth in range(1, len(path) + 1):
        line = _first_line(lines, path[:depth])
        if not line:
            break
        found = line
    return found


def _first_line(lines: list[str], path: Path) -> int:
    begins = 0
    for end in range(1, len(lines) + 1):
        try:
            values = tomllib.loads("\n".join(lines[:end]))
        except ValueError:
            continue  # inside a statement of several lines
        if _holds(values, path):
            return begins + 1
        begins = end
    return 0


def _holds(values: Any, path: Path) -> bool:
    for name in path:
        if not is_table(values) or name not in values:
            return False
        values = values[name]
    return True


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
        line = re.search(r"at line (\d+), column (\d+)", str(error))
        place = f"{file}:{line[1]}" if line else f"{file}:{len(text.splitlines())}"
        said = re.sub(r" \(at .*\)$", "", str(error))
        raise ConfigError([f"{place}: this is not TOML: {said}"]) from None
