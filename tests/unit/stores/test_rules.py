"""The steps of a Book and what they leave behind for a store to write, and the edges of what a claim may hold."""

from __future__ import annotations

import math
import re

import pytest
from msgspec.structs import replace
from stores_under_test import START, claim, gauge, rate, request, window

from chat_nest.core.claims import Conflict, Duplicate, Granted, Refused, Standing
from chat_nest.core.records import Record
from chat_nest.core.usage import Usage
from chat_nest.stores.checks import (
    check_actual,
    check_claim,
    check_line,
    check_owner,
    check_record,
    check_text,
    lease_us,
)
from chat_nest.stores.rules import Book, Counter, Hold, StoredClaim

US = 1_000_000
NOW = int(START) * US
LEASE = 60 * US
MOST = 2**50
RECORD = Record(run="r", caller="c", model="p:m", started_at=START, usage=Usage(input_tokens=7, output_tokens=100))


@pytest.fixture
def book():
    return Book({}, {}, lambda key: None)


def changed(book):
    """The ids of the reservations that a store has to write."""
    return [each.id for each in book.changed]


# What is granted, and what a store finds to write


def test_a_granted_claim_is_a_reservation_with_its_holds(book):
    lines = window(1_000, fixed=5), rate(30), gauge(2), request(500)
    one = replace(claim("a", *lines, most=40), owner="o", record=RECORD)
    assert book.reserve(one, LEASE, NOW) == Granted(output_tokens=40, room=(955, 29, 1, 460))
    assert changed(book) == ["a"]
    assert book.changed[0] == StoredClaim(
        "a", "same", "open", 40, NOW, NOW + LEASE, None, None,
        [
            Hold("tokens_per_day", "day", "tokens", "window", 45),
            Hold("requests_per_minute", "minute", "requests", "rate", 1, None, 30, 60, NOW + 2 * US),
            Hold("concurrent_streams", "streams", "streams", "gauge", 1),
        ],
        RECORD, "o",
    )  # fmt: skip
    assert book.created == [
        Counter("day", "window", 0, 45, 0, NOW + 86_400 * US),
        Counter("minute", "rate", 0, 0, NOW + 2 * US, NOW),
        Counter("streams", "gauge", 0, 1),
    ]
    assert book.counters.keys() == {"day", "minute", "streams"}
    assert (book.extended, book.revived, book.set_back) == ([], [], [])


def test_a_limit_on_one_request_is_whole_for_the_next(book):
    for id in ("a", "b"):
        assert book.reserve(claim(id, request(150)), LEASE, NOW) == Granted(output_tokens=100, room=(50,))
    assert (book.counters, book.created) == ({}, [])
    assert book.peek([request(150)], (), NOW) == (Standing(used=0, held=0, room=150, resets_at=0.0),)


def test_a_claim_that_is_refused_leaves_nothing(book):
    book.reserve(claim("a", window(100)), LEASE, NOW)
    book.changed.clear()
    book.created.clear()
    refused = book.reserve(claim("b", rate(5), window(100)), LEASE, NOW)
    assert refused == Refused(line=1, room=0, retry_after=86_400.0)
    assert (book.changed, book.created, "b" in book.reservations, "minute" in book.counters) == ([], [], False, False)


@pytest.mark.parametrize(("least", "granted"), [(30, True), (31, False)])
def test_the_least_output_decides_between_less_and_nothing(book, least, granted):
    answer = book.reserve(claim("a", window(30), least=least), LEASE, NOW)
    assert answer == (
        Granted(output_tokens=30, room=(0,)) if granted else Refused(line=0, room=30, retry_after=86_400.0)
    )


def test_a_window_that_is_over_has_no_wait(book):
    line = window(10, resets_at=START - 1)
    assert book.reserve(claim("a", line, least=11), LEASE, NOW) == Refused(line=0, room=10, retry_after=0.0)


@pytest.mark.parametrize(("soonest", "wait"), [(None, 1.0), (NOW - US, 1.0), (NOW + US // 2, 1.0), (NOW + 9 * US, 9.0)])
def test_the_wait_for_a_gauge_is_its_first_lease_and_at_least_a_second(soonest, wait):
    book = Book({}, {}, lambda key: soonest if key == "streams" else -1)
    assert book.reserve(claim("a", gauge(0)), LEASE, NOW).retry_after == wait


def test_no_wait_makes_one_request_smaller(book):
    assert book.reserve(claim("a", request(10), least=11), LEASE, NOW) == Refused(line=0, room=10, retry_after=0.0)


def test_the_wait_for_a_rate_is_that_for_the_least_output(book):
    line = rate(60, fixed=0, per_token=1, unit="tokens")
    assert book.reserve(claim("a", line, most=60), LEASE, NOW).output_tokens == 60
    assert book.reserve(claim("b", line, least=30), LEASE, NOW).retry_after == pytest.approx(30, abs=1e-5)
    assert book.reserve(claim("c", line, least=61), LEASE, NOW).retry_after == 60.0
    assert Book({}, {}, lambda key: None).reserve(claim("d", line, least=61), LEASE, NOW).retry_after == 60.0


def test_a_rate_of_a_clock_set_back_is_written_to_the_store_even_if_the_claim_is_refused(book):
    line = rate(2)
    for id in ("a", "b"):
        book.reserve(claim(id, line), LEASE, NOW)
    assert isinstance(book.reserve(claim("c", line), LEASE, NOW - 10 * US), Refused)
    assert book.set_back == [Counter("minute", "rate", 0, 0, NOW + 50 * US, NOW - 10 * US)]
    book.set_back.clear()
    book.reserve(claim("d", line), LEASE, NOW - 10 * US)
    assert book.set_back == []


def test_the_end_of_a_window_is_the_latest_that_a_claim_knew(book):
    for id, end in (("a", START + 10), ("b", START + 30), ("c", START + 20)):
        book.reserve(claim(id, window(1_000, resets_at=end)), LEASE, NOW)
    assert book.counters["day"].ends_at == NOW + 30 * US


# The same id again


def test_the_same_id_is_a_duplicate_or_a_conflict(book):
    line = window(1_000)
    book.reserve(replace(claim("a", line, most=40), record=RECORD), LEASE, NOW)
    again = claim("a", line)
    assert book.reserve(again, LEASE, NOW) == Duplicate(output_tokens=40, state="open")
    assert book.reserve(replace(again, fingerprint="other"), LEASE, NOW) == Conflict()
    book.settle(again, None, "reported", None, NOW)
    assert book.reserve(again, LEASE, NOW) == Duplicate(output_tokens=40, state="settled", record=RECORD)


def test_an_id_that_was_released_unseen_has_no_output_and_holds_nothing(book):
    assert book.release(replace(claim("a", window(1_000)), owner="o"), NOW) is False
    assert book.changed == [StoredClaim("a", "same", "released", 0, NOW, NOW, NOW, None, (), None, "o")]
    again = replace(claim("a", window(1_000)), owner="o")
    assert book.reserve(again, LEASE, NOW) == Duplicate(output_tokens=0, state="released")
    assert book.counters == {}


@pytest.mark.parametrize("spent_nothing", [False, True])
def test_an_id_is_free_for_another_owner_if_nothing_was_spent(book, spent_nothing):
    line = window(1_000)
    first, second = (replace(claim("a", line), owner=owner) for owner in ("one", "two"))
    book.reserve(replace(first, record=RECORD), LEASE, NOW)
    book.settle(first, {"tokens": 0}, "reported", replace(RECORD, spent_nothing=spent_nothing), NOW)
    assert isinstance(book.reserve(first, LEASE, NOW), Duplicate)
    assert isinstance(book.reserve(second, LEASE, NOW), Granted if spent_nothing else Duplicate)


def test_nothing_that_another_owner_has_is_moved(book):
    line = window(1_000)
    mine, theirs = (replace(claim("a", line), owner=owner) for owner in ("me", "them"))
    book.reserve(mine, LEASE, NOW)
    book.changed.clear()
    assert book.extend([theirs], LEASE, NOW) == frozenset()
    assert book.settle(theirs, None, "reported", None, NOW) is False
    assert book.release(theirs, NOW) is False
    assert (book.changed, book.extended, book.reservations["a"].state) == ([], [], "open")


# Extended, settled, released, expired


def test_a_renewed_lease_is_written_to_the_store_and_lasts_from_now_on(book):
    one, other = claim("a", window(1_000)), claim("b", window(1_000))
    book.reserve(one, LEASE, NOW)
    book.changed.clear()
    assert book.extend([other, one], LEASE, NOW + US) == {"a"}
    assert book.extended == [book.reservations["a"]]
    assert book.reservations["a"].expires_at == NOW + US + LEASE
    book.extend([one], 1, NOW + US)
    assert book.reservations["a"].expires_at == NOW + US + 1
    assert (book.changed, book.revived) == ([], [])


@pytest.mark.parametrize(
    ("actual", "amounts"),
    [
        ({"tokens": 30, "requests": 0}, [30, 0, 1]),
        ({"tokens": 300}, [300, 1, 1]),
        ({}, [100, 1, 1]),
        (None, [100, 1, 1]),
    ],
)
def test_a_settlement_writes_down_what_each_hold_became(book, actual, amounts):
    one = claim("a", window(1_000), rate(30), gauge(2))
    book.reserve(one, LEASE, NOW)
    book.changed.clear()
    assert book.settle(one, actual, "estimated", None, NOW + US) is True
    settled = book.reservations["a"]
    assert (settled.state, settled.source, settled.finished_at) == ("settled", "estimated", NOW + US)
    assert [hold.actual for hold in settled.holds] == amounts
    assert book.changed == [settled]
    assert (book.counters["day"].used, book.counters["day"].held) == (amounts[0], 0)
    assert (book.counters["streams"].used, book.counters["streams"].held) == (0, 0)
    assert book.settle(one, {"tokens": 1}, "reported", None, NOW) is False


def test_a_release_gives_back_and_keeps_no_record(book):
    one = replace(claim("a", window(1_000), gauge(2)), record=RECORD)
    book.reserve(one, LEASE, NOW)
    assert book.release(one, NOW + US) is True
    released = book.reservations["a"]
    assert (released.state, released.source, released.finished_at) == ("released", None, NOW + US)
    assert (released.record, [hold.actual for hold in released.holds]) == (None, [0, 0])
    assert [(each.used, each.held) for each in book.counters.values()] == [(0, 0), (0, 0)]


def test_an_expired_lease_is_charged_whole_and_its_record_has_that(book):
    money = replace(window(10**9, key="usd", name="usd_per_day", unit="nanousd"), fixed=5)
    one = replace(claim("a", window(1_000), money, gauge(2), most=40), record=RECORD)
    book.reserve(one, LEASE, NOW)
    book.expire([book.reservations["a"]], NOW + LEASE)
    lost = book.reservations["a"]
    assert (lost.state, lost.source, lost.finished_at) == ("expired", "assumed", NOW + LEASE)
    assert [hold.actual for hold in lost.holds] == [40, 45, 1]
    assert lost.record == replace(RECORD, usage=Usage(input_tokens=7, output_tokens=40), cost=45)
    assert [(each.used, each.held) for each in book.counters.values()] == [(40, 0), (45, 0), (0, 0)]


def test_the_record_of_a_lost_request_without_a_limit_in_dollars_has_no_cost(book):
    book.reserve(replace(claim("a", window(1_000), most=40), record=replace(RECORD, cost=9)), LEASE, NOW)
    book.reserve(claim("b", window(1_000)), LEASE, NOW)
    book.expire(list(book.reservations.values()), NOW + LEASE)
    assert book.reservations["a"].record.cost is None
    assert book.reservations["b"].record is None


def test_a_late_settlement_corrects_the_windows_alone(book):
    one = claim("a", window(1_000), gauge(2), most=40)
    book.reserve(one, LEASE, NOW)
    book.expire([book.reservations["a"]], NOW + LEASE)
    assert book.settle(one, {"tokens": 50}, "reported", None, NOW + LEASE) is True
    assert [(each.used, each.held) for each in book.counters.values()] == [(50, 0), (0, 0)]


def test_a_returning_request_holds_again(book):
    one = claim("a", window(1_000), rate(30), gauge(2), most=40)
    book.reserve(one, LEASE, NOW)
    before = [replace(each) for each in book.counters.values()]
    book.expire([book.reservations["a"]], NOW + LEASE)
    book.changed.clear()
    assert book.extend([one], LEASE, NOW + LEASE) == {"a"}
    back = book.reservations["a"]
    assert (back.state, back.source, back.finished_at, back.expires_at) == ("open", None, None, NOW + 2 * LEASE)
    assert [hold.actual for hold in back.holds] == [None] * 3
    assert (book.changed, book.revived, book.extended) == ([back], [back], [back])
    assert list(book.counters.values()) == before


def test_a_returning_request_recreates_a_forgotten_gauge_but_no_window(book):
    one = claim("a", window(1_000), gauge(2))
    book.reserve(one, LEASE, NOW)
    book.expire([book.reservations["a"]], NOW + LEASE)
    book.counters.clear()
    book.created.clear()
    book.extend([one], LEASE, NOW + LEASE)
    assert book.created == list(book.counters.values()) == [Counter("streams", "gauge", 0, 1)]


def test_a_settlement_of_windows_that_were_forgotten_is_no_error(book):
    one = claim("a", window(1_000), gauge(2))
    book.reserve(one, LEASE, NOW)
    book.counters.clear()
    assert book.settle(one, {"tokens": 5}, "reported", None, NOW) is True
    assert book.counters == {}


def test_a_rate_that_was_forgotten_is_charged_for_the_excess_alone(book):
    one = claim("a", rate(30, fixed=2))
    for actual, expected in ((1, []), (2, []), (5, [Counter("minute", "rate", 0, 0, NOW + 6 * US, NOW)])):
        book.reservations.clear()
        book.reserve(one, LEASE, NOW)
        book.counters.clear()
        book.created.clear()
        book.settle(one, {"requests": actual}, "reported", None, NOW)
        assert book.created == list(book.counters.values()) == expected


def test_a_rate_that_is_exactly_used_is_left_alone(book):
    one = claim("a", rate(30, fixed=2))
    book.reserve(one, LEASE, NOW)
    book.settle(one, {"requests": 2}, "reported", None, NOW + US)
    assert book.counters["minute"] == Counter("minute", "rate", 0, 0, NOW + 4 * US, NOW)


@pytest.mark.parametrize(("after", "tat"), [(0, 2), (1, 2), (2, 2), (3, 3), (4, 4), (9, 4)])
def test_a_rate_regains_units_that_have_not_drained(book, after, tat):
    """Two requests drain in 4 s, of which one, 2 s, was not used."""
    one = claim("a", rate(30, fixed=2))
    book.reserve(one, LEASE, NOW)
    book.settle(one, {"requests": 1}, "reported", None, NOW + after * US)
    assert book.counters["minute"].tat == NOW + tat * US


def test_the_time_of_a_request_is_that_of_its_claim(book):
    one = replace(claim("a", window(1_000)), record=RECORD)
    book.reserve(one, LEASE, NOW)
    said = replace(RECORD, started_at=START + 5, ending="stop", cost=3)
    book.settle(one, None, "reported", said, NOW)
    assert book.reservations["a"].record == replace(said, started_at=START)


def test_the_record_of_a_claim_without_one_is_the_settlements(book):
    one = claim("a", window(1_000))
    book.reserve(one, LEASE, NOW)
    book.settle(one, None, "reported", RECORD, NOW)
    assert book.reservations["a"].record is RECORD


# How lines stand


def test_lines_are_read_as_if_overdue_leases_had_been_charged(book):
    day, streams = window(150), gauge(2)
    for id in ("a", "b"):
        book.reserve(claim(id, day, streams), LEASE, NOW)
    assert book.peek([day, streams], (), NOW) == (
        Standing(used=0, held=150, room=0, resets_at=START + 86_400),
        Standing(used=0, held=2, room=0, resets_at=0.0),
    )
    assert book.peek([day, streams], [book.reservations["a"]], NOW) == (
        Standing(used=100, held=50, room=0, resets_at=START + 86_400),
        Standing(used=0, held=1, room=1, resets_at=0.0),
    )
    assert book.reservations["a"].state == "open"
    assert book.peek([window(100)], (), NOW)[0].room == 0
    assert book.peek([replace(streams, resets_at=5.0)], (), NOW)[0].resets_at == 0.0


def test_a_rate_resets_when_it_has_drained(book):
    line = rate(30)
    assert book.peek([line], (), NOW) == (Standing(used=0, held=0, room=30, resets_at=START),)
    book.reserve(claim("a", rate(30, fixed=3)), LEASE, NOW)
    assert book.peek([line], (), NOW + US) == (Standing(used=3, held=0, room=27, resets_at=START + 6),)
    assert book.counters["minute"].ends_at == NOW


# What a claim may hold


@pytest.mark.parametrize(
    ("good", "bad", "rule"),
    [
        (claim("a" * 1_024), claim("a" * 1_025), "claim.id must be 1 to 1024 printable characters"),
        (claim("a"), claim(""), "claim.id must be 1 to 1024 printable characters"),
        (
            claim("a", fingerprint="f" * 1_024),
            claim("a", fingerprint="\n"),
            "claim.fingerprint must be 1 to 1024 printable characters",
        ),
        (
            replace(claim("a"), owner=""),
            replace(claim("a"), owner="o" * 1_025),
            "claim.owner must be 1 to 1024 printable characters",
        ),
        (
            claim("a", most=MOST, least=MOST),
            claim("a", most=MOST + 1),
            "claim: 0 <= min_output_tokens <= max_output_tokens <= 2**50 must hold",
        ),
        (
            claim("a", most=0, least=0),
            claim("a", most=0, least=1),
            "claim: 0 <= min_output_tokens <= max_output_tokens <= 2**50 must hold",
        ),
        (
            claim("a", least=0),
            claim("a", least=-1),
            "claim: 0 <= min_output_tokens <= max_output_tokens <= 2**50 must hold",
        ),
        (
            claim("a", window(1, key="x"), window(1, key="y")),
            claim("a", window(1, key="x"), window(1, key="x")),
            "claim.lines must not name the same key twice",
        ),
        (
            claim("a", window(MOST, fixed=MOST - 100)),
            claim("a", window(MOST, fixed=MOST - 99)),
            "lines[0] must not amount to more than 2**50 at claim.max_output_tokens",
        ),
        (
            claim("a", gauge(1), window(1)),
            claim("a", gauge(1), window(-1)),
            "lines[1]: limit, fixed and per_million must be between 0 and 2**50",
        ),
        (
            replace(claim("a"), record=RECORD),
            replace(claim("a"), record=replace(RECORD, cost=-1)),
            "record.usage and record.cost must be amounts between 0 and 2**50",
        ),
    ],
)
def test_the_edge_of_what_a_claim_may_hold(good, bad, rule):
    check_claim(good)
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
        check_claim(bad)


AMOUNTS = "lines[3]: limit, fixed and per_million must be between 0 and 2**50"
END = "lines[3].resets_at must be the window's end in Unix seconds"


@pytest.mark.parametrize(
    ("good", "bad", "rule"),
    [
        (replace(window(0), limit=MOST), replace(window(0), limit=MOST + 1), AMOUNTS),
        (window(0), window(-1), AMOUNTS),
        (replace(window(1), fixed=MOST), replace(window(1), fixed=MOST + 1), AMOUNTS),
        (window(1, fixed=0), window(1, fixed=-1), AMOUNTS),
        (replace(window(1), per_million=MOST), replace(window(1), per_million=MOST + 1), AMOUNTS),
        (replace(window(1), per_million=0), replace(window(1), per_million=-1), AMOUNTS),
        (window(1, key="k" * 1_024), window(1, key="k" * 1_025), "lines[3].key must be 1 to 1024 printable characters"),
        (window(1, resets_at=0.5), window(1, resets_at=0.0), END),
        (window(1, resets_at=2.0**33), window(1, resets_at=2.0**33 + 1), END),
        (replace(gauge(1), resets_at=-1.0), window(1, resets_at=-1.0), END),
        (replace(gauge(0), period=0), rate(0), "a rate's limit and period must be at least 1"),
    ],
)
def test_the_edge_of_what_a_line_may_hold(good, bad, rule):
    check_line(good, 3)
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
        check_line(bad, 3)


@pytest.mark.parametrize("text", ["a", "é🐣 \u00ad"[:3], "a" * 1_024])
def test_a_printable_text(text):
    check_text(text, "it")
    check_owner(text)


@pytest.mark.parametrize("text", ["", "a" * 1_025, "a\n", "\x7f", "\ud800", "\ue000"])
def test_a_text_that_is_not(text):
    with pytest.raises(ValueError, match="^it must be 1 to 1024 printable characters$"):
        check_text(text, "it")


def test_an_owner_may_be_left_out_but_not_be_anything():
    check_owner("")
    with pytest.raises(ValueError, match=r"^claim\.owner must be 1 to 1024 printable characters$"):
        check_owner("\n")


TEXTS = ("run", "caller", "group", "profile", "model", "price", "ending")


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("text", ["\0", "a\0b", "\ud800", "\udfff", "a\udabc", "a" * 1_025])
def test_a_text_of_a_record_that_can_not_be_kept_is_named(field, text):
    rule = f"record.{field} must be at most 1024 characters, without U+0000 and surrogates"
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
        check_record(replace(RECORD, **{field: text}))


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("text", ["", "a" * 1_024, "\n\t\x7f", "\ud7ff\ue000", "🐣"])
def test_any_other_text_of_a_record_is_kept(field, text):
    check_record(replace(RECORD, **{field: text}))
    check_record(None)


USAGE = "record.usage and record.cost must be amounts between 0 and 2**50"
STARTED = "record.started_at must be a time in Unix seconds"
FINITE = "record.seconds and record.first_token_seconds must be finite"


@pytest.mark.parametrize("field", Usage.__struct_fields__)
@pytest.mark.parametrize(("amount", "fits"), [(0, True), (MOST, True), (-1, False), (MOST + 1, False)])
def test_the_edge_of_a_records_tokens(field, amount, fits):
    record = replace(RECORD, usage=Usage(**{field: amount}))
    if fits:
        check_record(record)
    else:
        with pytest.raises(ValueError, match=f"^{re.escape(USAGE)}$"):
            check_record(record)


@pytest.mark.parametrize(
    ("field", "good", "bad", "rule"),
    [
        ("cost", MOST, MOST + 1, USAGE),
        ("cost", 0, -1, USAGE),
        ("cost", None, -1, USAGE),
        ("started_at", 0, -0.5, STARTED),
        ("started_at", 2.0**33, 2.0**33 + 1, STARTED),
        ("started_at", START, math.nan, STARTED),
        ("seconds", 1e300, math.inf, FINITE),
        ("first_token_seconds", None, math.nan, FINITE),
        ("first_token_seconds", 0.0, -math.inf, FINITE),
    ],
)
def test_the_edge_of_a_records_numbers(field, good, bad, rule):
    check_record(replace(RECORD, **{field: good}))
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
        check_record(replace(RECORD, **{field: bad}))


@pytest.mark.parametrize("actual", [None, {}, {"tokens": 0}, {"tokens": MOST, "requests": 1}])
def test_an_actual_amount(actual):
    check_actual(actual)


@pytest.mark.parametrize("actual", [{"tokens": -1}, {"tokens": 1, "requests": MOST + 1}])
def test_an_actual_amount_that_can_not_be(actual):
    with pytest.raises(ValueError, match=r"^actual must be amounts between 0 and 2\*\*50$"):
        check_actual(actual)


@pytest.mark.parametrize(("lease", "us"), [(1e-9, 1), (0.5, 500_000), (366 * 86_400.0, 366 * 86_400 * US)])
def test_a_lease_in_microseconds_is_never_none(lease, us):
    assert lease_us(lease) == us


@pytest.mark.parametrize("lease", [0, 0.0, -1, 366 * 86_400.0 + 1, math.inf, math.nan])
def test_a_lease_that_can_not_be(lease):
    with pytest.raises(ValueError, match="^lease must be a positive number of seconds, at most a year$"):
        lease_us(lease)
