from __future__ import annotations

import math

from typing import Any
import pytest
from msgspec.structs import replace

from chat_nest.core.claims import Claim, Line, Refused
from chat_nest.core.errors import BudgetExceeded, LimitExceeded, RateLimited, RequestTooLarge, TooManyStreams
from chat_nest.core.limits import Limits, Unit
from chat_nest.core.messages import Caller, Message
from chat_nest.core.records import Record
from chat_nest.core.usage import Usage
from chat_nest.counting.bounds import prompt_bound
from chat_nest.counting.tokens import counter_for
from chat_nest.dialects.native import Native
from chat_nest.limits.prices import Prices, price
from chat_nest.limits.profiles import Profiles
from chat_nest.limits.refusals import limit_error
from chat_nest.limits.spec import BALANCED, HardCaps, Profile

NOON = 1_772_366_400.0  # 2026-03-01 12:00 UTC
CALLER = Caller(id="203.0.113.5", group="acme")
WIDE = HardCaps(tokens_per_day=10**12, tokens_per_request=10**9, requests_per_minute=10**6)
PRICES = Prices({"openai:*": price(input=10, output=1_000)})
SCOPES = ("caller", "group", "all")


def claim(prompt: int, scope: str = "caller", least: int = 16, **limits: Any) -> Claim:
    """One limit, of this scope, and a request whose prompt has so many tokens."""
    none = replace(BALANCED, tokens_per_request=None, requests_per_minute=None, tokens_per_day=None)
    profile = replace(none, **limits) if scope == "caller" else none
    groups = {"acme": Limits(**limits) if scope == "group" else Limits()}
    shared = Limits(**limits) if scope == "all" else Limits()
    rules = Profiles({"balanced": profile}, shared, WIDE, "UTC", groups=groups, prices=PRICES)
    return Claim(
        id="a",
        fingerprint="f",
        lines=rules.lines(CALLER, profile, prompt, NOON),
        max_output_tokens=400,
        min_output_tokens=least,
        record=Record(
            run="r",
            caller="c",
            group="",
            profile="balanced",
            model="openai:gpt-4o-mini",
            started_at=NOON,
            usage=Usage(input_tokens=prompt, output_tokens=400),
        ),
    )


def refused(asked: Claim, room: int, wait: float = 7.5) -> LimitExceeded:
    assert len(asked.lines) == 1
    error = limit_error(asked, Refused(line=0, room=room, retry_after=wait))
    assert error.status == 429
    assert (error.scope, error.room) == (asked.lines[0].scope, room)
    return error


WORDS = {"hour": ("Hourly", "when the hour is over"), "day": ("Daily", "tomorrow"), "month": ("Monthly", "next month")}


def test_an_exhausted_budget_of_a_caller_has_the_text_of_the_npm_server() -> None:
    error = refused(claim(100, tokens_per_day=700), room=0)
    assert type(error) is BudgetExceeded
    assert (error.message, error.retry_after, error.retryable) == (
        "Daily AI budget exceeded. Try again tomorrow.",
        7.5,
        False,
    )


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("window", ["minute", "hour", "day", "month"])
@pytest.mark.parametrize("unit", ["tokens", "usd", "requests"])
def test_an_exhausted_window_names_its_span_and_its_owner(scope: str, window: str, unit: Unit) -> None:
    name = f"{unit}_per_{window}"
    error = refused(claim(100, scope, **{name: 700}), room=0)
    is_rate = unit == "requests" or name == "tokens_per_minute"
    assert type(error) is (RateLimited if is_rate else BudgetExceeded)
    assert (error.limit, error.retry_after) == (name, 7.5)
    if is_rate and window == "minute":
        assert ("Rate limit exceeded. Please slow down." == error.message) == (scope == "caller")
    else:
        named, later = WORDS.get(window, ("AI budget", "in a minute"))
        assert error.message.startswith(named)
        assert f"Try again {later}." in error.message
    assert ("group" in error.message) == (scope == "group")
    assert ("All users" in error.message or "all users" in error.message) == (scope == "all")
    assert scope == "caller" or not {"slow down", "your message"} & {error.message}


@pytest.mark.parametrize("scope", SCOPES)
def test_the_refusal_names_left_and_needed_tokens_if_a_shorter_message_may_fit(scope: str) -> None:
    error = refused(claim(324, scope, tokens_per_day=700), room=127)
    assert type(error) is BudgetExceeded
    assert error.message.startswith(
        "Daily AI budget too low for this request: 127 tokens left, 340 tokens needed. "
        "A shorter message or a new chat may fit."
    )
    assert error.retry_after == 7.5
    assert b'"remaining":127,"needed":340' in Native().refuse(error, "r1").body


def test_dollars_are_named_in_dollars_the_rest_rounded_down_and_the_need_up() -> None:
    error = refused(claim(1_000, usd_per_month=1.0), room=20_123_456)
    assert "Monthly AI budget too low for this request: $0.020 left, $0.026 needed." in error.message
    assert b'"remaining":0.020123456,"needed":0.026' in Native().refuse(error, "r1").body
    error = refused(claim(1_000, least=1, usd_per_hour=2_000.0), room=1_234_567_890)
    assert "$1.23 left" in error.message


@pytest.mark.parametrize("room", [1, 15, 50])
def test_a_shorter_message_is_not_suggested_if_none_fits(room: int) -> None:
    error = refused(claim(324, tokens_per_day=700), room)
    left = f"{room} token{'s' * (room > 1)} left"
    assert error.message == f"Daily AI budget nearly used up: {left}, too little for an answer. Try again tomorrow."
    body = Native().refuse(error, "r1").body
    assert b'"remaining":%d,' % room in body
    assert b"needed" not in body


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "name", [f"{unit}_per_{span}" for unit in ("tokens", "usd") for span in ("minute", "hour", "day", "month")]
)
@pytest.mark.parametrize("room", [0, 3, 700])
def test_a_request_over_the_whole_window_is_too_large_and_no_wait_helps(scope: str, name: str, room: int) -> None:
    limit: dict[str, Any] = {name: 0.05 if name.startswith("usd") else 700}
    error = refused(claim(5_000, scope, **limit), room)
    assert type(error) is RequestTooLarge
    assert (error.limit, error.retry_after, error.retryable) == (name, None, False)
    assert error.message == "Request too large. Please shorten your message."


def test_a_request_over_the_limit_of_one_request_is_too_large() -> None:
    profile = Profile(tokens_per_request=200)
    rules = Profiles({"balanced": profile}, Limits(), WIDE, "UTC")
    line = rules.lines(CALLER, profile, 300, NOON)[0]
    error = refused(replace(claim(300, tokens_per_day=700), lines=(line,)), 200)
    assert (type(error), error.message) == (RequestTooLarge, "Request too large. Please shorten your message.")


def test_the_user_is_not_advised_to_shorten_if_the_limit_admits_no_message() -> None:
    error = refused(claim(45, tokens_per_day=10), 10)
    assert error.message == "Request too large: not even a short message fits into this limit."


@pytest.mark.parametrize("scope", SCOPES)
def test_too_many_streams_give_no_lease_as_the_wait(scope: str) -> None:
    error = refused(claim(100, scope, concurrent_streams=1), room=0, wait=56.0)
    assert type(error) is TooManyStreams
    assert (error.limit, error.retry_after, error.retryable) == ("concurrent_streams", None, True)
    assert (error.message == "Too many answers at once. Please wait for one to end.") == (scope == "caller")


@pytest.mark.parametrize("wait", [0.0, -1.0, math.inf, math.nan])
def test_a_wait_that_is_not_known_is_left_out(wait: float) -> None:
    assert refused(claim(1, requests_per_minute=5), 0, wait).retry_after is None


def window(name: str, unit: Unit = "tokens", **how: int) -> Line:
    return Line(name=name, scope="caller", key="k", unit=unit, kind="window", resets_at=NOON, **{"limit": 2**50, **how})


def bare(line: Line, least: int = 0) -> Claim:
    """A claim of which nothing is kept."""
    return Claim(id="a", fingerprint="f", lines=(line,), max_output_tokens=400, min_output_tokens=least)


@pytest.mark.parametrize(
    ("nanousd", "down", "up"),
    [
        (1, "$0.000000001", "$0.000000001"),
        (99, "$0.000000099", "$0.000000099"),
        (100, "$0.00000010", "$0.00000010"),
        (109, "$0.00000010", "$0.00000011"),
        (991, "$0.00000099", "$0.00000100"),
        (999_999, "$0.00099", "$0.00100"),
        (1_000_000, "$0.0010", "$0.0010"),
        (9_999_999, "$0.0099", "$0.0100"),
        (10_000_000, "$0.010", "$0.010"),
        (99_999_999, "$0.099", "$0.100"),
        (100_000_000, "$0.10", "$0.10"),
        (109_999_999, "$0.10", "$0.11"),
        (999_999_999, "$0.99", "$1.00"),
        (1_000_000_000, "$1.00", "$1.00"),
        (1_230_000_001, "$1.23", "$1.24"),
        (1_234_567_890_123, "$1,234.56", "$1,234.57"),
    ],
)
def test_dollars_have_two_digits_that_count_the_rest_rounded_down_and_the_need_up(nanousd, down, up) -> None:
    asked = bare(window("usd_per_day", "nanousd", fixed=nanousd))
    error = limit_error(asked, Refused(line=0, room=nanousd, retry_after=1.0))
    assert error.message == (
        f"Daily AI budget too low for this request: {down} left, {up} needed. A shorter message or a new chat may fit."
    )


@pytest.mark.parametrize(("tokens", "text"), [(1, "1 token"), (2, "2 tokens"), (12_345, "12,345 tokens")])
def test_tokens_are_counted_one_by_one(tokens: int, text: str) -> None:
    error = limit_error(bare(window("tokens_per_day", fixed=tokens)), Refused(line=0, room=tokens, retry_after=1.0))
    assert f": {text} left, {text} needed." in error.message


@pytest.mark.parametrize(
    ("name", "unit", "text"),
    [
        ("requests_per_hour", "requests", "Hourly limit of requests reached. Try again when the hour is over."),
        ("requests_per_day", "requests", "Daily limit of requests reached. Try again tomorrow."),
        ("requests_per_month", "requests", "Monthly limit of requests reached. Try again next month."),
        ("tokens_per_hour", "tokens", "Hourly AI budget exceeded. Try again when the hour is over."),
        ("usd_per_month", "nanousd", "Monthly AI budget exceeded. Try again next month."),
        ("usd_per_minute", "nanousd", "AI budget exceeded. Try again in a minute."),
    ],
)
@pytest.mark.parametrize(
    ("scope", "whose"), [("caller", ""), ("group", " Your whole group shares it."), ("all", " All users share it.")]
)
def test_the_whole_text_of_a_spent_window(name: str, unit: Unit, text: str, scope: str, whose: str) -> None:
    line = replace(window(name, unit, fixed=5), scope=scope)
    assert limit_error(bare(line), Refused(line=0, room=0, retry_after=1.0)).message == text + whose


@pytest.mark.parametrize(
    ("scope", "rate", "streams"),
    [
        ("caller", "Rate limit exceeded. Please slow down.", "Too many answers at once. Please wait for one to end."),
        (
            "group",
            "Too many requests from your group right now. Please try again shortly.",
            "Too many answers at once in your group. Please try again when one has ended.",
        ),
        (
            "all",
            "Too many requests from all users together right now. Please try again shortly.",
            "Too many answers at once for all users together. Please try again shortly.",
        ),
    ],
)
def test_the_whole_text_of_what_ends_by_itself(scope: str, rate: str, streams: str) -> None:
    assert refused(claim(100, scope, requests_per_minute=5), room=0).message == rate
    assert refused(claim(100, scope, concurrent_streams=1), room=0).message == streams


WORD = prompt_bound([Message(role="user", content="Hi")], counter_for("gpt-4o-mini"))
"""The bound of the shortest prompt."""


@pytest.mark.parametrize(
    ("tokens", "needed"),
    [(4 * WORD, WORD), (WORD, WORD), (1, 1)],
    ids=["as much as the word", "the word itself", "less than a word has"],
)
@pytest.mark.parametrize("least", [0, 16])
def test_a_shorter_message_is_offered_from_the_room_of_one_word(tokens: int, needed: int, least: int) -> None:
    asked = replace(claim(tokens, least=least), lines=(window("tokens_per_day", fixed=tokens, per_million=1_000_000),))

    def text(room: int) -> str:
        return limit_error(asked, Refused(line=0, room=room, retry_after=1.0)).message

    assert "A shorter message" in text(needed + least)
    assert "too little for an answer" in text(needed + least - 1) or needed + least == 1


def test_the_share_of_a_word_in_a_prompts_dollars_is_rounded_up() -> None:
    asked = replace(claim(3 * WORD), lines=(window("usd_per_day", "nanousd", fixed=100),))
    assert "shorter" not in limit_error(asked, Refused(line=0, room=33, retry_after=1.0)).message
    assert "shorter" in limit_error(asked, Refused(line=0, room=34, retry_after=1.0)).message


@pytest.mark.parametrize("record", [None, Record(run="r", caller="c", model="openai:gpt-4o-mini")])
def test_of_an_unknown_prompt_any_room_beside_the_answer_may_do(record: Record | None) -> None:
    line = window("tokens_per_day", fixed=50, per_million=1_000_000)
    asked = replace(bare(line, least=16), record=record)
    assert "shorter" not in limit_error(asked, Refused(line=0, room=16, retry_after=1.0)).message
    error = limit_error(asked, Refused(line=0, room=17, retry_after=1.0))
    assert "shorter" in error.message
    assert error.needed == 66


@pytest.mark.parametrize(
    ("limit", "fixed", "least", "most"),
    [(700, 701, 0, 700), (700, 690, 16, 684), (10, 50, 16, 0)],
)
def test_a_request_that_is_too_large_in_tokens_names_its_prompt_and_the_largest(limit, fixed, least, most) -> None:
    line = window("tokens_per_day", limit=limit, fixed=fixed, per_million=1_000_000)
    error = limit_error(bare(line, least), Refused(line=0, room=3, retry_after=1.0))
    assert isinstance(error, RequestTooLarge)
    assert (error.tokens, error.most) == (fixed, most)
    assert (error.limit, error.scope, error.room, error.unit, error.resets_at) == (
        "tokens_per_day", "caller", 3, "tokens", NOON,
    )  # fmt: skip


def test_a_request_of_exactly_the_limit_waits() -> None:
    line = window("tokens_per_day", limit=700, fixed=684, per_million=1_000_000)
    error = limit_error(bare(line, 16), Refused(line=0, room=3, retry_after=1.0))
    assert isinstance(error, BudgetExceeded)
    assert (error.needed, error.retry_after) == (0, 1.0)


def test_dollars_that_are_too_many_name_no_tokens() -> None:
    line = window("usd_per_day", "nanousd", limit=700, fixed=701)
    error = limit_error(bare(line), Refused(line=0, room=3, retry_after=1.0))
    assert isinstance(error, RequestTooLarge)
    assert (error.tokens, error.most, error.unit) == (0, 0, "nanousd")


def test_the_line_that_refused_is_the_one_that_is_named() -> None:
    lines = window("tokens_per_day", fixed=1), window("tokens_per_month", fixed=1)
    asked = replace(bare(lines[0]), lines=lines)
    assert limit_error(asked, Refused(line=1, room=0, retry_after=1.0)).limit == "tokens_per_month"


def test_the_shortest_message_is_counted_for_the_requested_model() -> None:
    asked = claim(1_000, least=0)
    asked = replace(
        asked,
        lines=(window("tokens_per_day", fixed=1_000),),
        record=replace(asked.record, model="ollama:llama3:8b"),  # type: ignore[type-var]
    )
    word = prompt_bound([Message(role="user", content="Hi")], counter_for("llama3:8b"))
    assert word > prompt_bound([Message(role="user", content="Hi")], counter_for("8b"))
    assert "shorter" in limit_error(asked, Refused(line=0, room=word, retry_after=1.0)).message
    assert "shorter" not in limit_error(asked, Refused(line=0, room=word - 1, retry_after=1.0)).message
