"""`Traces`, an observer that makes the spans of a request.

It needs only OpenTelemetry's API: without a configured SDK its spans cost next to nothing and go nowhere. Events have
the times at which a step was reached; they are written at the request's end, from its report.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    format_span_id,
    format_trace_id,
    get_current_span,
    get_tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from chat_nest.core.errors import ChatError
from chat_nest.core.protocols import Report, Scope
from chat_nest.core.trace_headers import TRACEPARENT
from chat_nest.core.usage import NANO
from chat_nest.observers import gen_ai

NAME: Final = "chat_nest"
_read = TraceContextTextMapPropagator().extract


class Traces:
    """Makes a span for each request, and a child for the call of its provider.

    The span belongs to the application's current span, if there is one. Otherwise the request's `traceparent` counts if
    `accepts(scope)` is true, by default never: a client could choose which requests are traced. The provider gets a
    `traceparent` of its own, without the baggage and state of others. `tracer_provider` is OpenTelemetry's global one
    by default. `kinds` are the kinds of the providers by their names: OpenTelemetry has names for them.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        *,
        accepts: Callable[[Scope], bool] | None = None,
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        self._tracer = get_tracer(NAME, tracer_provider=tracer_provider)
        self._accepts = accepts
        self._kinds: Mapping[str, str] = {} if kinds is None else kinds  # not a copy: a reload may add some

    def arrived(self, id: str, dialect: str, scope: Scope) -> None:
        """Begin the request's span."""
        inside = get_current_span().get_span_context().is_valid
        parent = None if inside or self._accepts is None or not self._accepts(scope) else _parent(scope)
        kind = SpanKind.INTERNAL if inside else SpanKind.SERVER
        span = self._tracer.start_span(f"{NAME} {dialect}", parent, kind)
        _CURRENT.set(_Trace(span))
        if span.is_recording():
            span.set_attributes({"chat_nest.request.id": id, "chat_nest.dialect": dialect})

    def asking(self, id: str, model: str) -> None:
        """Begin the span of the provider's call; its `traceparent` goes with the call."""
        del id
        trace = _CURRENT.get()
        if trace is None:
            return
        if not trace.span.is_recording():  # neither is its child: the provider gets the decision, and no span is made
            _send(trace.span)
            return
        provider, _, name = model.partition(":")
        trace.call = self._tracer.start_span(f"{gen_ai.CHAT} {name}", set_span_in_context(trace.span), SpanKind.CLIENT)
        trace.call.set_attributes(
            {
                gen_ai.OPERATION: gen_ai.CHAT,
                gen_ai.PROVIDER: gen_ai.provider_name(self._kinds.get(provider, provider)),
                gen_ai.REQUEST_MODEL: name,
            }
        )
        _send(trace.call)

    def reported(self, report: Report) -> None:
        """End both spans, with the times of the request's steps."""
        trace = _CURRENT.get()
        if trace is None:
            return
        _CURRENT.set(None)
        steps = report.steps
        if trace.call is not None:
            self._end_call(trace.call, report, trace.unix)
        span = trace.span
        if span.is_recording():
            _describe(span, report)
            for name, at in (
                ("reserve", steps.reserve_at),
                ("reserved", steps.reserved_at),
                ("first token", steps.opened_at),
                ("reader gone", steps.gone_at),
                ("settle", steps.closed_at),
                ("settled", None if steps.closed_at is None else steps.ended_at),
            ):
                if at is not None:
                    span.add_event(name, timestamp=trace.unix(at))
        span.end()

    def _end_call(self, call: Span, report: Report, unix: Callable[[float], int]) -> None:
        steps, ending = report.steps, report.ending
        closed = steps.ended_at if steps.closed_at is None else steps.closed_at
        if call.is_recording() and ending is not None:
            provider, _, model = ending.model.partition(":")
            call.set_attributes(
                {
                    gen_ai.PROVIDER: gen_ai.provider_name(self._kinds.get(provider, provider)),
                    gen_ai.REQUEST_MODEL: model,
                    gen_ai.INPUT_TOKENS: ending.usage.input_tokens,
                    gen_ai.OUTPUT_TOKENS: ending.usage.output_tokens,
                    gen_ai.CACHED_TOKENS: ending.usage.cached_input_tokens,
                }
            )
            if ending.reason is not None:
                call.set_attribute(gen_ai.FINISH_REASONS, [ending.reason])
            if steps.opened_at is not None:
                call.add_event("first token", timestamp=unix(steps.opened_at))
            _set_error(call, report.error)
        call.end(None if closed is None else unix(closed))


class _Trace:
    """The spans of one request, and the clock for its steps."""

    __slots__ = ("_base", "call", "span")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.call: Span | None = None
        self._base = time.time_ns() - int(asyncio.get_running_loop().time() * 1e9)

    def unix(self, at: float) -> int:
        """Return a time of the event loop in Unix nanoseconds."""
        return self._base + int(at * 1e9)


_CURRENT: ContextVar[_Trace | None] = ContextVar("chat_nest_trace", default=None)


def _parent(scope: Scope) -> Context | None:
    """Return the context of the request's `traceparent`, without its `tracestate`; None if there is no valid one."""
    values = [value for name, value in scope["headers"] if name == b"traceparent"]
    return _read({"traceparent": values[0].decode("latin-1")}) if len(values) == 1 else None


def _send(span: Span) -> None:
    """Send this span's context to the provider, unless there is none."""
    context = span.get_span_context()
    if context.is_valid:
        ids = f"{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}"
        TRACEPARENT.set(f"00-{ids}-{context.trace_flags:02x}")


def _describe(span: Span, report: Report) -> None:
    ending = report.ending
    span.set_attribute("chat_nest.code", report.code)
    if report.profile:
        span.set_attribute("chat_nest.profile", report.profile)
    if ending is not None and ending.cost is not None:
        span.set_attribute("chat_nest.cost_usd", ending.cost / NANO)
    _set_error(span, report.error)


def _set_error(span: Span, error: ChatError | None) -> None:
    """Mark a failure on the server's or the provider's side; a refusal or a reader who left is none."""
    if error is not None:
        span.set_attribute(gen_ai.ERROR_TYPE, error.code)
        if error.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
