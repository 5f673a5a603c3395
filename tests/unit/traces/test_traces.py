"""The spans of a request, as OpenTelemetry's SDK exports them, and the header that its provider gets."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode
from scripted_provider import DONE, RATE_LIMITED, ScriptedProvider, chunk, finish, stream, usage

from chat_nest import OpenAIProvider, create_chat_handler
from chat_nest.core.trace_headers import TRACEPARENT
from chat_nest.testing import collect
from chat_nest.traces import Traces

BODY = {"messages": [{"role": "user", "content": "canary-prompt"}]}
ANSWER = stream(chunk("canary-answer"), finish(), usage(5, 2), DONE)
TRACE = "0af7651916cd43dd8448eb211c80319c"
FROM_PROXY = (b"traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode())
STATE = (b"tracestate", b"canary=1")
JSON = (b"content-type", b"application/json")


class Spans:
    def __init__(self, sampler=None):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def __iter__(self):
        return iter(self.exporter.get_finished_spans())


def make(spans, provider, **options):
    traces = Traces(spans.provider, accepts=options.pop("accepts", None), kinds={"p": "mistral"})
    return create_chat_handler(
        providers={"p": OpenAIProvider("sk-canary", provider.url)}, model="p:m", observers=[traces], **options
    )


async def test_a_request_is_a_span_and_its_call_a_child_with_the_steps_in_order():
    spans = Spans()
    async with ScriptedProvider(ANSWER) as provider, make(spans, provider) as chat:
        await collect(chat, BODY)
        sent = (await provider.request(0)).headers["traceparent"]
    call, request = spans
    assert (request.name, request.kind, request.parent) == ("chat_nest native", SpanKind.SERVER, None)
    assert (call.name, call.kind, call.parent) == ("chat m", SpanKind.CLIENT, request.context)
    assert sent == f"00-{call.context.trace_id:032x}-{call.context.span_id:016x}-{call.context.trace_flags:02x}"
    assert [event.name for event in request.events] == ["reserve", "reserved", "first token", "settle", "settled"]
    times = [request.start_time, *(event.timestamp for event in request.events), request.end_time]
    assert times == sorted(times)
    assert request.start_time <= call.start_time <= call.end_time <= request.end_time
    assert call.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mistral_ai",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ("stop",),
    }
    assert request.attributes["chat_nest.code"] == "ok"
    assert request.attributes["chat_nest.profile"] == "balanced"
    assert request.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("accepts", [None, lambda scope: scope["client"][0] == "203.0.113.7"])
async def test_a_traceparent_counts_only_from_trusted_peers(accepts):
    spans = Spans()
    async with ScriptedProvider(ANSWER) as provider, make(spans, provider, accepts=accepts) as chat:
        await collect(chat, BODY, headers=(JSON, FROM_PROXY, STATE))
        got = (await provider.request(0)).headers
    request = list(spans)[1]
    assert (f"{request.context.trace_id:032x}" == TRACE) is (accepts is not None)
    assert (TRACE in got["traceparent"]) is (accepts is not None)
    assert "tracestate" not in got
    assert "canary" not in str(request.context.trace_state)


async def test_a_proxy_that_does_not_sample_decides_for_the_provider_too():
    spans = Spans(ParentBased(ALWAYS_OFF))
    async with ScriptedProvider(ANSWER) as provider, make(spans, provider, accepts=lambda _: True) as chat:
        await collect(chat, BODY, headers=(JSON, (b"traceparent", FROM_PROXY[1][:-2] + b"00")))
        got = (await provider.request(0)).headers["traceparent"]
    assert list(spans) == []
    assert TRACE in got
    assert got.endswith("-00")


@pytest.mark.parametrize("value", [b"00-canary", b"\xff" * 55, b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b""])
async def test_a_traceparent_that_is_none_begins_a_trace(value):
    spans = Spans()
    async with ScriptedProvider(ANSWER) as provider, make(spans, provider, accepts=lambda _: True) as chat:
        assert (await collect(chat, BODY, headers=(JSON, (b"traceparent", value)))).status == 200
    assert list(spans)[1].parent is None


async def test_the_span_belongs_to_the_trace_of_the_application():
    spans = Spans()
    tracer = spans.provider.get_tracer("app")
    async with ScriptedProvider(ANSWER) as provider, make(spans, provider, accepts=lambda _: True) as chat:
        with tracer.start_as_current_span("POST /chat") as outer:
            await collect(chat, BODY, headers=(JSON, FROM_PROXY))
    call, request, _ = spans
    assert request.parent == outer.get_span_context()
    assert request.kind is SpanKind.INTERNAL


async def test_a_refusal_is_a_span_without_a_call_and_a_failure_an_error():
    spans = Spans()
    async with ScriptedProvider(RATE_LIMITED) as provider, make(spans, provider, max_body_bytes=200) as chat:
        await collect(chat, b"{")
        await collect(chat, b"x" * 300)
        await collect(chat, BODY)
    refused, too_large, call, failed = spans
    assert [span.attributes["error.type"] for span in spans] == [
        "bad_request",
        "body_too_large",
        "upstream_rate_limited",
        "upstream_rate_limited",
    ]
    assert refused.status.status_code is too_large.status.status_code is StatusCode.UNSET
    assert refused.events == ()
    assert failed.attributes["chat_nest.code"] == "upstream_rate_limited"


async def test_spans_hold_no_text_no_caller_and_no_key():
    spans = Spans()
    async with ScriptedProvider(ANSWER) as provider, make(spans, provider) as chat:
        await collect(
            chat, {**BODY, "profile": "canary"}, client=("203.0.113.99", 1), headers=(JSON, (b"user-agent", b"canary"))
        )
        await collect(chat, BODY, client=("203.0.113.99", 1))
    shown = "".join(span.to_json() for span in spans)
    assert "canary" not in shown
    assert "203.0.113" not in shown


async def test_without_an_sdk_nothing_is_sent_and_nothing_leaks_into_the_next_request():
    async with ScriptedProvider(ANSWER) as provider:
        chat = create_chat_handler(
            providers={"p": OpenAIProvider("sk", provider.url)}, model="p:m", observers=[Traces()]
        )
        async with chat:
            await collect(chat, BODY)
            assert "traceparent" not in (await provider.request(0)).headers
    assert TRACEPARENT.get() == ""


async def test_simultaneous_requests_have_separate_spans():
    spans = Spans()
    async with ScriptedProvider(ANSWER) as provider, make(spans, provider) as chat:
        await asyncio.gather(*(collect(chat, BODY, client=(f"203.0.113.{n}", 1)) for n in range(5)))
        sent = {(await provider.request(n)).headers["traceparent"] for n in range(5)}
    found = list(spans)
    assert len({span.context.trace_id for span in found}) == 5
    assert len(sent) == 5
