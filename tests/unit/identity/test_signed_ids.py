from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from msgspec.structs import replace

from chat_nest.core.messages import PASSES
from chat_nest.identity.signed_ids import LONGEST_AGE, PREFIX, SignedIds

NEW, OLD, OTHER = "n" * 32, "o" * 32, "x" * 32
NOW = 1_800_000_000


def test_an_id_is_read_as_it_was_signed() -> None:
    ids = SignedIds([NEW])
    for kind in PASSES:
        visit = replace(ids.new(NOW), passed=kind, passed_until=NOW + 60 if kind else 0)
        assert ids.read(ids.sign(visit), NOW) == visit


def test_an_id_records_whether_it_was_issued_to_a_request_without_one() -> None:
    ids = SignedIds([NEW])
    first = ids.read(ids.sign(ids.new(NOW, "192.0.2.1")), NOW)
    assert first is not None
    assert (first.first, first.counted_as, first.passed_until) == (True, "", 0)
    by_page = ids.read(ids.sign(ids.new(NOW)), NOW)
    passed = ids.read(ids.sign(replace(first, passed="after", passed_until=NOW + 60)), NOW)
    assert by_page is not None
    assert passed is not None
    assert not by_page.first
    assert passed.passed == "after"


def test_ids_are_random() -> None:
    ids = SignedIds([NEW])
    assert len({ids.new(NOW).id for _ in range(100)}) == 100


def test_a_pass_ends_and_the_visitor_stays() -> None:
    ids = SignedIds([NEW])
    visit = replace(ids.new(NOW), passed="after", passed_until=NOW + 60)
    assert ids.read(ids.sign(visit), NOW + 59) == visit
    assert ids.read(ids.sign(visit), NOW + 60) == replace(visit, passed="", passed_until=0)


@pytest.mark.parametrize(
    ("now", "valid"), [(NOW - 301, False), (NOW - 300, True), (NOW + LONGEST_AGE - 1, True), (NOW + LONGEST_AGE, False)]
)
def test_an_id_is_accepted_for_a_year(now: int, valid: bool) -> None:
    ids = SignedIds([NEW])
    assert (ids.read(ids.sign(ids.new(NOW)), now) is not None) == valid


def test_a_secret_is_replaced_while_its_ids_still_count() -> None:
    before, between, after = SignedIds([OLD]), SignedIds([NEW, OLD]), SignedIds([NEW])
    signed = before.sign(before.new(NOW))
    assert between.read(signed, NOW) is not None
    assert after.read(signed, NOW) is None
    assert after.read(between.sign(between.new(NOW)), NOW) is not None, "the first secret signs"


def test_an_id_of_another_deployment_does_not_count() -> None:
    here, there = SignedIds([NEW]), SignedIds([OTHER])
    assert here.read(there.sign(there.new(NOW)), NOW) is None


def test_no_changed_id_counts() -> None:
    ids = SignedIds([NEW])
    signed = ids.sign(ids.new(NOW))
    whole = urlsafe_b64decode(signed[len(PREFIX) :])
    for index in range(len(whole)):
        changed = bytearray(whole)
        changed[index] ^= 1
        assert ids.read(PREFIX + urlsafe_b64encode(changed).decode(), NOW) is None, index


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + "A",
        lambda text: text.upper(),
        lambda _: "",
        lambda text: text[5:],
        lambda text: text[:-2] + "é!",
        lambda text: f"{text} ",
    ],
)
def test_no_other_text_counts(change) -> None:
    ids = SignedIds([NEW])
    assert ids.read(change(ids.sign(ids.new(NOW))), NOW) is None


@pytest.mark.parametrize(
    ("secrets", "rule"), [([], "need a secret"), ([NEW, OLD, OTHER], "at most 2"), (["short"], "at least 32 bytes")]
)
def test_secrets_that_cannot_be_used(secrets, rule) -> None:
    with pytest.raises(ValueError, match=rule):
        SignedIds(secrets)


def test_no_repr_shows_the_id() -> None:
    visit = SignedIds([NEW]).new(NOW)
    assert visit.id not in repr(visit)
