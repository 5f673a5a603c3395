from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.asgi.request import idempotency_key, read_json_body
from chat_nest.core.errors import BadRequest, BodyTooLarge, ClientGone, UnsupportedMediaType

JSON = (b"content-type", b"application/json")


class Client:
    """Sends a body in pieces, and knows how many were asked for."""

    def __init__(self, *pieces: bytes, leaves: bool = False) -> None:
        self.asked = 0
        self._messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        if leaves:
            self._messages.append({"type": "http.disconnect"})
        elif self._messages:
            self._messages[-1]["more_body"] = False

    async def receive(self):
        self.asked += 1
        return self._messages.pop(0)


def read(client: Client, *headers: tuple[bytes, bytes], limit: int = 100):
    return read_json_body({"headers": list(headers)}, client.receive, limit)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
async def test_a_body_is_its_pieces(pieces):
    assert await read(Client(*pieces), JSON, limit=200) == b"".join(pieces)


@given(st.integers(1, 300), st.integers(1, 60))
async def test_no_more_is_read_than_it_takes_to_see_that_it_is_too_much(size, step):
    whole = b"x" * size
    client = Client(*(whole[at : at + step] for at in range(0, size, step)))
    if size <= 100:
        assert await read(client, JSON) == whole
    else:
        with pytest.raises(BodyTooLarge, match="at most 100 bytes"):
            await read(client, JSON)
        assert client.asked == 100 // step + 1


async def test_a_declared_length_is_enough_to_refuse():
    for length in (b"101", b"9" * 40):
        client = Client(b"x")
        with pytest.raises(BodyTooLarge):
            await read(client, JSON, (b"content-length", length))
        assert client.asked == 0


@pytest.mark.parametrize("length", [b"-1", b"+1", b"1.0", b"0x1", b"", b"1_0", b"\xb2", b"1\xa0", b"\x0b1"])
async def test_a_length_that_is_no_number(length):
    with pytest.raises(BadRequest) as refused:
        await read(Client(b"x"), JSON, (b"content-length", length))
    assert refused.value.field == "Content-Length"


async def test_a_declared_length_is_not_believed():
    with pytest.raises(BodyTooLarge):
        await read(Client(b"x" * 101), JSON, (b"content-length", b"5"))


@pytest.mark.parametrize(
    ("media_type", "accepted"),
    [
        (b"application/json", True),
        (b"Application/JSON; charset=utf-8", True),
        (b"application/problem+json", True),
        (b"application/jsonl", False),
        (b"text/json", False),
        (b"text/x+json", False),
        (b"application/x-www-form-urlencoded", False),
        (b"multipart/form-data; boundary=application/json", False),
        (b"", False),
        (b"\xff", False),
    ],
)
async def test_media_types(media_type, accepted):
    client = Client(b"{}")
    if accepted:
        assert await read(client, (b"content-type", media_type)) == b"{}"
    else:
        with pytest.raises(UnsupportedMediaType):
            await read(client, (b"content-type", media_type))
        assert client.asked == 0


async def test_no_media_type():
    with pytest.raises(UnsupportedMediaType):
        await read(Client(b"{}"))


@pytest.mark.parametrize("encoding", [b"br", b"deflate", b"identity, gzip", b"gzip, gzip", b"x"])
async def test_a_content_encoding_is_refused(encoding):
    with pytest.raises(UnsupportedMediaType):
        await read(Client(b"{}"), JSON, (b"content-encoding", encoding))


async def test_identity_is_no_encoding():
    assert await read(Client(b"{}"), JSON, (b"content-encoding", b" Identity ")) == b"{}"


@pytest.mark.parametrize("name", [b"gzip", b" GZip ", b"x-gzip"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_gzip_is_unpacked_as_it_comes(name, size):
    packed = gzip.compress(b'{"a":"' + b"b" * 90 + b'"}')
    pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
    assert await read(Client(*pieces), JSON, (b"content-encoding", name)) == b'{"a":"' + b"b" * 90 + b'"}'


async def test_gzip_that_unpacks_to_too_much_is_refused_before_it_is_unpacked():
    bomb = gzip.compress(b" " * 10_000_000)
    client = Client(*(bomb[at : at + 50] for at in range(0, len(bomb), 50)))
    tracemalloc.start()
    with pytest.raises(BodyTooLarge):
        await read(client, JSON, (b"content-encoding", b"gzip"))
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 200_000
    assert client.asked <= 2, "what comes behind is not looked at"


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"{}",
        gzip.compress(b"{}")[:-1],
        gzip.compress(b"{}")[:12],
        gzip.compress(b"{}") + b"x",
        gzip.compress(b"{") + gzip.compress(b"}"),
        gzip.compress(b"{}")[:-4] + b"oops",
        zlib.compress(b"{}"),
    ],
    ids=range(8),
)
async def test_gzip_that_is_broken_is_a_bad_request(packed):
    with pytest.raises(BadRequest) as caught:
        await read(Client(packed), JSON, (b"content-encoding", b"gzip"))
    assert caught.value.field == "body"


async def test_a_client_that_leaves_in_the_middle():
    with pytest.raises(ClientGone):
        await read(Client(b"{", leaves=True), JSON)


@pytest.mark.parametrize("blank", [b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\xa0"])
async def test_only_spaces_and_tabs_are_blanks(blank):
    assert await read(Client(b"{}"), (b"content-type", b"\t application/json \t; charset=utf-8")) == b"{}"
    for name, value in JSON, (b"content-encoding", b"identity"):
        with pytest.raises(UnsupportedMediaType):
            await read(Client(b"{}"), (name, value + blank), JSON)
    assert idempotency_key({"headers": [(b"idempotency-key", b"\t k ")]}) == "k"
    with pytest.raises(BadRequest):
        idempotency_key({"headers": [(b"idempotency-key", b"k" + blank)]})
