"""Metrics in the formats of Prometheus and OpenMetrics, with the extra `metrics`: pass `Metrics()` as an observer.

Labels are names from the configuration only: never a caller, and nothing that a client wrote. A token costs nothing, a
request a dozen additions.
"""

from chat_nest.core.extras import explain

try:
    import prometheus_client  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ImportError as error:
    raise ImportError(explain("Metrics need", "metrics", error)) from None

from chat_nest.metrics.families import FAMILIES, Family
from chat_nest.metrics.observer import Metrics

__all__ = ["FAMILIES", "Family", "Metrics"]
