"""What a process did in the last hour, and how the reports of several become one picture."""

from __future__ import annotations

import pytest
from chat_nest.core.controls import Control
from chat_nest.core.errors import ClientGone, Paused, RateLimited, UpstreamAuth
from chat_nest.core.protocols import Ending, Report
from chat_nest.core.steps import Steps
from chat_nest.core.usage import Usage
from chat_nest.server.admin.activity import _failed, _minutes, _provider, _refused
from chat_nest.server.fleet import MOST_BYTES, Doing, _fitting, _read
from chat_nest.server.tally import BOUNDS, CallCounts, Refusals, Tally, quantile

START = 1_800_000_000.0


class Clock:
    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tally(clock):
    return Tally(clock)


def admitted(error=None, first=0.2, provider="p"):
    steps = Steps(10.0)
    steps.asked_at, steps.opened_at = 10.1, None if first is None else 10.0 + first
    ending = Ending(
        id="r", caller="c", profile="f", model=f"{provider}:m", reason=None, error=error, usage=Usage(),
        source="reported", seconds=1.0, first_token_seconds=first, remaining={},
    )  # fmt: skip
    return Report(
        id="r", dialect="native", code="ok" if error is None else error.code, steps=steps, ending=ending, error=error
    )


def refused(error):
    return Report(id="r", dialect="native", code=error.code, steps=Steps(1.0), error=error)


def test_answers_refusals_and_failures_are_counted_apart(tally):
    for report in (admitted(), admitted(ClientGone()), admitted(UpstreamAuth()), refused(Paused()), refused(Paused())):
        tally.reported(report)
    done = tally.total()
    assert (done.answered, dict(done.failed)) == (2, {"upstream_auth": 1})
    assert dict(done.refused) == {Refusals("paused", "", ""): 2}
    assert (done.calls["p"].count, done.calls["p"].failed) == (3, 1)


def test_a_refusal_by_a_limit_names_it(tally):
    error = RateLimited(limit="requests_per_minute")
    error.scope = "all"
    tally.reported(refused(error))
    assert list(tally.total().refused) == [Refusals("rate_limited", "requests_per_minute", "all")]


def test_counts_older_than_an_hour_are_dropped(tally, clock):
    tally.reported(admitted())
    clock.now += 59 * 60
    tally.reported(admitted())
    assert len(tally.minutes()) == 2
    clock.now += 2 * 60
    assert [(row[1:]) for row in tally.minutes()] == [(1, 0, 0)]
    clock.now += 100_000
    assert tally.minutes() == []
    assert tally.total().answered == 0


def test_a_replay_is_no_second_answer(tally):
    tally.reported(Report(id="r", dialect="native", code="replayed", steps=Steps(1.0)))
    assert tally.minutes() == []


@pytest.mark.parametrize(("share", "seconds"), [(0.5, 0.2), (0.95, 3.0)])
def test_a_quantile_is_within_a_step_of_the_true_one(tally, share, seconds):
    for first in [0.2] * 60 + [3.0] * 40:
        tally.reported(admitted(first=first))
    found = quantile(tally.total().calls["p"].first, share)
    assert seconds / 1.3 <= found <= seconds * 1.3


def test_without_a_first_token_there_is_no_quantile(tally):
    tally.reported(admitted(UpstreamAuth(), first=None))
    assert quantile(tally.total().calls["p"].first, 0.5) is None
    tally.reported(admitted(first=500.0))
    assert quantile(tally.total().calls["p"].first, 0.5) == BOUNDS[-1]


def doing(tally, clock, process, **more):
    done = tally.total()
    given = {
        "process": process, "started_at": START, "version": "1", "at": clock.now, "streams": 1, "queued": 0, "unsettled": 0,
        "expired": 0, "minutes": tally.minutes(), "refused": done.refused.most_common(), "failed": dict(done.failed),
        "calls": done.calls,
    }  # fmt: skip
    return Doing(**given | more)


def test_two_processes_are_added_and_the_worst_breaker_counts(clock):
    one, two = Tally(clock), Tally(clock)
    one.reported(admitted())
    two.reported(admitted(UpstreamAuth()))
    two.reported(refused(Paused()))
    clock.now += 60
    two.reported(admitted())
    both = [
        doing(one, clock, "a:1", keys={"p": (3, 1)}),
        _read(
            Control(
                kind="figures",
                name="b:2",
                value=_fitting(doing(two, clock, "b:2", breakers={"p": "open"}, keys={"p": (3, 2)})).decode(),
            )
        ),
    ]
    minutes = _minutes(both)
    assert minutes["since"] == int(clock.now // 60 - 59) * 60
    assert (minutes["answered"][-2:], minutes["refused"][-2:], minutes["failed"][-2:]) == ([1, 1], [1, 0], [1, 0])
    assert _refused(both) == [{"code": "paused", "requests": 1}]
    assert _failed(both) == [{"code": "upstream_auth", "requests": 1}]
    found = _provider("p", both)
    assert (found["calls"], found["failed"], found["breaker"]) == (3, 1, "open")
    assert found["keys"] == {"count": 3, "resting": 2}
    assert _provider("other", both)["breaker"] == "closed"


def test_a_report_always_fits_into_a_row(tally, clock):
    for number in range(60):
        for provider in range(20):
            for _ in range(3):
                tally.reported(
                    admitted(first=0.05 * 1.3 ** (number % 28), provider=f"{'provider' * 4}-{provider}-{number}")
                )
        clock.now += 60
    clock.now -= 60
    value = _fitting(doing(tally, clock, "a:1"))
    assert len(value) <= MOST_BYTES
    assert _read(Control(kind="figures", name="a", value=value.decode())).minutes == tally.minutes()


def test_a_report_of_another_version_is_left_out():
    assert _read(Control(kind="figures", name="a", value='{"other": 1}')) is None
    assert CallCounts().count == 0
