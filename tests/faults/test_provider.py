"""Rows 33 to 39 of the fault table, and row 30, at the provider: real sockets, and what its caller sees.

The caller's time-outs work by cancelling, so a test that stands for one cancels.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import traceback
from collections.abc import AsyncIterator, Iterator
from email.utils import formatdate
from itertools import chain, repeat

import pytest
import trustme
from scripted_provider import (
    CLOSE,
    DONE,
    END,
    HANG,
    RATE_LIMITED,
    RESET,
    Connection,
    Script,
    ScriptedProvider,
    Step,
    answer,
    chunk,
    event,
    failure,
    finish,
    head,
    http,
    piece,
    stream,
    usage,
)

from chat_nest.core.deltas import Delta, FinishDelta, TextDelta, UsageDelta
from chat_nest.core.errors import (
    UpstreamAuth,
    UpstreamError,
    UpstreamOverloaded,
    UpstreamProtocol,
    UpstreamQuota,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
    UpstreamUnreachable,
)
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.messages import Message
from chat_nest.core.protocols import Prompt
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.core.usage import Usage

KEY = "sk-canary-2f7c"
WORDS = "a prompt that stays a secret"
PROMPT = Prompt(model="gpt-4o-mini", messages=(Message(role="user", content=WORDS),), max_output_tokens=9)
ECHO = f"Incorrect API key provided: {KEY}. You said: {WORDS}"
HELLO = [TextDelta("Hel"), TextDelta("lo")]


@pytest.fixture(autouse=True)
def nothing_leaks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever happens, no log line has the key or the prompt."""
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    caplog.set_level(logging.DEBUG)
    yield
    assert KEY not in caplog.text
    assert WORDS not in caplog.text


@pytest.fixture
async def provider(nothing_leaks: None) -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider() as provider:
        yield provider


@pytest.fixture
async def client(provider: ScriptedProvider) -> AsyncIterator[OpenAIProvider]:
    client = OpenAIProvider(KEY, provider.url)
    yield client
    await client.aclose()


async def ask(client: OpenAIProvider, timeouts: Timeouts = Timeouts()) -> tuple[list[Delta], UpstreamError | None]:
    """One request to its end: the deltas, and how it failed."""
    deltas: list[Delta] = []
    try:
        async with client.open(PROMPT, timeouts) as batches:
            async for batch in batches:
                assert batch, "a batch is never empty"
                deltas += batch
    except UpstreamError as error:
        assert error.__context__ is None
        shown = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
        assert KEY not in shown
        assert WORDS not in shown
        return deltas, error
    return deltas, None


async def refused(client: OpenAIProvider, **timeouts: float) -> UpstreamError:
    """How a request fails before its first delta."""
    deltas, error = await ask(client, Timeouts(**timeouts))
    assert error is not None
    assert not deltas
    return error


async def cancelled(task: asyncio.Task[object]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_happy_answer(provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.scripts = [stream(chunk("Hel"), chunk("lo"), finish(), usage(5, 2), DONE)]
    expected = [*HELLO, FinishDelta("stop"), UsageDelta(Usage(input_tokens=5, output_tokens=2))]
    assert await ask(client) == (expected, None)
    assert await ask(client) == (expected, None)
    assert provider.opened == 1
    assert provider.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert provider.requests[0].headers["content-type"] == "application/json"
    assert provider.requests[0].path == "/v1/chat/completions"
    assert provider.requests[0].json()["messages"] == [{"role": "user", "content": WORDS}]


async def test_batches_come_as_they_are_sent(provider: ScriptedProvider, client: OpenAIProvider) -> None:
    more, last = asyncio.Event(), asyncio.Event()
    provider.scripts = [
        stream(chunk("Hel"), more, b": ping\n\n", chunk("lo")[:9], last, chunk("lo")[9:], finish(), DONE)
    ]
    async with client.open(PROMPT, Timeouts()) as batches:
        assert await anext(batches) == [TextDelta("Hel")]
        more.set()
        waiting = asyncio.create_task(anext(batches))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done(), "a comment and half an event are no batch"
        last.set()
        assert (await waiting)[0] == TextDelta("lo")


async def test_leaving_early_closes_the_connection_at_once(provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.scripts = [stream(chunk("Hel"), HANG)]
    async with client.open(PROMPT, Timeouts()) as batches:
        assert await anext(batches) == [TextDelta("Hel")]
    await provider.closed(0)


# 30


@pytest.mark.parametrize("status", [401, 403])
async def test_row_30_a_refused_key_is_nowhere_to_be_seen(
    status: int, provider: ScriptedProvider, client: OpenAIProvider, caplog: pytest.LogCaptureFixture
) -> None:
    provider.scripts = [failure(status, ECHO, KEY, www_authenticate=KEY)]
    error = await refused(client)
    assert isinstance(error, UpstreamAuth)
    assert (error.code, error.spent_nothing, error.retryable) == ("upstream_auth", True, False)
    assert caplog.messages[-1] == f"the provider answered {status}: upstream_auth"


@pytest.mark.parametrize(
    "script",
    [
        *(failure(status, ECHO, KEY, x=KEY) for status in (400, 404, 408, 418, 422, 429, 500, 503)),
        http(200, ECHO.encode(), "text/html"),
        http(302, ECHO.encode(), location=f"http://127.0.0.1/{KEY}"),
        stream(b"data: " + ECHO.encode() + b"\n\n"),
        stream(event([], error={"message": ECHO, "code": KEY})),
        stream(chunk("a"), ECHO.encode(), CLOSE),
        head(content_encoding=KEY),
        f"HTTP/1.1 {KEY}\r\n\r\n".encode(),
        head() + KEY.encode() + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + (ECHO * 400).encode() + b"\r\n\r\n",
        [RESET],
    ],
    ids=lambda script: repr(script)[:50],
)
async def test_row_30_no_failure_shows_the_key_or_the_prompt(
    script: Script, provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    provider.scripts = [script]
    _, error = await ask(client)
    assert error is not None
    assert KEY not in repr(client)


# 33


async def test_row_33_silence_before_the_headers(provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.scripts = [[HANG]]
    waiting = asyncio.create_task(ask(client))
    await provider.request(0)
    await cancelled(waiting)
    await provider.closed(0)


async def test_row_33_refused(nothing_leaks: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    client = OpenAIProvider(KEY, f"http://127.0.0.1:{port}/v1")
    error = await refused(client)
    assert (type(error), error.spent_nothing, error.retryable) == (UpstreamUnreachable, True, True)
    await client.aclose()


async def test_row_33_no_such_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    client = OpenAIProvider(KEY, "https://provider.invalid/v1")
    error = await refused(client)
    assert (type(error), error.spent_nothing) == (UpstreamUnreachable, True)
    await client.aclose()


async def test_row_33_an_untrusted_certificate() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    async with ScriptedProvider(tls=context) as provider:
        client = OpenAIProvider(KEY, provider.url)
        error = await refused(client)
        assert (type(error), error.spent_nothing) == (UpstreamUnreachable, True)
        await client.aclose()
        assert not provider.requests


async def test_row_33_connecting_takes_too_long() -> None:
    with socket.socket() as listening:  # clients can connect to it, and nobody answers their TLS handshake
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        client = OpenAIProvider(KEY, f"https://127.0.0.1:{listening.getsockname()[1]}/v1")
        error = await refused(client, connect=0.05)
        assert (type(error), error.spent_nothing, error.retryable) == (UpstreamTimeout, True, True)
        await client.aclose()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_row_33_a_redirect_is_not_followed(
    status: int, provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    async with ScriptedProvider() as elsewhere:
        provider.scripts = [http(status, b"", location=f"{elsewhere.url}/chat/completions")]
        error = await refused(client)
        assert (type(error), error.spent_nothing) == (UpstreamProtocol, True)
        assert not elsewhere.opened


# 34


async def test_row_34_silence_in_the_middle(provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.scripts = [stream(chunk("Hel"), HANG)]
    got: asyncio.Queue[list[Delta]] = asyncio.Queue()

    async def read() -> None:
        async with client.open(PROMPT, Timeouts()) as batches:
            async for batch in batches:
                got.put_nowait(list(batch))

    reading = asyncio.create_task(read())
    assert await got.get() == [TextDelta("Hel")]
    await cancelled(reading)
    await provider.closed(0)


async def test_row_34_bytes_that_make_no_event_make_no_batch(
    provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    """So a deadline on batches is a deadline on events, and a byte a second does not move it."""
    trickled = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.send(head())
        for byte in b": ping\n\n" * 4 + chunk("a")[:-1]:
            await connection.send(piece(bytes([byte])))
        trickled.set()
        await asyncio.shield(connection.closed)

    provider.scripts = [script]
    waiting = asyncio.create_task(ask(client))
    await trickled.wait()
    assert not waiting.done()
    await cancelled(waiting)
    await provider.closed(0)


# 35


async def test_row_35_a_stream_that_never_ends_is_closed_by_leaving(
    provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    provider.scripts = [chain([head()], repeat(piece(chunk("and on and on"))))]
    async with client.open(PROMPT, Timeouts()) as batches:
        for _ in range(10):
            await anext(batches)
    await provider.closed(0)


@pytest.mark.parametrize(
    ("script", "deltas"),
    [
        (stream(), []),
        (http(200, b"", "text/event-stream"), []),
        (stream(CLOSE), []),
        (stream(b": ping\n\n"), []),
        (stream(DONE), []),
        (stream(usage(5, 2), DONE), [UsageDelta(Usage(input_tokens=5, output_tokens=2))]),
        (stream(chunk("Hel"), chunk("lo")), HELLO),
        (stream(chunk("Hel"), chunk("lo"), DONE), HELLO),
        (stream(chunk("Hel"), chunk("lo"), finish()[:-9]), HELLO),
        ([head(transfer_encoding=None), chunk("Hel") + chunk("lo") + finish()[:-1], CLOSE], HELLO),
        (stream(chunk("Hel"), chunk("lo"), CLOSE), HELLO),
        (stream(chunk("Hel"), chunk("lo"), RESET), None),
        ([head(), piece(chunk("Hel") + chunk("lo")), b"99\r\nda", CLOSE], HELLO),
        ([http(200, chunk("Hel") + chunk("lo") + b"xx", "text/event-stream")[:-1], CLOSE], HELLO),
        ([head(transfer_encoding=None), chunk("Hel") + chunk("lo"), CLOSE], HELLO),
    ],
    ids=lambda value: repr(value)[-60:],
)
async def test_row_35_an_end_that_is_none(
    script: Script, deltas: list[Delta] | None, provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    provider.scripts = [script]
    got, error = await ask(client)
    assert type(error) is UpstreamTruncated
    assert not error.spent_nothing
    if deltas is not None:  # a reset may overtake what was sent before it
        assert got == deltas


@pytest.mark.parametrize(
    "script",
    [
        stream(chunk("Hel"), chunk("lo"), finish()),
        stream(chunk("Hel"), chunk("lo"), finish(), DONE),
        [head(transfer_encoding=None), chunk("Hel") + chunk("lo") + finish(), CLOSE],
        stream(chunk("Hel"), chunk("lo"), finish(), DONE, HANG),
    ],
    ids=["no [DONE]", "[DONE]", "until it closes", "[DONE] and then silence"],
)
async def test_row_35_an_end_that_is_one(script: Script, provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.scripts = [script]
    assert await ask(client) == ([*HELLO, FinishDelta("stop")], None)


async def test_row_35_the_end_does_not_wait_for_bytes_after_done(
    provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    provider.scripts = [chain([head(), piece(finish() + DONE)], repeat(piece(chunk("more"))))]
    assert await ask(client) == ([FinishDelta("stop")], None)
    await provider.closed(0)


# 36


@pytest.mark.parametrize(
    "data",
    [b"{", b"null", b"[]", b'"text"', b"<html>", b'{"choices":[{"delta":{"content":"\xff"}}]}'],
)
async def test_row_36_malformed_data(data: bytes, provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.scripts = [stream(chunk("Hel"), b"data: " + data + b"\n\n", chunk("lo"), finish(), DONE, HANG)]
    deltas, error = await ask(client)
    assert deltas == [TextDelta("Hel")]
    assert type(error) is UpstreamProtocol
    assert not error.spent_nothing
    await provider.closed(0)


async def test_row_36_utf8_split_over_reads_is_joined(provider: ScriptedProvider, client: OpenAIProvider) -> None:
    text = "é\N{GRINNING FACE}\u2028\u0085ü"
    body = chunk(text) + finish() + DONE

    async def script(connection: Connection) -> None:
        await connection.send(head())
        for byte in body:
            await connection.send(piece(bytes([byte])))
        await connection.send(END)

    provider.scripts = [script]
    assert await ask(client) == ([TextDelta(text), FinishDelta("stop")], None)


async def test_row_36_a_line_of_100_megabytes(provider: ScriptedProvider, client: OpenAIProvider) -> None:
    block: Step = piece(b"x" * 100_000)
    provider.scripts = [chain([head(), piece(chunk("Hel") + b"data: ")], repeat(block, 1_000))]
    deltas, error = await ask(client)
    assert deltas == [TextDelta("Hel")]
    assert type(error) is UpstreamProtocol
    await provider.closed(0)
    assert provider.connections[0].sent < 20_000_000  # the kernel's buffers, and ours


async def test_row_36_a_content_coding(provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.scripts = [[head(content_encoding="gzip"), HANG]]
    assert type(await refused(client)) is UpstreamProtocol
    assert provider.requests[0].headers["accept-encoding"] == "identity"
    await provider.closed(0)


# 37


@pytest.mark.parametrize(
    "script",
    [
        http(200, b"<html>Sign in</html>", "text/html; charset=utf-8"),
        http(200, b"Sign in", "text/plain"),
        [head(content_type="text/html"), HANG],
        http(204, b""),
        http(202, b"{}"),
    ],
    ids=lambda script: repr(script)[:70],
)
async def test_row_37_a_success_that_no_model_has_written(
    script: Script, provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    provider.scripts = [script]
    error = await refused(client)
    assert (type(error), error.status, error.spent_nothing) == (UpstreamProtocol, 502, True)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"message":"The model is overloaded"}}', UpstreamOverloaded),
        (b'{"message":{}}', UpstreamProtocol),
        (b"[]", UpstreamProtocol),
        (b'{"choices":[]}', UpstreamProtocol),
        (b'{"choices":[{"message":{"cont', UpstreamProtocol),
        (b"{" + b" " * (1 << 22) + b"}", UpstreamProtocol),
    ],
    ids=lambda value: repr(value)[:70],
)
async def test_row_37_json_that_is_no_answer_may_have_been_billed(
    body: bytes, expected: type[UpstreamError], provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    provider.scripts = [http(200, body)]
    error = await refused(client)
    assert (type(error), error.spent_nothing) == (expected, False)


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", "application/octet-stream"])
async def test_row_37_a_stream_by_another_name_is_read(
    media_type: str, provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    provider.scripts = [[head(content_type=media_type), piece(b"\n" + chunk("Hel")[:3]), piece(chunk("Hel")[3:]),
                         piece(chunk("lo") + finish() + DONE), END]]  # fmt: skip
    assert await ask(client) == ([*HELLO, FinishDelta("stop")], None)


@pytest.mark.parametrize("content_type", [None, "", "text/event-stream", "Text/Event-Stream ; charset=UTF-8"])
async def test_row_37_an_event_stream_by_any_name(
    content_type: str | None, provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    provider.scripts = [[head(content_type=content_type), piece(chunk("Hel") + chunk("lo") + finish() + DONE), END]]
    assert await ask(client) == ([*HELLO, FinishDelta("stop")], None)


async def test_row_37_an_error_in_the_middle(provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.scripts = [stream(chunk("Hel"), event([], error={"message": ECHO, "code": 502}), finish(), DONE)]
    deltas, error = await ask(client)
    assert deltas == [TextDelta("Hel")]
    assert type(error) is UpstreamError
    assert (error.code, error.spent_nothing) == ("upstream_error", False)


async def test_row_37_an_error_instead_of_the_first_delta(provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.scripts = [stream(b'data: {"error":{"message":"' + ECHO.encode() + b'"}}\n\n')]
    assert type(await refused(client)) is UpstreamError


# 38


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("-7", 0), ("86400", 60), ("1e99", 60), ("soon", None), ("", None), (formatdate(0, usegmt=True), 0)]
    + [(formatdate(4e9, usegmt=True), 60)],
)
async def test_row_38_rate_limited(
    value: str, seconds: float | None, provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    provider.scripts = [failure(429, ECHO, "rate_limit_exceeded", retry_after=value)]
    error = await refused(client)
    assert (type(error), error.retry_after) == (UpstreamRateLimited, seconds)
    assert (error.spent_nothing, error.retryable) == (True, True)


async def test_row_38_no_credit_left(provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.scripts = [failure(429, ECHO, "insufficient_quota", retry_after="7"), RATE_LIMITED]
    error = await refused(client)
    assert (type(error), error.retryable, error.retry_after) == (UpstreamQuota, False, None)
    assert (await refused(client)).retryable


@pytest.mark.parametrize(
    ("status", "expected", "retryable"),
    [
        (400, UpstreamRejected, False),
        (404, UpstreamRejected, False),
        (413, UpstreamRejected, False),
        (422, UpstreamRejected, False),
        (409, UpstreamUnavailable, False),
        (500, UpstreamUnavailable, True),
        (503, UpstreamUnavailable, True),
        (529, UpstreamOverloaded, True),
    ],
)
async def test_row_38_other_refusals(
    status: int,
    expected: type[UpstreamError],
    retryable: bool,
    provider: ScriptedProvider,
    client: OpenAIProvider,
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider.scripts = [failure(status, ECHO, KEY)]
    error = await refused(client)
    assert (type(error), error.spent_nothing, error.retryable) == (expected, True, retryable)
    assert caplog.messages[-1] == f"the provider answered {status}: {expected.code}"
    provider.scripts = [answer("a")]
    assert (await ask(client))[1] is None
    assert provider.opened == 1, "a refusal that was read keeps its connection"


@pytest.mark.parametrize("status", [429, 500])
async def test_row_38_an_endless_error_body(status: int, provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.scripts = [chain([head(status, "application/json")], repeat(piece(b"x" * 10_000)))]
    assert (await refused(client)).spent_nothing
    await provider.closed(0)
    assert provider.connections[0].sent < 20_000_000


@pytest.mark.looptime
async def test_row_38_an_error_body_that_never_comes(provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.scripts = [[head(429, "application/json", retry_after="7"), HANG]]
    assert (await refused(client)).retry_after == 7
    await provider.closed(0)


# 39


def counted(**counts: object) -> bytes:
    return event([], usage=counts)


FIVE_TWO = counted(prompt_tokens=5, completion_tokens=2)


@pytest.mark.parametrize(
    ("events", "total"),
    [
        ([finish()], None),
        ([finish(), counted(prompt_tokens=-5, completion_tokens=2)], Usage(input_tokens=0, output_tokens=2)),
        ([finish(), counted(prompt_tokens=5, completion_tokens=2**51)], None),
        ([finish(), counted(prompt_tokens=5, completion_tokens=1.5)], None),
        ([FIVE_TWO, finish(), counted(prompt_tokens=5, completion_tokens=-1)], Usage(input_tokens=5, output_tokens=2)),
        ([FIVE_TWO, FIVE_TWO, finish(), FIVE_TWO], Usage(input_tokens=5, output_tokens=2)),
        ([FIVE_TWO, finish(), counted(prompt_tokens=5, completion_tokens=1)], Usage(input_tokens=5, output_tokens=2)),
        ([FIVE_TWO, finish(), counted(prompt_tokens=0, completion_tokens=0)], Usage(input_tokens=5, output_tokens=2)),
        ([finish(), FIVE_TWO], Usage(input_tokens=5, output_tokens=2)),
        ([finish(), counted(prompt_tokens=5, completion_tokens=2**50)], Usage(input_tokens=5, output_tokens=2**50)),
    ],
    ids=[
        "missing",
        "negative",
        "absurd",
        "no integer",
        "negative later",
        "repeated",
        "decreasing",
        "zero",
        "late",
        "huge",
    ],
)
async def test_row_39_the_last_sane_usage_wins(
    events: list[bytes], total: Usage | None, provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    provider.scripts = [stream(chunk("a"), *events, DONE)]
    deltas, error = await ask(client)
    assert error is None
    totals = [delta.usage for delta in deltas if isinstance(delta, UsageDelta)]
    assert (totals[-1] if totals else None) == total


# The check that spends nothing.


@pytest.mark.parametrize("status", [200, 404, 405, 429])
async def test_a_provider_that_can_be_reached(status: int, provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.models = http(status, b"{}")
    await client.check()
    await client.check()
    assert [request.path for request in provider.checks] == ["/v1/models"] * 2
    assert provider.checks[0].headers["authorization"] == f"Bearer {KEY}"
    assert not provider.requests
    assert provider.opened == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_an_error_with_a_remedy(
    status: int, provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    provider.models = failure(status, ECHO, KEY)
    with pytest.raises(UpstreamAuth, match="refused the API key. Check api_key or OPENAI_API_KEY") as caught:
        await client.check()
    assert KEY not in str(caught.value)
    keyless = OpenAIProvider(base_url=provider.url)
    with pytest.raises(UpstreamAuth, match="wants an API key, and none is set"):
        await keyless.check()
    assert "authorization" not in provider.checks[-1].headers
    await keyless.aclose()


@pytest.mark.parametrize(
    ("status", "expected"), [(500, UpstreamUnavailable), (302, UpstreamProtocol), (400, UpstreamRejected)]
)
async def test_a_provider_that_is_not_well(
    status: int, expected: type[UpstreamError], provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    provider.models = failure(status, ECHO, KEY)
    with pytest.raises(expected):
        await client.check()


@pytest.mark.looptime
async def test_a_check_ends(provider: ScriptedProvider, client: OpenAIProvider) -> None:
    provider.models = [HANG]
    with pytest.raises(UpstreamTimeout):
        await client.check()
    await provider.idle()


# Cancelled at any turn.


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_at_any_turn_of_the_loop_nothing_stays_open(
    times: int, provider: ScriptedProvider, client: OpenAIProvider
) -> None:
    provider.scripts = [answer("hello", 3)]
    turns, done = 0, False
    while not done:
        talk = asyncio.create_task(ask(client))
        for _ in range(turns):
            await asyncio.sleep(0)
        done = talk.done()
        for _ in range(times):
            talk.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([talk])
        assert talk.cancelled() or talk.result()[1] is None
        turns += 1
    assert turns > 5
    await client.aclose()
    await provider.idle()
