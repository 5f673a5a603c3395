"""Lines of bytes, cut anywhere and bounded."""

from __future__ import annotations

import pytest
from decoding import cut
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.providers.ndjson import LineDecoder
from chat_nest.core.sse import EventTooLong


@given(st.lists(st.binary(max_size=12)).map(b"\n".join), st.lists(st.integers(0, 200), max_size=6))
def test_lines_are_the_same_however_they_are_cut(body: bytes, places: list[int]) -> None:
    decoder = LineDecoder()
    lines = [line for read in cut(body, places) for line in decoder.feed(read)]
    assert lines == body.split(b"\n")[:-1]


@given(st.lists(st.binary(max_size=12)).map(b"\n".join), st.lists(st.integers(0, 200), max_size=6))
def test_a_line_over_the_limit_is_refused_after_those_before_it(body: bytes, places: list[int]) -> None:
    expected: list[bytes] = []
    too_long = False
    for line in body.split(b"\n"):
        too_long = len(line) > 8
        if too_long:
            break
        expected.append(line)
    decoder, lines = LineDecoder(8), []
    try:
        for read in cut(body, places):
            lines += decoder.feed(read)
    except EventTooLong as error:
        assert too_long
        lines += error.events
    else:
        assert not too_long
        expected.pop()  # the last was not ended
    assert lines == expected


def test_no_more_than_the_limit_is_ever_kept() -> None:
    decoder = LineDecoder(100)
    assert decoder.feed(b"x" * 100) == []
    with pytest.raises(EventTooLong):
        decoder.feed(b"x")
