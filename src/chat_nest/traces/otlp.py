"""`OtlpTraces`, an observer that encodes the spans of a request as OTLP at the request's end.

It makes the same spans as `Traces` for a small part of the CPU time: nothing is kept for a span while the request runs
except its ids. `chat-nest serve` uses it: there is no application whose spans or SDK would count.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Final

from chat_nest.core.errors import ChatError
from chat_nest.core.protocols import Report, Scope
from chat_nest.core.trace_headers import TRACEPARENT
from chat_nest.core.usage import NANO
from chat_nest.observers import gen_ai
from chat_nest.traces.observer import NAME
from chat_nest.traces.protobuf import CLIENT, SERVER, Attribute, begin, described, event, parent
from chat_nest.traces.protobuf import time as time_of_event

MOST_SPANS: Final = 2_048
"""The most spans that wait to be sent. Those of further requests are dropped."""
FULL: Final = 512
"""Spans that are sent at once."""
_TRACEPARENT: Final = re.compile(
    r"(?:00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
    r"|(?!00|ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?)"
)
_SAMPLED: Final = 1
_OF_LOCAL: Final = 0x101
"""The flags of a sampled span whose parent, if it has one, is of this process."""
_OF_REMOTE: Final = 0x301
_REQUEST_ID, _COST = Attribute("chat_nest.request.id"), Attribute("chat_nest.cost_usd")
_INPUT, _OUTPUT = Attribute(gen_ai.INPUT_TOKENS), Attribute(gen_ai.OUTPUT_TOKENS)
_CACHED = Attribute(gen_ai.CACHED_TOKENS)
_RESERVE, _RESERVED, _FIRST_TOKEN = event("reserve"), event("reserved"), event("first token")
_READER_GONE, _SETTLE, _SETTLED = event("reader gone"), event("settle"), event("settled")


class OtlpTraces:
    """Encodes a span for each sampled request, and a child for the call of its provider, to be taken by an exporter.

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
        self._share = share
        self._accepts = accepts
        self._kinds = kinds  # not a copy: a reload may add some
        self._spans: list[bytes] = []
        self._encoded: dict[tuple[str, ...], bytes] = {}
        self.on_full: Callable[[], None] | None = None
        """Called when the spans should be taken before their time."""

    def arrived(self, id: str, dialect: str, scope: Scope) -> None:
        """Decide whether the request is traced."""
        del id, dialect
        for name, value in scope["headers"]:
            if name == b"traceparent" and self._accepts(scope) and (sent := _sent(scope, value)) is not None:
                _CURRENT.set(sent)
                return
        if random.random() < self._share:  # noqa: S311 - nothing secret
            _CURRENT.set(_Trace(random.getrandbits(128), True, asyncio.get_running_loop().time()))
        elif _CURRENT.get() is not None:  # of a request before, in this context
            _CURRENT.set(None)

    def asking(self, id: str, model: str) -> None:
        """Send the decision to the provider, with the call's own id."""
        del id
        trace, call_id = _CURRENT.get(), random.getrandbits(64)
        if trace is None:
            TRACEPARENT.set(f"00-{random.getrandbits(128):032x}-{call_id:016x}-00")
            return
        trace.model, trace.call_id = model, call_id
        TRACEPARENT.set(f"00-{trace.id:032x}-{call_id:016x}-0{1 if trace.is_sampled else 0}")

    def reported(self, report: Report) -> None:
        """Encode both spans of a sampled request, with the times of its steps."""
        trace = _CURRENT.get()
        if trace is None:
            return
        _CURRENT.set(None)
        if not trace.is_sampled:
            return
        waiting = len(self._spans)
        if waiting < MOST_SPANS:
            base = time.time_ns() - int(asyncio.get_running_loop().time() * 1e9)
            span_id = random.getrandbits(64).to_bytes(8)
            self._spans.append(self._request(trace, span_id, report, base))
            if trace.call_id is not None:
                self._spans.append(self._call(trace, trace.call_id, span_id, report, base))
        if waiting >= FULL and self.on_full is not None:
            self.on_full()

    def take(self) -> list[bytes]:
        """Return the spans that were encoded since the last time."""
        taken, self._spans = self._spans, []
        return taken

    def _request(self, trace: _Trace, id: bytes, report: Report, base: int) -> bytes:
        """Return the span of a request; `base` makes Unix nanoseconds of the loop's time."""
        steps, ending = report.steps, report.ending
        ended = trace.began_at if steps.ended_at is None else steps.ended_at
        began, flags = base + int(trace.began_at * 1e9), _OF_LOCAL if trace.parent == 0 else _OF_REMOTE
        parts = [
            begin(trace.id.to_bytes(16), id, began, base + int(ended * 1e9), flags),
            self._of_requests(report),
            _REQUEST_ID.of_text(report.id),
        ]
        if trace.parent:
            parts.append(parent(trace.parent.to_bytes(8)))
        if ending is not None and ending.cost is not None:
            parts.append(_COST.of_double(ending.cost / NANO))
        for name, at in (
            (_RESERVE, steps.reserve_at),
            (_RESERVED, steps.reserved_at),
            (_FIRST_TOKEN, steps.opened_at),
            (_READER_GONE, steps.gone_at),
            (_SETTLE, steps.closed_at),
            (_SETTLED, None if steps.closed_at is None else steps.ended_at),
        ):
            if at is not None:
                parts += (name, time_of_event(base + int(at * 1e9)))
        return b"".join(parts)

    def _call(self, trace: _Trace, id: int, of: bytes, report: Report, base: int) -> bytes:
        """Return the span of the call of a request's provider."""
        steps, ending = report.steps, report.ending
        began = trace.began_at if steps.asked_at is None else steps.asked_at
        closed = steps.ended_at if steps.closed_at is None else steps.closed_at
        times = base + int(began * 1e9), base + int((began if closed is None else closed) * 1e9)
        start = begin(trace.id.to_bytes(16), id.to_bytes(8), *times, _OF_LOCAL) + parent(of)
        if ending is None:
            return start + self._of_calls(trace.model, "", report.error)
        used = ending.usage
        return b"".join(
            (
                start,
                self._of_calls(ending.model, ending.reason or "", report.error),
                _INPUT.of_number(used.input_tokens),
                _OUTPUT.of_number(used.output_tokens),
                _CACHED.of_number(used.cached_input_tokens),
                *(() if steps.opened_at is None else (_FIRST_TOKEN, time_of_event(base + int(steps.opened_at * 1e9)))),
            )
        )

    def _of_requests(self, report: Report) -> bytes:
        """Return what the spans of such requests have in common."""
        error = report.error
        key = (report.dialect, report.code, report.profile, "" if error is None else error.code)
        found = self._encoded.get(key)
        if found is None:
            texts = {
                "chat_nest.dialect": report.dialect,
                "chat_nest.code": report.code,
                "chat_nest.profile": report.profile,
                gen_ai.ERROR_TYPE: key[-1],
            }
            name = f"{NAME} {report.dialect}"
            found = self._encoded[key] = described(name, SERVER, texts, is_error=_is_failure(error))
        return found

    def _of_calls(self, of: str, reason: str, error: ChatError | None) -> bytes:
        """Return what the spans of such calls have in common."""
        key = (of, reason, "" if error is None else error.code)
        found = self._encoded.get(key)
        if found is None:
            provider, _, model = of.partition(":")
            texts = {
                gen_ai.OPERATION: gen_ai.CHAT,
                gen_ai.PROVIDER: gen_ai.provider_name(self._kinds.get(provider, provider)),
                gen_ai.REQUEST_MODEL: model,
                gen_ai.ERROR_TYPE: key[-1],
            }
            found = described(f"{gen_ai.CHAT} {model}", CLIENT, texts, is_error=_is_failure(error))
            if reason:
                found += Attribute(gen_ai.FINISH_REASONS).of_texts([reason])
            self._encoded[key] = found
        return found


class _Trace:
    """What is kept of one request's spans while it runs."""

    __slots__ = ("began_at", "call_id", "id", "is_sampled", "model", "parent")

    def __init__(self, id: int, is_sampled: bool, began_at: float, parent: int = 0) -> None:
        self.id, self.is_sampled, self.began_at, self.parent = id, is_sampled, began_at, parent
        self.call_id: int | None = None
        self.model = ""


_CURRENT: ContextVar[_Trace | None] = ContextVar("chat_nest_otlp_trace", default=None)
"""None: the request is not sampled."""


def _sent(scope: Scope, value: bytes) -> _Trace | None:
    """Return the trace of a request's `traceparent`; None if it is none, or there are several."""
    found = _TRACEPARENT.fullmatch(value.decode("latin-1"))
    if found is None or sum(name == b"traceparent" for name, _ in scope["headers"]) > 1:
        return None
    id, parent_id, flags = (int(group, 16) for group in found.groups() if group is not None)
    return _Trace(id, bool(flags & _SAMPLED), asyncio.get_running_loop().time(), parent_id)


def _is_failure(error: ChatError | None) -> bool:
    """Return whether the server or the provider failed; a refusal or a reader who left is no failure."""
    return error is not None and error.status >= 500
