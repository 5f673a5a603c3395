from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.dialects.strict_json import MAX_DEPTH, MAX_VALUES, flaw, parse_object, read_carefully
from chat_nest.core.errors import BadRequest

DEEP = 100_000


def nested(depth: int) -> bytes:
    """An object that is `depth` levels deep."""
    return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


def mixed(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**31), 10**31),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), values), st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_every_object_is_read_as_it_was_written(value: dict[str, object], escape: bool, indent: int | None) -> None:
    assert parse_object(json.dumps(value, ensure_ascii=escape, indent=indent).encode()) == value


@given(st.dictionaries(st.text(), values), st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_text_in_strings_is_not_counted(value: dict[str, object], escape: bool, indent: int | None) -> None:
    many = {"many": [[]] * (MAX_DEPTH + 1), "key": value, '[{\\"': '\\\\"[[{' * 9_000, "digits": "9" * 99}
    assert parse_object(json.dumps(many, ensure_ascii=escape, indent=indent).encode()) == many


@pytest.mark.parametrize("item", [b"1", b"[]", b"{}", b'""', b'"\\",["', b"null"], ids=str)
def test_values_are_counted_before_they_are_built(item: bytes) -> None:
    each = 1 + (item in (b"[]", b"{}"))
    most = (MAX_VALUES - 2) // each
    assert len(parse_object(b'{"a":[' + b",".join([item] * most) + b"]}")["a"]) == most
    for body in (b'{"a":[' + b",".join([item] * (most + 2)) + b"]}", b'{"a":[' + (item + b",") * 40_000):
        with pytest.raises(BadRequest, match="must not have more than 8192 values"):
            parse_object(body)


@pytest.mark.parametrize("unit", [b"[[],", b'{"a":[],"b":', b'["x",', b'{"":[{}],"]":', b'["]",', b'["\\"]",'])
def test_levels_are_counted_before_they_are_built(unit: bytes) -> None:
    for body in (b'{"a":' + unit * 140, b'{"a":' + unit * 140 + b"0" + b"]" * 140 + b"}", unit * 900):
        with pytest.raises(BadRequest, match="must not nest deeper than 128 levels"):
            parse_object(body)


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (b"", "must be valid JSON; it is not at character 0"),
        (b" \n", "must be valid JSON; it is not at character 2"),
        (b'{"secret":"va', "must be valid JSON; it is not at character 10"),
        (b'{"a":1', "must be valid JSON; it is not at character 6"),
        (b'{"a":1}}', "must be valid JSON; it is not at character 7"),
        (b'{"a":1} x', "must be valid JSON; it is not at character 8"),
        (b"{'a':1}", "must be valid JSON; it is not at character 1"),
        (b'{"a":1,,}', "must be valid JSON; it is not at character 7"),
        (b'{"a":tru}', "must be valid JSON; it is not at character 5"),
        (b'{"a":01}', "must be valid JSON; it is not at character 6"),
        (b'{"a":"\x01"}', "must be valid JSON; it is not at character 6"),
        (b'{"a":"\\x"}', "must be valid JSON; it is not at character 6"),
        (b'{"a":"\\u12"}', "must be valid JSON; it is not at character 7"),
        (b'{"\xc3\xa9":1 2}', "must be valid JSON; it is not at character 7"),
        (b"[]", "must be a JSON object"),
        (b"[1]", "must be a JSON object"),
        (b'"secret"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"5", "must be a JSON object"),
        (b"true", "must be a JSON object"),
        (b'{"a":"\xff"}', "must be UTF-8; byte 6 is not"),
        (b'{"a":"\xed\xa0\x80"}', "must be UTF-8; byte 6 is not"),
        (b'{"a":"\xc0\xaf"}', "must be UTF-8; byte 6 is not"),
        ('{"a":1}'.encode("utf-16"), "must be UTF-8; byte 0 is not"),
        ('{"a":1}'.encode("utf-16-le"), "must be valid JSON; it is not at character 1"),
        ('{"a":1}'.encode("utf-32-be"), "must be valid JSON; it is not at character 0"),
        (b'\xef\xbb\xbf\xef\xbb\xbf{"a":1}', "must be valid JSON; it is not at character 0"),
        (b'{"a":NaN}', "must not have NaN or Infinity"),
        (b'{"a":[Infinity]}', "must not have NaN or Infinity"),
        (b'{"a":-Infinity}', "must not have NaN or Infinity"),
        (b'{"a":1e999}', "must not have a number beyond the range of a double"),
        (b'{"a":-1.5E+400}', "must not have a number beyond the range of a double"),
        (b'{"a":1' + b"0" * 32 + b"}", "must not have a number of more than 32 digits"),
        (b'{"a":' + b"9" * 5_000 + b"}", "must not have a number of more than 32 digits"),
        (b'{"a":0.' + b"9" * 5_000 + b"}", "must not have a number of more than 32 digits"),
        (b'{"a":-' + b"9" * 250_000 + b"}", "must not have a number of more than 32 digits"),
        (b'{"secret":1,"secret":1}', "must not have the same key twice in one object"),
        (b'{"x":[{"a":1,"b":2,"\\u0061":3}]}', "must not have the same key twice in one object"),
        (nested(129), "must not nest deeper than 128 levels"),
        (mixed(129), "must not nest deeper than 128 levels"),
        (b'{"x":1,"y":' + mixed(128) + b',"z":2}', "must not nest deeper than 128 levels"),
        (nested(DEEP), "must not nest deeper than 128 levels"),
        (mixed(DEEP), "must not nest deeper than 128 levels"),
        (b'{"a":' + b"[" * DEEP, "must not nest deeper than 128 levels"),
        (b"[" * DEEP, "must not nest deeper than 128 levels"),
    ],
    ids=lambda value: value[:40] if isinstance(value, bytes) else "",
)
def test_rows_11_and_12_a_bad_body_is_refused_with_the_rule(body: bytes, rule: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_object(body)
    assert (refused.value.field, refused.value.message) == ("body", rule)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b' \t\r\n{"a":1}\n',
        b'{"a":1e308,"b":-0.0,"c":1e-999,"d":' + b"9" * 32 + b"}",
        nested(128),
        mixed(128),
        b'{"x":[],"y":' + mixed(127) + b"}",
        b'{"a":[' + b",".join([b"[{}]"] * 1_000) + b"]}",
        b'{"a":"' + b"[{" * 10_000 + b'"}',
        b'{"":1," ":2,"__proto__":3,"constructor":4}',
    ],
)
def test_a_good_body_is_read(body: bytes) -> None:
    assert parse_object(body) == json.loads(body)


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    try:
        parse_object(body)
    except BadRequest as refused:
        assert refused.field == "body"


def test_a_trailing_comma_is_refused() -> None:
    with pytest.raises(BadRequest, match="must be valid JSON; it is not at character [67]"):  # as Python's version says
        parse_object(b'{"a":1,}')


def test_depth_is_refused_near_the_end_of_the_stack_too() -> None:
    outcomes: list[object] = []

    def descend(left: int) -> None:
        if left:
            descend(left - 1)
            return
        for body in (b"[" * DEEP, nested(DEEP)):
            try:
                outcomes.append(parse_object(body))
            except BadRequest as refused:
                outcomes.append(refused.message)

    thread = threading.Thread(target=descend, args=(sys.getrecursionlimit() - 200,))
    thread.start()
    thread.join()
    assert outcomes == ["must not nest deeper than 128 levels"] * 2


@pytest.mark.parametrize("text", ["", "plain", "a\x00b", "é日🎉\u2028\x01\x7f", "\ufeff", "\U0010ffff"])
def test_text_that_can_be_sent_on(text: str) -> None:
    assert flaw(text) is None


@pytest.mark.parametrize(
    ("literal", "rule"),
    [
        (b'"\\ud83d"', "must not contain half of a surrogate pair"),
        (b'"\\ude00\\ud83d"', "must not contain half of a surrogate pair"),
    ],
)
def test_row_12_text_that_can_not_be_sent_on(literal: bytes, rule: str) -> None:
    assert flaw(parse_object(b'{"a":' + literal + b"}")["a"]) == rule


def test_a_byte_order_mark_in_front_is_ignored() -> None:
    assert parse_object(b'\xef\xbb\xbf{"a":"\xef\xbb\xbf"}') == {"a": "\ufeff"}


KEYS = st.sampled_from(['"a"', '"a":', '"\\u0061"', '"a\\\\"', '"":', '"b" ', '"a"\n\t', ' "c":', '"é"', '":"'])
ITEMS = st.sampled_from(
    ["1", '"x"', '"a\\":1"', '"\\\\":', "[1,", "]", "{", "}", ",", "1.5", "1e400", "-0", '"\\ud800"']
)


@given(st.lists(st.one_of(KEYS, ITEMS, st.sampled_from([":", ","])), max_size=12))
def test_the_fast_parser_agrees_with_the_strict_one(parts: list[str]) -> None:
    body = f"{{{''.join(parts)}}}".encode()
    assert outcome(parse_object, body) == outcome(read_carefully, body)


@given(st.dictionaries(st.text(max_size=3), values, max_size=3), st.lists(st.integers(0, 200), max_size=3))
def test_a_body_with_repeated_pieces_is_read_in_one_way(value: dict[str, object], at: list[int]) -> None:
    body = json.dumps(value).encode()
    for index in at:
        body = body[:index] + body[index // 2 : index] + body[index:]
    assert outcome(parse_object, body) == outcome(read_carefully, body)


@pytest.mark.parametrize("again", [b'"a":2', b'"a" :2', b'"a"\n:2', b'"\\u0061":2', b'"b":{"a":1,"a":2}'])
@pytest.mark.parametrize("text", [b'"x"', b'"\\":"', b'"\\\\"', b'": "'])
def test_a_key_twice_is_refused_beside_any_text(again: bytes, text: bytes) -> None:
    with pytest.raises(BadRequest, match="must not have the same key twice"):
        parse_object(b'{"a":1,"t":' + text + b"," + again + b"}")


def outcome(read: Callable[[bytes], object], body: bytes) -> str:
    try:
        return repr(read(body))
    except BadRequest as refused:
        return refused.message
