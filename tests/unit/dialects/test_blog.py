from __future__ import annotations

import json

import pytest
from dialect_tools import told, whatwg
from inline_snapshot import snapshot

from chat_nest.dialects.blog import Blog
from chat_nest.core.deltas import ReasoningDelta, TextDelta
from chat_nest.core.errors import BadRequest, Forbidden, RateLimited, UpstreamIdle
from chat_nest.core.messages import ChatRequest, Message
from chat_nest.core.protocols import Dialect

blog: Dialect = Blog()


def encoder():
    return blog.encoder(ChatRequest(messages=()), "run-1")


def ask(query: bytes, **headers: str) -> bytes | None:
    route = Blog(get=True).routes[1]
    assert (route.method, route.body is not None) == ("GET", True)
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return route.body({"query_string": query, "headers": sent})  # type: ignore[misc]


def test_a_whole_stream() -> None:
    assert told(encoder()).decode() == snapshot("""\
event: chunk
id: run-1
data: {"text":"It is "}

event: chunk
data: {"text":"19\u202f°C\\n"}

event: done
data: {}

""")


def test_an_event_source_keeps_an_id_from_the_first_event_on() -> None:
    assert {seen.id for seen in whatwg(told(encoder()))} == {"run-1"}
    failing = encoder()
    assert whatwg(failing.start("m") + failing.fail(UpstreamIdle()))[0].id == "run-1"


@pytest.mark.parametrize("first", [(), (ReasoningDelta("Hm"),)])
def test_a_stream_begins_with_the_name_of_an_event(first: tuple[ReasoningDelta, ...]) -> None:
    """Some readers of this format take the first line for it."""
    one = encoder()
    raw = one.start("m") + one.encode(first) + one.encode((TextDelta("a"),)) + one.encode((TextDelta("b"),))
    assert raw.splitlines()[:3] == [b"event: chunk", b"id: run-1", b'data: {"text":"a"}']
    assert raw.count(b"id: ") == 1


def test_an_error_in_the_stream_and_a_ping() -> None:
    assert encoder().fail(UpstreamIdle()).decode() == snapshot("""\
event: error
data: {"error":"The model provider stopped answering","code":"upstream_idle"}

""")
    assert encoder().heartbeat() == b": ping\n"


def test_refusals() -> None:
    answers = [blog.refuse(error, "r1") for error in (BadRequest("must not be blank", field="message"), RateLimited())]
    assert [(answer.status, answer.body.decode()) for answer in answers] == snapshot(
        [
            (400, '{"error":"message must not be blank","code":"bad_request","request_id":"r1"}'),
            (
                200,
                """\
event: error
id: r1
data: {"error":"Rate limit exceeded. Please slow down.","code":"rate_limited","request_id":"r1"}

""",
            ),
        ]
    )


def test_a_message() -> None:
    assert blog.parse(b'{"message":" hello ","page":"/"}').messages == (Message(role="user", content=" hello "),)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "message"),
        ({"message": " "}, "message"),
        ({"message": 5}, "message"),
        ({"message": "x", "api_key": "secret"}, "api_key"),
    ],
)
def test_a_bad_field_is_named(body: dict[str, object], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        blog.parse(json.dumps(body).encode())
    assert caught.value.field == field


def test_get_is_off_by_default() -> None:
    assert [route.method for route in blog.routes] == ["POST"]


def test_a_question_in_the_url() -> None:
    body = ask(b"message=Gr%C3%BC%C3%9Fe+%26+more&x=1")
    assert body is not None
    assert blog.parse(body).messages == (Message(role="user", content="Grüße & more"),)


@pytest.mark.parametrize("query", [b"", b"message=a&message=b", b"message=%ff", b"x=" + b"&x=" * 30, b"message=\xff"])
def test_a_bad_question_in_the_url(query: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        ask(query)
    assert caught.value.field == "message"


def test_an_event_source_that_connects_again_is_not_answered_twice() -> None:
    assert ask(b"message=hello", Last_Event_ID="run-1") is None


@pytest.mark.parametrize("destination", ["image", "document", "iframe", "script"])
def test_a_request_that_is_not_a_fetch_spends_nothing(destination: str) -> None:
    with pytest.raises(Forbidden):
        ask(b"message=hello", sec_fetch_dest=destination)
    assert ask(b"message=hello", sec_fetch_dest="empty") is not None
