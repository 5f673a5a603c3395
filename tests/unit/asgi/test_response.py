from __future__ import annotations

import pytest

from chat_nest.asgi.response import error_headers, respond
from chat_nest.core.errors import MethodNotAllowed, RateLimited, Unauthorized
from chat_nest.core.protocols import Answer


class Server:
    def __init__(self) -> None:
        self.sent = []

    async def send(self, message):
        self.sent.append(message)


async def test_a_json_answer():
    server = Server()
    await respond(server.send, Answer(status=404, body=b'{"error":"x"}'), [(b"x-request-id", b"1")])
    start, body = server.sent
    headers = dict(start["headers"])
    assert start["status"] == 404
    assert headers == {
        b"x-request-id": b"1",
        b"cache-control": b"no-store",
        b"x-content-type-options": b"nosniff",
        b"content-type": b"application/json",
        b"content-length": b"13",
    }
    assert body["body"] == b'{"error":"x"}'
    assert not body["more_body"]


async def test_an_answer_without_a_body_has_no_type_and_no_length():
    server = Server()
    await respond(server.send, Answer(status=204, body=b""))
    assert set(dict(server.sent[0]["headers"])) == {b"cache-control", b"x-content-type-options"}


async def test_a_client_that_has_left_is_no_error():
    async def gone(_message):
        raise BrokenPipeError

    await respond(gone, Answer(status=404, body=b"{}"))


@pytest.mark.parametrize(("seconds", "told"), [(0.0, b"1"), (0.2, b"1"), (1.0, b"1"), (1.01, b"2"), (3_600.5, b"3601")])
def test_retry_after_is_in_whole_seconds_and_never_too_early(seconds, told):
    assert error_headers(RateLimited(retry_after=seconds)) == [(b"retry-after", told)]


def test_headers_of_other_errors():
    assert error_headers(RateLimited()) == []
    assert error_headers(Unauthorized()) == []
    assert error_headers(Unauthorized(challenge="Bearer")) == [(b"www-authenticate", b"Bearer")]
    assert error_headers(MethodNotAllowed("GET, OPTIONS")) == [(b"allow", b"GET, OPTIONS")]
