"""Traces by OpenTelemetry, with the extra `traces`: pass `Traces()` as an observer.

A request is one span, and the call of its provider is a child of it. Neither holds a text, a caller or a key.
"""

from chat_nest.core.extras import explain

try:
    import opentelemetry.trace  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ImportError as error:
    raise ImportError(explain("Traces need", "traces", error)) from None

from chat_nest.traces.observer import Traces

__all__ = ["Traces"]
