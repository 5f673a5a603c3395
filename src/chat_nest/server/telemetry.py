"""Metrics and traces of a server process, as its configuration says. Their packages are imported only if one is on."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from chat_nest.core.protocols import Observer
from chat_nest.identity.peer import PeerAddress
from chat_nest.server.config.schema import TracesSection
from chat_nest.server.config.settings import Config

if TYPE_CHECKING:
    from chat_nest.metrics import Metrics

log = logging.getLogger("chat_nest.server")

FLUSH_SECONDS = 5.0


class Closes(Protocol):
    def shutdown(self) -> None: ...


class Telemetry:
    """The observers that measure, and what they need while the server runs. `metrics` is None if they are off."""

    def __init__(self, config: Config) -> None:
        self._kinds = kinds = dict[str, str]()
        self.name(config)
        observers: list[Observer] = []
        self.metrics: Metrics | None = None
        self._tracing: Closes | None = None
        self._sampler: asyncio.Task[None] | None = None
        if config.metrics.enabled:
            self.metrics = _metrics(kinds)
            observers.append(self.metrics)
        if config.traces.endpoint:
            traces, self._tracing = _traces(config.traces, PeerAddress(config.server.trusted_proxies), kinds)
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
        """Read once a second what the handler has to do, and share it: another worker may be scraped."""
        if self.metrics is not None:
            self._sampler = asyncio.create_task(self.metrics.keep_sampling())

    async def aclose(self) -> None:
        """Share the last numbers, and send the last spans, for a few seconds at most."""
        if self._sampler is not None:
            self._sampler.cancel()
            await asyncio.wait([self._sampler])
        if self._tracing is not None:
            try:
                async with asyncio.timeout(FLUSH_SECONDS):
                    await asyncio.to_thread(self._tracing.shutdown)
            except Exception as failure:
                log.warning("the last traces were not sent: %s", type(failure).__name__)


def _metrics(kinds: dict[str, str]) -> Metrics:
    import prometheus_client as library  # noqa: PLC0415 - an extra

    from chat_nest.metrics import Metrics  # noqa: PLC0415 - an extra

    registry = library.CollectorRegistry()
    for collector in (library.ProcessCollector, library.PlatformCollector, library.GCCollector):
        collector(registry=registry)
    return Metrics(registry, kinds=kinds)


def _traces(section: TracesSection, peers: PeerAddress, kinds: dict[str, str]) -> tuple[Observer, Closes]:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415 - an extra

    from chat_nest.traces import Traces  # noqa: PLC0415 - an extra

    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(section.sample)),
        resource=Resource.create({"service.name": section.service}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(section.endpoint, timeout=FLUSH_SECONDS)))
    return Traces(provider, accepts=peers.trusts, kinds=kinds), provider
