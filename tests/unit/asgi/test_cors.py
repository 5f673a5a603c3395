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
    assert Cors([]).headers(scope()) == []


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
    assert (b"access-control-allow-credentials" in headers) == allowed, "cookies from named origins only"
    assert headers[b"vary"] == b"origin", "a cache must not give one origin's answer to another"


def test_a_star_among_others_is_a_star():
    both = Cors(["https://a.example", "*"])
    assert dict(both.headers(scope()))[b"access-control-allow-origin"] == b"*"
    other, named = (dict(both.headers(scope(f"https://{name}.example".encode()))) for name in "ba")
    assert (other[b"access-control-allow-origin"], other[b"vary"]) == (b"*", b"origin")
    assert b"access-control-allow-credentials" not in other
    assert named[b"access-control-allow-origin"] == b"https://a.example"
    assert named[b"access-control-allow-credentials"] == b"true"


@pytest.mark.parametrize(
    "origin",
    ["shop.example", "https://shop.example/", "https://shop.example/page/", "", "null", "https://bücher.example"],
)
def test_an_invalid_origin_is_refused_at_the_start(origin):
    with pytest.raises(ValueError, match="origins: .* must"):
        Cors([origin])


def test_a_preflight_lists_methods_and_headers():
    headers = dict(Cors(["*"]).preflight(scope(b"https://shop.example"), b"POST, OPTIONS"))
    assert headers[b"access-control-allow-methods"] == b"POST, OPTIONS"
    assert b"content-type" in headers[b"access-control-allow-headers"]
    assert headers[b"access-control-allow-origin"] == b"*"
    assert int(headers[b"access-control-max-age"]) > 0


def test_an_origin_is_written_as_it_is_known():
    cors = Cors(["HTTPS://Shop.Example:443", "http://shop.example:80", "https://shop.example:8443"])
    for origin in (b"https://shop.example", b"http://shop.example", b"https://shop.example:8443"):
        assert dict(cors.headers(scope(origin)))[b"access-control-allow-origin"] == origin
    assert dict(cors.headers(scope(b"https://shop.example:80"))) == {b"vary": b"origin"}


def test_a_page_that_may_send_cookies_may_send_the_requested_headers():
    cors = Cors(["https://shop.example"])

    def allowed(origin: bytes, asked: bytes) -> bytes:
        request = scope(origin)
        request["headers"].append((b"access-control-request-headers", asked))
        return dict(cors.preflight(request, b"POST"))[b"access-control-allow-headers"]

    assert allowed(b"https://shop.example", b"content-type,x-stainless-os") == b"content-type,x-stainless-os"
    for origin, asked in ((b"https://evil.example", b"x-a"), (b"https://shop.example", b"x-a: b"), (b"null", b"x-a")):
        assert allowed(origin, asked) != asked


@pytest.mark.parametrize(
    ("origins", "headers", "needs"),
    [
        (["https://shop.example"], {}, True),
        (["https://shop.example"], {b"origin": b"https://shop.example"}, False),
        (["https://shop.example"], {b"sec-fetch-site": b"same-origin"}, False),
        (["https://shop.example", "*"], {}, False),
        (["*"], {}, False),
        ([], {}, False),
    ],
)
def test_a_program_needs_a_credential_unless_all_may_come(origins, headers, needs):
    asked = {"headers": list(headers.items())}
    assert Cors(origins).needs_credential(asked) is needs
    assert not Cors(origins, lets_programs=True).needs_credential(asked)
