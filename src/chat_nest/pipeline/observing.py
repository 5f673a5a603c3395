"""Call the observers of requests. An observer's exception is logged and dropped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import cast

from chat_nest.core.errors import ChatError
from chat_nest.core.messages import Caller
from chat_nest.core.parts import KnownBugs
from chat_nest.core.protocols import AnyObserver, Ending, FollowsSteps, Observer, Report, Reported, Scope
from chat_nest.core.steps import Steps
from chat_nest.limits.spec import Profile
from chat_nest.pipeline.admission import Admission
from chat_nest.pipeline.outcome import Outcome

log = logging.getLogger("chat_nest.pipeline")


class Observing:
    """Calls each observer for what it observes: requests that start and end, their reports, their steps."""

    def __init__(self, observers: Sequence[AnyObserver]) -> None:
        # By their classes: an observer's attributes may raise anything.
        self._reported = [cast(Reported, each) for each in observers if issubclass(type(each), Reported)]
        self._follow = [cast(FollowsSteps, each) for each in observers if issubclass(type(each), FollowsSteps)]
        self._observers = [
            cast(Observer, each)
            for each in observers
            if issubclass(type(each), Observer) or not issubclass(type(each), (Reported, FollowsSteps))
        ]
        self._bugs = KnownBugs()

    def arrived(self, id: str, dialect: str, scope: Scope) -> None:
        """Pass on that a request has come, before its body is read."""
        for observer in self._follow:
            self._call(observer, observer.arrived, id, dialect, scope)

    def turned_away(self, id: str, dialect: str, error: ChatError, began_at: float) -> None:
        """Report a request that was refused before the pipeline had it."""
        steps = Steps(began_at)
        steps.ended_at = asyncio.get_running_loop().time()
        self.refused(id, None, error)
        self.report(id, dialect, steps, error.code, Outcome(error=error))

    def started(self, admission: Admission) -> None:
        run, caller, profile = admission.run, admission.caller, admission.profile
        for observer in self._observers:
            self._call(observer, _started, observer, run, caller, profile)

    def asking(self, admission: Admission) -> None:
        for observer in self._follow:
            self._call(observer, observer.asking, admission.run, admission.profile.model)

    def finished(self, ending: Ending) -> None:
        for observer in self._observers:
            self._call(observer, _finished, observer, ending)

    def refused(self, id: str, caller: Caller | None, error: ChatError) -> None:
        for observer in self._observers:
            self._call(observer, _refused, observer, id, caller, error)

    def report(self, id: str, dialect: str, steps: Steps, code: str, outcome: Outcome) -> None:
        """Pass on how the request went, with its steps, to the observers that take a report."""
        if not self._reported:
            return
        report = Report(
            id=id,
            dialect=dialect,
            code=code,
            steps=steps,
            profile="" if outcome.admission is None else outcome.admission.profile.name,
            ending=outcome.ending,
            error=outcome.error,
        )
        for observer in self._reported:
            self._call(observer, observer.reported, report)

    def _call(self, observer: object, call: Callable[..., None], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception as failure:
            log.error("an observer failed: %s", self._bugs.explain(observer, failure))  # noqa: TRY400 - no values in logs


# The method is looked up in the call, since an observer's attribute may raise anything.


def _started(observer: Observer, run: str, caller: Caller, profile: Profile) -> None:
    observer.started(run, caller, profile.name, profile.model)


def _finished(observer: Observer, ending: Ending) -> None:
    observer.finished(ending)


def _refused(observer: Observer, id: str, caller: Caller | None, error: ChatError) -> None:
    observer.refused(id, caller, error)
