"""The queue in front of a limit that requests of all callers share: a provider's streams, or this worker's.

Callers take turns (round-robin): each free place goes to the caller with the longest time since its last one. So the
wait of a caller with one request depends on the number of callers, not on how many requests another caller has sent. If
the queue is full, the newest request of the caller with the most waiting requests is dropped to make room.

A request waits before it reserves anything: it holds no budget, no lease and no turn at the store, and its limits are
computed when its turn comes. The queue belongs to one process, and uses the event loop's clock. One timer a second
serves all waiting requests; without any, nothing runs. `fleet` shares a provider's streams and the order of the callers
among the workers on one store.
The file is long because a queue and its places change each other.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from math import ceil
from types import TracebackType
from typing import Self

from chat_nest.core.errors import ChatError, Overloaded, Shutdown
from chat_nest.core.messages import hashed
from chat_nest.limits.spec import Queue
from chat_nest.pipeline.bottleneck import Bottleneck
from chat_nest.pipeline.fleet import Fleet, SharedControls

TICK = 1.0
"""Seconds between two looks at the queue: for positions, and for requests that have waited for too long."""
REPEAT = 10
"""A position that does not change is repeated after this many ticks, so that no proxy closes the connection."""
RETRY_SECONDS = 2.0
FULL_SPEED = 64
"""After a pause one request calls the provider, after its success two, and so on; from this many on all may."""

MOST_SHOWN = 64
"""How many waiting requests a worker shows to the others: those whose turns come next."""

Tell = Callable[[int, int | None], Awaitable[None]]
"""`await tell(position, estimate_seconds)`, from position 1."""


class FairQueue:
    """Gives places to requests. `length` is the most waiting ones, and 0 refuses instead of waiting.

    `streams` are the most concurrent streams of providers, by name. With `shared` controls they are those of all
    workers on the store together.
    """

    def __init__(
        self,
        streams: Mapping[str, int] | None = None,
        *,
        seconds: float = 0.0,
        length: int = 0,
        shared: SharedControls | None = None,
    ) -> None:
        self.seconds = seconds
        self.length = length
        """0 refuses instead of waiting."""
        self._shared = shared
        self._most = dict(streams or {})
        self._fleets: dict[str, Fleet] = {}
        self._bottlenecks: dict[str, Bottleneck] = {}
        self._worker: Callable[[], int | None] = _no_limit
        self._running = 0
        self._waiting: OrderedDict[str, deque[Place]] = OrderedDict()
        """The places that wait, by caller, in the order in which the callers are served."""
        self._number = 0
        self._wanted: Counter[str] = Counter()
        """How many waiting places want each provider."""
        self._asking: dict[str, list[Place]] = {}
        """The places that do not wait, but ask the other workers for a stream, by provider."""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._share(self._most)

    def _share(self, streams: Mapping[str, int]) -> None:
        """Share these streams with the other workers, if there is a store for it, and no others."""
        for gone in self._fleets.keys() - streams.keys():
            self._fleets.pop(gone).stop()
        for name, most in streams.items() if self._shared is not None else ():
            if name not in self._fleets:
                assert self._shared is not None
                running = partial(self._running_at, name)
                wanted, serve = partial(self._wanted_of, name), partial(self._serve_turns, name)
                self._fleets[name] = Fleet(name, self._shared, running, wanted, serve)
            self._fleets[name].most = most

    def limit_worker(self, most: Callable[[], int | None]) -> None:
        """Also limit the answers of this worker to what `most` returns."""
        self._worker = most

    def adjust(self, streams: Mapping[str, int], queue: Queue | None) -> None:
        """Replace the limits. Those that wait stay, and those that run, too."""
        self.seconds, self.length = (0.0, 0) if queue is None else (queue.seconds, queue.length)
        self._most = dict(streams)
        self._share(self._most)
        for name, found in self._bottlenecks.items():
            found.most = streams.get(name)
            found.fleet = self._fleets.get(name)
        if self._number:
            self.serve()

    def place(self, caller: str) -> Place:
        """Return a place for one request: an async context manager that gives back what it took."""
        return Place(self, caller)

    @property
    def waiting(self) -> int:
        return self._number

    def open(self) -> None:
        self._closed = False

    def drain(self) -> None:
        """Refuse the waiting requests, and later ones, with `shutdown`."""
        self._closed = True
        for place in list(self._in_order()):
            self._refuse(place, Shutdown(retry_after=RETRY_SECONDS))

    async def aclose(self) -> None:
        """Give this worker's streams to the others."""
        for fleet in self._fleets.values():
            await fleet.aclose()

    def bottleneck(self, provider: str) -> Bottleneck:
        found = self._bottlenecks.get(provider)
        if found is None:
            found = Bottleneck(self._most.get(provider), self._fleets.get(provider))
            self._bottlenecks[provider] = found
        return found

    def pause(self, provider: str, seconds: float) -> None:
        """Send no request to the provider for this long, if requests can wait for it. Then begin with one."""
        if self.length and 0 < seconds <= self.seconds:
            found = self.bottleneck(provider)
            found.paused_until = max(found.paused_until, _now() + seconds)
            found.window = 1

    async def take(self, place: Place, providers: Sequence[str]) -> bool:
        """Give the place a stream of one of the providers, unless there is none, or others wait for it.

        Raises LimiterUnavailable if the other workers must be asked, and the store does not answer.
        """
        if self._number and any(self._wanted[name] for name in providers):
            return False
        if self._give(place, providers):
            return True
        for name in providers:
            fleet = self.bottleneck(name).fleet
            if fleet is not None and (place.runs or not self._is_full) and await self._ask(place, name, fleet):
                return True
        return False

    async def _ask(self, place: Place, provider: str, fleet: Fleet) -> bool:
        asking = self._asking.setdefault(provider, [])
        asking.append(place)
        try:
            await fleet.ask()
        finally:
            if place in asking:
                asking.remove(place)
        return place.has(provider)

    def join(self, place: Place) -> None:
        """Put the place at the end of its caller's line. Raises Shutdown and Overloaded."""
        if self._closed:
            raise Shutdown(retry_after=RETRY_SECONDS)
        mine = len(self._waiting.get(place.caller, ()))
        if self._number >= self.length:
            longest = max(self._waiting.values(), key=len, default=deque[Place]())
            if len(longest) <= mine + 1:
                raise Overloaded(retry_after=RETRY_SECONDS)
            self._refuse(longest[-1], Overloaded(retry_after=RETRY_SECONDS))
        self._waiting.setdefault(place.caller, deque()).append(place)
        self._wanted.update(place.providers)
        self._number += 1
        place.waits = True
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)
        self.serve()

    def part(self, place: Place) -> None:
        """Take the place out of its caller's line."""
        if place.waits:
            place.waits = False
            self._number -= 1
            self._wanted.subtract(place.providers)
            line = self._waiting[place.caller]
            line.remove(place)
            if not line:
                del self._waiting[place.caller]
            for fleet in filter(None, map(self._fleets.get, place.providers)):
                fleet.kick()

    def serve(self) -> None:
        """Give free streams to waiting requests."""
        while self._number and (free := self._free()):
            place = next(
                each for line in self._waiting.values() for each in line if not free.isdisjoint(each.providers)
            )
            self._give(place, place.providers)
            self._served(place)
        for name, fleet in self._fleets.items():
            if self._wanted[name] or fleet.contended:
                fleet.kick()

    def _served(self, place: Place) -> None:
        self._waiting.move_to_end(place.caller)
        self.part(place)
        place.wake()

    def _serve_turns(self, provider: str, callers: Sequence[str]) -> None:
        """Give a stream of the provider to a request of each caller. Those of callers that have left are given back."""
        for caller in callers:
            place = next((each for each in self._wanting(provider) if each.name == caller), None)
            if place is not None and self._give(place, (provider,)):
                if place.waits:
                    self._served(place)
                else:
                    self._asking[provider].remove(place)
        self.serve()

    def _wanting(self, provider: str) -> Sequence[Place]:
        """Return the places that would get a stream of the provider now, in the order of this worker."""
        room = min(MOST_SHOWN, self.bottleneck(provider).may_open(_now()))
        if (most := self._worker()) is not None:
            room = min(room, most - self._running)
        waiting = [place for place in self._in_order() if provider in place.providers] if self._wanted[provider] else []
        asking = self._asking.get(provider, ())
        new = [*waiting, *(place for place in asking if not place.runs)][: max(0, int(room))]
        return [*new, *(place for place in asking if place.runs)]

    def _wanted_of(self, provider: str) -> Sequence[str]:
        return [place.name for place in self._wanting(provider)]

    def _running_at(self, provider: str) -> int:
        return self.bottleneck(provider).running

    def freed_worker(self) -> None:
        self._running -= 1
        self.serve()

    def _give(self, place: Place, providers: Sequence[str]) -> bool:
        if not place.runs and self._is_full:
            return False
        now = _now()
        name = next((name for name in providers if self.bottleneck(name).has_room(now)), None)
        if name is None:
            return False
        if not place.runs:
            place.runs = True
            self._running += 1
        place.enter(name, now)
        return True

    def _free(self) -> set[str]:
        """Return the providers that can serve a place that waits for them."""
        if self._is_full:
            return set()
        now, bottlenecks = _now(), {name: self.bottleneck(name) for name, number in self._wanted.items() if number}
        own = {name: each for name, each in bottlenecks.items() if each.fleet is None or each.fleet.alone}
        return {name for name, each in own.items() if each.has_room(now)}

    @property
    def _is_full(self) -> bool:
        """Whether this worker has as many answers as it may have."""
        most = self._worker()
        return most is not None and self._running >= most

    def _in_order(self) -> Iterator[Place]:
        """Return the waiting places in the order in which they will be served if all want the same."""
        lines = list(self._waiting.values())
        depth = 0
        while lines:
            yield from [line[depth] for line in lines]
            depth += 1
            lines = [line for line in lines if len(line) > depth]

    def _refuse(self, place: Place, error: ChatError) -> None:
        self.part(place)
        place.refused = error
        place.wake()

    def _tick(self) -> None:
        self._timer = None
        now = _now()
        self.serve()
        ahead: dict[str, int] = {}
        full = self._is_full
        fleets = {} if full else {name: each.positions() for name, each in self._fleets.items() if self._wanted[name]}
        for place in list(self._in_order()):
            if now >= place.deadline:
                self._refuse(place, Overloaded(retry_after=RETRY_SECONDS))
                continue
            key = "" if full else place.providers[0]
            known = fleets.get(key, {}).get(place.name)
            position = known.pop(0) if known else ahead.get(key, 0) + 1
            ahead[key] = max(ahead.get(key, 0), position)
            place.stands(position, self._estimate(place.providers[0], position, now))
        if self._number:
            pauses = [each.paused_until - now for each in self._bottlenecks.values() if each.paused_until > now]
            self._timer = asyncio.get_running_loop().call_later(min([TICK, *pauses]), self._tick)

    def _estimate(self, provider: str, position: int, now: float) -> int | None:
        """Return the seconds until this position is served; None if nothing is known yet."""
        found = self.bottleneck(provider)
        pause = max(0.0, found.paused_until - now)
        slots = [most for most in (found.most, self._worker()) if most]
        if found.mean is None or not slots:
            return ceil(pause) or None
        return max(1, ceil(max(pause, found.mean * position / min(slots))))


class Place:
    """The place of one request: in the queue first, then at a provider and in this worker."""

    def __init__(self, queue: FairQueue, caller: str) -> None:
        self.caller = caller
        self.providers: Sequence[str] = ()
        self.deadline = 0.0
        self.runs = False
        """Whether it counts as an answer of this worker."""
        self.waits = False
        self.refused: ChatError | None = None
        self._queue = queue
        self._name = ""
        self._provider = ""
        self._since = 0.0
        self._opening = False
        self._position = 0
        self._estimate: int | None = None
        self._told = 0
        self._news: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    @property
    def name(self) -> str:
        """The caller, as other workers know it."""
        if not self._name:
            self._name = hashed(self.caller)
        return self._name

    def has(self, provider: str) -> bool:
        """Return whether the request may call this provider now."""
        return self._provider == provider

    async def take(self, providers: Sequence[str]) -> bool:
        """Return whether the request may call one of the providers now. Raises LimiterUnavailable."""
        return self._provider in providers or await self._queue.take(self, providers)

    async def wait(self, providers: Sequence[str], tell: Tell) -> None:
        """Return once `take` will succeed. Raises Overloaded if that takes too long, and Shutdown.

        The time of all waits of one request together is limited.
        """
        self._leave()  # it may have a stream of another provider, for a rung that no longer applies
        self.providers = providers
        self.deadline = self.deadline or _now() + self._queue.seconds
        self._queue.join(self)
        self._told = 0
        try:
            while not self._provider:
                self._news = asyncio.get_running_loop().create_future()
                await self._news
                if self.refused is not None:
                    raise self.refused
                if not self._provider:
                    await tell(self._position, self._estimate)
                    if self.refused is not None:
                        raise self.refused
        finally:
            self._news = None
            self._queue.part(self)

    def enter(self, provider: str, now: float) -> None:
        """Take a stream of the provider, and give back another one's."""
        self._give_back()
        self._provider, self._since, self._opening = provider, now, True
        found = self._queue.bottleneck(provider)
        found.running += 1
        found.opening += 1
        if found.fleet is not None:
            found.fleet.peak = max(found.fleet.peak, found.running)

    def opened(self) -> None:
        """Note that the provider has accepted the request."""
        if self._opening:
            found = self._queue.bottleneck(self._provider)
            if found.window is not None:
                found.window = None if found.window >= FULL_SPEED else 2 * found.window
            self._accepted()
            self._queue.serve()

    def limited(self, seconds: float) -> None:
        """Note that the provider refused the request because of its limit, for this long."""
        if self._provider:
            self._queue.pause(self._provider, seconds)

    @property
    def patience(self) -> float:
        """The longest Retry-After of a provider that is worth waiting for."""
        return self._queue.seconds if self._queue.length else 0.0

    def close(self) -> None:
        """Give the stream back: its connection is closed."""
        if self._provider:
            self._give_back()
            self._queue.serve()

    def stands(self, position: int, estimate: int | None) -> None:
        """Note the position, and wake the request if there is something to tell."""
        self._told += 1
        if position != self._position or self._told == 1 or self._told > REPEAT:
            self._told = 1
            self._position, self._estimate = position, estimate
            self.wake()

    def wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _leave(self) -> None:
        self.close()
        if self.runs:
            self.runs = False
            self._queue.freed_worker()

    def _give_back(self) -> None:
        if self._provider:
            found = self._queue.bottleneck(self._provider)
            self._accepted()
            found.running -= 1
            found.ended(_now() - self._since)
            self._provider = ""

    def _accepted(self) -> None:
        if self._opening:
            self._opening = False
            self._queue.bottleneck(self._provider).opening -= 1


def _no_limit() -> None:
    return None


def _now() -> float:
    return asyncio.get_running_loop().time()
