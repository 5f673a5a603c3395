"""Metrics and traces of a server process, from its configuration. Their packages are imported only if one is on."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from chat_nest.core.protocols import AnyObserver
from chat_nest.identity.peer import PeerAddress
from chat_nest.server.config.schema import TracesSection
from chat_nest.server.config.settings import Config

if TYPE_CHECKING:
    from chat_nest.metrics import Metrics
    from chat_nest.traces.export import Exporter

log = logging.getLogger("chat_nest.server")

FLUSH_SECONDS = 5.0


class Telemetry:
    """The observers that measure, and what they need while the server runs. `metrics` is None if they are off."""

    def __init__(self, config: Config) -> None:
        self._kinds = kinds = dict[str, str]()
        self.name(config)
        observers: list[AnyObserver] = []
        self.metrics: Metrics | None = None
        self._exporter: Exporter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        if config.metrics.enabled:
            self.metrics = _metrics(kinds)
            observers.append(self.metrics)
        if config.traces.endpoint:
            traces, self._exporter = _traces(config.traces, PeerAddress(config.server.trusted_proxies), kinds)
            observers.append(traces)
        self.observers = tuple(observers)

    def name(self, config: Config) -> None:
        """Take the kinds of the providers, at the start and after a reload."""
        self._kinds.update({name: provider.kind for name, provider in config.providers.items()})

    def count_alert(self, type: str, channel: str, outcome: str) -> None:
        """Count an attempt to deliver an alert."""
        if self.metrics is not None:
            self.metrics.alerted(type, channel, outcome)

    def start(self) -> None:
        """Share the numbers once a second, since another worker may be scraped, and send spans every few seconds."""
        if self.metrics is not None:
            self._tasks.append(asyncio.create_task(self.metrics.keep_sampling()))
        if self._exporter is not None:
            self._tasks.append(asyncio.create_task(self._exporter.keep_sending()))

    async def aclose(self) -> None:
        """Share the last numbers, and send the last spans, for a few seconds at most."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._exporter is not None:
            try:
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._exporter.flush()
            except TimeoutError:
                log.warning("the last traces were not sent in time")


def _metrics(kinds: dict[str, str]) -> Metrics:
    import prometheus_client as library  # noqa: PLC0415 - an extra

    from chat_nest.metrics import Metrics  # noqa: PLC0415 - an extra

    registry = library.CollectorRegistry()
    for collector in (library.ProcessCollector, library.PlatformCollector, library.GCCollector):
        collector(registry=registry)
    return Metrics(registry, kinds=kinds)


def _traces(section: TracesSection, peers: PeerAddress, kinds: dict[str, str]) -> tuple[AnyObserver, Exporter]:
    from chat_nest.traces.export import Exporter  # noqa: PLC0415 - an extra
    from chat_nest.traces.otlp import OtlpTraces  # noqa: PLC0415 - an extra

    traces = OtlpTraces(section.sample, accepts=peers.trusts, kinds=kinds)
    exporter = Exporter(section.endpoint, section.service, traces.take)
    traces.on_full = exporter.hurry
    return traces, exporter
