"""Checks of [metrics] and [traces]: their packages must be installed."""

from __future__ import annotations

from importlib import import_module

from chat_nest.core.extras import explain
from chat_nest.server.config.schema import MetricsSection, TracesSection
from chat_nest.server.config.sources import Sources


def check_telemetry(sources: Sources, metrics: MetricsSection, traces: TracesSection) -> None:
    """Note what is switched on without its extra."""
    if metrics.enabled and (problem := missing_extra("prometheus_client", "Metrics need", "metrics")):
        sources.problem(("metrics", "enabled"), problem)
    if traces.endpoint and (problem := missing_extra("opentelemetry.trace", "Traces need", "traces")):
        sources.problem(("traces", "endpoint"), problem)


def missing_extra(module: str, need: str, extra: str) -> str:
    """Return why a module of an extra can't be imported, with the remedy; "" if it can."""
    try:
        import_module(module)
    except ImportError as error:
        return f"can't be used: {explain(need, extra, error)}"
    return ""
