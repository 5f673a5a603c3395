"""The activity of every process on the store, now and in the last hour, for operators.

A process that an operator queries puts the row `watch` into the store. While that row exists, each process writes its
activity every two seconds, in a row that expires after some seconds. So nothing is written while no operator looks, and
an answer covers all workers and machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from msgspec import Struct, field

from chat_nest import __version__
from chat_nest.asgi.handler import ChatHandler
from chat_nest.core.controls import Control
from chat_nest.core.protocols import PoolsKeys
from chat_nest.server.tally import CallCounts, Refusals, Tally

WATCH: Final = "watch"
"""The kind of the row that requests reports; it has one name."""
OPERATORS: Final = "operators"
FIGURES: Final = "figures"
"""The kind of the reports. Their names are the processes."""
WATCH_SECONDS: Final = 60.0
EVERY_SECONDS: Final = 2.0
LASTS_SECONDS: Final = 15.0
"""How long a report is believed: a process that ended is gone then."""
MOST_BYTES: Final = 8_000
MOST_REASONS: Final = 40


class Doing(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One process: what it has to do, and what it did in the last hour."""

    process: str
    """HOST:PID."""
    started_at: float
    version: str
    at: float
    streams: int
    queued: int
    unsettled: int
    expired: int
    breakers: dict[str, str] = field(default_factory=dict[str, str])
    keys: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """By provider: how many keys it has, and how many of them rest."""
    minutes: Sequence[tuple[int, int, int, int]] = ()
    """See Tally.minutes."""
    refused: Sequence[tuple[Refusals, int]] = ()
    failed: dict[str, int] = field(default_factory=dict[str, int])
    calls: dict[str, CallCounts] = field(default_factory=dict[str, CallCounts])


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Doing).decode


class FleetReports:
    """Reports what this process does while an operator looks, and reads what the others report.

    `draining` returns whether this process ends.
    """

    def __init__(self, handler: ChatHandler, tally: Tally, now: Callable[[], float] = time.time) -> None:
        self._handler = handler
        self._tally = tally
        self._now = now
        self._process = f"{socket.gethostname()}:{os.getpid()}"
        self._name = f"{self._process}:{secrets.token_hex(4)}"
        self._started_at = now()
        self._task: asyncio.Task[None] | None = None
        handler.controls.listen(self._attend)

    async def doing(self) -> list[Doing]:
        """Return what each process does, this one first. Others report within two seconds of the first look.

        Raises LimiterUnavailable.
        """
        controls, now = self._handler.controls, self._now()
        row = controls.get(WATCH, OPERATORS)
        if row is None or row.expires is None or row.expires < now + WATCH_SECONDS / 2:
            await controls.change([Control(kind=WATCH, name=OPERATORS, expires=now + WATCH_SECONDS)])
        rows = await controls.reports(FIGURES)
        others = (_read(row) for row in rows if row.name != self._name)
        return [self.own(), *sorted((each for each in others if each is not None), key=lambda each: each.process)]

    def own(self) -> Doing:
        """Return what this process does."""
        figures, done = self._handler.figures.figures(), self._tally.total()
        pools = {name: each for name, each in self._handler.providers.items() if isinstance(each, PoolsKeys)}
        rests = {name: pool.key_rests() for name, pool in pools.items()}
        return Doing(
            process=self._process,
            started_at=self._started_at,
            version=__version__,
            at=self._now(),
            streams=figures.streams,
            queued=figures.queued,
            unsettled=figures.unsettled,
            expired=figures.expired,
            breakers={name: state for name, state in figures.breakers.items() if state != "closed"},
            keys={name: (count, len(resting)) for name, (count, resting) in rests.items() if count > 1 or resting},
            minutes=self._tally.minutes(),
            refused=done.refused.most_common(MOST_REASONS),
            failed=dict(done.failed.most_common(MOST_REASONS)),
            calls=done.calls,
        )

    def _attend(self) -> None:
        """Begin to report, if an operator looks."""
        if self._task is None and self._handler.controls.get(WATCH, OPERATORS) is not None:
            with contextlib.suppress(RuntimeError):  # no loop runs yet: the next change begins it
                self._task = asyncio.get_running_loop().create_task(self._report())

    async def _report(self) -> None:
        controls = self._handler.controls
        try:
            while controls.get(WATCH, OPERATORS) is not None:
                with contextlib.suppress(Exception):  # the store logs why it does not answer
                    value = _fitting(self.own()).decode()
                    row = Control(kind=FIGURES, name=self._name, value=value, expires=self._now() + LASTS_SECONDS)
                    await controls.report([row])
                await asyncio.sleep(EVERY_SECONDS)
        finally:
            self._task = None

    async def aclose(self) -> None:
        """Stop reporting."""
        if self._task is not None:
            task = self._task
            task.cancel()
            await asyncio.wait([task])


def _fitting(doing: Doing) -> bytes:
    """Return it as JSON that fits into a row: if need be without the times, and at last without the providers."""
    untimed = {name: CallCounts(calls.count, calls.failed, []) for name, calls in doing.calls.items()}
    for calls in (doing.calls, untimed, {}):
        value = _encode(msgspec.structs.replace(doing, calls=calls))
        if len(value) <= MOST_BYTES:
            return value
    return _encode(msgspec.structs.replace(doing, calls={}, keys={}, breakers={}, refused=()))


def _read(row: Control) -> Doing | None:
    """Return a process's report; None if another version wrote it in another form."""
    try:
        return _decode(row.value)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
