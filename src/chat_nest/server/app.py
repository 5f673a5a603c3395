"""The composition root: from a Config to the one ASGI application that `chat-nest serve` runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from chat_nest.asgi.create import create_chat_handler
from chat_nest.asgi.handler import ChatHandler
from chat_nest.asgi.request import Receive, Send
from chat_nest.asgi.response import error_headers, respond
from chat_nest.errors import MethodNotAllowed
from chat_nest.identity.api_keys import ApiKeys
from chat_nest.identity.jwt import JsonWebTokens
from chat_nest.identity.peer import PeerAddress
from chat_nest.observers.log import LogObserver
from chat_nest.protocols import Answer, Provider, Scope
from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.providers.demo import DemoProvider
from chat_nest.providers.gemini import GeminiProvider
from chat_nest.providers.ollama import OllamaProvider
from chat_nest.providers.openai import AZURE_API_VERSION, OpenAIProvider
from chat_nest.providers.presets import PRESETS
from chat_nest.run_logs import open_runs
from chat_nest.server.config import Config
from chat_nest.server.front_ends import make_dialects
from chat_nest.server.health import Health
from chat_nest.server.identity import make_identify
from chat_nest.server.openapi import PATH, document
from chat_nest.server.page_files import PageFile, page_file, read_page
from chat_nest.server.providers import ProviderConfig
from chat_nest.stores.urls import open_store
from chat_nest.upstream import split_model

log = logging.getLogger("chat_nest.server")

Serve = Callable[[Scope, Send], Awaitable[None]]

_json = msgspec.json.Encoder().encode


class ServerApp:
    """The chat endpoint, the page that uses it, and what tells whether both work. An ASGI application.

    The chat's path is passed on untouched: whatever wrapped `send` would cost every token.
    """

    def __init__(self, handler: ChatHandler, health: Health, files: dict[str, PageFile], info: bytes) -> None:
        self._handler = handler
        self._health = health
        self._info = info
        self._draining = False
        self._watch: asyncio.Task[None] | None = None
        self._answers: dict[str, Serve] = {path: file.serve for path, file in files.items()}
        self._answers |= {"/healthz": self._healthz, "/readyz": self._readyz, "/api/info": self._api_info}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            answer = self._answers.get(scope["path"])
            if answer is None:
                await self._handler(scope, receive, send)
            elif scope["method"] in ("GET", "HEAD"):
                await answer(scope, send)
            else:
                error = MethodNotAllowed("GET, HEAD")
                await respond(
                    send, Answer(status=error.status, body=_json({"error": error.message})), error_headers(error)
                )
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self._handler(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._handler.store.ping()
        except Exception as error:
            await self._handler.aclose()
            said = f"the store can't be used: {type(error).__name__}: check [store] url, the disk and its rights"
            await send({"type": "lifespan.startup.failed", "message": said})
            return
        self._handler.start()
        self._watch = asyncio.create_task(self._health.report())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._watch.cancel()
        await asyncio.wait([self._watch])
        await self._health.aclose()
        await self._handler.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    def drain(self) -> None:
        """Be not ready, and begin no new answers: the server is about to end."""
        self._draining = True
        self._handler.drain()

    @property
    def running(self) -> int:
        """How many answers run, with a reader or without."""
        return self._handler.running

    async def _healthz(self, _scope: Scope, send: Send) -> None:
        await respond(send, Answer(status=200, body=b'{"status":"ok"}'))

    async def _readyz(self, _scope: Scope, send: Send) -> None:
        if self._draining:
            await respond(send, Answer(status=503, body=b'{"status":"draining"}'))
            return
        found = await self._health.readiness()
        await respond(send, Answer(status=200 if found.ready else 503, body=found.body()))

    async def _api_info(self, _scope: Scope, send: Send) -> None:
        await respond(send, Answer(status=200, body=self._info))


def build(config: Config) -> ServerApp:
    """The application, with nothing opened or asked yet except the store's file.

    Raises ValueError or OSError where the store can't be opened.
    """
    providers = {name: make_provider(provider) for name, provider in config.providers.items()}
    identify = make_identify(config.server, config.identity)
    dialects = make_dialects(config.dialects, blog_get=config.blog_get)
    handler = create_chat_handler(
        dialects=dialects,
        providers=providers,
        profiles=config.profiles,
        default_profile=config.default_profile,
        limits=config.limits,
        groups=config.groups,
        prices=config.prices,
        hard_caps=config.hard_caps,
        timeouts=config.timeouts,
        store=open_store(config.store, records_days=config.records_days),
        journal=config.journal,
        degraded=config.degraded,
        lease=config.lease,
        identify=identify,
        observers=(LogObserver(),),
        cors_origins=config.server.cors_origins,
        time_zone=config.server.time_zone,
        max_body_bytes=config.server.max_body_bytes,
        max_streams=config.server.max_streams,
        logs=open_runs(config.runs_url, config.runs.keep_seconds),
    )
    key_from = {name: provider.key_from for name, provider in config.providers.items()}
    store_seconds = config.timeouts.store
    health = Health(
        handler.store,
        handler.providers,
        key_from,
        models=_models(config),
        identify=identify,
        store_seconds=store_seconds,
    )
    resumable = config.profiles[config.default_profile].on_disconnect != "cancel"
    info = _json({"demo": config.is_demo, "model": config.model.partition(":")[2], "resumable": resumable})
    described = document(
        dict(zip(config.dialects, dialects, strict=True)),
        max_body_bytes=config.server.max_body_bytes,
        names_callers=not isinstance(identify, PeerAddress),
        bearer=isinstance(identify, ApiKeys | JsonWebTokens),
    )
    files = {**read_page(), PATH: page_file(b"application/json", described)}
    return ServerApp(handler, health, files, info)


def _models(config: Config) -> dict[str, list[str]]:
    """The models of the profiles, by provider."""
    models: dict[str, list[str]] = {}
    for profile in config.profiles.values():
        for full in (profile.model, *profile.fallbacks):
            provider, name = split_model(full)
            models.setdefault(provider, []).append(name)
    return models


def make_provider(config: ProviderConfig) -> Provider:
    """The provider that a resolved configuration describes."""
    key = None if config.api_key is None else config.api_key.reveal()
    if config.kind == "demo":
        return DemoProvider(config.base_url or None, key)
    preset = PRESETS[config.kind]
    match preset.wire:
        case "anthropic":
            return AnthropicProvider(key, config.base_url, abort_bills=config.abort_bills)
        case "gemini":
            return GeminiProvider(key, config.base_url, abort_bills=config.abort_bills)
        case "ollama":
            return OllamaProvider(key, config.base_url, abort_bills=config.abort_bills)
        case "openai":
            version = config.api_version or AZURE_API_VERSION
            return OpenAIProvider(
                key, config.base_url, preset=preset, api_version=version, abort_bills=config.abort_bills
            )
