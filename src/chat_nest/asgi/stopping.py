"""Stop answers before their end: for an operator, or because their API key or session was revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from chat_nest.controls.gate import Address, Gate, Running
from chat_nest.core.errors import ChatError, SessionRevoked
from chat_nest.core.messages import Caller
from chat_nest.identity.sessions import Sessions, session_of
from chat_nest.pipeline.lifecycle import Lifecycle

AGAIN_SECONDS = 0.25


class Stopping:
    """Ends answers among `runs`, those of this process by id. Each is settled once, as any other."""

    def __init__(self, gate: Gate, runs: Mapping[str, Lifecycle]) -> None:
        self._gate = gate
        self._runs = runs

    def obey(self, sessions: Sessions | None) -> None:
        """End the running answers that an operator stopped, and those of revoked keys and sessions."""
        for life in list(self._runs.values()) if self._gate.stops_any else ():
            running = _running(life)
            if running is not None and (error := self._gate.stopped(running)) is not None:
                life.end(error)
        if sessions is not None and self._runs:
            self._end_revoked(sessions, asyncio.get_running_loop().time())

    def refused_reader(self, caller: Caller, address: Address | None, sessions: Sessions | None) -> ChatError | None:
        """Return why a reader may not follow an answer any more; None if it may."""
        if sessions is not None and sessions.is_revoked(session_of(caller)):
            return SessionRevoked()
        reader = Running(run="", caller=caller, profile="", model="", address=address)
        return self._gate.stopped(reader) if self._gate.stops_any else None

    def _end_revoked(self, sessions: Sessions, known_at: float) -> None:
        """End them. A request that was identified before the revocation, `known_at`, may still be admitted."""
        early = False
        for life in list(self._runs.values()):
            if life.admission is None:
                early |= life.began_at <= known_at and life.ended_by is None
            elif sessions.is_revoked(session_of(life.admission.caller)):
                life.end(SessionRevoked())
        if early:
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._end_revoked, sessions, known_at)


def _running(life: Lifecycle) -> Running | None:
    """Return what decides whether an operator's act concerns this answer; None before it is admitted."""
    admission, held = life.admission, life.held
    if admission is None:
        return None
    model = (held.model if held is not None else "") or admission.profile.model
    caller, profile = admission.caller, admission.profile.name
    return Running(run=life.id, caller=caller, profile=profile, model=model, address=life.address)
