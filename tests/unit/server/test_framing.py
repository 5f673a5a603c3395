"""The checks of a head; the rest of framing is tested over sockets in tests/faults/test_http.py."""

from __future__ import annotations

import pytest

from chat_nest.errors import BadRequest, HeadersTooLarge
from chat_nest.server.framing import MOST_FIELDS, MOST_HEAD_BYTES, check_head

HOST = (b"host", b"example.com")


def test_the_size_is_that_of_target_names_and_values() -> None:
    room = MOST_HEAD_BYTES - len(b"/") - len(b"hostexample.com") - len(b"x") - 2 * 4
    check_head("1.1", b"/", [HOST, (b"x", b"y" * room)])
    with pytest.raises(HeadersTooLarge):
        check_head("1.1", b"/", [HOST, (b"x", b"y" * (room + 1))])
    with pytest.raises(HeadersTooLarge):
        check_head("1.1", b"/?", [HOST, (b"x", b"y" * room)])


def test_a_field_too_many() -> None:
    check_head("1.1", b"/", [HOST, *[(b"x", b"")] * (MOST_FIELDS - 1)])
    with pytest.raises(HeadersTooLarge):
        check_head("1.1", b"/", [HOST, *[(b"x", b"")] * MOST_FIELDS])


def test_http_1_0_needs_no_host_but_not_two() -> None:
    check_head("1.0", b"/", [])
    with pytest.raises(BadRequest) as refused:
        check_head("1.0", b"/", [HOST, HOST])
    assert refused.value.field == "Host"


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b" chunked"])
def test_chunked_is_chunked_in_any_case(value: bytes) -> None:
    check_head("1.1", b"/", [HOST, (b"transfer-encoding", value)])
