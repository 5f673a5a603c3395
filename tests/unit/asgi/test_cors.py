from __future__ import annotations

import pytest

from chat_nest.asgi.cors import Cors


def scope(*origins: bytes):
    return {"headers": [(b"host", b"x"), *((b"origin", origin) for origin in origins)]}


def test_every_origin_without_credentials():
    for asked in (scope(), scope(b"https://shop.example"), scope(b"null")):
        headers = dict(Cors(["*"]).headers(asked))
        assert headers[b"access-control-allow-origin"] == b"*"
        assert b"x-request-id" in headers[b"access-control-expose-headers"]
        assert b"access-control-allow-credentials" not in headers
        assert b"vary" not in headers, "the answer is the same for all"


def test_no_origin_at_all():
    assert Cors([]).headers(scope(b"https://shop.example")) == []


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (b"https://shop.example", True),
        (b"https://SHOP.example", True),
        (b"https://shop.example:443", False),
        (b"https://shop.example/", False),
        (b"https://shop.example.evil", False),
        (b"https://evil.example?https://shop.example", False),
        (b"http://shop.example", False),
        (b"null", False),
        (b"", False),
        (b"\xff\x00", False),
    ],
)
def test_listed_origins_are_compared_whole(origin, allowed):
    headers = dict(Cors(["https://shop.example", "http://localhost:3000"]).headers(scope(origin)))
    assert headers.get(b"access-control-allow-origin") == (origin if allowed else None)
    assert headers[b"vary"] == b"origin", "a cache must not give one origin's answer to another"


def test_a_star_among_others_is_a_star():
    assert dict(Cors(["https://a.example", "*"]).headers(scope()))[b"access-control-allow-origin"] == b"*"


@pytest.mark.parametrize("origin", ["shop.example", "https://shop.example/", "https://shop.example/page/", ""])
def test_an_origin_that_is_none_is_told_at_the_start(origin):
    with pytest.raises(ValueError, match="cors_origins"):
        Cors([origin])


def test_a_preflight_lists_methods_and_headers():
    headers = dict(Cors(["*"]).preflight(scope(b"https://shop.example"), b"POST, OPTIONS"))
    assert headers[b"access-control-allow-methods"] == b"POST, OPTIONS"
    assert b"content-type" in headers[b"access-control-allow-headers"]
    assert headers[b"access-control-allow-origin"] == b"*"
    assert int(headers[b"access-control-max-age"]) > 0
