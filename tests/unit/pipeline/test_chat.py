"""What observers, readers and repeated requests get of a request that the pipeline did not answer itself."""

from __future__ import annotations

import asyncio
import json

import pytest
from msgspec.structs import replace

from chat_nest import BALANCED, Caller, create_chat_handler
from chat_nest.core.claims import Duplicate
from chat_nest.core.errors import RunsUnavailable, UpstreamTruncated
from chat_nest.dialects.native import Native, NativeEncoder
from chat_nest.runs.memory import MemoryRuns
from chat_nest.stores.memory import MemoryStore
from chat_nest.testing import ScriptedProvider, answer, collect

BODY = {"messages": [{"role": "user", "content": "Hello"}]}
JSON = (b"content-type", b"application/json")
AGAIN = (JSON, (b"idempotency-key", b"k"))


class Seen:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.refusals, self.reports, self.endings = [], [], []

    def started(self, run, caller, profile, model): ...

    def finished(self, ending):
        self.endings.append(ending)

    def refused(self, run, caller, error):
        self.refusals.append((run, caller, error.code))

    def reported(self, report):
        self.reports.append(report)


def make(script=None, policy="cancel", **more):
    seen, provider = Seen(), ScriptedProvider(script or answer("a", "b"))
    profiles = {
        "balanced": replace(BALANCED, model="p:m", on_disconnect=policy, **more.pop("limits", {})),
        "able": replace(BALANCED, name="able", open=False, model="p:m", allow_system_prompt=True),
    }
    handler = create_chat_handler(
        providers={"p": provider},
        profiles=profiles,
        default_profile="balanced",
        observers=[seen],
        **{"identify": lambda scope: Caller(id="ada"), **more},
    )
    return handler, provider, seen


async def test_observers_get_a_refusal_with_its_request_caller_and_code():
    handler, _, seen = make(limits={"requests_per_minute": 1})
    async with handler:
        await collect(handler, BODY)
        refused = await collect(handler, BODY)
    run = refused.headers["x-request-id"]
    assert (refused.status, seen.refusals) == (429, [(run, Caller(id="ada"), "rate_limited")])
    first, report = seen.reports
    assert (first.code, first.error, first.profile) == ("ok", None, "balanced")
    steps = first.steps
    times = [steps.began_at, steps.reserve_at, steps.reserved_at, steps.asked_at, steps.opened_at, steps.closed_at]
    assert (sorted(times), steps.gone_at) == (times, None)
    assert steps.ended_at >= steps.closed_at
    assert report.steps.reserved_at is None
    assert report.steps.ended_at >= report.steps.reserve_at >= report.steps.began_at
    assert (report.id, report.dialect, report.code, report.profile) == (run, "native", "rate_limited", "balanced")
    assert (report.error.limit, report.ending) == ("requests_per_minute", None)


@pytest.mark.parametrize(
    ("script", "reason", "code"),
    [(answer("a"), "stop", None), ([*answer("a")[:1], UpstreamTruncated()], None, "upstream_truncated")],
    ids=["ended", "failed"],
)
async def test_observers_get_the_ending_of_an_answer_and_its_start(script, reason, code):
    handler, _, seen = make(script)
    async with handler:
        await collect(handler, BODY)
    [ending] = seen.endings
    assert (ending.reason, ending.error and ending.error.code) == (reason, code)
    assert 0 <= ending.first_token_seconds <= ending.seconds
    assert seen.reports[0].code == (code or "ok")


async def test_a_profile_without_signed_turns_accepts_unsigned_ones_on_a_signing_server():
    handler, _, _ = make(turn_secrets=["a secret of signatures that is long enough"])
    said = [*BODY["messages"], {"role": "assistant", "content": "Hi"}, *BODY["messages"]]
    async with handler:
        assert (await collect(handler, {"messages": said})).status == 200


async def test_observers_learn_which_request_followed_the_answer_of_an_earlier_one():
    never, came = asyncio.Event(), asyncio.Event()

    async def wait():
        came.set()
        await never.wait()

    handler, provider, seen = make([*answer("one", "two")[:2], wait, *answer("x")[1:]], "finish")
    async with handler:
        first = asyncio.create_task(collect(handler, BODY, headers=AGAIN))
        await came.wait()
        second = asyncio.create_task(collect(handler, BODY, headers=AGAIN))
        while not seen.reports:
            await asyncio.sleep(0)
        never.set()
        one, two = await first, await second
    assert [name for name, _ in two.events] == ["start", "token", "token", "done"]
    assert (provider.opened, one.complete, two.complete) == (1, True, True)
    report = seen.reports[0]
    assert (report.id, report.code, report.profile) == (two.headers["x-request-id"], "followed", "balanced")
    assert (report.dialect, report.steps.reserve_at is None) == ("native", False)
    assert json.loads(two.events[0][1])["model"] == "m"
    assert not seen.refusals


async def test_a_repeated_request_for_one_json_value_does_not_follow_a_stream():
    never, came = asyncio.Event(), asyncio.Event()

    async def wait():
        came.set()
        await never.wait()

    handler, provider, _ = make([*answer("one")[:1], wait], "finish", dialect="openai")
    async with handler:
        body = {**BODY, "model": "balanced"}
        first = asyncio.create_task(collect(handler, body, path="/v1/chat/completions", headers=AGAIN))
        await came.wait()
        again = await collect(handler, body, path="/v1/chat/completions", headers=AGAIN)
    await first
    assert (again.status, json.loads(again.body)["error"]["code"], provider.opened) == (409, "request_in_progress", 1)


async def test_observers_and_the_reader_are_notified_of_a_replay():
    handler, provider, seen = make()
    async with handler:
        await collect(handler, BODY, headers=AGAIN)
        again = await collect(handler, BODY, headers=AGAIN)
    report = seen.reports[1]
    assert (report.id, report.dialect, report.code) == (again.headers["x-request-id"], "native", "replayed")
    assert (report.profile, report.steps.reserve_at is None, seen.refusals) == ("balanced", False, [])
    assert again.headers["idempotency-replayed"] == "true"
    assert ([name for name, _ in again.events], provider.opened) == (["start", "done"], 1)
    assert json.loads(again.events[0][1])["model"] == "m"


class Forgetful(MemoryStore):
    """A store that knows that a request has ended, but not how."""

    async def reserve(self, claim, lease):
        found = await super().reserve(claim, lease)
        return replace(found, record=None) if isinstance(found, Duplicate) else found


async def test_a_replay_of_an_unknown_run_is_an_error_and_names_no_model():
    handler, provider, _ = make(store=Forgetful())
    async with handler:
        await collect(handler, BODY, headers=AGAIN)
        again = await collect(handler, BODY, headers=AGAIN)
    assert ([name for name, _ in again.events], provider.opened) == (["start", "error"], 1)
    assert [json.loads(data).get(field) for (_, data), field in zip(again.events, ("model", "code"))] == ["", "lost"]


async def test_a_place_that_becomes_free_at_an_unknown_time_has_no_time_in_the_headers():
    never, came = asyncio.Event(), asyncio.Event()

    async def wait():
        came.set()
        await never.wait()

    handler, _, _ = make([*answer("one")[:1], wait], limits={"concurrent_streams": 1})
    async with handler:
        first = asyncio.create_task(collect(handler, BODY))
        await came.wait()
        refused = await collect(handler, BODY)
    await first
    assert (refused.status, refused.headers["ratelimit"]) == (429, '"concurrent_streams";r=0')


class Blind(MemoryStore):
    """A store whose counters can't be read."""

    async def peek(self, lines):
        raise OSError


async def test_a_bad_request_gets_its_field_even_if_the_limits_can_not_be_read():
    handler, _, _ = make(store=Blind())
    async with handler:
        refused = await collect(handler, {"messages": 5})
    assert (refused.status, json.loads(refused.body)["field"], "ratelimit" in refused.headers) == (
        400,
        "messages",
        False,
    )


async def test_a_format_that_sends_the_input_count_first_gets_it():
    handler, _, _ = make(dialect="anthropic")
    async with handler:
        got = await collect(
            handler, {"model": "balanced", "max_tokens": 9, "stream": True, **BODY}, path="/v1/messages"
        )
    start = next(json.loads(data) for name, data in got.events if name == "message_start")
    assert 0 < start["message"]["usage"]["input_tokens"] < 100


class Unreachable(MemoryRuns):
    """Runs of processes that do not answer."""

    async def find(self, name):
        raise RunsUnavailable


async def test_a_repeated_request_with_an_unreachable_run_is_refused_as_still_running():
    never, came = asyncio.Event(), asyncio.Event()

    async def wait():
        came.set()
        await never.wait()

    handler, provider, seen = make([*answer("one")[:1], wait], "finish", logs=Unreachable())
    async with handler:
        first = asyncio.create_task(collect(handler, BODY, headers=AGAIN))
        await came.wait()
        again = await collect(handler, BODY, headers=AGAIN)
    await first
    assert (again.status, json.loads(again.body)["code"]) == (409, "request_in_progress")
    assert (provider.opened, seen.refusals[0][2]) == (1, "request_in_progress")


class Broken(NativeEncoder):
    """An encoder with a bug at the end of an answer."""

    def finish(self, ending):
        raise ZeroDivisionError


class BrokenDialect(Native):
    def encoder(self, request, id):
        return Broken(id)


async def test_a_bug_behind_the_last_token_ends_the_answer_with_an_error(caplog):
    handler, _, _ = make(dialects=[BrokenDialect()])
    async with handler:
        got = await collect(handler, BODY)
    assert ([name for name, _ in got.events], got.complete) == (["start", "token", "token", "error"], True)
    assert json.loads(got.events[-1][1])["code"] == "internal_error"
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(("profile", "status"), [(None, 400), ("able", 200)])
async def test_counting_uses_the_profile_of_the_caller(profile, status):
    handler, provider, _ = make(dialect="anthropic", identify=lambda scope: Caller(id="ada", profile=profile))
    body = {"model": "balanced" if profile is None else "able", "system": "Be brief", **BODY}
    async with handler:
        got = await collect(handler, body, path="/v1/messages/count_tokens")
    assert (got.status, provider.opened) == (status, 0)


async def test_counting_includes_an_earlier_answer_of_the_same_caller_and_no_other():
    handler, _, _ = make(
        dialect="responses", identify=lambda scope: Caller(id=dict(scope["headers"])[b"x-who"].decode())
    )
    ada, bob = ((JSON, (b"x-who", name)) for name in (b"ada", b"bob"))
    async with handler:
        said = await collect(handler, {"model": "balanced", "input": "word " * 50}, path="/v1/responses", headers=ada)
        more = {"model": "balanced", "input": "Go on", "previous_response_id": json.loads(said.body)["id"]}
        alone = await collect(
            handler, {"model": "balanced", "input": "Go on"}, path="/v1/responses/input_tokens", headers=ada
        )
        both = await collect(handler, more, path="/v1/responses/input_tokens", headers=ada)
        stranger = await collect(handler, more, path="/v1/responses/input_tokens", headers=bob)
    counts = [json.loads(each.body)["input_tokens"] for each in (alone, both)]
    assert counts[1] >= counts[0] + 50
    assert (stranger.status, json.loads(stranger.body)["error"]["param"]) == (404, "previous_response_id")
