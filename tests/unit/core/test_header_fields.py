"""The one way from a header's bytes to text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chat_nest.core import header_fields


def test_the_first_of_two_headers_counts_in_any_case() -> None:
    scope = {"headers": [(b"X-Name", b"one"), (b"x-name", b"two")]}
    assert header_fields.value(scope, b"x-name") == b"one"
    assert header_fields.values(scope, b"x-name") == [b"one", b"two"]
    assert header_fields.value(scope, b"x-other") is None
    assert header_fields.value({}, b"x-name") is None


@given(st.binary(), st.text(" \t"), st.text(" \t"))
def test_only_spaces_and_tabs_around_a_value_are_lost(value: bytes, before: str, behind: str) -> None:
    if value[:1] in (b" ", b"\t") or value[-1:] in (b" ", b"\t"):
        return
    assert header_fields.trim(before.encode() + value + behind.encode()) == value


@given(st.binary(), st.binary())
def test_two_values_are_one_text_only_if_they_are_the_same_bytes(one: bytes, other: bytes) -> None:
    assert (header_fields.text(one) == header_fields.text(other)) == (one == other)
