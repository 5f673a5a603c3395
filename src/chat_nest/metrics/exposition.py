"""The text of a scrape: the counted values of all processes, and the budgets, which are the store's."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from chat_nest.core.errors import ChatError
from chat_nest.core.protocols import Budget
from chat_nest.core.usage import NANO
from chat_nest.metrics.families import BUDGET_HELD, BUDGET_LIMIT, BUDGET_SETTLED, BUDGETS, Family
from chat_nest.metrics.files import FOLDER, in_use
from chat_nest.metrics.processes import WorkerProcesses

log = logging.getLogger("chat_nest.metrics")

FRESH_SECONDS: Final = 5.0
"""The budgets are read from the store at most this often."""
STORE_SECONDS: Final = 1.0
OPEN_METRICS: Final = "application/openmetrics-text; version=1.0.0"

_WEIGHT: Final = re.compile(r"0(\.\d{1,3})?|1(\.0{1,3})?")


class Source(Protocol):
    """What is exposed."""

    registry: CollectorRegistry

    def sample(self) -> None: ...
    async def budgets(self) -> Sequence[Budget]: ...


class Exposition:
    """Renders scrapes, with the budgets that were read last."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._budgets: Sequence[Budget] = ()
        self._read_at = float("-inf")

    async def render(self, accept: str) -> tuple[str, bytes]:
        self._source.sample()
        await self.refresh()
        encoder, content_type = choose_encoder(OPEN_METRICS if prefers_open_metrics(accept) else "")
        return content_type, encoder(self._all())

    async def refresh(self) -> None:
        now = time.monotonic()
        if now - self._read_at < FRESH_SECONDS:
            return
        self._read_at = now
        try:
            async with asyncio.timeout(STORE_SECONDS):
                self._budgets = await self._source.budgets()
        except (ChatError, TimeoutError) as error:
            self._budgets = ()
            log.debug("the budgets are left out of the metrics: %s", type(error).__name__)

    async def serve(self, scope: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the metrics answer HTTP, not {scope['type']}")
        if scope["method"] not in ("GET", "HEAD"):
            headers = [(b"allow", b"GET, HEAD"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 405, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
        content_type, body = await self.render(accept)
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def collect(self) -> Iterator[Metric]:
        """Yield the budgets, for the registry."""
        values = {BUDGET_LIMIT: _limit, BUDGET_SETTLED: _settled, BUDGET_HELD: _held}
        for family in BUDGETS:
            yield _gauge(family, self._budgets, values[family])

    def describe(self) -> Iterator[Metric]:
        """Yield the names without values: nothing is read for a registration."""
        for family in BUDGETS:
            yield GaugeMetricFamily(family.name, family.help, labels=family.labels)

    def _all(self) -> CollectorRegistry:
        """Return the registry of this process, or one that adds up the files of all processes."""
        if not in_use():
            return self._source.registry
        folder = os.environ[FOLDER]
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        registry.register(self)
        registry.register(WorkerProcesses(folder))
        return registry


def prefers_open_metrics(accept: str) -> bool:
    """Return whether a header Accept (RFC 9110, section 12.5.1) names OpenMetrics, and nothing plainer above it."""
    weights = {"application/openmetrics-text": 0.0, "text/plain": 0.0, "*/*": 0.0}
    for part in accept.split(","):
        name, *parameters = (each.strip().lower() for each in part.split(";"))
        if name in weights:
            given = [each.removeprefix("q=") for each in parameters if each.startswith("q=")]
            weights[name] = float(given[0]) if given and _WEIGHT.fullmatch(given[0]) else 1.0
    open_metrics = weights.pop("application/openmetrics-text")
    return open_metrics > 0 and open_metrics >= max(weights.values())


def _gauge(family: Family, budgets: Sequence[Budget], value: Any) -> GaugeMetricFamily:
    metric = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for budget in budgets:
        line = budget.line
        number = value(budget) / NANO if line.unit == "nanousd" else value(budget)
        metric.add_metric([line.name, line.scope, budget.group], number)
    return metric


def _limit(budget: Budget) -> int:
    return budget.line.limit


def _settled(budget: Budget) -> int:
    return budget.standing.used


def _held(budget: Budget) -> int:
    return budget.standing.held
