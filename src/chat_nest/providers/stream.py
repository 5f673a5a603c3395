"""The HTTP side of every provider: open a stream, tell refusals apart, check the key without spending anything."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

from chat_nest.deltas import Batch
from chat_nest.errors import UpstreamAuth, UpstreamError, UpstreamProtocol, UpstreamTimeout, UpstreamUnavailable
from chat_nest.limits import Timeouts
from chat_nest.providers.codec import Codec
from chat_nest.providers.http import HTTPSession, HTTPStream
from chat_nest.providers.model_list import model_names
from chat_nest.providers.presets import Preset
from chat_nest.providers.refusals import refusal

logger = logging.getLogger("chat_nest.upstream")

ERROR_BODY_SECONDS: Final = 1.0
LOCAL_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})
END_SECONDS: Final = 0.05
"""After the last event: how long to wait for the body's end, which lets the connection be used again."""
CHECK_SECONDS: Final = 10.0
REST_LIMIT: Final = 1 << 16
"""Bytes that are read of what is not part of an answer."""
LIST_LIMIT: Final = 1 << 20
"""Bytes of a list of models; a longer one is not understood."""

_OWN_HEADERS: Final = frozenset(
    ("accept-encoding", "connection", "content-length", "content-type", "expect", "host", "te", "transfer-encoding")
)


class ModelServer:
    """One vendor's server: where it is, how it wants to be asked, and what its answers mean before the first event.

    `base_url` is the preset's where none is given. `abort_bills` says what the server bills for an answer that is
    abandoned (see Provider); left out it is "stops" for servers on this machine, and the preset's for its own host.
    `headers` are sent with every request, and win over ours. Raises ValueError, which names the argument and never
    holds its value.
    """

    def __init__(
        self,
        preset: Preset,
        api_key: str | None,
        base_url: str | None,
        *,
        abort_bills: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._preset = preset
        self.base_url = _checked_url(preset.base_url if base_url is None else base_url)
        self._is_local = urlsplit(self.base_url).hostname in LOCAL_HOSTS
        self.abort_bills = _abort_bills(preset, self.base_url, self._is_local, abort_bills)
        self._has_key = bool(api_key)
        self._headers = {"accept": f"{preset.media_type}, application/json", "user-agent": "chat-nest"}
        self._headers |= preset.headers
        if api_key:
            self._headers[preset.key_header] = preset.key_prefix + _checked_header("api_key", api_key.strip())
        for name, value in (headers or {}).items():
            if name.lower() in _OWN_HEADERS or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise ValueError("headers must have names that may be set")
            self._headers[name.lower()] = _checked_header("headers", value)
        self._headers |= {"content-type": "application/json", "accept-encoding": "identity"}
        self._session = HTTPSession(self.base_url)

    @asynccontextmanager
    async def open(
        self, path: str, body: bytes, codec: Codec, timeouts: Timeouts
    ) -> AsyncGenerator[AsyncIterator[Batch]]:
        """POST `body` and yield what `codec` makes of the answer. See Provider.

        Only `timeouts.connect` is kept here; the others are for the caller, who cancels.
        """
        asking = self._session.request("POST", path, headers=self._headers, body=body, connect_timeout=timeouts.connect)
        del body  # the answer may take minutes
        try:
            async with asking as answer:
                if answer.status != 200:
                    raise await self._refused(answer)
                media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
                if media_type not in (self._preset.media_type, ""):
                    logger.warning("the provider answered 200 without a stream: %s", UpstreamProtocol.code)
                    raise UpstreamProtocol(spent_nothing=True)
                yield _Batches(answer, codec)
        except UpstreamUnavailable as lost:
            # llama.cpp closes kept-alive connections without a word. A model on this machine bills nothing, so such a
            # request may be sent again.
            lost.spent_nothing = lost.spent_nothing or self._is_local
            raise

    async def check(self) -> frozenset[str]:
        """Ask for the list of models, which costs nothing, and return their names; none where there is no such list.

        A server that answers 404 or 405 counts as reachable. Takes 10 seconds at most. Raises UpstreamError;
        UpstreamAuth has a message for the operator.
        """
        headers = {name: value for name, value in self._headers.items() if name != "content-type"}
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                async with self._session.request(
                    "GET", self._preset.check_path, headers=headers, connect_timeout=CHECK_SECONDS
                ) as answer:
                    if answer.status == 200:
                        body = await _rest(answer, CHECK_SECONDS, LIST_LIMIT)
                        return model_names(body) if self._preset.lists_models else frozenset()
                    if answer.status in (404, 405, 429):
                        await _rest(answer, ERROR_BODY_SECONDS)
                        return frozenset()
                    error = await self._refused(answer)
        except TimeoutError:
            error = UpstreamTimeout(spent_nothing=True)
        if isinstance(error, UpstreamAuth):
            said = "refused the API key" if self._has_key else "wants an API key, and none is set"
            where = f"api_key or {self._preset.key_env}" if self._preset.key_env else "api_key"
            error = UpstreamAuth(f"The model provider {said}. Check {where}.", spent_nothing=True)
        raise error

    async def _refused(self, answer: HTTPStream) -> UpstreamError:
        body = await _rest(answer, ERROR_BODY_SECONDS)
        error = refusal(answer.status, answer.headers, body, time.time(), list(self._headers.values()))
        logger.warning("the provider answered %d: %s", answer.status, error.code)
        return error

    async def aclose(self) -> None:
        """Close every connection. A later request opens new ones."""
        await self._session.aclose()


class _Batches:
    """The batches of one answer: what one read brought is one batch."""

    def __init__(self, answer: HTTPStream, codec: Codec) -> None:
        self._answer = answer
        self._codec = codec

    def __aiter__(self) -> _Batches:
        return self

    async def __anext__(self) -> Batch:
        while not self._codec.over:
            data = await self._answer.read()
            if not data:
                break
            deltas = self._codec.feed(data)
            if deltas:
                return deltas
        await self._end()
        raise StopAsyncIteration

    async def pass_on(self, take: Callable[[Batch], bool]) -> bool:
        """See protocols.PassOn."""
        codec, full = self._codec, False

        def read(data: bytes) -> bool:
            nonlocal full
            deltas = codec.feed(data)
            full = bool(deltas) and not take(deltas)
            return not (full or codec.over)

        if not codec.over:
            await self._answer.pass_on(read)
        if not full:
            await self._end()
        return full

    async def _end(self) -> None:
        self._codec.end()
        if not self._answer.whole:
            await _rest(self._answer, END_SECONDS)


async def _rest(answer: HTTPStream, seconds: float, limit: int = REST_LIMIT) -> bytes:
    """The rest of the body, if it is short and comes soon: the connection can then be used again."""
    with suppress(UpstreamError, TimeoutError):
        async with asyncio.timeout(seconds):
            return await answer.read_body(limit)
    return b""


def _abort_bills(preset: Preset, base_url: str, is_local: bool, given: str | None) -> str:
    if given is not None:
        if given not in ("stops", "full", "unknown"):
            raise ValueError("abort_bills must be stops, full or unknown")
        return given
    own = not preset.hosted or urlsplit(base_url).hostname == urlsplit(preset.base_url).hostname
    return "stops" if is_local else preset.abort_bills if own else "unknown"


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
