"""A reload of several workers, by their parent: all of them adopt the configuration, or none does.

    requested -> each worker prepares -> each worker adopts -> the outcome is returned

If a worker can't prepare, or takes too long, the reload stops, and nothing changes. A worker that ends is left out: its
replacement starts with the configuration in force.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Literal, Protocol

from chat_nest.server.config.changes import Changes
from chat_nest.server.config.settings import Config
from chat_nest.server.config.sources import ConfigError
from chat_nest.server.reload import FAILED, WRONG, ConfigSource, ReloadOutcome, log_outcome, outcome_of, refused
from chat_nest.server.systemd import READY, notify, notify_reloading

log = logging.getLogger("chat_nest.server")

PREPARE_SECONDS = 30.0
"""How long a worker may build what a configuration sets. It may have to start first."""
ADOPT_SECONDS = 10.0

TellOutcome = Callable[[ReloadOutcome], None]


class Member(Hashable, Protocol):
    """A running worker, as a reload needs it."""

    @property
    def name(self) -> str:
        """Its name for the operator."""
        ...

    def send(self, *message: object) -> bool:
        """Send a message; return whether that was possible."""
        ...


class Rollouts:
    """The reloads of a server with several workers, one after the other.

    `members` returns the running workers. `put_in_force` gets the configuration with which workers start from then on.
    """

    def __init__(
        self,
        source: ConfigSource,
        members: Callable[[], Iterable[Member]],
        put_in_force: Callable[[Config], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._members = members
        self._put_in_force = put_in_force
        self._clock = clock
        self._asked: list[TellOutcome] = []
        """For the next reading."""
        self._answering: list[TellOutcome] = []
        """For the current one."""
        self._phase: Literal["idle", "preparing", "adopting"] = "idle"
        self._number = 0
        self._changes: Changes | None = None
        self._config: Config | None = None
        self._waiting: set[Member] = set()
        self._owing: set[Member] = set()
        """Those that have not answered an earlier reload: their pipes could fill."""
        self._until = 0.0

    def ask(self, reply: TellOutcome) -> None:
        """Read the configuration again as soon as no reload is running, and pass the outcome to `reply`."""
        self._asked.append(reply)
        self._begin_next()

    @property
    def due(self) -> float | None:
        """When `expire` should be called, in seconds of the clock; None if nothing is waited for."""
        return None if self._phase == "idle" else self._until

    def expire(self) -> None:
        """Give up on workers that have not answered in time."""
        if self._phase == "idle" or self._clock() < self._until:
            return
        late = ", ".join(sorted(each.name for each in self._waiting))
        self._owing |= self._waiting
        if self._phase == "preparing":
            self._abort(f"{late} did not build it in {PREPARE_SECONDS:g} s")
        else:
            log.error("reload: %s did not confirm it in %g s", late, ADOPT_SECONDS)
            self._finish()

    def joined(self, member: Member) -> None:
        """Note a worker that was just started, with the configuration in force."""
        if self._phase == "preparing" and member.send("prepare", self._number, self._config):
            self._waiting.add(member)

    def left(self, member: Member) -> None:
        """Note that a worker has ended."""
        self._owing.discard(member)
        self._waiting.discard(member)
        self._go_on()

    def prepared(self, member: Member, number: int, problem: str) -> None:
        """Note that a worker has built what the configuration sets, or could not."""
        self._owing.discard(member)
        if number != self._number or self._phase != "preparing":
            return
        if problem:
            self._waiting.discard(member)
            self._abort(problem)
        else:
            self._waiting.discard(member)
            self._go_on()

    def adopted(self, member: Member, number: int) -> None:
        """Note that the configuration is in force in a worker."""
        self._owing.discard(member)
        if number == self._number and self._phase == "adopting":
            self._waiting.discard(member)
            self._go_on()

    def stop(self, why: str) -> None:
        """Refuse the current reload and those that wait: the server ends."""
        waiting, self._asked = self._asked, []
        if self._phase == "preparing":
            self._abort(why)
        elif self._phase == "adopting":
            self._finish()
        for reply in waiting:
            reply(refused((why,), FAILED))

    def _begin_next(self) -> None:
        while self._phase == "idle" and self._asked:
            self._answering, self._asked = self._asked, []
            self._number += 1
            notify_reloading()
            try:
                self._changes, self._config = self._source.read()
            except ConfigError as error:
                self._answer(refused(error.problems, WRONG))
                continue
            members = list(self._members())
            if silent := [each.name for each in members if each in self._owing]:
                self._answer(refused((f"{', '.join(silent)} has not answered the last reload",), FAILED))
                continue
            self._phase, self._until = "preparing", self._clock() + PREPARE_SECONDS
            self._waiting = {each for each in members if each.send("prepare", self._number, self._config)}
            self._go_on()

    def _go_on(self) -> None:
        if self._waiting or self._phase == "idle":
            return
        if self._phase == "adopting":
            self._finish()
            return
        assert self._changes is not None
        assert self._config is not None
        self._source.adopted(self._changes)
        self._put_in_force(self._config)
        self._phase, self._until = "adopting", self._clock() + ADOPT_SECONDS
        self._waiting = {each for each in self._members() if each.send("adopt", self._number)}
        self._go_on()

    def _abort(self, problem: str) -> None:
        for member in self._members():
            member.send("forget", self._number)
        self._answer(refused((problem,), FAILED))
        self._begin_next()

    def _finish(self) -> None:
        assert self._changes is not None
        self._answer(outcome_of(self._changes))
        self._begin_next()

    def _answer(self, outcome: ReloadOutcome) -> None:
        self._phase, self._waiting = "idle", set()
        log_outcome(outcome)
        notify(READY)
        replies: Sequence[TellOutcome] = self._answering
        self._answering = []
        for reply in replies:
            reply(outcome)
