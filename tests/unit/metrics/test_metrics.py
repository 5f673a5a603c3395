"""What a scrape shows after requests of every kind, and what it never shows."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain

from chat_nest import Caller, Limits, MemoryStore, Profile, create_chat_handler, price
from chat_nest.core.errors import LimiterUnavailable, UpstreamUnavailable
from chat_nest.dialects import DIALECTS
from chat_nest.limits.spec import Queue
from chat_nest.metrics import FAMILIES, Metrics
from chat_nest.testing import ScriptedProvider, answer, collect

BODY = {"messages": [{"role": "user", "content": "Hello"}]}
PROFILE = Profile(model="p:m", open=True, max_output_tokens=100)


def make(*scripts, **options):
    metrics = Metrics(CollectorRegistry(), kinds={"p": "gemini"})
    provider = ScriptedProvider(*(scripts or [answer("Hello", " you")]))
    given = {"providers": {"p": provider}, "profiles": {"balanced": PROFILE}, "observers": [metrics], **options}
    return metrics, create_chat_handler(**given)


async def samples(metrics, accept=""):
    content_type, body = await metrics.render(accept)
    assert content_type.startswith("text/plain")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in plain(body.decode())
        for sample in family.samples
    }


async def test_an_answer_is_counted_once_in_each_metric():
    metrics, chat = make(prices={"p:m": price(input=1.0, output=2.0)})
    async with chat:
        await collect(chat, BODY)
        found = await samples(metrics)
    named = (("gen_ai_operation_name", "chat"), ("gen_ai_provider_name", "gcp.gemini"), ("gen_ai_request_model", "m"))
    assert found["chat_nest_requests_total", ("code", "ok"), ("dialect", "native"), ("profile", "balanced")] == 1
    assert found["chat_nest_overhead_seconds_count", ("profile", "balanced")] == 1
    assert found["chat_nest_reserve_seconds_count", ("store", "memory")] == 1
    assert found["chat_nest_first_token_seconds_count", ("model", "m"), ("provider", "p")] == 1
    assert found["gen_ai_client_operation_duration_seconds_count", ("error_type", ""), *named] == 1
    assert found["gen_ai_client_operation_time_to_first_chunk_seconds_count", *named] == 1
    assert found["gen_ai_client_token_usage_sum", *named, ("gen_ai_token_type", "output")] > 0
    (cost,) = [value for key, value in found.items() if key[0] == "chat_nest_cost_usd_total"]
    assert 0 < cost < 0.01
    assert not [key for key in found if key[0] == "chat_nest_refused_total"]
    assert found["chat_nest_workers",] == 1
    assert found["chat_nest_breaker_state", ("provider", "p")] == 0


async def test_a_running_answer_and_its_hold_are_gauges():
    release = asyncio.Event()

    async def until_released():
        await release.wait()

    first, *rest = answer("Hello", " you")
    metrics, chat = make(
        [first, until_released, *rest],
        limits=Limits(tokens_per_day=10_000),
        groups={"acme": Limits(requests_per_day=5), "default": Limits(requests_per_day=1)},
    )
    async with chat:
        begun = asyncio.Event()

        async def sent(_):
            begun.set()

        running = asyncio.create_task(collect(chat, BODY, sent=sent))
        await begun.wait()
        found = await samples(metrics)
        where = (("group", ""), ("limit", "tokens_per_day"), ("scope", "all"))
        assert found["chat_nest_streams",] == 1
        assert found["chat_nest_budget_limit", *where] == 10_000
        assert found["chat_nest_budget_held", *where] > 100
        assert found["chat_nest_budget_settled", *where] == 0
        assert (
            found["chat_nest_budget_limit", ("group", "acme"), ("limit", "requests_per_day"), ("scope", "group")] == 5
        )
        assert not [key for key in found if ("group", "default") in key], (
            "a limit of each other group has no state of its own"
        )
        release.set()
        await running
        assert (await samples(metrics))["chat_nest_streams",] == 0


async def test_a_request_that_waits_for_a_stream_is_in_the_queue():
    release, begun, waits = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def until_released():
        begun.set()
        await release.wait()

    metrics, chat = make(
        [until_released, *answer("Hello")], queue=Queue(seconds=30.0, length=10), provider_streams={"p": 1}
    )
    async with chat:
        first = asyncio.create_task(collect(chat, BODY))
        await begun.wait()

        async def sent(data):
            if b"queued" in data:
                waits.set()

        second = asyncio.create_task(collect(chat, BODY, sent=sent))
        await waits.wait()
        assert (await samples(metrics))["chat_nest_queue_depth",] == 1
        release.set()
        await asyncio.gather(first, second)
        assert (await samples(metrics))["chat_nest_queue_depth",] == 0


async def test_a_refusal_names_its_limit_and_a_request_without_a_profile_has_none():
    metrics, chat = make(
        profiles={"balanced": Profile(model="p:m", open=True, requests_per_minute=1)}, max_body_bytes=100
    )
    async with chat:
        await collect(chat, BODY)
        await collect(chat, BODY)
        await collect(chat, b"x" * 200)
        await collect(chat, b"{")
        found = await samples(metrics)
    refused = {key[1:]: value for key, value in found.items() if key[0] == "chat_nest_refused_total"}
    assert refused == {
        (("code", "rate_limited"), ("limit", "requests_per_minute"), ("scope", "caller")): 1,
        (("code", "body_too_large"), ("limit", ""), ("scope", "")): 1,
        (("code", "bad_request"), ("limit", ""), ("scope", "")): 1,
    }
    assert found["chat_nest_requests_total", ("code", "body_too_large"), ("dialect", "native"), ("profile", "")] == 1


async def test_a_store_that_is_down_leaves_out_the_budgets_only():
    class Down(MemoryStore):
        async def reserve(self, *_):
            raise LimiterUnavailable

        peek = reserve

    metrics, chat = make(store=Down(), limits=Limits(tokens_per_day=10_000))
    async with chat:
        await collect(chat, BODY)
        found = await samples(metrics)
    assert not [key for key in found if key[0].startswith("chat_nest_budget")]
    assert found["chat_nest_reserve_seconds_count", ("store", "Down")] == 1
    assert found["chat_nest_refused_total", ("code", "limiter_unavailable"), ("limit", ""), ("scope", "")] == 1


async def test_failures_of_the_provider_open_the_breaker():
    metrics, chat = make([UpstreamUnavailable()])
    async with chat:
        for _ in range(12):
            await collect(chat, BODY)
        found = await samples(metrics)
    assert found["chat_nest_breaker_state", ("provider", "p")] == 2
    assert [
        value
        for key, value in found.items()
        if key[0] == "gen_ai_client_operation_duration_seconds_count" and ("error_type", "upstream_unavailable") in key
    ]


async def test_a_disconnect_is_timed_until_the_provider_is_closed():
    async def forever():
        await asyncio.Event().wait()

    metrics, chat = make([answer("Hello")[0], forever])
    gone = asyncio.Event()

    async def sent(data):
        if b"Hello" in data:
            gone.set()

    async with chat:
        await collect(chat, BODY, sent=sent, leave=gone)
        found = await samples(metrics)
    assert found["chat_nest_disconnect_close_seconds_count", ("provider", "p")] == 1
    assert (
        found["chat_nest_requests_total", ("code", "client_gone"), ("dialect", "native"), ("profile", "balanced")] == 1
    )


HOSTILE = 'evil"canary\n{x="'


@pytest.mark.parametrize("dialect", list(DIALECTS))
async def test_no_string_of_a_client_is_ever_in_a_scrape(dialect):
    async def identify(scope):
        return Caller(id="canary-" + HOSTILE, group="canary-group" + HOSTILE)

    metrics, chat = make(
        dialect=dialect,
        identify=identify,
        groups={"acme": Limits(requests_per_day=5), "default": Limits(requests_per_day=9)},
    )
    strings = dict.fromkeys(
        (
            "model",
            "profile",
            "user",
            "threadId",
            "runId",
            "id",
            "chatId",
            "trigger",
            "metadata",
            "tool_choice",
            "system",
            "instructions",
            "budget",
            "budgetType",
            "safety_identifier",
            "prompt_cache_key",
            "previous_response_id",
            "stop",
            "service_tier",
        ),
        HOSTILE,
    )
    bodies = [{**json_body, name: HOSTILE} for json_body in BODIES[dialect] for name in strings] + [  # type: ignore[attr-defined, misc]
        {**BODIES[dialect][0], **strings},
        *BODIES[dialect],
    ]
    headers = tuple(
        (name, b"canary")
        for name in (
            b"x-user",
            b"user-agent",
            b"idempotency-key",
            b"traceparent",
            b"x-forwarded-for",
            b"accept",
            b"authorization",
            b"cookie",
            b"x-request-id",
        )
    )
    path = chat.dialects[0].routes[0].path
    async with chat:
        for body in bodies:
            await collect(
                chat, json.dumps(body).encode(), path=path, headers=((b"content-type", b"application/json"), *headers)
            )
        await collect(chat, b"{}", path=path + "/canary")
        await collect(chat, b"{}", path="/canary")
        shown = [(await metrics.render(accept))[1].decode() for accept in ("", "application/openmetrics-text")]
    assert all("canary" not in text for text in shown)
    assert "chat_nest_requests_total{" in shown[0]


MESSAGES = {"messages": [{"role": "user", "content": "Hello canary"}]}
BODIES = {
    "native": [MESSAGES],
    "openai": [{**MESSAGES, "model": "m"}],
    "responses": [{"input": "Hello canary", "model": "m"}],
    "ai_sdk": [{"id": "1", "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "canary"}]}]}],
    "ag_ui": [
        {
            "threadId": "t",
            "runId": "r",
            "state": {},
            "tools": [],
            "context": [],
            "forwardedProps": {},
            "messages": [{"id": "1", "role": "user", "content": "canary"}],
        }
    ],
    "anthropic": [{**MESSAGES, "model": "m", "max_tokens": 10}],
    "blog": [{"message": "Hello canary"}],
}


@pytest.mark.parametrize(
    ("accept", "open"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", True),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.9", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;version=\xe9;q=evil", True),
        ("," * 500 + ";;q==", False),
    ],
)
async def test_the_format_is_what_the_scraper_prefers(accept, open):
    metrics, chat = make()
    async with chat:
        await collect(chat, BODY)
        content_type, body = await metrics.render(accept)
    assert content_type.startswith(
        "application/openmetrics-text; version=1.0.0" if open else "text/plain; version=0.0.4"
    )
    families = {family.name for family in (open_metrics if open else plain)(body.decode())}
    assert {"chat_nest_requests", "chat_nest_streams", "gen_ai_client_token_usage"} <= families
    assert body.endswith(b"# EOF\n") == open


async def test_over_asgi_only_reading_is_answered():
    metrics, chat = make()
    async with chat:
        await collect(chat, BODY)
        sent = []

        async def send(message):
            sent.append(message)

        for method in ("GET", "HEAD", "POST"):
            await metrics(
                {"type": "http", "method": method, "headers": [(b"accept", b"application/openmetrics-text")]},
                None,
                send,
            )
    statuses = [message["status"] for message in sent if "status" in message]
    assert statuses == [200, 200, 405]
    assert b"# EOF" in sent[1]["body"]
    assert sent[3]["body"] == b""
    assert dict(sent[4]["headers"])[b"allow"] == b"GET, HEAD"


async def test_labels_are_those_of_the_table_and_every_name_is_valid():
    metrics, chat = make(limits=Limits(tokens_per_day=10_000))
    async with chat:
        await collect(chat, BODY)
        _, body = await metrics.render()
    known = {family.name: set(family.labels) for family in FAMILIES}
    for family in plain(body.decode()):
        for sample in family.samples:
            name = re.sub(r"_(bucket|count|sum|created)$", "", sample.name)
            name = name if name in known else f"{name}_total"
            assert set(sample.labels) - {"le"} == known[name], sample


async def test_two_handlers_share_one_observer():
    metrics, one = make()
    two = create_chat_handler(providers={"q": ScriptedProvider(answer("a"))}, model="q:m", observers=[metrics])
    async with one, two:
        await collect(one, BODY)
        await collect(two, BODY)
        found = await samples(metrics)
    requests = [value for key, value in found.items() if key[0] == "chat_nest_requests_total"]
    assert sum(requests) == 2
    assert ("chat_nest_breaker_state", ("provider", "q")) in found
