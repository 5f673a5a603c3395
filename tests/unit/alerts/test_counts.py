"""What alerts cost a request: two calls that add numbers, and nothing for the event loop to do."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from chat_nest.alerts.counts import Counts
from chat_nest.core.errors import RateLimited, UpstreamAuth
from chat_nest.core.messages import Caller, Visit
from chat_nest.core.protocols import Ending
from chat_nest.core.usage import Usage

VISITOR = Caller(id="v", visit=Visit(id="0" * 32, issued=1, counted_as="203.0.113.9"))


def ending(error=None):
    return Ending(
        id="r", caller="c", profile="balanced", model="p:m", reason=None if error else "stop", error=error, usage=Usage(),
        source="reported", seconds=1.0, first_token_seconds=None, remaining={},
    )  # fmt: skip


def limited():
    error = RateLimited(limit="usd_per_day")
    error.scope = "group"
    return error


def steps(call, *arguments):
    """The Python functions that a call enters, and what it returns."""
    entered: Counter[str] = Counter()

    def note(frame, event, _):
        if event == "call":
            entered[frame.f_code.co_qualname] += 1

    sys.setprofile(note)
    try:
        returned = call(*arguments)
    finally:
        sys.setprofile(None)
    return entered, returned


@pytest.mark.parametrize("caller", [Caller(id="key:ada"), VISITOR], ids=["known", "new visitor"])
def test_an_answer_costs_two_steps(caller):
    counts = Counts()
    for call, arguments in ((counts.started, ("r", caller, "balanced", "p:m")), (counts.finished, (ending(),))):
        entered, returned = steps(call, *arguments)
        assert entered == {call.__qualname__: 1}
        assert returned is None  # nothing to wait for


def test_a_refusal_costs_one_step_and_one_more_for_a_new_code():
    counts = Counts()
    steps(counts.refused, "r", None, limited())
    entered, _ = steps(counts.refused, "r", Caller(id="x", group="lab"), limited())
    assert entered.total() == 1
    assert counts.refusals == {"rate_limited": 2}
    assert counts.full == {("group", "", "usd_per_day"), ("group", "lab", "usd_per_day")}


def test_what_is_counted_grows_with_the_configuration_only():
    counts = Counts()
    for number in range(1_000):
        counts.refused(f"r{number}", Caller(id=f"caller {number}"), limited())
        counts.started(f"r{number}", VISITOR, "balanced", "p:m")
        counts.finished(ending(UpstreamAuth()))
    assert (len(counts.refusals), len(counts.full), counts.keys) == (1, 1, {"p": "upstream_auth"})
    assert counts.visitors == 1_000
