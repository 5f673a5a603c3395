from __future__ import annotations

from typing import Any

import pytest

from chat_nest.core.claims import MAX_AMOUNT
from chat_nest.core.limits import COUNTERS
from chat_nest.limits.counters import RANGES, Range, check_numbers, is_closed
from chat_nest.core.limits import Limits
from chat_nest.limits.spec import BALANCED, HardCaps, Profile


@pytest.mark.parametrize(
    ("kind", "most", "good", "bad"),
    [
        ("a whole number", 5, [0, 5], [-1, 6, 1.0, True, "1", None]),
        ("a number", 2, [0, 0.0, 2, 2.0], [-0.1, 2.1, float("nan"), float("inf"), True, "1"]),
        ("dollars", 1, [0, 0.0, 1e-9, 0.5, 1], [9e-10, -1e-9, 1.1, False, "1"]),
    ],
)
def test_the_numbers_of_a_range(kind, most, good, bad):
    numbers = Range(most=most, kind=kind)
    assert [each for each in good if not numbers.holds(each)] == []
    assert [each for each in bad if numbers.holds(each)] == []


@pytest.mark.parametrize(
    ("numbers", "rule"),
    [
        (Range(least=1, most=5), 'a whole number from 1 to 5, or "none"'),
        (Range(most=2, kind="a number", optional=False), "a number from 0 to 2"),
        (Range(most=7, kind="dollars"), '0, or a number of dollars from 0.000000001 to 7, or "none"'),
    ],
)
def test_the_rule_of_a_range_in_words(numbers, rule):
    assert numbers.rule == rule


@pytest.mark.parametrize("kind", [Limits, Profile, HardCaps])
def test_a_number_out_of_its_range_is_named_with_the_rule(kind):
    for name, known in RANGES[kind].items():
        check_numbers("it", kind(**{name: known.most}))
        if known.optional:
            check_numbers("it", kind(**{name: None}))
        else:
            with pytest.raises(ValueError, match=f"^it: {name} must be "):
                check_numbers("it", kind(**{name: None}))
        with pytest.raises(ValueError) as refused:
            check_numbers("it", kind(**{name: known.most + 1}))
        assert str(refused.value) == f"it: {name} must be {known.rule}"


@pytest.mark.parametrize("name", [each.name for each in COUNTERS])
def test_a_limit_of_none_at_all_closes(name):
    nothing: dict[str, Any] = {name: 0}
    assert is_closed(Limits(**nothing))
    assert is_closed(Profile(**nothing))
    assert not is_closed(Limits(**{name: MAX_AMOUNT}))


def test_a_request_of_no_tokens_closes_a_profile():
    assert is_closed(Profile(tokens_per_request=0))
    assert not is_closed(BALANCED)
    assert not is_closed(Profile(temperature=0))
