"""The life of one request as a state machine. Pipeline, reader and clocks change it by named events only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, Literal, TypeVar

from chat_nest.core.deltas import FinishReason
from chat_nest.core.errors import ChatError, ClientGone, Shutdown, SlowReader, UpstreamTruncated
from chat_nest.core.protocols import RunLog
from chat_nest.core.steps import Steps
from chat_nest.ledger.reservation import Reservation
from chat_nest.pipeline.admission import Admission

Result = TypeVar("Result")


class State(Enum):
    ARRIVED = "nothing is reserved yet"
    SERVING = "admitted, with a reader"
    DETACHED = "admitted, and going on without a reader"
    ENDING = "ended from this side; its reader has not yet got the reason"
    ABANDONED = "ended, and it has no reader"
    CLOSING = "settled; its last bytes are on their way to its reader"
    OVER = "settled, and nothing more is sent"

    __hash__ = object.__hash__
    """As Enum's own, which would hash the name: each request looks up six states."""


Event = Literal["admit", "detach", "end", "lose", "settle", "finish"]

TRANSITIONS: Final[Mapping[Event, Mapping[State, State]]] = {
    "admit": {State.ARRIVED: State.SERVING},
    "detach": {State.SERVING: State.DETACHED},
    "end": {State.ARRIVED: State.ENDING, State.SERVING: State.ENDING, State.DETACHED: State.ABANDONED},
    "lose": {
        State.ARRIVED: State.ABANDONED,
        State.SERVING: State.ABANDONED,
        State.ENDING: State.ABANDONED,
        State.CLOSING: State.OVER,
    },
    "settle": {
        State.ARRIVED: State.CLOSING,
        State.SERVING: State.CLOSING,
        State.ENDING: State.CLOSING,
        State.DETACHED: State.OVER,
        State.ABANDONED: State.OVER,
    },
    "finish": dict.fromkeys(State, State.OVER),
}
_WITH_READER: Final = frozenset({State.ARRIVED, State.SERVING, State.ENDING, State.CLOSING})


class Pulse:
    """When each side last moved, in the event loop's seconds. Relay and stream write it, their clocks read it."""

    __slots__ = ("first_at", "read_at", "writing", "written_at")

    def __init__(self, now: float) -> None:
        self.read_at = now
        """When the wait for the provider began."""
        self.written_at = now
        """When the last write began."""
        self.writing = False
        """A write has not returned: the client is not reading."""
        self.first_at: float | None = None
        """When the first delta came."""


class Lifecycle:
    """The life of one request. An event from outside that its state does not allow changes nothing. ::

        ARRIVED ──admit──► SERVING ──detach──► DETACHED
           │                  │                   │
           └────────┬─────────┘                   │ end
                    │ end           lose          ▼
                 ENDING ─────────────────────► ABANDONED ◄──lose── ARRIVED, SERVING
                    │                             │
                    │ settle                      │ settle
                    ▼           finish, lose      ▼
                 CLOSING ─────────────────────► OVER

    `settle` also leaves ARRIVED and SERVING if nothing ended the request from this side; from DETACHED it leads to
    OVER. The pipeline sends it when the provider is closed and the hold is settled. `finish` is the end of the task,
    in any state.

    `end` and `lose` cancel the task, so it is cancelled at most twice: once to end the pipeline, and once more if the
    reader is lost while the end is sent to it.
    """

    def __init__(self, id: str) -> None:
        loop = asyncio.get_running_loop()
        self.id = id
        self.began_at = loop.time()
        self.pulse = Pulse(self.began_at)
        self.steps = Steps(self.began_at)
        self.state = State.ARRIVED
        self.has_reader = True
        """Whether anything is to be sent."""
        self.lost = False
        """Whether its reader left before all was sent, which ended it."""
        self.ended_by: ChatError | None = None
        """The first reason to end it from this side."""
        self.ended_at = 0.0
        self.admission: Admission | None = None
        self.held: Reservation | None = None
        """What it may spend, and the model that it uses."""
        self.address: IPv4Address | IPv6Address | None = None
        """The client's IP address, once it is admitted."""
        self.log: RunLog | None = None
        """The log of the answer for readers that reconnect, if there is one."""
        self.released: asyncio.Future[None] = loop.create_future()
        """Done when nothing more is to be sent to its reader: the request is over, or goes on without a reader."""
        self.finished: asyncio.Future[None] = loop.create_future()
        """Done when its task is."""
        self._task: asyncio.Task[Any] | None = None
        self._forget: Callable[[], object] | None = None
        self._grace: asyncio.TimerHandle | None = None

    def begin(
        self, story: Coroutine[Any, Any, Result], forget: Callable[[], object] | None = None
    ) -> asyncio.Task[Result]:
        """Run the pipeline in a separate task: a server may cancel the caller's task at any time, repeatedly.

        `forget` is called once it has ended.
        """
        task = asyncio.get_running_loop().create_task(story)
        self._task, self._forget = task, forget
        task.add_done_callback(self._finished)
        return task

    # Events of the pipeline.

    def admit(self, admission: Admission) -> None:
        """Note the reservation. Raises the error that ended the request if a part has swallowed its cancellation."""
        if self.ended_by is not None:
            raise self.ended_by
        self.admission = admission
        if not self._move("admit"):
            raise RuntimeError(f"a request was admitted while it was {self.state.name}")

    def settle(self) -> None:
        """Note the settlement: nothing is reserved any more. Only the reader's last bytes remain."""
        if not self._move("settle"):
            raise RuntimeError(f"a request was settled while it was {self.state.name}")

    def why(self, failure: BaseException | None, reason: FinishReason | None) -> ChatError | None:
        """Return why the answer is incomplete; None if it is complete, with `reason`.

        `failure` is the pipeline's exception.
        """
        if isinstance(failure, ChatError):
            return failure
        if failure is not None and not isinstance(failure, asyncio.CancelledError):
            return ChatError()
        if reason is not None:
            return None
        # A provider that swallows an exception must not turn it into a complete answer.
        return self.ended_by or (UpstreamTruncated() if failure is None else Shutdown())

    # Events from outside.

    def end(self, why: ChatError) -> None:
        """End the request from this side; its reader gets the error."""
        if self._move("end"):
            self._cancel(why)

    def lose(self, why: ChatError) -> None:
        """Note that the reader is gone: end the request, and send nothing more."""
        if self._move("lose"):
            self.lost = True
            self._cancel(why)

    def leave(self, why: ChatError) -> None:
        """Note that the reader leaves, because of `why`. The profile's policy decides whether the answer goes on."""
        profile = None if self.admission is None or self.log is None else self.admission.profile
        if profile is not None and profile.on_disconnect != "cancel" and self._move("detach"):
            self._release()
            if profile.on_disconnect == "grace":
                self._wait_for_readers(_now(), profile.grace_seconds, why)
        elif isinstance(why, ClientGone | SlowReader):
            self.lose(why)
        else:
            self.end(why)

    def insist(self) -> None:
        """Cancel the task again: a part still blocks it long after its end."""
        self.ended_at = _now()
        if self._task is not None:
            self._task.cancel()

    def interrupt(self) -> None:
        """Cancel the call that the task waits for; the task then goes on. See ResponseStream.write."""
        if self._task is not None:
            self._task.cancel()

    def _move(self, event: Event) -> bool:
        to = TRANSITIONS[event].get(self.state)
        if to is None:
            return False
        self.state = to
        self.has_reader = to in _WITH_READER
        return True

    def _cancel(self, why: ChatError) -> None:
        if self.ended_by is None:
            self.ended_by, self.ended_at = why, _now()
        if self._task is not None:
            self._task.cancel()

    def _release(self) -> None:
        if not self.released.done():
            self.released.set_result(None)

    def _finished(self, _task: asyncio.Task[Any]) -> None:
        self._move("finish")
        if self._grace is not None:
            self._grace.cancel()
        self._release()
        self.finished.set_result(None)
        forget, self._forget = self._forget, None  # which refers to the response, and the response to this
        if forget is not None:
            forget()

    def _wait_for_readers(self, alone_at: float, grace: float, why: ChatError) -> None:
        """End the request after `grace` seconds without a follower; `alone_at` is when the last one left."""
        if self.log is None or self.state is not State.DETACHED:
            return
        now = _now()
        alone_at = now if self.log.readers else max(alone_at, self.log.left_at)
        if now >= alone_at + grace:
            self.end(why)
        else:
            loop = asyncio.get_running_loop()
            self._grace = loop.call_at(alone_at + grace, self._wait_for_readers, alone_at, grace, why)


def _now() -> float:
    return asyncio.get_running_loop().time()
