"""What one admitted request may spend, and its known spending so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chat_nest.core.claims import MAX_AMOUNT, OWN, Claim, Granted, Line, Quota
from chat_nest.core.deltas import Batch, FinishDelta, UsageDelta
from chat_nest.core.limits import Unit
from chat_nest.core.records import Record
from chat_nest.core.usage import Source, Usage
from chat_nest.counting.meter import OutputMeter
from chat_nest.counting.reported import charge, newest


class Reservation:
    """What one admitted request may spend, and its known spending so far."""

    __slots__ = (
        "abort_bills",
        "asked",
        "charged",
        "claim",
        "countable",
        "finished",
        "granted",
        "input_tokens",
        "lost",
        "meter",
        "model",
        "record",
        "reported",
        "reported_last",
        "spent_nothing",
        "stopped",
        "unseen",
    )

    def __init__(self, claim: Claim, granted: Granted, input_tokens: int) -> None:
        self.claim = claim
        self.granted = granted
        self.input_tokens = input_tokens
        self.lost: tuple[str, Usage] | None = None
        """The model and prompt of a failed attempt that may have been billed: part of the input."""
        self.meter: OutputMeter | None = None
        self.model = ""
        self.abort_bills = "unknown"
        self.countable = True
        """False if the model reasons out of sight: its output can't be counted."""
        self.asked = False
        """True once a provider was called: from then on the request costs something, unless the provider refuses it."""
        self.spent_nothing = False
        self.stopped = False
        """True once the provider gave its reason to stop: no output follows."""
        self.finished = False
        """True once the provider's own completion signal came."""
        self.unseen = False
        """True if the provider may have produced more than came, as it was not being read."""
        self.charged: tuple[Usage, Source] | None = None
        """What `spent` returned at the end."""
        self.record: Record | None = None
        """The request's record, once it has ended."""
        self.reported: Usage | None = None
        self.reported_last = True
        """True if no output should follow the report."""

    def report(self, usage: Usage, *, last: bool) -> None:
        """Take a provider's report. Output that streams after a report that is not the `last` one is added to it."""
        known = self.reported
        self.reported = usage if known is None else newest(known, usage)
        counted = 0 if known is None else known.output_tokens
        # Lower, it does not count the output. The same number again does not count what came behind the last report.
        if (
            known is None
            or usage.output_tokens > counted
            or (usage.output_tokens == counted and not self.reported_last)
        ):
            self.reported_last = last or self.meter is None
            if self.meter is not None:
                self.meter.mark()

    def count(self, batch: Batch) -> None:
        """Count a batch that came and is not relayed."""
        for delta in batch:
            if isinstance(delta, UsageDelta):
                self.report(delta.usage, last=self.stopped)
            elif isinstance(delta, FinishDelta):
                self.stopped = True
            elif self.meter is not None:
                self.meter.add(delta.text)

    def spent(self) -> tuple[Usage, Source]:
        """Return the cost so far, and the source of its counts. Never too low: it is what gets charged."""
        if not self.asked or self.spent_nothing:
            return Usage(), "reported"
        produced = since = 0
        if self.meter is not None:
            granted = self.granted.output_tokens
            produced = self.meter.charged(self.meter.produced(), granted)
            since = self.meter.charged(self.meter.since(), granted)
        final = (self.reported_last or self.finished) and not since
        ended = self.finished or (self.reported is not None and final)
        counting_is_enough = self.countable and (ended or (self.abort_bills == "stops" and not self.unseen))
        return charge(
            self.reported,
            input_bound=self.input_tokens,
            produced=produced,
            since=since,
            final=final,
            held_output=None if counting_is_enough else self.granted.output_tokens,
        )

    def quotas(self, now: float) -> list[Quota]:
        """Return the room left on each line after this hold. `now` is Unix time."""
        return [
            Quota(line, room, _until_whole(line, room, now))
            for line, room in zip(self.claim.lines, self.granted.room, strict=True)
        ]

    def remaining(self, usage: Usage, cost: int | None) -> Mapping[str, int]:
        """Return what is left of each of the caller's own limits once this is settled, by name, in the line's unit."""
        actual = actual_of(usage, cost)
        left: dict[str, int] = {}
        for line, room in zip(self.claim.lines, self.granted.room, strict=True):
            if line.scope in OWN and line.kind in ("window", "rate"):
                held = line.amount(self.granted.output_tokens)
                left[line.name] = max(0, room + held - actual.get(line.unit, held))
        return left


Conclude = Callable[[Reservation, BaseException | None], Record]
"""Return the record of a request that has ended: with the exception that ended it, if there was one."""


def actual_of(usage: Usage, cost: int | None) -> dict[Unit, int]:
    """Return what a request used, by unit. Unknown amounts are left out, so that they are charged in full."""
    actual: dict[Unit, int] = {"tokens": min(usage.total_tokens, MAX_AMOUNT)}
    if cost is not None:
        actual["nanousd"] = min(cost, MAX_AMOUNT)
    return actual


def _until_whole(line: Line, room: int, now: float) -> float:
    if line.kind == "window":
        return max(0.0, line.resets_at - now)
    return line.period * max(0, line.limit - room) / line.limit if line.kind == "rate" else 0.0
