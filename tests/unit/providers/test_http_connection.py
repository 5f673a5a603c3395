"""The HTTP/1.1 protocol: answers cut anywhere, what is odd or too long, backpressure, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Coroutine, Iterator
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.core.errors import UpstreamError, UpstreamProtocol, UpstreamTruncated, UpstreamUnavailable
from chat_nest.providers.http_connection import (
    FIELD_BYTES,
    FIELDS,
    HEAD_BYTES,
    MOST_READ,
    READ_BUFFER,
    ClientConnection,
    Fields,
)

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nx-empty:\r\n\r\n"
    b"5\r\nhello\r\n7;ext=1\r\n, world\r\n0\r\nx-trailer: 1\r\n\r\n"
)
SIZED = b"HTTP/1.1 429 Too Many\r\nretry-after: 7\r\ncontent-length: 12\r\n\r\nhello, world"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\nserver: old\r\n\r\nhello, world"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
ANSWERS = {
    "chunked": CHUNKED,
    "sized": SIZED,
    "until closed": UNTIL_CLOSED,
    "interim": INTERIM + SIZED,
    "empty": b"HTTP/1.1 204 No Content\r\n\r\n",
}


class Wire(asyncio.Transport):
    """A transport without a network: what was written, and whether reading is paused or all is over."""

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.paused = self.aborted = False
        self.connection = connection
        connection.connection_made(self)

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def abort(self) -> None:
        self.aborted = True


def asked() -> tuple[ClientConnection, Wire]:
    """A connection on which a request was sent."""
    connection = ClientConnection()
    wire = Wire(connection)
    connection.send([b"GET / HTTP/1.1\r\n\r\n", b"body"])
    assert wire.written == b"GET / HTTP/1.1\r\n\r\nbody"
    return connection, wire


async def whole(connection: ClientConnection) -> tuple[int, dict[str, str], bytes]:
    await connection.answered()
    body = b""
    while piece := await connection.read():
        body += piece
    return connection.status, dict(connection.fields), body


async def outcome(connection: ClientConnection) -> tuple[int, bytes, type[UpstreamError] | None]:
    """What a reader gets: the status, the bytes, and how it ends."""
    status, body = 0, b""
    try:
        await connection.answered()
        status = connection.status
        while piece := await connection.read():
            body += piece
    except UpstreamError as error:
        assert error.__context__ is None
        return status, body, type(error)
    return status, body, None


async def passed(connection: ClientConnection, says: Iterator[bool]) -> tuple[int, bytes, type[UpstreamError] | None]:
    """The same for one who is given the bytes, and wants no more of them whenever `says` is False."""
    status, pieces = 0, []

    def take(piece: bytes) -> bool:
        pieces.append(piece)
        return next(says)

    try:
        await connection.answered()
        status = connection.status
        while await connection.pass_on(take):
            pass
    except UpstreamError as error:
        assert error.__context__ is None
        return status, b"".join(pieces), type(error)
    return status, b"".join(pieces), None


def deliver(connection: ClientConnection, pieces: list[bytes], *, close: bool) -> None:
    for piece in pieces:
        connection.data_received(piece)
    if close:
        connection.eof_received()
        connection.connection_lost(None)


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_that_comes_byte_by_byte_is_the_same(name: str) -> None:
    answer = ANSWERS[name]
    expected = {
        "chunked": (200, b"hello, world"),
        "sized": (429, b"hello, world"),
        "until closed": (200, b"hello, world"),
        "interim": (429, b"hello, world"),
        "empty": (204, b""),
    }[name]
    for step in (1, 2, 7, len(answer)):
        connection, _ = asked()
        reading = asyncio.create_task(whole(connection))
        for at in range(0, len(answer), step):
            connection.data_received(answer[at : at + step])
            await asyncio.sleep(0)
        if name == "until closed":
            connection.eof_received()
        status, fields, body = await reading
        assert (status, body) == expected
        assert "link" not in fields
        assert "x-trailer" not in fields
        if name == "chunked":
            assert fields == {"content-type": "text/event-stream", "transfer-encoding": "chunked", "x-empty": ""}
        assert connection.release() is (name != "until closed")


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_that_is_cut_at_any_byte_never_looks_whole(name: str) -> None:
    answer = ANSWERS[name]
    head = answer.rindex(b"\r\n\r\n", 0, len(answer) - 20 if name == "chunked" else None) + 4
    if name == "chunked":
        head = answer.index(b"\r\n\r\n") + 4
    for cut in range(len(answer)):
        connection, wire = asked()
        deliver(connection, [answer[:cut]] if cut else [], close=True)
        status, body, failure = await outcome(connection)
        assert b"hello, world".startswith(body)
        if cut < head:
            assert (status, failure) == (0, UpstreamUnavailable)
        elif name == "until closed":
            assert failure is None
        else:
            assert failure is UpstreamTruncated
        assert not connection.release()
        assert wire.aborted


@given(st.data())
def test_however_an_answer_is_split_its_reader_gets_the_same(data: st.DataObject) -> None:
    answer = ANSWERS[data.draw(st.sampled_from(sorted(ANSWERS)))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True) if a < b]
    early = data.draw(st.integers(0, len(pieces)))
    says = data.draw(st.none() | st.lists(st.booleans(), min_size=1, max_size=8))

    async def split() -> tuple[int, bytes, type[UpstreamError] | None]:
        connection, _ = asked()
        deliver(connection, pieces[:early], close=False)
        reading = asyncio.create_task(outcome(connection) if says is None else passed(connection, cycle(says)))
        await asyncio.sleep(0)
        for piece in pieces[early:]:
            connection.data_received(piece)
            if data.draw(st.booleans()):
                await asyncio.sleep(0)
        connection.eof_received()
        return await reading

    async def at_once() -> tuple[int, bytes, type[UpstreamError] | None]:
        connection, _ = asked()
        deliver(connection, [answer], close=True)
        return await outcome(connection)

    assert asyncio.run(split()) == asyncio.run(at_once())


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6))
def test_no_bytes_at_all_break_more_than_an_answer(pieces: list[bytes]) -> None:
    async def read() -> None:
        connection, _ = asked()
        deliver(connection, pieces, close=True)
        await outcome(connection)
        connection.release()

    asyncio.run(read())


ODD = {
    "switching protocols": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nabc",
    "switching without a word": b"HTTP/1.1 101 Switching\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na",
    "a status below 100": b"HTTP/1.1 099 Odd\r\n\r\n",
    "a transfer coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "a transfer coding until closed": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\na",
    "a folded header": b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 1\r\n\r\na",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na",
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 1\n\na",
    "a long field": b"HTTP/1.1 200 OK\r\nx: " + b"y" * FIELD_BYTES + b"\r\n\r\n",
    "many fields": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * (FIELDS + 1) + b"\r\n",
    "long fields": b"HTTP/1.1 200 OK\r\n"
    + (b"x: " + b"y" * (FIELD_BYTES - 10) + b"\r\n") * 5
    + b"content-length: 1\r\n\r\na",
    "interim answers without end": b"HTTP/1.1 103 Early\r\n\r\n" * (HEAD_BYTES // 20),
    "interim fields without end": b"HTTP/1.1 103 Early\r\nx: y\r\n\r\n" * (FIELDS + 1),
}


@pytest.mark.parametrize("size", [1000, 1_000_000])
@pytest.mark.parametrize("name", ODD)
async def test_an_odd_head_is_refused(name: str, size: int) -> None:
    connection, wire = asked()
    answer = ODD[name]
    for at in range(0, len(answer), size):
        connection.data_received(answer[at : at + size])
    assert (await outcome(connection))[2] is UpstreamProtocol
    assert wire.aborted
    assert connection.reason


async def test_what_may_be_in_a_head() -> None:
    connection, _ = asked()
    fields = b"".join(b"x-%d: y\r\n" % number for number in range(FIELDS - 2))
    long = b"z: " + b"y" * (FIELD_BYTES - 1) + b"\r\n"
    connection.data_received(b"HTTP/1.1 200 OK\r\n" + fields + long + b"content-length: 1\r\n\r\na")
    assert (await whole(connection))[2] == b"a"


@pytest.mark.parametrize("filler", [b"a;" + b"x" * 999, b"0\r\n" + b"x: " + b"y" * 999])
async def test_an_invalid_body_is_not_read_for_ever(filler: bytes) -> None:
    """A chunk's extension, or a trailer, without end."""
    connection, wire = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n" + filler)
    assert await connection.read() == b"a"
    for _ in range(HEAD_BYTES // 1000 + 1):
        connection.data_received(b"y" * 1000)
    with pytest.raises(UpstreamProtocol):
        await connection.read()
    assert wire.aborted


async def test_bytes_before_a_failure_are_read_first() -> None:
    connection, _ = asked()
    deliver(connection, [CHUNKED.partition(b"7;")[0], b"zz\r\n"], close=False)
    await connection.answered()
    assert await connection.read() == b"hello"
    for _ in range(2):
        with pytest.raises(UpstreamProtocol):
            await connection.read()


async def test_reads_coalesce() -> None:
    connection, _ = asked()
    deliver(connection, [CHUNKED[:-40], CHUNKED[-40:]], close=False)
    await connection.answered()
    assert await connection.read() == b"hello, world"
    assert await connection.read() == b""
    assert await connection.read() == b""


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\n\r\n", b"junk", CHUNKED])
@pytest.mark.parametrize("together", [True, False])
async def test_unrequested_bytes_close_the_connection(more: bytes, together: bool) -> None:
    connection, wire = asked()
    deliver(connection, [SIZED + more] if together else [SIZED, more], close=False)
    assert await whole(connection) == (429, {"retry-after": "7", "content-length": "12"}, b"hello, world")
    assert not connection.release()
    assert wire.aborted


async def test_bytes_on_a_kept_connection_close_it() -> None:
    connection, wire = asked()
    deliver(connection, [SIZED], close=False)
    await whole(connection)
    assert connection.release()
    connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert connection.closed
    assert wire.aborted


@pytest.mark.parametrize("version", [b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 200 OK\r\nconnection: close\r\n"])
async def test_an_answer_that_ends_its_connection(version: bytes) -> None:
    connection, _ = asked()
    deliver(connection, [version + b"content-length: 1\r\n\r\na"], close=False)
    assert (await whole(connection))[2] == b"a"
    assert not connection.release()


async def test_an_answer_before_the_request_was_sent_ends_its_connection() -> None:
    connection, wire = asked()
    wire.unsent = 1
    deliver(connection, [SIZED], close=False)
    await whole(connection)
    assert not connection.release()


async def test_the_next_answer_has_nothing_of_the_last() -> None:
    connection, wire = asked()
    deliver(connection, [SIZED], close=False)
    await connection.answered()
    assert connection.release()  # its body was not read
    connection.send([b"GET"])
    deliver(connection, [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno"], close=False)
    assert await whole(connection) == (200, {"content-length": "2"}, b"no")
    assert connection.release()
    assert not wire.aborted


async def test_unread_pieces_are_taken_once_with_whether_more_may_follow() -> None:
    connection, _ = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    await connection.answered()
    assert connection.take_unread() == ([], False)
    connection.data_received(b"a" * 10)
    assert await connection.read() == b"a" * 10
    connection.data_received(b"b" * 5)
    connection.data_received(b"c" * 5)
    assert connection.take_unread() == ([b"b" * 5, b"c" * 5], False)
    assert connection.take_unread() == ([], False), "nothing of them is kept"
    connection.data_received(b"d" * READ_BUFFER)
    assert connection.take_unread() == ([b"d" * READ_BUFFER], True), "the socket is not read any more"


async def test_unread_pieces_of_a_whole_body_have_nothing_after_them() -> None:
    connection, _ = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    await connection.answered()
    connection.data_received(b"d" * (READ_BUFFER + 1))
    connection.data_received(b"e" * (99_999 - READ_BUFFER))
    assert connection.take_unread() == ([b"d" * (READ_BUFFER + 1), b"e" * (99_999 - READ_BUFFER)], False)


async def test_reading_is_paused_while_the_consumer_does_not_read() -> None:
    connection, wire = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    await connection.answered()
    for _ in range(2):
        sent = 0
        while not wire.paused:
            connection.data_received(b"x" * 1000)
            sent += 1000
            assert sent <= READ_BUFFER + 1000
        assert await connection.read() == b"x" * sent
        assert not wire.paused
    connection.data_received(b"x" * READ_BUFFER)
    connection.data_received(b"x" * 1000)
    assert wire.paused
    connection.abort()
    assert await connection.read() == b"x" * (READ_BUFFER + 1000)
    with pytest.raises(UpstreamTruncated):
        await connection.read()


async def test_one_read_is_never_large() -> None:
    connection, _ = asked()
    body = b"x" * (2 * MOST_READ + 1)
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await connection.answered()
    assert [len(await connection.read()) for _ in range(4)] == [MOST_READ, MOST_READ, 1, 0]


async def test_bytes_are_passed_on_in_the_read_that_brings_them() -> None:
    connection, wire = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    await connection.answered()
    taken: list[int] = []

    def take(piece: bytes) -> bool:
        taken.append(len(piece))
        return len(taken) < 5

    passing = asyncio.create_task(connection.pass_on(take))
    await asyncio.sleep(0)
    connection.data_received(b"x")
    connection.data_received(b"x" * (2 * MOST_READ + 1))
    assert taken == [1, MOST_READ, MOST_READ, 1], "nothing waits for a turn of the loop, and no piece is large"
    connection.data_received(b"x" * 10)
    connection.data_received(b"y" * 10)
    assert taken[4:] == [10], "nothing more is given to one who wants no more"
    assert await passing
    connection.data_received(b"y" * (READ_BUFFER + 1))
    assert wire.paused
    assert await connection.read() == b"y" * (READ_BUFFER + 11)


async def test_what_goes_wrong_where_bytes_are_passed_on_is_raised_there() -> None:
    connection, _ = asked()
    deliver(connection, [b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n"], close=False)
    await connection.answered()

    def take(piece: bytes) -> bool:
        raise ZeroDivisionError

    for early in (False, True):
        if early:
            connection.data_received(b"abc")
        passing = asyncio.create_task(connection.pass_on(take))
        await asyncio.sleep(0)
        if not early:
            connection.data_received(b"abc")
        with pytest.raises(ZeroDivisionError):
            await passing
    assert await connection.read() == b""


async def test_nothing_is_passed_on_to_a_cancelled_reader() -> None:
    connection, _ = asked()
    deliver(connection, [SIZED[:-12]], close=False)
    await connection.answered()
    taken: list[bytes] = []
    passing = asyncio.create_task(connection.pass_on(lambda piece: not taken.append(piece)))
    await asyncio.sleep(0)
    passing.cancel()
    connection.data_received(SIZED[-12:-6])  # before its task knows
    await asyncio.wait([passing])
    connection.data_received(SIZED[-6:])
    assert taken == []
    assert await connection.read() == SIZED[-12:]


async def test_a_kept_connection_is_never_paused() -> None:
    connection, wire = asked()
    body = b"x" * (2 * READ_BUFFER)
    deliver(connection, [b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body), body], close=False)
    assert wire.paused
    await connection.answered()
    assert connection.release()
    assert not wire.paused


async def test_cancelled_twice_while_it_waits() -> None:
    connection, _ = asked()
    for step in (connection.answered, connection.read, lambda: connection.pass_on(lambda _: True)):
        waiting = asyncio.create_task(step())
        await asyncio.sleep(0)
        waiting.cancel()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
    deliver(connection, [SIZED], close=False)
    assert (await whole(connection))[0] == 429


async def test_one_reader_at_a_time() -> None:
    connection, _ = asked()
    first = asyncio.create_task(connection.answered())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one reader"):
        await connection.answered()
    deliver(connection, [SIZED], close=False)
    await first


async def test_a_lost_connection_sends_nothing() -> None:
    connection, wire = asked()
    deliver(connection, [SIZED], close=True)
    await whole(connection)
    written = wire.written
    connection.send([b"more"])
    with pytest.raises(UpstreamUnavailable):
        await connection.answered()
    assert wire.written == written


def await_nothing(reading: Coroutine[Any, Any, bytes]) -> type[BaseException]:
    """What a read raises at once."""
    try:
        reading.send(None)
    except UpstreamError as error:
        return type(error)
    finally:
        reading.close()
    raise AssertionError("it waits, or brings bytes")


async def test_nothing_of_a_connection_stays() -> None:
    connection, wire = asked()
    deliver(connection, [CHUNKED[:-9]], close=False)
    await connection.answered()
    left = weakref.ref(connection)
    assert not connection.release()
    assert await_nothing(connection.read()) is UpstreamTruncated, "what was not read is gone, too"
    connection.connection_lost(None)
    assert connection.transport is None
    gc.disable()
    try:
        del connection, wire
        assert left() is None, "nothing waits for the collector, which comes seldom"
    finally:
        gc.enable()


def test_fields_are_looked_up_in_any_case() -> None:
    fields = Fields()
    fields.add("Content-Encoding", "identity")
    fields.add("CONTENT-encoding", "gzip")
    assert fields["content-Encoding"] == fields.get("Content-Encoding") == "identity, gzip"
    assert fields.get("Other") is None
    assert "CONTENT-ENCODING" in fields
    assert list(fields) == ["content-encoding"]
    assert len(fields) == 1
