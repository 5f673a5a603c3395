"""What is recorded and told of a request that has ended, and of one that repeats it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from chat_nest.core.errors import ChatError, UpstreamTimeout
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Ending, Finale
from chat_nest.core.records import Record
from chat_nest.core.usage import Usage
from chat_nest.limits.prices import Prices, price
from chat_nest.pipeline.outcome import (
    Times,
    finale_of,
    followed_ending,
    make_ending,
    make_record,
    replayed_ending,
)

USAGE = Usage(input_tokens=10, output_tokens=5)
PRICES = Prices({"p:m": price(input=1, output=2)})
TIMES = Times(began=100.0, first=100.25, ended=102.0)
RECORD = Record(
    run="run", caller=Caller(id="ada").key, group="team", profile="small", model="p:m", started_at=1_790_000_000.0,
    seconds=2.0, first_token_seconds=0.25, usage=USAGE, cost=20_000, price="own", source="reported", ending="stop",
)  # fmt: skip
ENDING = Ending(
    id="run", caller=Caller(id="ada").key, group="team", profile="small", model="p:m", reason="stop", error=None,
    usage=USAGE, cost=20_000, source="reported", seconds=2.0, first_token_seconds=0.25, remaining={"requests_per_day": 3},
    dropped_messages=4, dropped_images=1,
)  # fmt: skip


def admission(**more: Any) -> Any:
    found: dict[str, Any] = {
        "run": "run",
        "caller": Caller(id="ada", group="team"),
        "profile": SimpleNamespace(name="small"),
        "started_at": 1_790_000_000.0,
        "dropped": SimpleNamespace(messages=4, images=1),
    }
    return SimpleNamespace(**{**found, **more})


def held(model: str = "p:m", *, spent_nothing: bool = False) -> Any:
    return SimpleNamespace(
        model=model,
        lost=None,
        spent_nothing=spent_nothing,
        charged=None,
        spent=lambda: (USAGE, "reported"),
        remaining=lambda usage, cost: {"requests_per_day": 3} if (usage, cost) == (USAGE, 20_000) else {},
    )


def test_a_record_has_all_that_is_known_of_the_request() -> None:
    assert make_record(admission(), held(), "stop", None, TIMES, PRICES) == RECORD


def test_a_record_of_a_request_that_failed_before_a_model_answered() -> None:
    failed = make_record(
        admission(caller=Caller(id="ada")), held("", spent_nothing=True), None, UpstreamTimeout(), Times(1.0, None, 1.5),
        PRICES,
    )  # fmt: skip
    assert (failed.group, failed.model, failed.cost, failed.price, failed.spent_nothing) == ("", "", None, "", True)
    assert (failed.seconds, failed.first_token_seconds, failed.ending) == (0.5, None, UpstreamTimeout.code)


def test_nothing_was_spent_only_by_a_request_that_failed_and_an_unheard_of_end_has_a_name() -> None:
    record = make_record(admission(), held(spent_nothing=True), None, None, TIMES, PRICES)
    assert (record.spent_nothing, record.ending) == (False, "other")
    assert not make_record(admission(), held(), None, UpstreamTimeout(), TIMES, PRICES).spent_nothing
    assert make_record(admission(), held("p:new"), "stop", None, TIMES, PRICES).price == ""


def test_the_last_event_has_what_is_recorded_and_what_is_left() -> None:
    assert make_ending(admission(), held(), RECORD, "stop", None) == ENDING


def test_a_follower_gets_the_ending_of_the_first_request() -> None:
    assert followed_ending(finale_of(ENDING)) is ENDING
    late = UpstreamTimeout()
    late.message = "Told once"
    late.retryable = False  # type: ignore[misc]  # as some failures of this code
    found = followed_ending(finale_of(make_ending(admission(), held(), RECORD, None, late)))
    assert isinstance(found, UpstreamTimeout)
    assert (found.code, found.message, found.retryable) == (late.code, "Told once", False)
    lost, unknown = followed_ending(None), followed_ending(Finale(code="unheard_of", message="Of a newer version"))
    assert isinstance(lost, ChatError)
    assert lost.code == "lost"
    assert isinstance(unknown, ChatError)
    assert unknown.message == "Of a newer version"


@pytest.mark.parametrize("ending", ["upstream_timeout", "lost", "unheard_of"])
def test_a_repeated_request_gets_the_recorded_end(ending: str) -> None:
    again = replayed_ending(RECORD)
    assert isinstance(again, Ending)
    assert (again.reason, again.remaining, again.usage) == ("stop", {}, USAGE)
    failed: dict[str, Any] = {name: getattr(RECORD, name) for name in RECORD.__struct_fields__} | {"ending": ending}
    for record in (Record(**failed), None if ending == "lost" else Record(**failed)):
        error = replayed_ending(record)
        assert isinstance(error, ChatError)
        assert error.message.endswith(f"ended without an answer ({error.code}): use a new key")
        assert not error.retryable
