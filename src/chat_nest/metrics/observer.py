"""`Metrics`, an observer that counts requests for Prometheus.

A request costs a dozen increments at its end, a token nothing. Numbers that belong to a moment, such as the running
answers, are read when somebody scrapes, and by workers once a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from chat_nest.core.errors import ChatError
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Budget, Ending, HasFigures, Report
from chat_nest.core.usage import NANO
from chat_nest.metrics import families as of
from chat_nest.metrics.exposition import Exposition
from chat_nest.metrics.families import Family
from chat_nest.observers.gen_ai import CHAT, INPUT, OUTPUT, provider_name

SAMPLE_SECONDS: Final = 1.0
_STATES: Final = {"closed": 0, "probing": 1, "open": 2}
_NOT_REFUSED: Final = ("replayed", "followed")


class Metrics:
    """Counts requests, and exposes what it counted: pass it to `create_chat_handler(observers=[...])`.

    `registry` is prometheus_client's own by default, so that an application's metrics and these come together. With
    PROMETHEUS_MULTIPROC_DIR set, the values are those of all processes (see prometheus_client's multiprocess mode).
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
        self._of = {family: _make(family, self.registry) for family in of.FAMILIES if family not in of.BUDGETS}
        self._known: dict[tuple[Family, tuple[str, ...]], Any] = {}
        self._calls: dict[tuple[str, str], _Call] = {}
        self._exposition = Exposition(self)
        self.registry.register(self._exposition)

    # An observer's.

    def started(self, id: str, caller: Caller, profile: str, model: str) -> None:
        """Count nothing: see `reported`."""

    def refused(self, id: str, caller: Caller | None, error: ChatError) -> None:
        """Count nothing: see `reported`."""

    def finished(self, ending: Ending) -> None:
        """Count nothing: see `reported`."""

    def watch(self, handler: HasFigures) -> None:
        """Read the figures of this handler, too."""
        self._handlers.append(handler)
        self._reserve = self._child(of.RESERVE, handler.store_kind)
        self.sample()

    def reported(self, report: Report) -> None:
        """Count one request that is over."""
        steps, ending, error = report.steps, report.ending, report.error
        self._child(of.REQUESTS, report.dialect, report.profile, report.code).inc()
        if steps.reserve_at is not None:
            until = steps.ended_at if steps.reserved_at is None else steps.reserved_at
            if until is not None:
                self._reserve.observe(until - steps.reserve_at)
        if ending is not None:
            self._count_ending(report, ending)
        elif report.code not in _NOT_REFUSED:
            limit = getattr(error, "limit", "")
            self._child(of.REFUSED, report.code, limit, getattr(error, "scope", "") if limit else "").inc()
        if self._clock() - self._sampled_at >= SAMPLE_SECONDS:
            self.sample()

    def alerted(self, type: str, channel: str, outcome: str) -> None:
        """Count an attempt to deliver an alert."""
        self._child(of.ALERTS, type, channel, outcome).inc()

    def _count_ending(self, report: Report, ending: Ending) -> None:
        steps = report.steps
        if steps.asked_at is None:
            return
        self._child(of.OVERHEAD, report.profile).observe(steps.asked_at - steps.began_at)
        provider, _, model = ending.model.partition(":")
        key = (ending.model, "" if report.error is None else report.error.code)
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self._call(provider, model, key[1])
        if ending.cost:
            self._child(of.COST, provider, model, ending.source).inc(ending.cost / NANO)
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
            self._child(of.CLOSE, provider).observe(max(0.0, steps.closed_at - steps.gone_at))

    def _call(self, provider: str, model: str, code: str) -> _Call:
        named = (CHAT, provider_name(self._kinds.get(provider, provider)), model)
        return _Call(
            seconds=self._child(of.CALL, *named, code),
            first_token=self._child(of.FIRST_TOKEN, provider, model),
            first_chunk=self._child(of.CALL_FIRST, *named),
            per_chunk=self._child(of.CALL_CHUNK, *named),
            input=self._child(of.CALL_TOKENS, *named, INPUT),
            output=self._child(of.CALL_TOKENS, *named, OUTPUT),
        )

    def _child(self, family: Family, *labels: str) -> Any:
        """Return the metric with these labels. Looking it up here costs a third of what the library takes."""
        key = (family, labels)
        child = self._known.get(key)
        if child is None:
            metric = self._of[family]
            child = self._known[key] = metric.labels(*labels) if labels else metric
        return child

    # What belongs to a moment.

    def sample(self) -> None:
        """Read what the handlers have to do now. Workers call it each second, since another one may be scraped."""
        self._sampled_at = self._clock()
        figures = [handler.figures() for handler in self._handlers]
        self._child(of.WORKERS).set(1)
        self._child(of.STREAMS).set(sum(each.streams for each in figures))
        self._child(of.QUEUE).set(sum(each.queued for each in figures))
        self._child(of.PENDING).set(sum(each.unsettled for each in figures))
        expired = sum(each.expired for each in figures)
        self._child(of.EXPIRED).inc(expired - self._expired)
        self._expired = expired
        states: dict[str, int] = {}
        for each in figures:
            for provider, state in each.breakers.items():
                states[provider] = max(_STATES[state], states.get(provider, 0))
        for provider, number in states.items():
            self._child(of.BREAKER, provider).set(number)

    async def budgets(self) -> list[Budget]:
        """Return how the shared limits stand in the stores of the handlers. Raises LimiterUnavailable."""
        return [budget for handler in self._handlers for budget in await handler.budgets()]

    # For scrapes.

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


class _Call:
    """The histograms of calls of one model that ended alike."""

    __slots__ = ("first_chunk", "first_token", "input", "output", "per_chunk", "seconds")

    def __init__(
        self, *, seconds: Any, first_token: Any, first_chunk: Any, per_chunk: Any, input: Any, output: Any
    ) -> None:
        self.seconds, self.first_token, self.first_chunk = seconds, first_token, first_chunk
        self.per_chunk, self.input, self.output = per_chunk, input, output


def _make(family: Family, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    if family.kind == "histogram":
        return Histogram(family.name, family.help, family.labels, buckets=family.buckets, registry=registry)
    if family.kind == "gauge":
        return Gauge(family.name, family.help, family.labels, multiprocess_mode=family.mode, registry=registry)
    return Counter(family.name, family.help, family.labels, registry=registry)
