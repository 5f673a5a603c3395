from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from dialect_tools import ROW_29, ending, texts
from npm_client import Parser

from chat_nest.core.deltas import Delta, FinishDelta, ReasoningDelta, TextDelta, UsageDelta
from chat_nest.dialects.native import REFUSED_FIELDS, Native
from chat_nest.core.errors import (
    BadRequest,
    BodyTooLarge,
    BudgetExceeded,
    ChatError,
    RateLimited,
    RequestTooLarge,
    Shutdown,
    Unauthorized,
    UpstreamIdle,
)
from chat_nest.core.messages import ChatRequest, Message
from chat_nest.core.protocols import Dialect
from chat_nest.core.usage import Usage

HELLO = {"role": "user", "content": "hello"}
native: Dialect = Native()
encoder = native.encoder(ChatRequest(messages=()), "run-1")


def parse(**fields: object) -> ChatRequest:
    return native.parse(json.dumps({"messages": [HELLO], **fields}).encode())


def refused(**fields: object) -> tuple[str, str]:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    return caught.value.field, caught.value.message


# Readers of our bytes.


def whatwg(stream: bytes) -> list[tuple[str, str]]:
    """(event, data) as the WHATWG's event stream interpretation has them; no comments, ids or retries are expected."""
    events: list[tuple[str, str]] = []
    name, data = "", ""
    text = stream.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    for line in text.split("\n"):
        if not line:
            if data:
                events.append((name or "message", data.removesuffix("\n")))
            name, data = "", ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data += value + "\n"
        else:
            raise AssertionError(f"unexpected field {field!r}")
    assert not (name or data), "the last event is not dispatched without a blank line"
    return events


def cut(data: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = next(sizes, len(data))
        yield data[at : at + size]
        at += size


# Bytes out.


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("tok0 ", b'event: token\ndata: "tok0 "\n\n'),
        ("line1\n", b'event: token\ndata: "line1\\n"\n\n'),
        ("line2\n\n", b'event: token\ndata: "line2\\n\\n"\n\n'),
        ("\n", b'event: token\ndata: "\\n"\n\n'),
        ("a\r\nb", b'event: token\ndata: "a\\r\\nb"\n\n'),
        ("\tindented", b'event: token\ndata: "\\tindented"\n\n'),
        (" lead", b'event: token\ndata: " lead"\n\n'),
        ("   ", b'event: token\ndata: "   "\n\n'),
        ("né", b'event: token\ndata: "n\xc3\xa9"\n\n'),
        ("日本語", b'event: token\ndata: "\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e"\n\n'),
        (
            "🎉👩\u200d👩\u200d👧",
            b'event: token\ndata: "\xf0\x9f\x8e\x89\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7"\n\n',
        ),
        ("\u2028", b'event: token\ndata: "\xe2\x80\xa8"\n\n'),
        ("\x00", b'event: token\ndata: "\\u0000"\n\n'),
        ("\x1c\x7f\b\f\v", b'event: token\ndata: "\\u001c\x7f\\b\\f\\u000b"\n\n'),
        ("ﬀ", b'event: token\ndata: "\xef\xac\x80"\n\n'),
        ("e\u0301", b'event: token\ndata: "e\xcc\x81"\n\n'),
        ("5", b'event: token\ndata: "5"\n\n'),
        ('{"a":1}', b'event: token\ndata: "{\\"a\\":1}"\n\n'),
        ("null", b'event: token\ndata: "null"\n\n'),
        ("data: x", b'event: token\ndata: "data: x"\n\n'),
        ("event: done", b'event: token\ndata: "event: done"\n\n'),
        (": c", b'event: token\ndata: ": c"\n\n'),
        ("\\n", b'event: token\ndata: "\\\\n"\n\n'),
        ("[DONE]", b'event: token\ndata: "[DONE]"\n\n'),
        ("</script>", b'event: token\ndata: "</script>"\n\n'),
        ("\ud83d", b'event: token\ndata: "\\ud83d"\n\n'),
    ],
)
def test_a_token_is_framed_as_the_npm_server_does(text: str, data: bytes) -> None:
    assert encoder.encode([TextDelta(text)]) == data


def test_a_batch_is_one_write() -> None:
    batch: list[Delta] = [
        ReasoningDelta("hm"),
        TextDelta("a"),
        TextDelta("b"),
        UsageDelta(Usage(output_tokens=2)),
        FinishDelta("stop"),
    ]
    assert encoder.encode(batch) == b'event: token\ndata: "a"\n\nevent: token\ndata: "b"\n\n'
    assert encoder.encode([ReasoningDelta("hm")]) == b""


def test_the_events_around_the_tokens() -> None:
    assert encoder.start("openai:gpt-4o-mini") == (
        b'event: start\ndata: {"id":"run-1","model":"openai:gpt-4o-mini"}\n\n'
    )
    assert encoder.heartbeat() == b"event: ping\ndata: \n\n"
    assert encoder.finish(ending()) == (
        b'event: done\ndata: {"finish_reason":"stop","model":"gpt-4o-mini",'
        b'"usage":{"input_tokens":12,"output_tokens":34,"total_tokens":46},"cost_usd":0.000118501,'
        b'"source":"reported",'
        b'"remaining":{"tokens_per_day":69954,"requests_per_minute":29}}\n\n'
    )
    assert encoder.finish(ending(reason="length", source="estimated", remaining={})) == (
        b'event: done\ndata: {"finish_reason":"length","model":"gpt-4o-mini",'
        b'"usage":{"input_tokens":12,"output_tokens":34,"total_tokens":46},"cost_usd":0.000118501,"source":"estimated","remaining":{}}\n\n'
    )


@pytest.mark.parametrize(
    ("error", "data"),
    [
        (
            UpstreamIdle(),
            b'{"message":"The model provider stopped answering","code":"upstream_idle","retryable":false}',
        ),
        (
            Shutdown(retry_after=2.2),
            b'{"message":"The server is shutting down. Please try again.","code":"shutdown","retryable":true,'
            b'"retry_after":3}',
        ),
        (ChatError(), b'{"message":"AI request failed","code":"internal_error","retryable":false}'),
        (
            ChatError(retry_after=math.inf),
            b'{"message":"AI request failed","code":"internal_error","retryable":false}',
        ),
    ],
)
def test_an_error_is_typed(error: ChatError, data: bytes) -> None:
    assert encoder.fail(error) == b"event: error\ndata: " + data + b"\n\n"


def test_the_headers_keep_proxies_from_buffering() -> None:
    assert dict(encoder.headers) == {
        b"content-type": b"text/event-stream",
        b"cache-control": b"no-cache, no-transform",
        b"x-accel-buffering": b"no",
    }


@given(st.lists(texts, min_size=1))
@example([ROW_29])
def test_row_29_any_text_is_one_event_with_the_same_text(pieces: list[str]) -> None:
    stream = encoder.encode([TextDelta(piece) for piece in pieces])
    assert [(name, json.loads(data)) for name, data in whatwg(stream)] == [("token", piece) for piece in pieces]
    assert b"\r" not in stream
    assert not stream.startswith(b"\xef\xbb\xbf")


@given(st.lists(texts), st.lists(st.integers(1, 40)), st.booleans())
@example([ROW_29], [], True)
def test_the_npm_client_reads_the_same_text_however_the_bytes_are_cut(
    pieces: list[str], sizes: list[int], fails: bool
) -> None:
    stream = encoder.start("m") + encoder.heartbeat()
    stream += b"".join(encoder.encode([TextDelta(piece)]) + encoder.heartbeat() for piece in pieces)
    stream += encoder.fail(UpstreamIdle()) if fails else encoder.finish(ending())
    client = Parser()
    for chunk in cut(stream, iter(sizes)):
        client.feed(chunk)
    assert client.tokens == pieces
    assert client.error == ("The model provider stopped answering" if fails else None)
    assert client.done is not fails


def test_a_browser_sees_every_event_in_order() -> None:
    stream = encoder.start("m") + encoder.encode([TextDelta("a")]) + encoder.heartbeat() + encoder.finish(ending())
    assert [name for name, _ in whatwg(stream)] == ["start", "token", "ping", "done"]


# Refusals.


@pytest.mark.parametrize(
    ("error", "body"),
    [
        (
            BadRequest("must be a string", field="messages[0].content"),
            b'{"error":"Invalid messages payload","code":"bad_request","request_id":"r1",'
            b'"field":"messages[0].content","detail":"must be a string"}',
        ),
        (
            BadRequest("must be UTF-8; byte 0 is not", field="body"),
            b'{"error":"Invalid messages payload","code":"bad_request","request_id":"r1",'
            b'"field":"body","detail":"must be UTF-8; byte 0 is not"}',
        ),
        (
            BadRequest("must be a positive integer", field="dailyTokenLimit"),
            b'{"error":"Invalid request","code":"bad_request","request_id":"r1",'
            b'"field":"dailyTokenLimit","detail":"must be a positive integer"}',
        ),
        (
            BadRequest("Content-Length is not a number"),
            b'{"error":"Invalid request","code":"bad_request","request_id":"r1",'
            b'"detail":"Content-Length is not a number"}',
        ),
        (
            RateLimited(limit="requests_per_minute", retry_after=0.4),
            b'{"error":"Rate limit exceeded. Please slow down.","code":"rate_limited","request_id":"r1",'
            b'"limit":"requests_per_minute","scope":"caller","retry_after":1}',
        ),
        (
            RequestTooLarge(limit="tokens_per_request"),
            b'{"error":"Request too large. Please shorten your message.","code":"request_too_large","request_id":"r1",'
            b'"limit":"tokens_per_request","scope":"caller"}',
        ),
        (
            BudgetExceeded(limit="tokens_per_day", retry_after=3600),
            b'{"error":"Daily AI budget exceeded. Try again tomorrow.","code":"budget_exceeded","request_id":"r1",'
            b'"limit":"tokens_per_day","scope":"caller","retry_after":3600}',
        ),
        (ChatError(), b'{"error":"AI request failed","code":"internal_error","request_id":"r1"}'),
        (Unauthorized(), b'{"error":"Authentication is required","code":"unauthorized","request_id":"r1"}'),
        (
            BodyTooLarge(),
            b'{"error":"The request body is too large","code":"body_too_large","request_id":"r1"}',
        ),
    ],
)
def test_a_refusal_keeps_the_text_that_pages_show(error: ChatError, body: bytes) -> None:
    answer = native.refuse(error, "r1")
    assert (answer.status, answer.body) == (error.status, body)


# Requests in.


def test_a_whole_request() -> None:
    body = {
        "messages": [
            {"id": "1", "role": "system", "content": "be brief", "extra": [1]},
            {"id": "2", "role": "user", "content": "what is 日?"},
            {"id": "3", "role": "assistant", "content": "day", "createdAt": None},
            {"id": "4", "role": "user", "content": " and 月? "},
        ],
        "profile": "expanded",
        "aiUsageProfile": "budget",
        "dailyTokenLimit": 1_000,
        "maxTokensPerRequest": 500,
        "systemPrompt": "be kind",
        "max_tokens": 60,
        "max_completion_tokens": 50,
        "temperature": 0,
        "stream": True,
        "budget": 10**9,
        "tier": "gold",
        "user_id": "admin",
    }
    assert native.parse(json.dumps(body).encode()) == ChatRequest(
        messages=(
            Message(role="system", content="be brief"),
            Message(role="user", content="what is 日?"),
            Message(role="assistant", content="day"),
            Message(role="user", content=" and 月? "),
        ),
        profile="expanded",
        system_prompt="be kind",
        tokens_per_day=1_000,
        tokens_per_request=500,
        max_output_tokens=50,
        temperature=0.0,
    )


def test_the_least_request() -> None:
    assert parse() == ChatRequest(messages=(Message(role="user", content="hello"),))


@pytest.mark.parametrize(
    ("fields", "profile"),
    [
        ({"profile": "a", "aiUsageProfile": "b"}, "a"),
        ({"profile": None, "aiUsageProfile": "b"}, "b"),
        ({"aiUsageProfile": "b"}, "b"),
        ({"profile": "", "aiUsageProfile": "b"}, ""),
        ({"profile": 5}, None),
        ({"profile": 5, "aiUsageProfile": "b"}, None),
        ({"profile": ["a"]}, None),
        ({"profile": {"constructor": 1}}, None),
        ({"aiUsageProfile": True}, None),
        ({"profile": "constructor"}, "constructor"),
    ],
)
def test_the_profile_or_the_older_field(fields: dict[str, object], profile: str | None) -> None:
    assert parse(**fields).profile == profile


def test_an_answer_that_was_cancelled_before_its_first_token_is_left_out() -> None:
    empty = [{"role": "assistant", "content": ""}, {"role": "assistant", "content": " \n"}]
    assert parse(messages=[HELLO, *empty, HELLO]).messages == (Message(role="user", content="hello"),) * 2


@pytest.mark.parametrize(
    ("messages", "field", "rule"),
    [
        (None, "messages", "must be an array of at least one message"),
        ({}, "messages", "must be an array of at least one message"),
        ("secret", "messages", "must be an array of at least one message"),
        ([], "messages", "must be an array of at least one message"),
        ([HELLO] * 1_001, "messages", "must not have more than 1000 messages"),
        ([None, HELLO], "messages[0]", "must be an object"),
        (["secret"], "messages[0]", "must be an object"),
        ([[HELLO]], "messages[0]", "must be an object"),
        ([HELLO, {"content": "x"}], "messages[1].role", "must be user or assistant"),
        ([{"role": "User", "content": "x"}], "messages[0].role", "must be user or assistant"),
        ([{"role": "function", "content": "x"}], "messages[0].role", "must be user or assistant"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role", "must be user or assistant"),
        ([{"role": 1, "content": "x"}], "messages[0].role", "must be user or assistant"),
        ([{"role": "user"}], "messages[0].content", "must be a string"),
        ([{"role": "user", "content": None}], "messages[0].content", "the last message must not be blank"),
        ([{"role": "user", "content": 5}], "messages[0].content", "must be a string"),
        ([{"role": "user", "content": []}], "messages[0].content", "the last message must not be blank"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "must be an object"),
        (
            [{"role": "user", "content": [{"text": "x"}]}],
            "messages[0].content[0].type",
            "must be text, image_url, file or refusal",
        ),
        (
            [{"role": "user", "content": [{"type": "video"}]}],
            "messages[0].content[0].type",
            "must be text, image_url, file or refusal",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "must be a string"),
        (
            [{"role": "user", "content": "\ud83d"}],
            "messages[0].content",
            "must not contain half of a surrogate pair",
        ),
        ([HELLO, {"role": "assistant", "content": "x"}], "messages[1].role", "the last message must be from the user"),
        ([{"role": "system", "content": "x"}], "messages[0].role", "the last message must be from the user"),
        ([{"role": "user", "content": ""}], "messages[0].content", "the last message must not be blank"),
        (
            [HELLO, {"role": "user", "content": " \n\t\u3000"}],
            "messages[1].content",
            "the last message must not be blank",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_13_and_19_messages_that_break_a_rule(messages: object, field: str, rule: str) -> None:
    assert refused(messages=messages) == (field, rule)


def test_no_messages_at_all() -> None:
    with pytest.raises(BadRequest) as caught:
        native.parse(b"{}")
    assert caught.value.field == "messages"
    assert json.loads(native.refuse(caught.value, "r1").body)["error"] == "Invalid messages payload"


def test_a_thousand_messages_are_parsed() -> None:
    assert len(parse(messages=[HELLO] * 1_000).messages) == 1_000


@pytest.mark.parametrize(
    "value", [-1, 0, -0.0, True, 1.5, [1], {}, "", "0", "-5", "5.0", "1e3", " 5", "٥", "0x5", "1" * 16, "NaN", "abc"]
)
@pytest.mark.parametrize(
    "field", ["dailyTokenLimit", "maxTokensPerRequest", "max_tokens", "max_completion_tokens", "max_output_tokens"]
)
def test_row_14_a_limit_is_a_positive_integer(field: str, value: object) -> None:
    assert refused(**{field: value}) == (field, "must be a positive integer")


@pytest.mark.parametrize("literal", [b"8000", b"8e3", b"8000.0", b'"8000"', b'"08000"'])
def test_row_14_a_limit_that_has_one_meaning_is_read(literal: bytes) -> None:
    body = b'{"messages":[{"role":"user","content":"x"}],"maxTokensPerRequest":%b,"max_tokens":%b}' % (literal, literal)
    read = native.parse(body)
    assert (read.tokens_per_request, read.max_output_tokens) == (8_000, 8_000)
    assert type(read.tokens_per_request) is int


def test_null_is_as_good_as_absent() -> None:
    names = "profile dailyTokenLimit maxTokensPerRequest max_tokens temperature systemPrompt".split()
    assert parse(**dict.fromkeys(names)) == parse()
    said = [{"role": "assistant", "content": None}, {"role": "user", "content": None}, HELLO]
    assert [message.content for message in parse(messages=said).messages] == ["", "hello"]


def test_content_may_be_parts_of_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "more": 1}]
    assert parse(messages=[{"role": "user", "content": parts}]).messages[0].content == "a\nb"


def test_row_14_a_limit_of_any_size_is_left_to_the_caps() -> None:
    assert parse(max_tokens=10**31).max_output_tokens == 10**31
    body = b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1' + b"0" * 4_000 + b"}"
    with pytest.raises(BadRequest) as caught:
        native.parse(body)
    assert caught.value.field == "body"


@pytest.mark.parametrize("value", [-0.1, "1", True, []])
def test_a_temperature_is_a_number(value: object) -> None:
    assert refused(temperature=value) == ("temperature", "must be a number, and not negative")


@pytest.mark.parametrize("field", sorted(REFUSED_FIELDS))
def test_rows_15_to_17_a_field_that_would_choose_a_provider_or_a_cost_is_refused(field: str) -> None:
    for value in ("secret", None, 1, [], {}):
        assert refused(**{field: value}) == (field, "is not accepted from a client")


def test_rows_15_to_17_name_these_fields() -> None:
    assert REFUSED_FIELDS >= {"n", "best_of", "logprobs", "logit_bias", "tools", "model", "image_url"}
    assert REFUSED_FIELDS >= {"base_url", "baseURL", "api_key", "apiKey", "headers", "callback"}


@pytest.mark.parametrize("value", [5, ["x"], {}])
def test_a_system_prompt_is_a_string(value: object) -> None:
    assert refused(systemPrompt=value) == ("systemPrompt", "must be a string")


def test_a_system_prompt_is_sent_on_or_empty() -> None:
    assert parse(systemPrompt="a\x00").system_prompt == "a\ufffd"
    assert refused(systemPrompt="\udc00") == ("systemPrompt", "must not contain half of a surrogate pair")
    assert parse(systemPrompt="").system_prompt is None


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["user", "x"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "id", "x"]), inner, max_size=3),
    ),
    max_leaves=10,
)
fields = st.sampled_from(
    "messages profile aiUsageProfile dailyTokenLimit maxTokensPerRequest systemPrompt temperature max_tokens x".split()
)


@given(st.dictionaries(fields, json_values))
def test_no_request_raises_anything_but_bad_request(body: dict[str, object]) -> None:
    try:
        native.parse(json.dumps(body).encode())
    except BadRequest as caught:
        assert caught.field
        json.loads(native.refuse(caught, "r1").body)


@given(st.text(st.characters(min_codepoint=0x3400, max_codepoint=0x4DBF), min_size=1))
def test_a_refusal_echoes_no_value(secret: str) -> None:
    message = {"role": secret, "content": secret}
    for body in (
        {"messages": [message]},
        {"messages": secret},
        {"messages": [HELLO], "dailyTokenLimit": secret, "profile": secret},
        {"messages": [HELLO], "model": secret},
        {"messages": [HELLO], "systemPrompt": [secret]},
        [secret],
    ):
        with pytest.raises(BadRequest) as caught:
            native.parse(json.dumps(body, ensure_ascii=False).encode())
        answer = native.refuse(caught.value, "r1").body.decode()
        assert not set(answer) & set(secret)
