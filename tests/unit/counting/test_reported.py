"""Which counts can be true, and what is charged by them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from chat_nest.counting.reported import charge, is_absurd, newest, read_count, read_usage
from chat_nest.core.usage import Usage

MOST = 2**50
counts = st.integers(0, 200)
usages = st.builds(Usage, input_tokens=counts, output_tokens=counts)


def both(usage: Usage | None) -> tuple[int, int] | None:
    return None if usage is None else (usage.input_tokens, usage.output_tokens)


@pytest.mark.parametrize("value", [0, 1, 135, MOST])
def test_an_integer_is_a_count(value: int) -> None:
    assert read_count(value) == value


@pytest.mark.parametrize("value", [-1, MOST + 1, 10**400, 1.0, 1.5, float("nan"), True, "9", "", None, [9], {}])
def test_only_an_integer_in_range_is_a_count(value: object) -> None:
    assert read_count(value) is None
    assert both(read_usage(value, 9)) == (0, 9)
    assert read_usage(9, value) is None
    assert read_usage(9, 2, total=value, reasoning=value, cached=value, cache_write=value) == read_usage(9, 2)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, (32, 9)),
        ({"reasoning": 4}, (32, 9)),
        ({"reasoning": 9}, (32, 9)),
        ({"reasoning": 94}, (32, 103)),
        ({"reasoning": 94, "total": 135}, (32, 103)),
        ({"reasoning": 94, "total": 41}, (32, 103)),
        ({"reasoning": 94, "total": 100}, (32, 103)),
        ({"reasoning": 94, "total": 140}, (32, 108)),
        ({"reasoning": 5, "total": 46}, (32, 14)),
        ({"reasoning": 5, "total": 41}, (32, 9)),
        ({"reasoning": 5, "reasoning_is": "outside"}, (32, 14)),
        ({"total": 135}, (32, 103)),
        ({"total": 41}, (32, 9)),
        ({"total": 7}, (32, 9)),
        ({"total": 0}, (32, 9)),
        ({"total": MOST + 1}, (32, 9)),
        ({"cached": 30}, (32, 9)),
        ({"cached": 5, "cache_write": 2, "cache_is": "outside"}, (39, 9)),
        ({"cached": 1_000}, (32, 9)),
        ({"cached": 1_000, "total": 1_041}, (1_032, 9)),
        ({"cached": 900, "cache_write": 100, "total": 1_041}, (1_032, 9)),
        ({"cached": 20, "cache_write": 20, "total": 81}, (72, 9)),
        # A total that does not hold both says nothing of the cache: what it has more is output.
        ({"cached": 900, "cache_write": 100, "total": 1_040}, (32, 1_008)),
        ({"cached": 900, "cache_write": 100, "total": 841}, (32, 809)),
        ({"cached": 1_000, "total": 1_032}, (32, 1_000)),
        ({"cached": 32, "total": 73}, (32, 41)),  # a cached part that is all of the input is not outside of it
    ],
)
def test_parts_and_totals_that_disagree(facts: dict[str, Any], expected: tuple[int, int]) -> None:
    assert both(read_usage(32, 9, **facts)) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, (0, 9)),
        ({"total": 41}, (32, 9)),
        ({"total": 9}, (0, 9)),
        ({"total": 5}, (0, 9)),
        ({"total": 135, "reasoning": 94}, (32, 103)),
        ({"total": 41, "cached": 20}, (32, 9)),
        ({"total": 41, "cached": 5, "cache_write": 2, "cache_is": "outside"}, (32, 9)),
        ({"total": 46, "reasoning": 5, "reasoning_is": "outside"}, (32, 14)),
    ],
)
def test_an_input_that_is_missing_is_the_rest_of_the_total(facts: dict[str, Any], expected: tuple[int, int]) -> None:
    assert both(read_usage(None, 9, **facts)) == expected
    assert both(read_usage(None, 9, **facts, known=Usage(output_tokens=3))) == expected
    assert read_usage(None, 0, **facts) is None


@pytest.mark.parametrize(("total", "expected"), [(41, (32, 9)), (32, None), (5, None), (None, None)])
def test_an_output_that_is_missing_is_the_rest_of_the_total(total: object, expected: tuple[int, int] | None) -> None:
    assert both(read_usage(32, None, total=total)) == expected


@given(counts, counts, counts, counts, counts, counts, st.sampled_from(["inside", "outside"]), usages | st.none())
def test_a_usage_is_never_below_its_counts_and_its_parts_fit(
    prompt, answer, total, reasoning, cached, written, place, known
) -> None:
    usage = read_usage(
        prompt,
        answer,
        total=total,
        reasoning=reasoning,
        cached=cached,
        cache_write=written,
        cache_is=place,
        reasoning_is=place,
        known=known,
    )
    assert usage is not None
    assert usage.total_tokens >= max(total, prompt + answer)
    assert usage.reasoning_tokens <= usage.output_tokens
    assert usage.cached_input_tokens + usage.cache_write_tokens <= usage.input_tokens
    if known is not None:
        assert usage.input_tokens >= known.input_tokens
        assert usage.output_tokens >= known.output_tokens


def test_a_count_that_is_lower_than_the_one_before_is_none() -> None:
    first = read_usage(15, 0, cached=10, cache_write=2)
    assert both(read_usage(0, 5, known=first)) == (15, 5)
    assert both(read_usage(None, 5, known=first)) == (15, 5)
    assert both(read_usage("15", None, known=first)) == (15, 0)
    assert both(read_usage(20, 5, known=first)) == (20, 5)
    later = read_usage(0, 5, known=first)
    assert later is not None
    assert (later.cached_input_tokens, later.cache_write_tokens) == (10, 2), "of the input that is kept"
    assert newest(Usage(output_tokens=9, reasoning_tokens=4), Usage(output_tokens=2)) == Usage(
        output_tokens=9, reasoning_tokens=4
    )
    assert newest(Usage(), Usage(input_tokens=-5, output_tokens=-1)) == Usage()


def charged(reported: Usage | None, *, produced: int = 0, **facts):
    usage, source = charge(reported, input_bound=40, produced=produced, **facts)
    return usage.input_tokens, usage.output_tokens, source


def said(prompt: int, answer: int) -> Usage:
    return Usage(input_tokens=prompt, output_tokens=answer)


@pytest.mark.parametrize(
    ("reported", "facts", "expected"),
    [
        (said(15, 5), {"produced": 4}, (15, 5, "reported")),
        (said(15, 5), {}, (15, 5, "reported")),  # hidden, or a call that was left out
        (said(15, 0), {}, (15, 0, "reported")),
        (said(0, 0), {}, (0, 0, "reported")),  # nothing came and nothing is said to be due
        (None, {"produced": 4}, (40, 4, "estimated")),
        # A zero beside a real answer.
        (said(0, 0), {"produced": 4}, (40, 4, "estimated")),
        (said(15, 0), {"produced": 4}, (15, 4, "estimated")),
        (said(0, 5), {"produced": 4}, (40, 5, "estimated")),
        (said(0, 5), {}, (40, 5, "estimated")),
        (said(15, 1), {"produced": 300}, (15, 1, "reported")),
        (said(1, 4), {"produced": 4}, (1, 4, "reported")),
        (said(15, 5), {"produced": 9, "since": 4}, (15, 5, "reported")),  # the provider's last word
        # A report that more output followed.
        (said(15, 5), {"produced": 9, "since": 4, "final": False}, (15, 9, "estimated")),
        (said(15, 0), {"produced": 9, "since": 9, "final": False}, (15, 9, "estimated")),
        # What was cut off, or thought out of sight.
        (said(15, 5), {"produced": 9, "since": 4, "final": False, "held_output": 50}, (15, 50, "assumed")),
        (said(15, 0), {"produced": 9, "held_output": 50}, (15, 50, "assumed")),
        (said(0, 7), {"produced": 9, "held_output": 50}, (40, 7, "estimated")),
        (said(15, 5), {"produced": 9, "held_output": 50}, (15, 5, "reported")),
        (None, {"produced": 60, "held_output": 50}, (40, 60, "assumed")),
        # More than a store takes.
        (said(3 * MOST, 5), {"produced": 9}, (MOST, 5, "reported")),
        (said(15, 2 * MOST), {}, (15, MOST, "reported")),
    ],
)
def test_what_is_charged(reported, facts, expected) -> None:
    assert charged(reported, **facts) == expected


def test_the_parts_of_a_count_are_kept_and_missing_parts_are_zero() -> None:
    assert read_usage(0, 0) == read_usage(0, 0, cached=1) == Usage()
    assert read_usage(32, 9) == said(32, 9)
    assert read_usage(32, 9, cached=20, cache_write=5, reasoning=4) == Usage(
        input_tokens=32, output_tokens=9, cached_input_tokens=20, cache_write_tokens=5, reasoning_tokens=4
    )


def test_the_parts_come_from_the_report_that_the_count_comes_from() -> None:
    def usage(*counts: int) -> Usage:
        names = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")
        return Usage(**dict(zip(names, counts, strict=True)))

    assert newest(usage(10, 5, 3, 2), usage(10, 5, 4, 4)) == usage(10, 5, 4, 4), "as many: the newer one's"
    assert newest(usage(10, 5, 3, 2), usage(12, 2, 6, 1)) == usage(12, 5, 6, 2)
    assert newest(usage(10, 5, 3, 2), usage(9, 7, 6, 4)) == usage(10, 7, 3, 4)
    assert newest(usage(10, 5, 3, 2), usage(10, 4, 6, 1)) == usage(10, 5, 6, 2)


def test_a_prompt_that_we_counted_has_no_cached_parts() -> None:
    odd = Usage(output_tokens=4, cached_input_tokens=3, cache_write_tokens=2)
    assert charge(odd, input_bound=40, produced=4) == (said(40, 4), "estimated")


def test_clamped_counts_keep_their_parts_inside() -> None:
    huge = Usage(
        input_tokens=3 * MOST,
        output_tokens=2 * MOST,
        cached_input_tokens=MOST,
        cache_write_tokens=MOST,
        reasoning_tokens=2 * MOST,
    )
    usage, _ = charge(huge, input_bound=1, produced=1)
    assert usage == Usage(
        input_tokens=MOST,
        output_tokens=MOST,
        cached_input_tokens=MOST,
        cache_write_tokens=0,
        reasoning_tokens=MOST,
    )
    usage, _ = charge(
        replace(huge, input_tokens=10, cached_input_tokens=3, cache_write_tokens=4), input_bound=1, produced=1
    )
    assert (usage.cached_input_tokens, usage.cache_write_tokens) == (3, 4)
    assert is_absurd(huge)
    assert not is_absurd(said(MOST, MOST))
