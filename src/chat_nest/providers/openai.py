"""Providers that speak OpenAI's chat completions API: OpenAI, llama.cpp, vLLM, Ollama, Groq, OpenRouter and others.

`OpenAIStream` is the codec and does no input or output; `OpenAIProvider` joins it to an HTTP session. The format is
that of https://platform.openai.com/docs/api-reference/chat-streaming, read leniently where servers differ.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec

from chat_nest.deltas import Batch, Delta, FinishDelta, FinishReason, ReasoningDelta, TextDelta, UsageDelta
from chat_nest.errors import (
    UpstreamAuth,
    UpstreamError,
    UpstreamProtocol,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
)
from chat_nest.limits import MAX_AMOUNT, Timeouts
from chat_nest.protocols import Prompt
from chat_nest.providers.http import HTTPSession, HTTPStream
from chat_nest.providers.refusals import refusal
from chat_nest.sse import Decoder, EventTooLong
from chat_nest.tokens import base_name
from chat_nest.usage import Usage

logger = logging.getLogger("chat_nest.upstream")

ERROR_BODY_SECONDS: Final = 1.0
OPENAI_HOST: Final = "api.openai.com"
LOCAL_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})
END_SECONDS: Final = 0.05
"""After [DONE]: how long to wait for the body's end, which lets the connection be used again."""
CHECK_SECONDS: Final = 10.0
REST_LIMIT: Final = 1 << 16
"""Bytes that are read of what is not part of an answer."""


# The request.

_NEWER = re.compile(r"(?:o[1-9]\d?(?![a-z0-9])|gpt-(?:[5-9]|1\d)(?!\d))")  # gpt-35 is Azure's 3.5


def token_limit_field(model: str) -> str:
    """OpenAI's models since o1 refuse `max_tokens`; the servers of other models know nothing else."""
    return "max_completion_tokens" if _NEWER.match(base_name(model)) else "max_tokens"


def takes_temperature(model: str) -> bool:
    """OpenAI's reasoning models (o1 and after, gpt-5 and after) and its search previews refuse one."""
    name = base_name(model)
    return not (_NEWER.match(name) or (name.startswith("gpt-") and "-search-" in name))


def request_body(prompt: Prompt) -> bytes:
    """The JSON of one request for a stream with usage."""
    body: dict[str, Any] = {
        "model": prompt.model,
        "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        token_limit_field(prompt.model): prompt.max_output_tokens,
    }
    if prompt.temperature is not None and takes_temperature(prompt.model):
        body["temperature"] = prompt.temperature
    return msgspec.json.encode(body)


# The stream.


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None


class _Choice(msgspec.Struct, gc=False):
    index: int | None = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    error: Any = None
    usage: Any = None


class _ChunkWithoutUsage(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode
_decode_without_usage = msgspec.json.Decoder(_ChunkWithoutUsage).decode

_FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class OpenAIStream:
    """The body of one answer in, deltas out. No input and output, no clock.

    Bytes may be cut anywhere. What came before a failure is returned first; the failure is raised after it. `over` is
    True once nothing that follows matters: after [DONE], or a failure.
    """

    def __init__(self) -> None:
        self.over = False
        self._decoder = Decoder()
        self._failure: UpstreamError | None = None
        self._finished = False
        self._usage: Usage | None = None

    def feed(self, data: bytes) -> list[Delta]:
        """Raises UpstreamProtocol for what is not understood, UpstreamError for an error that the provider sent."""
        deltas: list[Delta] = []
        if not self.over:
            try:
                events = self._decoder.feed(data)
            except EventTooLong as error:
                events = error.events
                self._read(events, deltas)
                self._fail(UpstreamProtocol())
            else:
                self._read(events, deltas)
        if self._failure is not None and not deltas:
            raise self._failure
        return deltas

    def end(self) -> None:
        """The body ended cleanly, or is over. Raises UpstreamTruncated if the answer was never finished."""
        self.over = True
        if self._failure is not None:
            raise self._failure
        if not self._finished:
            raise UpstreamTruncated

    def _read(self, events: list[bytes], deltas: list[Delta]) -> None:
        for event in events:
            try:
                chunk = _decode(event)
            except (msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: invalid UTF-8
                odd = self._read_odd(event)
                if self.over:
                    return
                if odd is None:
                    continue
                chunk = odd
            if chunk.error is not None:
                self._fail(UpstreamError())
                return
            for choice in chunk.choices or ():
                if not choice.index:  # one answer was asked for
                    self._read_choice(choice, deltas)
            if chunk.usage is not None:
                usage = _usage(chunk.usage)
                if usage is not None and usage != self._usage:
                    self._usage = usage
                    deltas.append(UsageDelta(usage))

    def _read_odd(self, event: bytes) -> _Chunk | None:
        """An event that is not a chunk as it should be: the end, nothing at all, a usage of numbers out of range."""
        word = event.strip()
        if word == b"[DONE]":
            self.over = True
        elif word:  # some servers keep a connection alive with empty data
            try:
                chunk = _decode_without_usage(event)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                self._fail(UpstreamProtocol())
            else:
                return _Chunk(chunk.choices, chunk.error)
        return None

    def _read_choice(self, choice: _Choice, deltas: list[Delta]) -> None:
        delta = choice.delta
        if delta is not None:
            reasoning = delta.reasoning_content or delta.reasoning
            if reasoning and isinstance(reasoning, str):
                deltas.append(ReasoningDelta(reasoning))
            if delta.content:
                deltas.append(TextDelta(delta.content))
            if delta.refusal:
                deltas.append(TextDelta(delta.refusal))
        if choice.finish_reason and not self._finished:
            self._finished = True
            deltas.append(FinishDelta(_FINISH_REASONS.get(choice.finish_reason, "other")))

    def _fail(self, failure: UpstreamError) -> None:
        if not self.over:
            self.over = True
            self._failure = failure


def _usage(counts: object) -> Usage | None:
    """The provider's totals; None where the counts that matter are missing or can't be true."""
    input_tokens, output_tokens = _count(counts, "prompt_tokens"), _count(counts, "completion_tokens")
    if input_tokens is None or output_tokens is None:
        return None
    cached = _count(_field(counts, "prompt_tokens_details"), "cached_tokens") or 0
    reasoning = _count(_field(counts, "completion_tokens_details"), "reasoning_tokens") or 0
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_input_tokens=min(cached, input_tokens),
        reasoning_tokens=min(reasoning, output_tokens),
    )


def _count(counts: object, name: str) -> int | None:
    value = _field(counts, name)
    return value if type(value) is int and 0 <= value <= MAX_AMOUNT else None


def _field(value: object, name: str) -> object:
    return cast("dict[str, object]", value).get(name) if isinstance(value, dict) else None


# The provider.

_OWN_HEADERS: Final = frozenset(
    ("accept-encoding", "connection", "content-length", "content-type", "expect", "host", "te", "transfer-encoding")
)


class OpenAIProvider:
    """An OpenAI-compatible server. `base_url` ends where `/chat/completions` begins.

    `abort_bills` says what this server bills for an answer that is abandoned: see Provider. Left out it is "stops" for
    OpenAI itself and for servers on this machine, "unknown" for all others. `headers` are sent with every request, and
    win over ours. Raises ValueError, which names the argument and never holds its value.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str = "https://api.openai.com/v1",
        *,
        abort_bills: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.base_url = _checked_url(base_url)
        self._is_local = urlsplit(self.base_url).hostname in LOCAL_HOSTS
        if abort_bills is None:
            abort_bills = "stops" if self._is_local or urlsplit(self.base_url).hostname == OPENAI_HOST else "unknown"
        if abort_bills not in ("stops", "full", "unknown"):
            raise ValueError("abort_bills must be stops, full or unknown")
        self.abort_bills = abort_bills
        self._has_key = bool(api_key)
        self._headers = {"accept": "text/event-stream, application/json", "user-agent": "chat-nest"}
        if api_key:
            self._headers["authorization"] = "Bearer " + _checked_header("api_key", api_key.strip())
        for name, value in (headers or {}).items():
            if name.lower() in _OWN_HEADERS or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise ValueError("headers must have names that may be set")
            self._headers[name.lower()] = _checked_header("headers", value)
        self._headers |= {"content-type": "application/json", "accept-encoding": "identity"}
        self._session = HTTPSession(self.base_url)

    def __repr__(self) -> str:
        return f"OpenAIProvider({self.base_url!r})"

    @asynccontextmanager
    async def open(self, prompt: Prompt, timeouts: Timeouts) -> AsyncGenerator[AsyncIterator[Batch]]:
        """See Provider. Only `timeouts.connect` is kept here; the others are for the caller, who cancels."""
        asking = self._session.request(
            "POST",
            "/chat/completions",
            headers=self._headers,
            body=request_body(prompt),
            connect_timeout=timeouts.connect,
        )
        del prompt
        try:
            async with asking as answer:
                if answer.status != 200:
                    raise await _refused(answer)
                media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
                if media_type not in ("text/event-stream", ""):
                    logger.warning("the provider answered 200 without an event stream: %s", UpstreamProtocol.code)
                    raise UpstreamProtocol(spent_nothing=True)
                yield _Batches(answer)
        except UpstreamUnavailable as lost:
            # llama.cpp closes kept-alive connections without a word. A model on this machine bills nothing, so such a
            # request may be sent again.
            lost.spent_nothing = lost.spent_nothing or self._is_local
            raise

    async def check(self) -> None:
        """Ask for the list of models, which costs nothing. A server without one (404, 405) counts as reachable.

        Raises UpstreamError; UpstreamAuth has a message for the operator. Takes 10 seconds at most.
        """
        headers = {name: value for name, value in self._headers.items() if name != "content-type"}
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                async with self._session.request(
                    "GET", "/models", headers=headers, connect_timeout=CHECK_SECONDS
                ) as answer:
                    if answer.status in (200, 404, 405, 429):
                        await _rest(answer, ERROR_BODY_SECONDS)
                        return
                    error = await _refused(answer)
        except TimeoutError:
            error = UpstreamTimeout(spent_nothing=True)
        if isinstance(error, UpstreamAuth):
            said = "refused the API key" if self._has_key else "wants an API key, and none is set"
            error = UpstreamAuth(f"The model provider {said}. Check api_key or OPENAI_API_KEY.", spent_nothing=True)
        raise error

    async def aclose(self) -> None:
        """Close every connection. A later request opens new ones."""
        await self._session.aclose()


class _Batches:
    """The batches of one answer: what one read brought is one batch."""

    def __init__(self, answer: HTTPStream) -> None:
        self._answer = answer
        self._stream = OpenAIStream()

    def __aiter__(self) -> _Batches:
        return self

    async def __anext__(self) -> Batch:
        while not self._stream.over:
            data = await self._answer.read()
            if not data:
                break
            deltas = self._stream.feed(data)
            if deltas:
                return deltas
        self._stream.end()
        await _rest(self._answer, END_SECONDS)
        raise StopAsyncIteration


async def _refused(answer: HTTPStream) -> UpstreamError:
    error = refusal(answer.status, answer.headers, await _rest(answer, ERROR_BODY_SECONDS), time.time())
    logger.warning("the provider answered %d: %s", answer.status, error.code)
    return error


async def _rest(answer: HTTPStream, seconds: float) -> bytes:
    """The rest of the body, if it is short and comes soon: the connection can then be used again."""
    with suppress(UpstreamError, TimeoutError):
        async with asyncio.timeout(seconds):
            return await answer.read_body(REST_LIMIT)
    return b""


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
        parts = urlsplit("")
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("base_url must be an http or https URL with a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("base_url must not hold a user or a password: use api_key or headers")
    if parts.query or parts.fragment:
        raise ValueError("base_url must not hold a query or a fragment")
    return url.rstrip("/")


def _checked_header(field: str, value: str) -> str:
    """A value that can neither end a header nor start another."""
    if not (value.isascii() and value.isprintable() and value):
        raise ValueError(f"{field} must be printable ASCII")
    return value
