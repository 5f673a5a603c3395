"""The spans that `chat-nest serve` writes: those of OpenTelemetry's SDK, and what is decided without it."""

from __future__ import annotations

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from scripted_provider import DONE, RATE_LIMITED, ScriptedProvider, chunk, finish, stream, usage

from chat_nest import OpenAIProvider, create_chat_handler
from chat_nest.testing import collect
from chat_nest.traces import Traces, otlp
from chat_nest.traces.otlp import OtlpTraces

BODY = {"messages": [{"role": "user", "content": "canary-prompt"}]}
ANSWER = stream(chunk("canary-answer"), finish(), usage(5, 2), DONE)
JSON = (b"content-type", b"application/json")
TRACE, REMOTE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def make(traces, provider, *others, **options):
    return create_chat_handler(
        providers={"p": OpenAIProvider("sk-canary", provider.url)}, model="p:m", observers=[traces, *others], **options
    )


def served(share=1.0, accepts=lambda _: True):
    return OtlpTraces(share, accepts=accepts, kinds={"p": "mistral"})


def spans_of(traces):
    return [Span.FromString(each) for each in traces.take()]


def in_short(span):
    """Return what two implementations must agree on: all but the ids and the times."""
    attributes = sorted(each.SerializeToString() for each in span.attributes)
    return span.name, span.kind, span.status.code, attributes, [event.name for event in span.events]


@pytest.mark.parametrize(
    ("answer", "body"),
    [(ANSWER, BODY), (RATE_LIMITED, BODY), (ANSWER, b"{"), (ANSWER, {**BODY, "profile": "canary"})],
    ids=["answered", "the provider refuses", "no JSON", "no such profile"],
)
async def test_its_spans_are_those_of_the_sdk(answer, body):
    exporter, sdk, traces = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False), served()
    sdk.add_span_processor(SimpleSpanProcessor(exporter))
    async with ScriptedProvider(answer) as provider:
        async with make(traces, provider, Traces(sdk, accepts=lambda _: True, kinds={"p": "mistral"})) as chat:
            await collect(chat, body, headers=(JSON, (b"traceparent", f"00-{TRACE}-{REMOTE}-01".encode())))
    ours = spans_of(traces)
    theirs = encode_spans(exporter.get_finished_spans()).resource_spans[0].scope_spans[0].spans
    assert sorted(map(in_short, ours)) == sorted(map(in_short, theirs))
    assert [span.flags & ~1 for span in ours] == [span.flags & ~1 for span in reversed(theirs)]
    assert b"canary" not in b"".join(span.SerializeToString() for span in ours)


async def test_the_spans_are_linked_and_in_the_order_of_time():
    traces = served()
    async with ScriptedProvider(ANSWER) as provider, make(traces, provider) as chat:
        await collect(chat, BODY, headers=(JSON, (b"traceparent", f"00-{TRACE}-{REMOTE}-01".encode())))
        sent = (await provider.request(0)).headers["traceparent"]
    request, call = spans_of(traces)
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, REMOTE)
    assert (call.trace_id, call.parent_span_id) == (request.trace_id, request.span_id)
    assert sent == f"00-{TRACE}-{call.span_id.hex()}-01"
    times = [request.start_time_unix_nano, *(each.time_unix_nano for each in request.events)]
    assert times == sorted(times)
    assert times[-1] <= request.end_time_unix_nano
    assert times[0] <= call.start_time_unix_nano < call.end_time_unix_nano <= request.end_time_unix_nano
    assert not traces.take()


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (f"00-{TRACE}-{REMOTE}-00", TRACE),
        (f"00-{TRACE}-{REMOTE}-02", TRACE),
        (f"cc-{TRACE}-{REMOTE}-00-what-comes-later", TRACE),
        (f"00-{TRACE}-{REMOTE}-00-what-comes-later", ""),
        (f"ff-{TRACE}-{REMOTE}-00", ""),
        (f"00-{'0' * 32}-{REMOTE}-00", ""),
        (f"00-{TRACE}-{'0' * 16}-00", ""),
        (f"00-{TRACE.upper()}-{REMOTE}-00", ""),
        (f"00-{TRACE}-{REMOTE}", ""),
        ("\xff" * 55, ""),
        ("", ""),
    ],
)
async def test_a_proxy_that_does_not_sample_decides_for_the_provider_too(value, found):
    traces = served()
    async with ScriptedProvider(ANSWER) as provider, make(traces, provider) as chat:
        await collect(chat, BODY, headers=(JSON, (b"traceparent", value.encode("latin-1"))))
        _, trace, _, flags = (await provider.request(0)).headers["traceparent"].split("-")
    assert (trace == TRACE) is bool(found)
    assert flags == ("00" if found else "01")
    assert (not traces.take()) is bool(found)


async def test_a_client_decides_nothing():
    traces = served(0.0, accepts=lambda _: False)
    async with ScriptedProvider(ANSWER) as provider, make(traces, provider) as chat:
        await collect(chat, BODY, headers=(JSON, (b"traceparent", f"00-{TRACE}-{REMOTE}-01".encode())))
        sent = (await provider.request(0)).headers["traceparent"]
    assert TRACE not in sent
    assert sent.endswith("-00")
    assert not traces.take()


async def test_a_share_of_the_requests_is_sampled():
    traces = served(0.25)
    async with ScriptedProvider(ANSWER) as provider, make(traces, provider) as chat:
        for _ in range(200):
            await collect(chat, b"{")
    assert 10 <= len(spans_of(traces)) <= 100  # 50, and six times the deviation


async def test_a_full_batch_is_announced_and_spans_that_are_not_taken_are_dropped(monkeypatch):
    monkeypatch.setattr(otlp, "FULL", 3)
    monkeypatch.setattr(otlp, "MOST_SPANS", 5)
    traces, calls = served(), []
    traces.on_full = lambda: calls.append(1)
    async with ScriptedProvider(ANSWER) as provider, make(traces, provider) as chat:
        for _ in range(9):
            await collect(chat, b"{")
    assert len(spans_of(traces)) == 5
    assert calls
