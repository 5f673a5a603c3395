from __future__ import annotations

import re

import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_nest.core.sse import Decoder, EventTooLong, event


def decode(*chunks: bytes, max_event: int = 1 << 20) -> list[bytes]:
    decoder = Decoder(max_event)
    return [data for chunk in chunks for data in decoder.feed(chunk)]


def reference(text: bytes) -> list[bytes]:
    """The standard's algorithm (9.2.6), line by line, over the whole text; data only."""
    text = text.removeprefix(b"\xef\xbb\xbf")
    pieces = re.split(rb"\r\n|\r|\n", text)
    events, data = [], None
    for line in pieces[:-1]:  # what follows the last line end is not a line
        if not line:
            if data is not None:
                events.append(data.removesuffix(b"\n"))
            data = None
        elif not line.startswith(b":"):
            field, _, value = line.partition(b":")
            if field == b"data":
                data = (data or b"") + value.removeprefix(b" ") + b"\n"
    return events


VECTORS = {
    "one event": (b"data: a\n\n", [b"a"]),
    "many events": (b"data: a\n\ndata: b\n\ndata: c\n\n", [b"a", b"b", b"c"]),
    "no space": (b"data:a\n\n", [b"a"]),
    "one space only is taken": (b"data:  a \n\n", [b" a "]),
    "no colon is empty data": (b"data\n\n", [b""]),
    "a colon and nothing is empty data": (b"data:\n\ndata: \n\n", [b"", b""]),
    "the standard's example of empty data": (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n"]),
    "several lines": (b"data: a\ndata:b\ndata\ndata: c\n\n", [b"a\nb\n\nc"]),
    "CRLF": (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
    "CR": (b"data: a\rdata: b\r\r", [b"a\nb"]),
    "mixed line ends": (b"data: a\r\n\rdata: b\n\r\ndata: c\r\n\n", [b"a", b"b", b"c"]),
    "LF CR is two line ends": (b"data: a\n\rdata: b\n\r", [b"a", b"b"]),
    "a CR at the end dispatches at once": (b"data: a\r\r", [b"a"]),
    "BOM": (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    "BOM before a comment": (b"\xef\xbb\xbf: x\ndata: a\n\n", [b"a"]),
    "a second BOM is part of the line": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [b"b"]),
    "a BOM later is part of the line": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
    "half a BOM is not one": (b"\xef\xbbdata: a\n\ndata: b\n\n", [b"b"]),
    "a comment": (b": ping\ndata: a\n: ping\n\n", [b"a"]),
    "a comment with its own blank line": (b": ping\n\ndata: a\n\n", [b"a"]),
    "a comment between data lines": (b"data: a\n:x\ndata: b\n\n", [b"a\nb"]),
    "other fields": (b"event: x\nid: 1\nretry: 3\ndata: a\n\n", [b"a"]),
    "an event without data": (b"event: x\n\ndata: a\n\n", [b"a"]),
    "fields that are not data": (b"Data: x\ndata : x\n data: x\ndatax: x\ndatab\n\n", []),
    "many blank lines": (b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n\n", [b"a", b"b"]),
    "unfinished": (b"data: a\n\ndata: b\n", [b"a"]),
    "unfinished line": (b"data: a\n\ndata: b", [b"a"]),
    "nothing": (b"", []),
    "U+2028, U+2029, U+0085, VT, FF, FS and NUL are not line ends": (
        "data: a\u2028\u2029\u0085\v\f\u001c\0b\n\n".encode(),
        ["a\u2028\u2029\u0085\v\f\u001c\0b".encode()],
    ),
    "bytes that are not UTF-8": (b"data: \xff\xfe\xed\xa0\x80\n\n", [b"\xff\xfe\xed\xa0\x80"]),
    "data that looks like a field": (b"data: data: a\n\ndata: : b\n\n", [b"data: a", b": b"]),
    "one event in a row of another shape": (b"data: a\n\ndata: b\ndata: c\n\ndata: d\n\n", [b"a", b"b\nc", b"d"]),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vector_whole_and_cut_at_every_byte(name: str) -> None:
    text, expected = VECTORS[name]
    assert reference(text) == expected
    assert decode(text) == expected
    assert decode(*(text[i : i + 1] for i in range(len(text)))) == expected
    for cut in range(len(text) + 1):
        assert decode(text[:cut], text[cut:]) == expected
        assert decode(text[:cut], b"", text[cut:]) == expected


LINES = st.sampled_from(
    [
        b"data",
        b"data:",
        b"data: ",
        b"data: a",
        b"data:b",
        b"data: \xe2\x80\xa8",
        b":",
        b": x",
        b"id: 1",
        b"x",
        b"\xef\xbb\xbf",
        b"",
    ]
)
ENDS = st.sampled_from([b"\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n", b""])
STREAMS = st.one_of(
    st.lists(st.builds(bytes.__add__, LINES, ENDS), max_size=12).map(b"".join),
    st.lists(st.sampled_from([b"data: a\n\n", b"data: bc\n\n", b"data: \n\n"]), max_size=12).map(b"".join),
    st.binary(max_size=40),
)


def cuts(text: bytes, places: list[int]) -> list[bytes]:
    ends = sorted(place % (len(text) + 1) for place in places)
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


@given(STREAMS, st.lists(st.integers(0, 1000), max_size=6))
def test_any_cut_gives_the_events_of_the_standard(text: bytes, places: list[int]) -> None:
    assert decode(*cuts(text, places)) == reference(text)


def outcome(chunks: list[bytes], max_event: int) -> tuple[list[bytes], bool]:
    decoder, events = Decoder(max_event), []
    for chunk in chunks:
        try:
            events += decoder.feed(chunk)
        except EventTooLong as error:
            return events + error.events, True
    return events, False


@settings(max_examples=examples(1_000))
@given(STREAMS, st.lists(st.integers(0, 1000), max_size=6), st.integers(1, 16))
def test_any_cut_meets_the_limit_at_the_same_event(text: bytes, places: list[int], max_event: int) -> None:
    assert outcome(cuts(text, places), max_event) == outcome([text], max_event)


@pytest.mark.parametrize("line", [b"data: ", b": ", b"x", b""], ids=["data", "comment", "unknown field", "no field"])
def test_a_line_is_refused_as_soon_as_it_passes_the_limit(line: bytes) -> None:
    decoder = Decoder(100)
    decoder.feed(line + b"x" * (100 - len(line)))
    with pytest.raises(EventTooLong):
        decoder.feed(b"x")


def test_a_line_of_the_limit_passes() -> None:
    text = b"data: " + b"x" * 94
    assert decode(text + b"\n\n", text, b"\n\n", max_event=100) == [b"x" * 94] * 2
    with pytest.raises(EventTooLong):
        decode(b"data: a\n\n" + text + b"x\n\n", max_event=100)


def test_the_blank_line_of_an_event_of_the_limit_passes() -> None:
    assert decode(b"data: a\n", b"\n", max_event=7) == decode(b"data: a\n\n", max_event=7) == [b"a"]


def test_a_long_event_is_refused_in_every_read() -> None:
    decoder = Decoder(100)
    assert decoder.feed(b"data: a\n\n") == decoder.feed(b"data: a\n\n") == [b"a"]
    with pytest.raises(EventTooLong):
        decoder.feed(b"data: " + b"x" * 95 + b"\n\n")


def test_events_before_the_long_one_are_not_lost() -> None:
    with pytest.raises(EventTooLong) as caught:
        decode(b"data: a\n\ndata: b\n\ndata: " + b"x" * 100, max_event=100)
    assert caught.value.events == [b"a", b"b"]
    with pytest.raises(EventTooLong) as caught:
        decode(b"data: a\n\ndata: " + b"x" * 100 + b"\n\ndata: c\n\n", max_event=100)
    assert caught.value.events == [b"a"]


def test_an_event_of_many_lines_is_limited_too() -> None:
    assert decode(*[b"data: a\n"] * 14, b"\n", max_event=100) == [b"\n".join([b"a"] * 14)]
    with pytest.raises(EventTooLong):
        decode(*[b"data: a\n"] * 15, max_event=100)
    with pytest.raises(EventTooLong):
        decode(b"data\n" * 26, max_event=100)


def test_comments_without_end_are_no_event() -> None:
    assert decode(*[b": ping\n"] * 1000, b"data: a\n\n", max_event=100) == [b"a"]


def test_many_events_in_one_read_are_not_one_long_event() -> None:
    assert decode(b"data: a\n\n" * 100, max_event=20) == [b"a"] * 100


def test_a_long_line_in_many_reads_is_read_once() -> None:
    """A decoder that looked again at what it had would handle some 5 * 10**11 bytes here, and meet the time-out."""
    size = 1 << 20
    decoder = Decoder(size + 6)
    assert decoder.feed(b"data: ") == []
    for _ in range(size):
        decoder.feed(b"x")
    assert decoder.feed(b"\n\n") == [b"x" * size]


@given(st.binary(max_size=20).filter(lambda data: not re.search(rb"[\r\n]", data)))
def test_a_frame_is_read_back(data: bytes) -> None:
    frame = event(b"token", data)
    assert frame == b"event: token\ndata: " + data + b"\n\n"
    assert decode(frame) == [data]
