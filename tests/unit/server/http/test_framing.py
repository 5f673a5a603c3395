"""The checks of a head; the rest of framing is tested over sockets in tests/faults/test_http.py."""

from __future__ import annotations

import pytest

from chat_nest.core.errors import BadRequest
from chat_nest.server.http.framing import Target, read_head, read_target

HOST = (b"host", b"example.com")


def test_http_1_0_needs_no_host_but_not_two() -> None:
    read_head("1.0", [])
    with pytest.raises(BadRequest) as refused:
        read_head("1.0", [HOST, HOST])
    assert refused.value.field == "Host"


@pytest.mark.parametrize("blank", [b"\x0b", b"\x0c", b"\x85", b"\xa0"])
def test_only_spaces_and_tabs_are_blanks(blank: bytes) -> None:
    read_head("1.1", [(b"host", b"\t example.com \t"), (b"transfer-encoding", b"\tchunked ")])
    for field in (b"host", b"example.com" + blank), (b"transfer-encoding", b"chunked" + blank):
        with pytest.raises(BadRequest):
            read_head("1.1", [HOST, field] if field[0] != b"host" else [field])


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b" chunked"])
def test_chunked_is_chunked_in_any_case(value: bytes) -> None:
    assert read_head("1.1", [HOST, (b"transfer-encoding", value)]).length is None


@pytest.mark.parametrize(("version", "expects"), [("1.1", True), ("1.0", False)])
def test_a_client_of_http_1_0_can_not_expect_anything(version: str, expects: bool) -> None:
    assert read_head(version, [HOST, (b"expect", b"100-Continue")]).expects_continue is expects


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        (b"/a/b?c=d?e", "/a/b", b"/a/b", b"c=d?e"),
        (b"/?", "/", b"/", b""),
        (b"/%C3%A9/%2F%zz", "/\u00e9//%zz", b"/%C3%A9/%2F%zz", b""),
        (b"//evil.example/x", "//evil.example/x", b"//evil.example/x", b""),
        (b"http://Example.com/a?b", "/a", b"/a", b"b"),
        (b"HTTPS://example.com", "/", b"/", b""),
        (b"http://example.com?b", "/", b"/", b"b"),
    ],
)
def test_a_path_or_a_url_of_this_host(target: bytes, path: str, raw_path: bytes, query: bytes) -> None:
    assert read_target(b"GET", target, b"example.com") == Target(path, raw_path, query)


def test_an_asterisk_is_the_server_itself_and_only_for_options() -> None:
    assert read_target(b"OPTIONS", b"*", b"example.com").path == "*"
    with pytest.raises(BadRequest):
        read_target(b"GET", b"*", b"example.com")


@pytest.mark.parametrize(
    "target",
    [
        b"http://other.example/a",
        b"http://example.com:80/a",
        b"http://u@example.com/a",
        b"http:///a",
        b"ftp://example.com/a",
        b"example.com:80",
        b"a",
        b"/a#b",
        b"/\xc3\xa9",
    ],
)
def test_a_target_that_is_none_of_this_host(target: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        read_target(b"GET", target, b"example.com")
    assert refused.value.field == "target"
