"""`create_chat_handler`: the chat endpoint as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec.structs import replace

from chat_nest.asgi.cors import Cors
from chat_nest.asgi.quota_headers import quota_headers
from chat_nest.asgi.request import ABORT, Receive, Send, idempotency_key, read_json_body
from chat_nest.asgi.response import error_headers, respond
from chat_nest.asgi.stream import EventStream
from chat_nest.chat import Chat
from chat_nest.dialects.native import Native
from chat_nest.errors import ChatError, ClientGone, MethodNotAllowed, NotFound, Shutdown
from chat_nest.identity.peer import PeerAddress
from chat_nest.ledger import Ledger
from chat_nest.limits import BUILT_IN_PROFILES, HARD_CAPS, HardCaps, Limits, Profile, Quota, Timeouts
from chat_nest.prices import Prices
from chat_nest.profiles import Profiles
from chat_nest.protocols import Dialect, Identify, Now, Observer, Provider, RunLogs, Scope, Store
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.run import Run
from chat_nest.stores.urls import open_store
from chat_nest.stream_log import MemoryRuns
from chat_nest.tokens import counter_for
from chat_nest.upstream import Upstream, split_model
from chat_nest.usage import NANO, Price

CHAT_METHODS = "POST, OPTIONS"
USAGE_METHODS = "GET, OPTIONS"
USAGE_PATHS = ("/api/usage", "/usage")
OPENAI_URL = "https://api.openai.com/v1"

CLOSE_SECONDS = 10.0

log = logging.getLogger("chat_nest.asgi")
_json = msgspec.json.Encoder().encode


class ChatHandler:
    """An ASGI application that answers chats; make one with `create_chat_handler`.

    Mounted somewhere, it answers at the mount point itself and at each dialect's path below it; `GET usage` tells a
    caller what is left. It starts lazily and is closed by an ASGI lifespan, by `async with`, or by `aclose()`.
    """

    def __init__(
        self,
        chat: Chat,
        ledger: Ledger,
        providers: Mapping[str, Provider],
        *,
        dialects: Sequence[Dialect],
        timeouts: Timeouts,
        cors: Cors,
        max_body_bytes: int,
        now: Now,
    ) -> None:
        self.providers = providers
        self.store = ledger.store
        self._chat = chat
        self._ledger = ledger
        self._dialects = {dialect.path.rstrip("/").lower() or "/": dialect for dialect in dialects}
        self._first_dialect = dialects[0]
        if len(dialects) == 1:
            self._dialects["/"] = dialects[0]
        self._timeouts = timeouts
        self._cors = cors
        self._max_body_bytes = max_body_bytes
        self._now = now
        self._runs: dict[str, Run] = {}
        self._closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            msg = f"chat_nest answers HTTP, not {scope['type']}"
            raise RuntimeError(msg)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _relative_path(scope)
        dialect = self._dialects.get(path)
        run = Run(token_hex(12), asyncio.get_running_loop().time())
        headers = [(b"x-request-id", run.id.encode()), *self._cors.headers(scope)]
        try:
            if dialect is not None:
                if not await self._preflight(scope, send, run, CHAT_METHODS):
                    await self._serve(run, dialect, scope, receive, send)
            elif path in USAGE_PATHS:
                if not await self._preflight(scope, send, run, USAGE_METHODS):
                    body, quotas = await self._usage(scope)
                    await respond(send, 200, body, [*headers, *quotas])
            else:
                raise NotFound
        except ClientGone:
            return
        except ChatError as error:
            body = (dialect or self._first_dialect).refuse(error, run.id)
            await respond(send, error.status, body, [*headers, *error_headers(error)])

    async def _preflight(self, scope: Scope, send: Send, run: Run, methods: str) -> bool:
        """Answer OPTIONS and return True; raise MethodNotAllowed for a method that is not among `methods`."""
        if scope["method"] == "OPTIONS":
            request_id = (b"x-request-id", run.id.encode())
            await respond(send, 204, b"", [request_id, *self._cors.preflight(scope, methods.encode())])
            return True
        if scope["method"] not in methods.split(", "):
            raise MethodNotAllowed(methods)
        return False

    async def _serve(self, run: Run, dialect: Dialect, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"x-request-id", run.id.encode()), *self._cors.headers(scope)]
        run.key = idempotency_key(scope)
        run.body = await read_json_body(scope, receive, self._max_body_bytes)
        if self._closing:  # which may have begun during the upload
            raise Shutdown
        extensions: dict[str, Any] = scope.get("extensions") or {}
        abort = extensions.get(ABORT)
        stream = EventStream(send, run, dialect, headers, self._timeouts, abort)
        # The story has a task of its own: the server may cancel ours at any time and as often as it likes.
        run.task = asyncio.create_task(self._chat.serve(run, dialect, scope, stream))
        watch = asyncio.create_task(_until_gone(receive, run))
        self._runs[run.id] = run
        run.task.add_done_callback(lambda _: self._forget(run, stream))
        try:
            await asyncio.wait([run.task, watch], return_when=asyncio.FIRST_COMPLETED)
            if not run.detached:
                await asyncio.wait([run.task])
        except asyncio.CancelledError:
            run.leave(Shutdown())  # a server may cancel whoever has left
            if not run.detached:
                await asyncio.wait([run.task])
            raise
        finally:
            watch.cancel()
        if run.lost_reader and abort is not None:
            abort()

    def _forget(self, run: Run, stream: EventStream) -> None:
        stream.close()
        del self._runs[run.id]
        if run.grace is not None:
            run.grace.cancel()
        if run.log is not None:
            self._chat.logs.ended(run.id, run.names)

    async def _usage(self, scope: Scope) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """What the caller's own limits have left, as JSON and as headers; dollars in dollars."""
        standings = await self._chat.standing(scope)
        limits: list[dict[str, object]] = []
        for line, standing in standings:
            amounts = {"limit": line.limit, "used": standing.used, "held": standing.held, "remaining": standing.room}
            in_usd = line.unit == "nanousd"
            limits.append(
                {
                    "name": line.name,
                    "unit": "usd" if in_usd else line.unit,
                    **({name: amount / NANO for name, amount in amounts.items()} if in_usd else amounts),
                    "resets_at": int(standing.resets_at) or None,
                }
            )
        now = self._now()
        quotas = [Quota(line, standing.room, max(0.0, standing.resets_at - now)) for line, standing in standings]
        return _json({"limits": limits}), quota_headers([line for line, _ in standings], quotas)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._closing = False
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncGenerator[None, None]:
        """A lifespan for a host application: `FastAPI(lifespan=handler.lifespan)`."""
        async with self:
            yield

    async def __aenter__(self) -> Self:
        self._closing = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End what still runs with a `shutdown` error, settle it, and close providers and store. Safe to call twice."""
        self._closing = True
        running = [run.task for run in self._runs.values() if run.task is not None]
        for run in list(self._runs.values()):
            run.end(Shutdown())
        if running:
            await asyncio.wait(running, timeout=self._timeouts.write)
        await self._ledger.aclose()
        for part in (*self.providers.values(), self.store, self._chat.logs):
            if close := getattr(part, "aclose", None):
                try:
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await close()
                except Exception as failure:
                    log.error("%s did not close: %s", type(part).__name__, type(failure).__name__)  # noqa: TRY400


async def _until_gone(receive: Receive, run: Run) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except Exception as failure:
        log.error("request %s: the server lost sight of its client: %s", run.id, type(failure).__name__)  # noqa: TRY400
    run.leave(ClientGone())


def _relative_path(scope: Scope) -> str:
    """The path below the mount point, in lower case, without a slash at its end: Express matched it like that."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root):
        path = path[len(root) :]
    return "/" + path.strip("/").lower()  # Litestar takes the first slash away with a mount at "/"


def create_chat_handler(
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    model: str | None = None,
    providers: Mapping[str, Provider] | None = None,
    profiles: Mapping[str, Profile] | None = None,
    default_profile: str | None = None,
    limits: Limits = Limits(),
    groups: Mapping[str, Limits] | None = None,
    prices: Mapping[str, Price] | None = None,
    hard_caps: HardCaps = HARD_CAPS,
    timeouts: Timeouts = Timeouts(),
    store: Store | str = "memory://",
    identify: Identify | None = None,
    observers: Sequence[Observer] = (),
    cors_origins: Sequence[str] = ("*",),
    time_zone: str = "UTC",
    max_body_bytes: int = 262_144,
    dialects: Sequence[Dialect] = (),
    logs: RunLogs | None = None,
    now: Now = time.time,
) -> ChatHandler:
    """Make the chat endpoint: an ASGI application to mount, or to run by itself.

    `api_key` and `base_url` name an OpenAI-compatible provider (else OPENAI_API_KEY and OPENAI_BASE_URL do); `model` is
    the model of every built-in profile. With `providers` of your own, by name, `model` is PROVIDER:MODEL, or a model of
    the first one. `profiles`, by name, replace the built-in constrained, balanced and expanded; `default_profile` is
    that of a caller who names none (`balanced`, or the first one). `store` is a URL (`memory://`,
    `sqlite:///chat-nest.db`) or a Store. `identify` says from the ASGI scope who asks; the default is the
    peer's address. `limits` are for all callers together, `groups` for the callers of each group together, by its name
    (`default` is for groups without limits of their own); windows begin at midnight in `time_zone`. `prices`, by
    PROVIDER:MODEL or PROVIDER:* (see `chat_nest.prices.price`), win over those of genai-prices.

    The handler owns its providers and its store: `aclose()` closes them. Raises ValueError for a missing key, a
    profile whose provider is unknown, a limit in dollars for a model whose price is not known, a time zone, origin or
    store URL that can't be used.
    """
    if providers is None:
        providers = {"openai": _openai(api_key, base_url)}
    elif api_key is not None or base_url is not None:
        msg = "pass either `providers` or `api_key` and `base_url`, not both"
        raise ValueError(msg)
    if profiles is None:
        full = _full_model(model or ("gpt-4o-mini" if "openai" in providers else None), providers)
        profiles = {name: replace(profile, model=full) for name, profile in BUILT_IN_PROFILES.items()}
    elif model is not None:
        msg = "pass either `profiles`, which name their models, or `model`, not both"
        raise ValueError(msg)
    urls = {name: str(getattr(provider, "base_url", "")) for name, provider in providers.items()}
    known = Prices(prices, urls)
    for name, profile in profiles.items():
        for full in (profile.model, *profile.fallbacks):
            if split_model(full)[0] not in providers:
                msg = (
                    f"profile {name!r}: the model must be PROVIDER:MODEL with one of the providers {sorted(providers)}"
                )
                raise ValueError(msg)
            counter_for(split_model(full)[1])  # builds its tables now, not in the first request
            known.of(full)
    default = default_profile or ("balanced" if "balanced" in profiles else next(iter(profiles)))
    rules = Profiles(profiles, limits, hard_caps, time_zone, default, groups=groups, prices=known)
    opened = open_store(store, now) if isinstance(store, str) else store
    ledger = Ledger(opened, rules.refusal, patience=timeouts.store)
    chat = Chat(
        identify=identify or PeerAddress(),
        profiles=rules,
        ledger=ledger,
        upstream=Upstream(providers, timeouts),
        prices=known,
        logs=logs or MemoryRuns(),
        observers=observers,
        now=now,
    )
    return ChatHandler(
        chat,
        ledger,
        providers,
        dialects=dialects or (Native(),),
        timeouts=timeouts,
        cors=Cors(cors_origins),
        max_body_bytes=max_body_bytes,
        now=now,
    )


def _openai(api_key: str | None, base_url: str | None) -> OpenAIProvider:
    api_key = api_key or os.environ.get("OPENAI_API_KEY") or None
    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    if api_key is None and base_url == OPENAI_URL:
        msg = "no API key: pass api_key=..., or set OPENAI_API_KEY; a local server needs base_url=... instead"
        raise ValueError(msg)
    return OpenAIProvider(api_key, base_url)


def _full_model(model: str | None, providers: Mapping[str, Provider]) -> str:
    if model is None:
        msg = "name the model: model='PROVIDER:MODEL'"
        raise ValueError(msg)
    return model if split_model(model)[0] in providers else f"{next(iter(providers))}:{model}"
