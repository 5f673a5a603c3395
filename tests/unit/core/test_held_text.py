"""Bodies of which the long base64 is held: what is read from one is what the whole body says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_nest.dialects.strict_json import parse_object
from chat_nest.core.errors import BodyTooLarge
from chat_nest.core.held_text import WINDOW, Held, HeldBody, Lifter, Uploads, restored

UPLOADS = Uploads(number=3, size=1 << 20, most=1 << 24)


def lifted(body: bytes, uploads: Uploads = UPLOADS, most: int = 1 << 16, step: int = 7_001) -> HeldBody:
    lifter = Lifter(uploads, most)
    for at in range(0, len(body), step):
        lifter.feed(body[at : at + step])
    return lifter.end()


def whole(value: Any) -> Any:
    """The value with every held text where it was."""
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return restored(value) if isinstance(value, Held) else value


pieces = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["data:image/png;base64,", "AAAA" * 1_500, "+/9z" * 2_600, "=", "==", "a/b\\/c", "<held 0 ", '"', "\\"]
    ),
)
strings = st.lists(pieces, max_size=5).map("".join)
values = st.recursive(
    strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=5), values, max_size=4), st.integers(1, 9_999), st.booleans())
def test_a_body_means_the_same_with_and_without_held_text(fields: dict[str, Any], step: int, as_php: bool) -> None:
    body = json.dumps(fields).encode()
    if as_php:  # json_encode writes a slash as \/
        body = body.replace(b"\\\\/", b"\\\\\\/").replace(b"/", b"\\/").replace(b"\\\\/", b"\\/")
        fields = json.loads(body)
    many = Uploads(number=99, size=1 << 20, most=1 << 24)
    assert whole(parse_object(lifted(body, many, 1 << 22, step))) == fields


def test_what_is_parsed_does_not_grow_with_the_images() -> None:
    image = "iVBOR" + "x" * 900_000
    body = json.dumps({"a": [f"data:image/png;base64,{image}", image]}).encode()
    small = lifted(body)
    assert len(small) < 3 * WINDOW
    first, second = parse_object(small)["a"]
    assert (first.media_type, second.media_type) == ("image/png", None)
    assert bytes(first.text.data) == image.encode()


def test_what_is_too_long_or_one_too_many_is_not_kept_and_the_newest_are() -> None:
    images = [letter * (20_000 + index) for index, letter in enumerate("abcd")]
    body = json.dumps({"a": ["z" * (2 << 20), *images]}).encode()
    found = parse_object(lifted(body))["a"]
    assert [len(held.text.data) for held in found] == [0, 0, 20_001, 20_002, 20_003]
    assert [held.text.length for held in found][:2] == [2 << 20, 20_000]


def test_two_bodies_with_other_images_are_not_the_same() -> None:
    one, other = (lifted(json.dumps({"a": letter * 50_000}).encode()) for letter in "ab")
    assert bytes(one) != bytes(other)


def test_the_rest_of_a_body_has_a_separate_limit() -> None:
    words = "Some words. " * 6_000
    with pytest.raises(BodyTooLarge):
        lifted(json.dumps({"a": words, "b": "A" * 99_000}).encode())
    body = json.dumps({"a": "A" * 99_000 + " is base64 in a text"}).encode()
    with pytest.raises(BodyTooLarge):
        parse_object(lifted(body))
    assert parse_object(lifted(body, most=1 << 20))["a"].startswith("AAAA")


@pytest.mark.parametrize("mark", ["<held 0 %s>", "<held 7 %s>", "<held 99999999 %s>"])
def test_a_mark_that_a_client_writes_is_text(mark: str) -> None:
    text = mark % ("0" * 32)
    assert parse_object(lifted(json.dumps({"a": text, "b": "A" * 50_000}).encode()))["a"] == text
