"""`OtlpTraces`, an observer that writes the spans of a request into an OTLP message at the request's end.

It makes the same spans as `Traces` for less than a tenth of the CPU time, because nothing is kept for a span while the
request runs except its ids. `chat-nest serve` uses it: there is no application whose spans or SDK would count. What
requests have in common is encoded once: messages of Protocol Buffers may be merged.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Final

from msgspec import Struct
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status

from chat_nest.core import header_fields
from chat_nest.core.errors import ChatError
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Ending, Report, Scope
from chat_nest.core.trace_headers import TRACEPARENT
from chat_nest.core.usage import NANO
from chat_nest.observers import gen_ai
from chat_nest.traces.observer import NAME

MOST_SPANS: Final = 2_048
"""The most spans that wait to be sent. Those of further requests are dropped."""
FULL: Final = 512
"""Spans that are sent at once."""
_LOW: Final = (1 << 64) - 1
_TRACEPARENT: Final = re.compile(
    r"(?:00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
    r"|(?!00|ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?)"
)
_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200
_SAMPLED: Final = 1


class OtlpTraces:
    """Writes a span for each sampled request, and a child for the call of its provider, to be taken by an exporter.

    `share` is the share of the requests that are sampled, from 0 to 1, unless a `traceparent` has decided that
    `accepts(scope)` lets count. `kinds` are the kinds of the providers by their names.
    """

    def __init__(
        self,
        share: float,
        *,
        accepts: Callable[[Scope], bool],
        kinds: Mapping[str, str],
    ) -> None:
        self._below = round(share * (1 << 64))
        self._accepts = accepts
        self._kinds = kinds  # not a copy: a reload may add some
        self._batch = _empty_batch()
        self._encoded: dict[tuple[str, ...], bytes] = {}
        self.on_full: Callable[[], None] | None = None
        """Called when the spans should be taken before their time."""

    def started(self, id: str, caller: Caller, profile: str, model: str) -> None:
        """Do nothing: see `reported`."""

    def refused(self, id: str, caller: Caller | None, error: ChatError) -> None:
        """Do nothing: see `reported`."""

    def finished(self, ending: Ending) -> None:
        """Do nothing: see `reported`."""

    def arrived(self, id: str, dialect: str, scope: Scope) -> None:
        """Decide whether the request is traced."""
        del id, dialect
        trace = self._sent(scope)
        if trace is None:
            of = random.getrandbits(128)
            trace = _Trace(id=of, is_sampled=(of & _LOW) < self._below, began_at=asyncio.get_running_loop().time())
        _CURRENT.set(trace)

    def asking(self, id: str, model: str) -> None:
        """Send the decision to the provider, with the call's own id."""
        del id
        trace = _CURRENT.get()
        if trace is not None:
            trace.model = model
            trace.call_id = call_id = random.getrandbits(64)
            TRACEPARENT.set(f"00-{trace.id:032x}-{call_id:016x}-0{1 if trace.is_sampled else 0}")

    def reported(self, report: Report) -> None:
        """Write both spans of a sampled request, with the times of its steps."""
        trace = _CURRENT.get()
        if trace is None:
            return
        _CURRENT.set(None)
        if not trace.is_sampled:
            return
        waiting = len(self._batch.spans)
        if waiting < MOST_SPANS:
            self._write(trace, report)
        if waiting >= FULL and self.on_full is not None:
            self.on_full()

    def take(self) -> ScopeSpans | None:
        """Return the spans that were written since the last time; None if there are none."""
        if not self._batch.spans:
            return None
        taken, self._batch = self._batch, _empty_batch()
        return taken

    def _sent(self, scope: Scope) -> _Trace | None:
        """Return the trace that the request belongs to, as a trusted client says; None if there is none."""
        sent = header_fields.values(scope, b"traceparent")
        if len(sent) != 1 or not self._accepts(scope):
            return None
        found = _TRACEPARENT.fullmatch(sent[0].decode("latin-1"))
        if found is None:
            return None
        id, parent, flags = (int(group, 16) for group in found.groups() if group is not None)
        is_sampled, now = bool(flags & _SAMPLED), asyncio.get_running_loop().time()
        return _Trace(id=id, parent=parent, is_sampled=is_sampled, began_at=now)

    def _write(self, trace: _Trace, report: Report) -> None:
        base = time.time_ns() - int(asyncio.get_running_loop().time() * 1e9)
        span_id = random.getrandbits(64).to_bytes(8)
        self._write_request(trace, span_id, report, base)
        if trace.call_id is not None:
            self._write_call(trace, trace.call_id, span_id, report, base)

    def _write_request(self, trace: _Trace, id: bytes, report: Report, base: int) -> None:
        steps, ending = report.steps, report.ending
        span = self._batch.spans.add(
            trace_id=trace.id.to_bytes(16),
            span_id=id,
            flags=_SAMPLED | _HAS_IS_REMOTE | (_IS_REMOTE if trace.parent else 0),
            start_time_unix_nano=base + int(trace.began_at * 1e9),
            end_time_unix_nano=base + int((trace.began_at if steps.ended_at is None else steps.ended_at) * 1e9),
        )
        span.MergeFromString(self._of_requests(report))
        if trace.parent:
            span.parent_span_id = trace.parent.to_bytes(8)
        span.attributes.add(key="chat_nest.request.id").value.string_value = report.id
        if ending is not None and ending.cost is not None:
            span.attributes.add(key="chat_nest.cost_usd").value.double_value = ending.cost / NANO
        event = span.events.add
        for name, at in (
            ("reserve", steps.reserve_at),
            ("reserved", steps.reserved_at),
            ("first token", steps.opened_at),
            ("reader gone", steps.gone_at),
            ("settle", steps.closed_at),
            ("settled", None if steps.closed_at is None else steps.ended_at),
        ):
            if at is not None:
                event(name=name, time_unix_nano=base + int(at * 1e9))

    def _write_call(self, trace: _Trace, id: int, parent: bytes, report: Report, base: int) -> None:
        steps, ending = report.steps, report.ending
        began = trace.began_at if steps.asked_at is None else steps.asked_at
        closed = steps.ended_at if steps.closed_at is None else steps.closed_at
        call = self._batch.spans.add(
            trace_id=trace.id.to_bytes(16),
            span_id=id.to_bytes(8),
            parent_span_id=parent,
            flags=_SAMPLED | _HAS_IS_REMOTE,
            start_time_unix_nano=base + int(began * 1e9),
            end_time_unix_nano=base + int((began if closed is None else closed) * 1e9),
        )
        model = trace.model if ending is None else ending.model
        call.MergeFromString(self._of_calls(model, "" if ending is None else ending.reason or "", report.error))
        if ending is None:
            return
        add = call.attributes.add
        add(key=gen_ai.INPUT_TOKENS).value.int_value = ending.usage.input_tokens
        add(key=gen_ai.OUTPUT_TOKENS).value.int_value = ending.usage.output_tokens
        add(key=gen_ai.CACHED_TOKENS).value.int_value = ending.usage.cached_input_tokens
        if steps.opened_at is not None:
            call.events.add(name="first token", time_unix_nano=base + int(steps.opened_at * 1e9))

    def _of_requests(self, report: Report) -> bytes:
        """Return what the spans of such requests have in common, encoded."""
        error = report.error
        key = (report.dialect, report.code, report.profile, "" if error is None else error.code)
        found = self._encoded.get(key)
        if found is None:
            texts = {
                "chat_nest.dialect": report.dialect,
                "chat_nest.code": report.code,
                "chat_nest.profile": report.profile,
            }
            span = _span(f"{NAME} {report.dialect}", Span.SPAN_KIND_SERVER, texts, error)
            found = self._encoded[key] = span.SerializeToString()
        return found

    def _of_calls(self, of: str, reason: str, error: ChatError | None) -> bytes:
        """Return what the spans of such calls have in common, encoded."""
        key = (of, reason, "" if error is None else error.code)
        found = self._encoded.get(key)
        if found is None:
            provider, _, model = of.partition(":")
            name = gen_ai.provider_name(self._kinds.get(provider, provider))
            texts = {gen_ai.OPERATION: gen_ai.CHAT, gen_ai.PROVIDER: name, gen_ai.REQUEST_MODEL: model}
            span = _span(f"{gen_ai.CHAT} {model}", Span.SPAN_KIND_CLIENT, texts, error)
            if reason:
                span.attributes.add(key=gen_ai.FINISH_REASONS).value.array_value.values.add(string_value=reason)
            found = self._encoded[key] = span.SerializeToString()
        return found


class _Trace(Struct):
    """What is kept of one request's spans while it runs."""

    id: int
    is_sampled: bool
    began_at: float
    parent: int = 0
    call_id: int | None = None
    model: str = ""


_CURRENT: ContextVar[_Trace | None] = ContextVar("chat_nest_otlp_trace", default=None)


def texts_of(texts: Mapping[str, str]) -> list[KeyValue]:
    """Return attributes of texts, without empty ones."""
    return [KeyValue(key=key, value=AnyValue(string_value=text)) for key, text in texts.items() if text]


def _empty_batch() -> ScopeSpans:
    return ScopeSpans(scope=InstrumentationScope(name=NAME))


def _span(name: str, kind: Span.SpanKind.ValueType, texts: Mapping[str, str], error: ChatError | None) -> Span:
    """Return a span without ids and times.

    A failure on the server's or the provider's side marks it; a refusal or a reader who left is none.
    """
    span = Span(name=name, kind=kind, attributes=texts_of(texts))
    if error is not None:
        span.attributes.extend(texts_of({gen_ai.ERROR_TYPE: error.code}))
        if error.status >= 500:
            span.status.code = Status.STATUS_CODE_ERROR
    return span
