"""The credential of a request: one, in one of two headers, of bytes that can be in one."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chat_nest.core.errors import Unauthorized
from chat_nest.identity.bearer import credential

FINE = bytes(range(0x21, 0x7F))


def read(*headers: tuple[bytes, bytes], longest: int = 100) -> str | None:
    try:
        return credential({"type": "http", "headers": [(b"host", b"x"), *headers]}, longest)
    except Unauthorized as error:
        assert error.challenge == "Bearer"
        return None


@given(st.binary(max_size=12))
@example(b"a b")
@example(b"a\tb")
@example(b"\t!")
def test_only_printable_ascii_without_a_space_is_one(value):
    stripped = value.strip(b" \t")
    expected = stripped.decode("latin-1") if stripped and set(stripped) <= set(FINE) else None
    assert read((b"x-api-key", value)) == read((b"Authorization", b"bEARER " + value)) == expected


def test_every_character_that_can_be_in_one_is_taken():
    assert read((b"authorization", b"Bearer " + FINE)) == FINE.decode()


@pytest.mark.parametrize("longest", [1, 35])
def test_its_length_is_bounded(longest):
    assert read((b"x-api-key", b"x" * longest), longest=longest) == "x" * longest
    assert read((b"x-api-key", b"x" * (longest + 1)), longest=longest) is None
    assert read((b"x-api-key", b""), longest=longest) is None


def test_two_are_none():
    one, other = (b"authorization", b"Bearer x"), (b"x-api-key", b"x")
    assert read(one) == read(other) == "x"
    assert read() is read(one, other) is read(one, one) is read(other, other) is None
    assert read((b"authorization", b"Basic x"), other) is None
