"""Small rows that every process must know within a second, such as a pause, and the trail of operators' acts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

MOST_ACTS = 10_000
"""The number of acts that a store keeps: the newest."""
MOST_REPORTS = 1_000
"""The most reports that are listed."""
KEPT_SECONDS = 25 * 3_600.0
"""The time that a row is kept after its end, and MOST_ENDED of those that ended before, however long ago: so a clock
that is ahead, by any time, and then right loses no pause, block or revoked session."""
MOST_ENDED = 1_000
"""The number of rows that are kept of those that ended more than KEPT_SECONDS ago: those that ended last."""
GRANT = "grant"
"""The kind of rows that raise a budget. They have no meaning without the counters, and end with them."""

_KIND = re.compile(r"[a-z][a-z_]{0,31}", re.ASCII)
_LONGEST_NAME = 512
LONGEST_VALUE = 8_192
_LONGEST_SWAPPED = 2**20
_LONGEST_SECONDS = 366 * 86_400.0
_LATEST = 2**33
"""Unix seconds, in the year 2242."""


class Control(Struct, frozen=True, kw_only=True, gc=False):
    """One row. `kind` and `name` identify it; `value` is in the kind's own format.

    `expires` is in Unix seconds; None means that it stays until it is removed.
    """

    kind: str
    name: str
    value: str = ""
    reason: str = ""
    expires: float | None = None


class Snapshot(Struct, frozen=True, kw_only=True):
    """All rows at one time, also those that have ended. Each change gives another `version`, a random number."""

    version: int
    rows: tuple[Control, ...]


class Act(Struct, frozen=True, kw_only=True):
    """One act of an operator: who did what to whom, and why. It never holds text of a chat.

    `at` is in Unix seconds; the store sets it.
    """

    by: str
    act: str
    target: str
    reason: str = ""
    detail: str = ""
    at: float = 0.0


def check_change(put: Sequence[Control], remove: Sequence[tuple[str, str]], act: Act | None) -> None:
    """Raise ValueError, which names the field and the rule, unless every store can keep the change exactly."""
    for control in put:
        _check_control(control)
    for kind, name in remove:
        _check_kind(kind)
        _check_text(name, "control.name", 0, _LONGEST_NAME)
    if act is not None:
        for field in ("by", "act", "target", "reason", "detail"):
            _check_text(getattr(act, field), f"act.{field}", 0, _LONGEST_NAME)


def check_report(rows: Sequence[Control]) -> None:
    """Raise ValueError, which names the field and the rule, unless every store can keep the rows exactly."""
    for row in rows:
        _check_control(row)
        if row.expires is None:
            raise ValueError("control.expires must be set in a report")


def check_swap(row: Control) -> None:
    """Raise ValueError, which names the field and the rule, unless every store can keep the value exactly."""
    if len(row.value) > _LONGEST_SWAPPED or not row.value.isascii() or not row.value.isprintable():
        raise ValueError(f"control.value must be at most {_LONGEST_SWAPPED} printable ASCII characters")
    check_report([replace(row, value="")])


def check_first(key: str, seconds: float) -> None:
    """Raise ValueError, which names the field and the rule, unless every store can keep the key."""
    _check_text(key, "key", 1, _LONGEST_NAME)
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise ValueError("seconds must be more than 0, and at most a year")


def _check_control(control: Control) -> None:
    _check_kind(control.kind)
    _check_text(control.name, "control.name", 1, _LONGEST_NAME)
    _check_text(control.reason, "control.reason", 0, _LONGEST_NAME)
    if len(control.value) > LONGEST_VALUE or "\0" in control.value or _has_surrogates(control.value):
        raise ValueError(f"control.value must be at most {LONGEST_VALUE} characters, without U+0000")
    if control.expires is not None and not 0 < control.expires <= _LATEST:
        raise ValueError("control.expires must be a time in Unix seconds")


def _check_kind(kind: str) -> None:
    if not _KIND.fullmatch(kind):
        raise ValueError("control.kind must be 1 to 32 lower-case letters and underscores")


def _check_text(text: str, field: str, least: int, most: int) -> None:
    if not least <= len(text) <= most or not text.isprintable():
        raise ValueError(f"{field} must be {least} to {most} printable characters")


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
