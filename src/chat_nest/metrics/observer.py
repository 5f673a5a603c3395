"""`Metrics`, an observer that counts requests for Prometheus.

A request costs a dozen additions at its end, a token nothing. Numbers that belong to a moment, such as the running
answers, are read when somebody scrapes, and by workers once a second, which then also write what they have counted into
the files of all workers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric

from chat_nest.core.protocols import Budget, Ending, HasFigures, Report
from chat_nest.core.usage import NANO
from chat_nest.metrics import families as of
from chat_nest.metrics.counted import Counted, Distribution, Number
from chat_nest.metrics.exposition import Exposition
from chat_nest.metrics.files import Files, in_use
from chat_nest.observers.gen_ai import CHAT, INPUT, OUTPUT, provider_name

log = logging.getLogger("chat_nest.metrics")

SAMPLE_SECONDS: Final = 1.0
_STATES: Final = {"closed": 0, "probing": 1, "open": 2}
_NOT_REFUSED: Final = ("replayed", "followed")


class Metrics:
    """Counts requests, and exposes what it counted: pass it to `create_chat_handler(observers=[...])`.

    `registry` is prometheus_client's own by default, so that an application's metrics and these come together. With
    PROMETHEUS_MULTIPROC_DIR set, the values are those of all processes (see prometheus_client's multiprocess mode), and
    each request writes them, unless `keep_sampling` runs. One event loop may use a Metrics, any thread expose it.
    `kinds` are the kinds of the providers by their names, such as `azure`: OpenTelemetry has names for them. Raises
    ValueError if the registry has these metrics already: several handlers of a process can share one Metrics.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        kinds: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry: CollectorRegistry = REGISTRY if registry is None else registry
        self._kinds: Mapping[str, str] = {} if kinds is None else kinds  # not a copy: a reload may add some
        self._clock = clock
        self._handlers: list[HasFigures] = []
        self._sampled_at = float("-inf")
        self._expired = 0
        self._counted = Counted()
        self._files = Files() if in_use() else None
        self._fails = False
        self._keeps_sampling = False
        self._ended: dict[tuple[str, str, str, str, str], _Ended] = {}
        self._exposition = Exposition(self)
        self.registry.register(self)

    def watch(self, handler: HasFigures) -> None:
        """Read the figures of this handler, too."""
        self._handlers.append(handler)
        self._reserve = self._counted.distribution(of.RESERVE, handler.store_kind)
        self.sample()

    def reported(self, report: Report) -> None:
        """Count one request that is over."""
        steps, ending, error = report.steps, report.ending, report.error
        if steps.reserve_at is not None:
            until = steps.ended_at if steps.reserved_at is None else steps.reserved_at
            if until is not None:
                self._reserve.observe(until - steps.reserve_at)
        if ending is not None:
            self._count_ending(report, ending)
        else:
            self._counted.number(of.REQUESTS, report.dialect, report.profile, report.code).value += 1
            if report.code not in _NOT_REFUSED:
                limit = getattr(error, "limit", "")
                scope = getattr(error, "scope", "") if limit else ""
                self._counted.number(of.REFUSED, report.code, limit, scope).value += 1
        if not self._keeps_sampling:
            self._share()

    def alerted(self, type: str, channel: str, outcome: str) -> None:
        """Count an attempt to deliver an alert."""
        self._counted.number(of.ALERTS, type, channel, outcome).value += 1
        if not self._keeps_sampling:
            self._share()

    def _share(self) -> None:
        if self._clock() - self._sampled_at >= SAMPLE_SECONDS:
            self.sample()
        else:
            self._write()

    def _count_ending(self, report: Report, ending: Ending) -> None:
        steps, error = report.steps, report.error
        key = (report.dialect, report.profile, report.code, ending.model, "" if error is None else error.code)
        ended = self._ended.get(key)
        if ended is None:
            ended = self._ended[key] = _Ended(self._counted.number(of.REQUESTS, *key[:3]))
        ended.requests.value += 1
        if steps.asked_at is None:
            return
        provider, _, model = ending.model.partition(":")
        call = ended.call
        if call is None:
            call = ended.call = self._call(report.profile, provider, model, key[-1])
        call.overhead.observe(steps.asked_at - steps.began_at)
        if ending.cost:
            self._counted.number(of.COST, provider, model, ending.source).value += ending.cost / NANO
        if ending.usage.input_tokens:
            call.input.observe(ending.usage.input_tokens)
        if (tokens := ending.usage.output_tokens) > 0:
            call.output.observe(tokens)
        if steps.closed_at is None:
            return
        call.seconds.observe(steps.closed_at - steps.asked_at)
        if steps.opened_at is not None:
            call.first_token.observe(steps.opened_at - steps.began_at)
            call.first_chunk.observe(steps.opened_at - steps.asked_at)
            if tokens > 1:
                call.per_chunk.observe((steps.closed_at - steps.opened_at) / (tokens - 1))
        if steps.gone_at is not None:
            self._counted.distribution(of.CLOSE, provider).observe(max(0.0, steps.closed_at - steps.gone_at))

    def _call(self, profile: str, provider: str, model: str, code: str) -> _Call:
        named = (CHAT, provider_name(self._kinds.get(provider, provider)), model)
        values = self._counted.distribution
        return _Call(
            overhead=values(of.OVERHEAD, profile),
            seconds=values(of.CALL, *named, code),
            first_token=values(of.FIRST_TOKEN, provider, model),
            first_chunk=values(of.CALL_FIRST, *named),
            per_chunk=values(of.CALL_CHUNK, *named),
            input=values(of.CALL_TOKENS, *named, INPUT),
            output=values(of.CALL_TOKENS, *named, OUTPUT),
        )

    # What belongs to a moment.

    def sample(self) -> None:
        """Read what the handlers have to do now, and write all numbers into the files, if there are some."""
        self._sampled_at = self._clock()
        figures = [handler.figures() for handler in self._handlers]
        number = self._counted.number
        number(of.WORKERS).value = 1
        number(of.STREAMS).value = sum(each.streams for each in figures)
        number(of.QUEUE).value = sum(each.queued for each in figures)
        number(of.PENDING).value = sum(each.unsettled for each in figures)
        number(of.EXPIRED).value = sum(each.expired for each in figures)
        worst: dict[str, int] = {}
        for each in figures:
            for provider, state in each.breakers.items():
                worst[provider] = max(_STATES[state], worst.get(provider, 0))
        for provider, level in worst.items():
            number(of.BREAKER, provider).value = level
        self._write()

    async def keep_sampling(self) -> None:
        """Take a sample each second, and a last one when it is cancelled; meanwhile no request writes a file."""
        self._keeps_sampling = True
        try:
            while True:
                self.sample()
                await asyncio.sleep(SAMPLE_SECONDS)
        finally:
            self._keeps_sampling = False
            self.sample()

    def _write(self) -> None:
        if self._files is None:
            return
        try:
            self._files.write(self._counted)
            self._fails = False
        except OSError as error:
            if not self._fails:
                log.warning("the metrics of this process can't be written: %s; it goes on trying", error.strerror)
            self._fails = True

    async def budgets(self) -> list[Budget]:
        """Return how the shared limits stand in the stores of the handlers. Raises LimiterUnavailable."""
        return [budget for handler in self._handlers for budget in await handler.budgets()]

    # For scrapes.

    def collect(self) -> Iterator[Metric]:
        """Yield what this process has counted, and the budgets that were read last, for the registry."""
        yield from self._counted.collect()
        yield from self._exposition.collect()

    def describe(self) -> Iterator[Metric]:
        """Yield the names without values, for the registry."""
        yield from self._counted.describe()
        yield from self._exposition.describe()

    async def render(self, accept: str = "") -> tuple[str, bytes]:
        """Return the content type and the body for a scrape whose header Accept is this: all processes together.

        A store that does not answer within a second leaves the budgets out.
        """
        return await self._exposition.render(accept)

    async def refresh(self) -> None:
        """Read the budgets, for an application that exposes the registry by itself: they come with the next scrape."""
        await self._exposition.refresh()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002 - see ASGI
        """Answer a scrape over ASGI: GET and HEAD, at any path. Protect it: it is for operators."""
        await self._exposition.serve(scope, send)


class _Ended:
    """What counts the requests of one kind that ended alike; `call` only if their provider was called."""

    __slots__ = ("call", "requests")

    def __init__(self, requests: Number) -> None:
        self.requests = requests
        self.call: _Call | None = None


class _Call(Struct, kw_only=True, gc=False):
    """The histograms of their provider's calls."""

    overhead: Distribution
    seconds: Distribution
    first_token: Distribution
    first_chunk: Distribution
    per_chunk: Distribution
    input: Distribution
    output: Distribution
