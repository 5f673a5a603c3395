"""The HTTP client of every provider: open a stream, classify refusals, check the key at no cost.

The file is long because a request, its attempts with each key and the key's check are one client.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Final, TypedDict
from urllib.parse import urlsplit

from chat_nest.core.deltas import Batch
from chat_nest.core.errors import UpstreamAuth, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from chat_nest.core.protocols import KeyRest, Prompt
from chat_nest.core.timeouts import Timeouts
from chat_nest.providers.answer import Batches, beginning, rest
from chat_nest.providers.codec import Codec
from chat_nest.providers.credentials import credentials_for
from chat_nest.providers.http import HTTPSession, HTTPStream
from chat_nest.providers.keys import EVERY_MODEL, Key, KeyPool, KeyUse
from chat_nest.providers.model_list import model_names
from chat_nest.providers.presets import Preset
from chat_nest.providers.refusals import refusal
from chat_nest.providers.think_tags import THINK_TAGS, Thoughts

logger = logging.getLogger("chat_nest.providers")

JSON: Final = "application/json"
ERROR_BODY_SECONDS: Final = 1.0
LOCAL_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})
CHECK_SECONDS: Final = 10.0
LIST_LIMIT: Final = 1 << 20
"""Bytes of a list of models. A longer list is refused."""

_OWN_HEADERS: Final = frozenset(
    ("accept-encoding", "connection", "content-length", "content-type", "expect", "host", "te", "transfer-encoding")
)


Make = Callable[..., Codec]
"""Makes the codec of one answer; with `whole=True` that of an answer that is one JSON value."""


class ServerArguments(TypedDict, total=False):
    """The arguments of every ModelServer that have a name."""

    abort_bills: str | None
    headers: Mapping[str, str] | None
    api_keys: Sequence[str]
    api_keys_file: str | Path | None
    credentials: str | None
    think_tags: str | None


class ModelServer:
    """One vendor's server: its URL, its requests, and the meaning of its responses before the first event.

    `base_url` is the preset's by default. `abort_bills` is what the server bills for an abandoned answer (see
    Provider); the default is "stops" for model servers on this machine, and the preset's value for its own
    host. `headers` are sent with every request, and override the default ones. `api_keys`, or the `api_keys_file` with
    one a line, are several keys instead of one: see KeyPool. `credentials`, "aws" or "google", are those of a cloud
    instead: see `providers.credentials`. `think_tags` is whether thoughts between tags in the text are reasoning
    (default: the preset's). Raises ValueError, which names the argument and never holds its value.
    """

    preset: Preset
    """What its kind of server has in common. `open`, `lacks` and `takes` are the subclass's."""

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        abort_bills: str | None = None,
        headers: Mapping[str, str] | None = None,
        api_keys: Sequence[str] = (),
        api_keys_file: str | Path | None = None,
        credentials: str | None = None,
        think_tags: str | None = None,
    ) -> None:
        preset = self.preset
        self._think_tags = preset.think_tags if think_tags is None else think_tags
        if self._think_tags not in THINK_TAGS:
            raise ValueError("think_tags must be off, on or opened")
        self.base_url = _checked_url(preset.base_url if base_url is None else base_url)
        # What has the API of another vendor and is on this machine is a gateway to that vendor, who bills.
        may_be_free = not preset.proxy and (preset.imitated or not preset.hosted)
        is_free = may_be_free and urlsplit(self.base_url).hostname in LOCAL_HOSTS
        self.abort_bills = _abort_bills(preset, self.base_url, is_free, abort_bills)
        self._bills_nothing = is_free and abort_bills is None
        if credentials is not None and (api_key or api_keys or api_keys_file):
            raise ValueError("give either credentials or keys, not both")
        self._credentials = None if credentials is None else credentials_for(credentials, self.base_url)
        self._keys = _key_pool(api_key, api_keys, api_keys_file, urlsplit(self.base_url).hostname or "")
        self._headers = {"accept": f"{preset.media_type}, application/json", "user-agent": "chat-nest"}
        self._headers |= preset.headers
        self._given = _checked_headers(headers or {})
        """Headers that override those of a key."""
        self._headers |= {**self._given, "content-type": JSON, "accept-encoding": "identity"}
        has_key = (
            self._keys is not None
            or self._credentials is not None
            or bool({preset.key_header, "authorization"} & self._given.keys())
        )
        self.key_in_clear = has_key and is_in_clear(self.base_url)
        self._session = HTTPSession(self.base_url)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    @asynccontextmanager
    async def _ask(
        self, prompt: Prompt, path: str, body: bytes, make: Make, timeouts: Timeouts
    ) -> AsyncGenerator[AsyncIterator[Batch]]:
        """POST `body` and yield the codec's batches. See Provider.

        With several keys, the next one is tried after a refused one, which costs nothing. Applies only
        `timeouts.connect`; the caller applies the others, by cancelling.
        """
        taken = [call.id for message in prompt.messages for call in message.tool_calls]
        make = partial(make, "", taken)  # the ids of the answer's calls are new
        model, tried = prompt.model, list[Key]()
        kept: bytes | None = body
        del body, prompt  # the answer may take minutes
        answered = False
        while not answered:
            if self._keys is not None:
                await self._keys.refresh()
            key = self._choose(model, tried)
            assert kept is not None
            sent_at = asyncio.get_running_loop().time()
            headers = await self._proven("POST", path, key, kept)
            request = self._session.request("POST", path, headers=headers, body=kept, connect_timeout=timeouts.connect)
            if self._keys is None or len(self._keys) < 2:  # no other attempt needs it
                kept = None
            try:
                with self._using(key, model):
                    async with request as answer:
                        del request, headers
                        if answer.status != 200:
                            raise await self._refused(answer)
                        if self._keys is not None and key is not None:
                            self._keys.accepted(key, model, sent_at)
                        kept, answered = None, True
                        yield await self._batches(answer, make)
            except UpstreamUnavailable as lost:
                # llama.cpp closes kept-alive connections without a word. A model on this machine bills nothing unless
                # the operator says otherwise, so such a request may be sent again.
                lost.spent_nothing = lost.spent_nothing or (self._bills_nothing and not answered)
                raise
            except UpstreamError as error:
                if answered or kept is None or not (error.of_key and error.spent_nothing):
                    raise
                # That key is refused, at no cost: the next one is tried.

    async def _batches(self, answer: HTTPStream, make: Make) -> Batches:
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type in (self.preset.media_type, ""):
            return Batches(answer, self._decoder(make()))
        first = await beginning(answer, media_type)
        whole = first.startswith((b"{", b"["))
        return Batches(answer, self._decoder(make(whole=whole)), first, made_whole=whole)

    def _decoder(self, codec: Codec) -> Codec | Thoughts:
        if self._think_tags == "off":
            return codec
        return Thoughts(codec, self.preset.think_tag, opened=self._think_tags == "opened")

    def _choose(self, model: str, tried: list[Key]) -> Key | None:
        """Return the next key, which is then `tried`; None for a server without keys.

        Raises UpstreamError after the last.
        """
        if self._keys is None:
            return None
        now = asyncio.get_running_loop().time()
        key = self._keys.choose(model, now, tried)
        if key is None:
            raise self._keys.exhausted(model, now)
        tried.append(key)
        return key

    def _using(self, key: Key | None, model: str) -> AbstractContextManager[object]:
        if self._keys is None or key is None:
            return nullcontext()
        return KeyUse(self._keys, key, model, asyncio.get_running_loop().time)

    async def _proven(self, method: str, path: str, key: Key | None, body: bytes = b"") -> Mapping[str, str]:
        """Return the headers of a request, with the credentials."""
        if self._credentials is not None:
            proof = await self._credentials.headers(method, self.base_url + path, JSON if body else "", body)
        elif key is not None:
            proof = {self.preset.key_header: self.preset.key_prefix + key.value}
        else:
            return self._headers
        return {**self._headers, **proof, **self._given}

    def key_rests(self) -> tuple[int, Sequence[KeyRest]]:
        """See PoolsKeys. Rests belong to this process."""
        if self._keys is None:
            return 0, ()
        return len(self._keys), self._keys.rests(asyncio.get_running_loop().time())

    async def check(self) -> frozenset[str]:
        """Request the list of models, which costs nothing, and return their names; none if the server has no such list.

        A server that answers 404 or 405 counts as reachable. With several keys one accepted key is enough; resting keys
        are not tried, unless all rest. Takes 10 seconds at most. Raises UpstreamError; UpstreamAuth has a message for
        the operator.
        """
        keys, tried = self._keys, list[Key]()
        if keys is None:
            return await self._list_models(None)
        await keys.refresh()
        now = asyncio.get_running_loop().time
        key = keys.choose(EVERY_MODEL, now()) or keys.first_awake(now())
        while True:
            sent_at = now()
            tried.append(key)
            try:
                with self._using(key, EVERY_MODEL):
                    names = await self._list_models(key)
            except UpstreamError as error:
                another = keys.choose(EVERY_MODEL, now(), tried) if error.of_key else None
                if another is None:
                    raise
                key = another
            else:
                keys.accepted(key, EVERY_MODEL, sent_at)
                return names

    async def _list_models(self, key: Key | None) -> frozenset[str]:
        headers = dict(await self._proven("GET", self.preset.check_path, key))
        del headers["content-type"]
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                async with self._session.request(
                    "GET", self.preset.check_path, headers=headers, connect_timeout=CHECK_SECONDS
                ) as answer:
                    if answer.status == 200:
                        body = await rest(answer, CHECK_SECONDS, LIST_LIMIT)
                        return model_names(body) if self.preset.lists_models else frozenset()
                    if answer.status in (404, 405, 429):
                        await rest(answer, ERROR_BODY_SECONDS)
                        return frozenset()
                    error = await self._refused(answer)
        except TimeoutError:
            error = UpstreamTimeout(spent_nothing=True)
        if isinstance(error, UpstreamAuth):
            if self._credentials is not None:
                raise error
            said = "wants an API key, and none is set" if key is None else "refused the API key"
            where = f"api_key or {self.preset.key_env}" if self.preset.key_env else "api_key"
            error = UpstreamAuth(f"The model provider {said}. Check {where}.", spent_nothing=True)
        raise error

    async def _refused(self, answer: HTTPStream) -> UpstreamError:
        body = await rest(answer, ERROR_BODY_SECONDS)
        secrets = [*self._headers.values(), *(self._keys.secrets if self._keys is not None else ())]
        error = refusal(answer.status, answer.headers, body, time.time(), secrets)
        logger.debug("the provider answered %d: %s", answer.status, error.code)  # the caller logs it, with the model
        return error

    async def aclose(self) -> None:
        """Close every connection. A later request opens new ones."""
        await self._session.aclose()


def _key_pool(key: str | None, keys: Sequence[str], file: str | Path | None, name: str) -> KeyPool | None:
    given = [each for each in (key, keys, file) if each]
    if len(given) > 1:
        raise ValueError("give one of api_key, api_keys and api_keys_file, not several")
    if key:
        return KeyPool([_checked_header("api_key", key.strip())], name=name)
    return KeyPool(keys, file, name=name) if given else None


def _abort_bills(preset: Preset, base_url: str, is_free: bool, given: str | None) -> str:
    if given is not None:
        if given not in ("stops", "full", "unknown"):
            raise ValueError("abort_bills must be stops, full or unknown")
        return given
    own = not preset.hosted or urlsplit(base_url).hostname == urlsplit(preset.base_url).hostname
    return "stops" if is_free else preset.abort_bills if own else "unknown"


def is_in_clear(url: str) -> bool:
    """Return whether others can read requests to a URL: they leave this machine and its private network by plain HTTP.

    Raises ValueError for an invalid URL.
    """
    parts = urlsplit(url)
    return parts.scheme == "http" and not _is_near(parts.hostname or "")


def _is_near(host: str) -> bool:
    """Return whether the name or address is in this machine or a private network."""
    try:
        return ip_address(host).is_private
    except ValueError:
        name = host.removesuffix(".")
        return name == "localhost" or name.endswith(".localhost") or "." not in name


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


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers by their names in lower case. Raises ValueError, without the value."""
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if name.lower() in _OWN_HEADERS or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError("headers must have names that may be set")
        checked[name.lower()] = _checked_header("headers", value)
    return checked


def _checked_header(field: str, value: str) -> str:
    """Return a value that can neither end a header nor start another one. Raises ValueError for any other."""
    if not (value.isascii() and value.isprintable() and value):
        raise ValueError(f"{field} must be printable ASCII")
    return value
