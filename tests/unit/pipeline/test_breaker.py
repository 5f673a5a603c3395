"""A storm opens the breaker, one probe at a time closes it; retries are paid for by answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.pipeline.breaker import CAPACITY, LIMITED_IN_A_ROW, RETRY_COST, STORM, Breaker, RetryBudget, Verdict


def storm(breaker: Breaker, now: float = 0.0, times: int = STORM) -> None:
    for _ in range(times):
        breaker.ended(breaker.era, "ill", now)


def test_a_few_failures_are_no_storm() -> None:
    breaker = Breaker()
    storm(breaker, times=STORM - 1)
    assert breaker.state == "closed"
    assert breaker.admit(0) == 0
    storm(breaker, times=1)
    assert breaker.state == "open"
    assert breaker.admit(0) == 5


def test_failures_among_many_answers_are_no_storm() -> None:
    breaker = Breaker()
    for _ in range(100):
        breaker.ended(breaker.era, "ill", 0)
        assert breaker.state == "closed"
        breaker.ended(breaker.era, "well", 0)
        breaker.ended(breaker.era, "well", 0)


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker()
    for second in range(0, 1_000, 5):
        breaker.ended(breaker.era, "ill", second)
    assert breaker.state == "closed"


def test_one_attempt_probes_after_the_pause_and_its_answer_closes() -> None:
    breaker = Breaker()
    storm(breaker)
    assert breaker.admit(4.9) == pytest.approx(0.1)
    assert breaker.admit(5) == 0
    assert breaker.state == "probing"
    assert breaker.admit(5) == 1, "the others wait for it"
    breaker.ended(breaker.era, "well", 6)
    assert breaker.state == "closed"
    storm(breaker, 6, STORM - 1)
    assert breaker.state == "closed", "what was before is forgotten"


def test_a_probe_that_fails_doubles_the_pause_up_to_a_minute() -> None:
    breaker, now, pauses = Breaker(), 0.0, []
    storm(breaker)
    for _ in range(6):
        pauses.append(breaker.admit(now))
        now += pauses[-1]
        assert breaker.admit(now) == 0
        breaker.ended(breaker.era, "ill", now)
    assert pauses == [5, 10, 20, 40, 60, 60]


def test_after_a_probe_without_a_result_the_next_request_probes() -> None:
    breaker = Breaker()
    storm(breaker)
    assert breaker.admit(5) == 0
    breaker.ended(breaker.era, "unknown", 5)
    assert breaker.state == "open"
    assert breaker.admit(5) == 0
    assert breaker.admit(5) == 1


def test_results_of_earlier_attempts_do_not_count_now() -> None:
    breaker = Breaker()
    before = breaker.era
    storm(breaker)
    breaker.ended(before, "well", 1)
    assert breaker.state == "open"
    assert breaker.admit(5) == 0
    breaker.ended(before, "ill", 5)
    breaker.ended(before, "well", 5)
    assert breaker.state == "probing"


def test_row_38_a_busy_provider_is_not_a_broken_one_until_it_only_ever_refuses() -> None:
    breaker = Breaker()
    for _ in range(10 * LIMITED_IN_A_ROW):
        breaker.ended(breaker.era, "limited", 0, 30)
        breaker.ended(breaker.era, "well", 0)
    assert breaker.state == "closed"
    for _ in range(LIMITED_IN_A_ROW - 1):
        breaker.ended(breaker.era, "limited", 0, 30)
    assert breaker.state == "closed"
    breaker.ended(breaker.era, "limited", 0, 30)
    assert breaker.admit(0) == 30, "for as long as it asked"
    assert breaker.admit(30) == 0
    breaker.ended(breaker.era, "limited", 30)
    assert breaker.admit(30) == 30, "and no longer than that when it is still busy"


@given(st.lists(st.tuples(st.sampled_from(["well", "ill", "limited", "unknown"]), st.floats(0, 40)), max_size=80))
def test_it_never_stays_shut_for_good_and_probes_one_at_a_time(history: list[tuple[Verdict, float]]) -> None:
    breaker, now, running = Breaker(), 0.0, []
    for outcome, later in history:
        now += later
        was_open = breaker.state != "closed"
        if breaker.admit(now) == 0:
            assert not was_open or breaker.state == "probing"
            running.append(breaker.era)
        elif running:
            breaker.ended(running.pop(0), outcome, now)
        if len(running) > 3:
            breaker.ended(running.pop(), outcome, now)
    while running:
        breaker.ended(running.pop(), "unknown", now)
    wait = breaker.admit(now)
    assert 0 <= wait <= 60
    assert breaker.admit(now + wait) == 0 or wait == 0


def test_an_outage_is_not_amplified() -> None:
    budget = RetryBudget()
    assert sum(budget.spend(RETRY_COST) for _ in range(1_000)) == CAPACITY // RETRY_COST
    budget.succeeded()
    assert not budget.spend(RETRY_COST)
    for _ in range(4):
        budget.succeeded()
    assert budget.spend(RETRY_COST)
    budget.succeeded(RETRY_COST)
    assert budget.spend(RETRY_COST), "a retry that helped is given back"
    for _ in range(1_000):
        budget.succeeded()
    assert budget.left == CAPACITY
