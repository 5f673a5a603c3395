"""Grants and resets: they raise the room of one window of one owner, and never change what was spent.

A grant of 50,000 tokens raises the limit of the line by as much until its window ends. A reset is a grant of what the
line had used at that time: from then on the whole limit is free again, and the counter goes on counting. So no running
answer and no late settlement can make a counter wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from chat_nest.controls.live import LiveControls
from chat_nest.core.claims import MAX_AMOUNT, Line, Standing
from chat_nest.core.controls import GRANT, Control


class BudgetGrant(Struct, frozen=True, kw_only=True):
    """The value of a row, as JSON. The row's name is the line's key, a space, and a word of its own.

    `amount` is in the line's unit. A `reset` is what had been used, and is shown as if it had not been.
    """

    amount: int
    kind: Literal["grant", "reset"]
    by: str = ""


_grant = msgspec.json.Decoder(BudgetGrant).decode


def grant_of(row: Control) -> BudgetGrant | None:
    """Return the value of a row; None if it can't be read: another version wrote it, and it raises nothing."""
    try:
        return _grant(row.value)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


def grant_row(line: Line, grant: BudgetGrant, word: str, reason: str) -> Control:
    """Return the row of a grant for one window, with which it ends. A row with the same word replaces it."""
    value = msgspec.json.encode(grant).decode()
    return Control(kind=GRANT, name=f"{line.key} {word}", value=value, reason=reason, expires=line.resets_at)


class Grants:
    """The grants of all lines, by key, from the process's copy of the controls."""

    def __init__(self, live: LiveControls) -> None:
        self._live = live
        self._by_key: dict[str, tuple[int, int]] = {}
        self._read()
        live.listen(self._read)

    def raised(self, lines: Sequence[Line]) -> Sequence[Line]:
        """Return the lines with their limits raised by what was granted and reset."""
        if not self._by_key:
            return lines
        return tuple(self._raised(line) for line in lines)

    def shown(self, line: Line, standing: Standing) -> tuple[Line, Standing]:
        """Return a raised line and its state as its owner sees them: what was used before a reset is left out."""
        _, reset = self._by_key.get(line.key, (0, 0))
        if not reset or line.kind != "window":
            return line, standing
        forgiven = min(reset, standing.used)
        return replace(line, limit=line.limit - reset), replace(standing, used=standing.used - forgiven)

    def _raised(self, line: Line) -> Line:
        found = self._by_key.get(line.key) if line.kind == "window" else None
        return line if found is None else replace(line, limit=min(line.limit + sum(found), MAX_AMOUNT))

    def _read(self) -> None:
        by_key: dict[str, tuple[int, int]] = {}
        for row in self._live.kept(GRANT):  # that its window is over does no harm: no request draws on it
            key = row.name.rpartition(" ")[0]
            if (grant := grant_of(row)) is None:
                continue
            granted, reset = by_key.get(key, (0, 0))
            amount = max(0, grant.amount)
            by_key[key] = (granted, reset + amount) if grant.kind == "reset" else (granted + amount, reset)
        self._by_key = by_key
