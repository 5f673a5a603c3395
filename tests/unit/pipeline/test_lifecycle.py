"""One request's life: the table of its transitions, and what holds whatever happens to it, in any order."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from functools import partial

import looptime
import pytest
from example_counts import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from chat_nest import BALANCED, Limits, Timeouts, create_chat_handler
from chat_nest.core.deltas import FinishDelta, TextDelta, UsageDelta
from chat_nest.core.errors import ClientGone, DeadlineExceeded, Stopped, UpstreamUnavailable
from chat_nest.core.usage import Usage
from chat_nest.pipeline.lifecycle import TRANSITIONS, Lifecycle, State
from chat_nest.stores.memory import MemoryStore
from chat_nest.testing import FakeClock

BODY = json.dumps({"messages": [{"role": "user", "content": "one two three"}]}).encode()
HEADERS = [(b"content-type", b"application/json")]


# The table.


def reached(*events: str) -> State:
    state = State.ARRIVED
    for event in events:
        state = TRANSITIONS[event].get(state, state)
    return state


def test_only_a_life_that_is_settled_can_be_over_and_nothing_leads_out_of_that() -> None:
    into_over = {
        (event, before) for event, moves in TRANSITIONS.items() for before, to in moves.items() if to is State.OVER
    }
    assert into_over - {("finish", state) for state in State} == {
        ("settle", State.DETACHED),
        ("settle", State.ABANDONED),
        ("lose", State.CLOSING),
    }
    assert {to for moves in TRANSITIONS.values() for before, to in moves.items() if before is State.OVER} == {
        State.OVER
    }


@given(st.lists(st.sampled_from(sorted(set(TRANSITIONS) - {"finish"})), max_size=12))
@settings(max_examples=examples(200))
def test_no_order_of_events_settles_twice_or_continues_after_the_end(events: list[str]) -> None:
    state, settled = State.ARRIVED, 0
    for event in events:
        before, state = state, TRANSITIONS[event].get(state, state)
        settled += event == "settle" and state is not before
        assert settled == (state in (State.CLOSING, State.OVER))
        assert before is not State.OVER or state is State.OVER
        assert before is not State.DETACHED or state is not State.ENDING, "a reader who has left does not come back"
    assert settled <= 1


async def ignoring() -> None:
    """A story that ends when it is cancelled."""
    await asyncio.Event().wait()


async def test_the_story_cant_settle_twice_or_be_admitted_late() -> None:
    life = Lifecycle("r")
    task = life.begin(ignoring())
    life.settle()
    with pytest.raises(RuntimeError, match="settled while it was CLOSING"):
        life.settle()
    with pytest.raises(RuntimeError, match="admitted while it was CLOSING"):
        life.admit(None)  # type: ignore[arg-type]
    task.cancel()
    await asyncio.wait([task])
    assert (life.state, life.has_reader, life.released.done(), life.finished.done()) == (State.OVER, False, True, True)


async def test_a_request_that_swallowed_its_cancellation_is_not_admitted() -> None:
    life = Lifecycle("r")
    task = life.begin(ignoring())
    life.end(stopped := Stopped())
    with pytest.raises(Stopped) as raised:
        life.admit(None)  # type: ignore[arg-type]
    assert raised.value is stopped
    await asyncio.wait([task])


async def test_the_first_reason_counts_and_the_task_is_cancelled_twice_at_most() -> None:
    life = Lifecycle("r")
    task = life.begin(ignoring())
    await asyncio.sleep(0)
    life.end(stopped := Stopped())
    life.end(DeadlineExceeded())
    assert (life.state, task.cancelling(), life.lost) == (State.ENDING, 1, False)
    life.lose(ClientGone())
    life.lose(ClientGone())
    life.end(DeadlineExceeded())
    assert (life.state, task.cancelling(), life.lost) == (State.ABANDONED, 2, True)
    assert life.ended_by is stopped
    await asyncio.wait([task])


# Whatever happens, in any order.


class Store(MemoryStore):
    """Yields at every step, fails while it is told to, and notes what happened."""

    def __init__(self, clock, happened) -> None:
        super().__init__(clock)
        self.happened = happened
        self.fails = False

    async def call(self, name, call):
        await asyncio.sleep(0)
        if self.fails:
            raise ConnectionError
        answer = await call()
        if answer:
            self.happened.append(name)
        await asyncio.sleep(0)
        return answer

    async def reserve(self, claim, lease):
        return await self.call("reserved", partial(super().reserve, claim, lease))

    async def settle(self, claim, actual, source, record=None):
        self.happened.append("settling")
        return await self.call("settled", partial(super().settle, claim, actual, source, record))

    async def release(self, claim):
        return await self.call("released", partial(super().release, claim))


class Provider:
    """Yields what it is told to."""

    abort_bills = "stops"

    def __init__(self, happened) -> None:
        self.happened = happened
        self.coming = asyncio.Queue()

    def lacks(self, prompt):
        return ()

    @asynccontextmanager
    async def open(self, prompt, timeouts):
        self.happened.append("opened")
        try:
            yield self.batches()
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                self.happened.append("closed")

    async def batches(self):
        while True:
            step = await self.coming.get()
            if isinstance(step, Exception):
                raise step
            yield step
            if isinstance(step[0], FinishDelta):
                return


class World:
    """One handler, one request, and the readers who come back to it."""

    def __init__(self, policy: str) -> None:
        self.happened: list[str] = []
        self.clock = FakeClock()
        self.store = Store(self.clock, self.happened)
        self.provider = Provider(self.happened)
        profile = replace(BALANCED, model="p:m", on_disconnect=policy, grace_seconds=5, concurrent_streams=2)
        self.handler = create_chat_handler(
            providers={"p": self.provider},
            profiles={"balanced": profile},
            limits=Limits(tokens_per_day=1_000_000),
            store=self.store,
            timeouts=Timeouts(first_token=20, idle=30, write=10, total=100),
            now=self.clock,
        )
        self.readers: list[asyncio.Task[None]] = []
        self.sent: list[list[dict]] = []
        self.gone: list[asyncio.Event] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.life: Lifecycle | None = None
        self.moves: list[tuple[str, float, int]] = []

    def ask(self, method: str = "POST", path: str = "/api/chat") -> None:
        gone, sent, bodies = asyncio.Event(), [], [{"type": "http.request", "body": BODY, "more_body": False}]
        self.gone.append(gone)
        self.sent.append(sent)

        async def receive():
            if bodies:
                return bodies.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            assert not sent or sent[-1].get("more_body", True), "something was sent after the end"
            sent.append(message)
            await self.reads.wait()

        scope = {"type": "http", "method": method, "path": path, "headers": HEADERS, "client": ("203.0.113.7", 1)}
        self.readers.append(asyncio.create_task(self.handler(scope, receive, send)))

    async def happen(self, event) -> None:
        match event:
            case "client leaves":
                self.gone[0].set()
            case "server cancels":
                self.readers[0].cancel()
            case "client does not read":
                self.reads.clear()
            case "client reads on":
                self.reads.set()
            case "provider says a word":
                self.provider.coming.put_nowait([TextDelta("word ")])
            case "provider ends":
                usage = UsageDelta(Usage(input_tokens=5, output_tokens=3))
                self.provider.coming.put_nowait([FinishDelta("stop"), usage])
            case "provider fails":
                self.provider.coming.put_nowait(UpstreamUnavailable())
            case "it is stopped":
                self.handler._run_routes._stop_here(
                    self.life.id,
                    self.life.admission and self.life.admission.caller.key,  # type: ignore[arg-type]
                )
            case "a reader comes back":
                self.ask("GET", f"/api/chat/{self.life.id}/stream")
            case "the store fails":
                self.store.fails = True
            case "the store works":
                self.store.fails = False
            case "the server shuts down":
                self.store.fails = False  # else what is left over is the lease's to charge
                await self.handler.aclose()
            case int():
                for _ in range(event):
                    await asyncio.sleep(0)
            case float():
                await asyncio.sleep(event)
                self.clock.advance(event)

    async def play(self, events) -> None:
        self.handler.start()
        self.ask()
        await asyncio.sleep(0)
        self.life = next(iter(self.handler._runs.values()))
        self.watch(self.life)
        for event in events:
            await self.happen(event)
        self.store.fails = False
        self.reads.set()
        await asyncio.sleep(200)
        await self.handler.aclose()
        await asyncio.wait(self.readers)

    def watch(self, life: Lifecycle) -> None:
        """Note each transition, when it happened, and how many of the provider's streams were open then."""
        loop, move = asyncio.get_running_loop(), life._move

        def noted(event):
            moved = move(event)
            if moved:
                open_streams = self.happened.count("opened") - self.happened.count("closed")
                self.moves.append((event, loop.time(), open_streams))
            return moved

        life._move = noted

    def moved(self, *events: str) -> list[float]:
        return [at for event, at, _ in self.moves if event in events]

    def check_moves(self, policy: str, events: list) -> None:
        settled = self.moved("settle")
        assert len(settled) == 1 or not self.happened, "what was reserved is settled before its task ends"
        assert all(open_streams == 0 for event, _, open_streams in self.moves if event == "settle")
        ended = self.moved("end", "lose")
        if settled and ended and ended[0] <= settled[0]:
            assert settled[0] - ended[0] < 1.5, "an end is at once: a second of patience with the store"
        if detached := self.moved("detach"):
            assert policy != "cancel"
            if policy == "grace" and "a reader comes back" not in events:
                assert settled[0] - detached[0] < 5 + 1.5

    async def check(self) -> None:
        assert asyncio.all_tasks() == {asyncio.current_task()}, "something runs on"
        assert self.life.state is State.OVER
        assert not self.handler._runs
        ended = [one for one in self.happened if one in ("settled", "released")]
        assert len(ended) <= 1 and ("reserved" not in self.happened or len(ended) == 1), self.happened
        assert self.happened.count("opened") == self.happened.count("closed")
        if "opened" in self.happened and "settling" in self.happened:
            last_closed = len(self.happened) - self.happened[::-1].index("closed")
            assert last_closed <= self.happened.index("settling"), "the provider is closed before anything is settled"
        for _, standing in await self.handler._callers.standing(
            {"type": "http", "client": ("203.0.113.7", 1), "headers": []}
        ):
            assert standing.held == 0
        for sent in self.sent:
            text = b"".join(message.get("body", b"") for message in sent)
            assert text.count(b"event: done") + text.count(b"event: error") <= 1
            assert b"event: done" not in text or "settled" in self.happened


EVENTS = st.one_of(
    st.sampled_from(
        [
            "client leaves", "server cancels", "client does not read", "client reads on", "provider says a word",
            "provider ends", "provider fails", "it is stopped", "a reader comes back", "the store fails",
            "the store works", "the server shuts down",
        ]
    ),
    st.integers(1, 12),
    st.sampled_from([0.05, 1.1, 6.0, 11.0, 21.0, 31.0, 101.0]),
)  # fmt: skip


@given(policy=st.sampled_from(["cancel", "grace", "finish"]), events=st.lists(EVENTS, max_size=12))
@example(policy="grace", events=[12, "provider says a word", 5, "client leaves", 5, "a reader comes back", 6.0, 6.0])
@example(policy="grace", events=[12, "provider says a word", 5, "client leaves", 6.0])
@example(policy="finish", events=[12, "client does not read", "provider says a word", 11.0, "provider ends", 5])
@example(policy="finish", events=[12, "client does not read", "provider says a word", 9.9, "it is stopped", 0.2])
@example(
    policy="cancel", events=[12, "provider says a word", "the store fails", 3, "client leaves", 1.1, "the store works"]
)
@settings(max_examples=examples(80), deadline=None)
def test_every_request_is_settled_once_after_its_provider_was_closed(policy, events) -> None:
    async def live() -> None:
        world = World(policy)
        await world.play(events)
        world.check_moves(policy, events)
        await world.check()

    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0)) as runner:
        runner.run(live())


# Why it ended, and whether it goes on without its reader.


@pytest.mark.parametrize(
    ("ended", "failure", "reason", "code"),
    [
        (None, None, "stop", None),
        (None, None, None, "upstream_truncated"),
        (None, asyncio.CancelledError(), None, "shutdown"),
        (None, asyncio.CancelledError(), "stop", None),
        (None, RuntimeError(), "stop", "internal_error"),
        (None, DeadlineExceeded(), "stop", "deadline_exceeded"),
        (Stopped(), None, None, "stopped"),
        (Stopped(), asyncio.CancelledError(), None, "stopped"),
        (Stopped(), asyncio.CancelledError(), "stop", None),
        (Stopped(), RuntimeError(), None, "internal_error"),
    ],
)
async def test_why_an_answer_is_incomplete(ended, failure, reason, code) -> None:
    life = Lifecycle("r")
    if ended is not None:
        life.end(ended)
    error = life.why(failure, reason)
    assert (error and error.code) == code


class Log:
    """A log of the answer with so many readers, the last of which left at `left_at`."""

    def __init__(self, readers: int = 0, left_at: float = 0.0) -> None:
        self.readers = readers
        self.left_at = left_at


class Admitted:
    def __init__(self, on_disconnect: str) -> None:
        self.profile = replace(BALANCED, on_disconnect=on_disconnect, grace_seconds=10.0)


@pytest.mark.parametrize("log", [None, Log()])
@pytest.mark.parametrize(("policy", "goes_on"), [("cancel", False), ("grace", True), ("finish", True)])
@pytest.mark.parametrize("why", [ClientGone(), Stopped()])
async def test_which_answers_continue_without_a_reader(log, policy, goes_on, why) -> None:
    life = Lifecycle("r")
    task = life.begin(ignoring())
    await asyncio.sleep(0)
    life.admit(Admitted(policy))  # type: ignore[arg-type]
    life.log = log
    life.leave(why)
    if goes_on and log is not None:
        assert (life.state, task.cancelling(), life.ended_by) == (State.DETACHED, 0, None)
        assert (life.released.done(), life.has_reader) == (True, False)
        life.end(Stopped())
        assert life.state is State.ABANDONED
    else:
        lost = isinstance(why, ClientGone)
        assert (life.state, life.lost) == (State.ABANDONED if lost else State.ENDING, lost)
        assert (task.cancelling(), life.ended_by, life.has_reader) == (1, why, not lost)
    await asyncio.wait([task])


async def test_a_reader_that_leaves_before_admission_ends_the_request() -> None:
    life = Lifecycle("r")
    assert (life.has_reader, life.lost, life.ended_by, life.admission, life.log) == (True, False, None, None, None)
    life.leave(gone := ClientGone())
    assert (life.lost, life.ended_by) == (True, gone)


@pytest.mark.looptime
async def test_the_grace_begins_when_the_last_follower_has_left() -> None:
    loop = asyncio.get_running_loop()
    life, log = Lifecycle("r"), Log(readers=1)
    task = life.begin(ignoring())
    await asyncio.sleep(0)
    life.admit(Admitted("grace"))  # type: ignore[arg-type]
    life.log = log  # type: ignore[assignment]
    began = loop.time()
    life.leave(gone := ClientGone())
    await asyncio.sleep(15)
    log.readers, log.left_at = 0, loop.time()  # at 15 s; it was looked at at 10 s, and the grace is 10 s
    await asyncio.wait([task])
    assert 25 <= loop.time() - began < 26
    assert life.ended_by is gone
    assert began + 25 <= life.ended_at < began + 26


async def stubborn() -> None:
    """A story that has to be cancelled twice."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


async def test_a_part_that_blocks_is_cancelled_again_and_the_time_is_that_of_the_last_try() -> None:
    life = Lifecycle("r")
    life.insist()  # without a task there is nothing to cancel
    life.interrupt()
    task = life.begin(stubborn())
    await asyncio.sleep(0)
    life.end(Stopped())
    first = life.ended_at
    assert first >= life.began_at
    await asyncio.sleep(0.01)
    life.insist()
    assert (task.cancelling(), life.ended_at > first) == (2, True)
    await asyncio.wait([task])
    assert (life.pulse.read_at, life.pulse.written_at, life.pulse.first_at) == (life.began_at, life.began_at, None)
