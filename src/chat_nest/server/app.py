"""The composition root: from a Config to the ASGI application of `chat-nest serve`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from msgspec import Struct

from chat_nest import __version__
from chat_nest.alerts.counts import Counts
from chat_nest.alerts.service import Alerts
from chat_nest.asgi.create import create_chat_handler
from chat_nest.asgi.handler import ChatHandler
from chat_nest.asgi.hosts import Hosts, names_a_host
from chat_nest.asgi.parts import Parts
from chat_nest.asgi.request import Receive, Send
from chat_nest.asgi.response import error_headers, respond
from chat_nest.asgi.settings import Changes
from chat_nest.challenges.settings import SERVICES
from chat_nest.core.errors import ChatError, MethodNotAllowed, StoreEmptied, failure_name
from chat_nest.core.protocols import Answer, Identify, Provider, Scope
from chat_nest.core.request_log import CURRENT
from chat_nest.counting.images import useful_pixels
from chat_nest.identity.api_key import ADMIN
from chat_nest.identity.api_keys import ApiKeys, KeyTable
from chat_nest.identity.first_of import FirstOf
from chat_nest.identity.guarded import Guarded
from chat_nest.identity.peer import PeerAddress, is_local
from chat_nest.identity.sessions import Sessions
from chat_nest.identity.stored_keys import StoredKeys
from chat_nest.identity.visitors import Visitors
from chat_nest.limits.spec import Profile
from chat_nest.observers.log import LogObserver
from chat_nest.pipeline.upstream import Upstream, split_model
from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.providers.demo import DemoProvider
from chat_nest.providers.gemini import GeminiProvider
from chat_nest.providers.model_server import ServerArguments
from chat_nest.providers.ollama import OllamaProvider
from chat_nest.providers.openai import AZURE_API_VERSION, OpenAIProvider
from chat_nest.providers.presets import PRESETS
from chat_nest.providers.responses import ResponsesProvider
from chat_nest.runs.urls import open_runs
from chat_nest.server.alerts import make_alerts, plan_of
from chat_nest.server.config.front_ends import make_dialects
from chat_nest.server.config.identity import make_identify, make_keys
from chat_nest.server.config.providers import ProviderConfig
from chat_nest.server.config.sessions import make_sessions
from chat_nest.server.config.settings import Config
from chat_nest.server.config.visitors import make_visitors
from chat_nest.server.fleet import Fleet
from chat_nest.server.health import Health, Readiness
from chat_nest.server.openapi.paths import PATH, document
from chat_nest.server.page_files import PageFile, page_file
from chat_nest.server.page_settings import OfferedImages, OfferedProfile, PageFacts, page_files
from chat_nest.server.reload import Reload
from chat_nest.server.tally import Tally
from chat_nest.server.telemetry import Telemetry
from chat_nest.stores.places import place_of, remedy_of
from chat_nest.stores.urls import open_store

log = logging.getLogger("chat_nest.server")

Serve = Callable[[Scope, Send], Awaitable[None]]

_json = msgspec.json.Encoder().encode


class Front(Struct, frozen=True, kw_only=True):
    """What the server answers besides chats."""

    health: Health
    files: Mapping[str, PageFile]
    info: bytes
    hosts: Hosts
    shows_details: bool
    """Whether /readyz shows its details to all clients."""


class Prepared(Struct, frozen=True, kw_only=True, eq=False):
    """All that a configuration sets, ready to be put in force."""

    config: Config
    identify: Identify | None
    visitors: Visitors | None
    keys: KeyTable | None
    guarded: Identify | None
    """`identify` with a rate of refusals."""
    parts: Parts
    front: Front


class ServerApp:
    """The ASGI application: the chat endpoint, its page, and the health checks.

    The chat's path is passed on unchanged: a wrapper of `send` would cost time for every token.
    """

    def __init__(
        self, handler: ChatHandler, prepared: Prepared, telemetry: Telemetry, fleet: Fleet, alerts: Alerts
    ) -> None:
        self.reload: Reload | None = None
        """Read the configuration again, in all workers; None until the worker serves."""
        self.metrics = telemetry.metrics
        """What a scrape gets, of all workers; None if metrics are off."""
        self.fleet = fleet
        """What every process of the store does, for operators."""
        self._telemetry = telemetry
        self._alerts = alerts
        self._handler = handler
        self._draining = False
        self._watch: asyncio.Task[None] | None = None
        self._use(prepared)
        alerts.adopt(plan_of(prepared.config))

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._prepared.config

    @property
    def operators(self) -> ApiKeys | None:
        """What checks the API keys of operators; None without any API keys."""
        return self._operators

    @property
    def handler(self) -> ChatHandler:
        """The chat endpoint."""
        return self._handler

    async def readiness(self) -> Readiness:
        """Return the readiness, at most a few seconds old."""
        return await self._health.readiness()

    async def recent_readiness(self, seconds: float) -> Readiness:
        """Return the last known readiness; if it is older than this, it is checked again meanwhile."""
        return await self._health.recent(seconds)

    @property
    def draining(self) -> bool:
        """Whether it refuses new answers, because the process is about to end."""
        return self._draining

    def prepare(self, config: Config) -> Prepared:
        """Build what `adopt` puts in force. It may take a while, so another thread may call it.

        Providers and the identification of callers are kept if their settings have not changed, with all they know.
        Raises OSError and ValueError; then nothing has changed.
        """
        now, known = self._prepared, self._handler.providers
        providers = {
            name: known[name] if now.config.providers.get(name) == each else make_provider(each)
            for name, each in config.providers.items()
        }
        identify, visitors, guarded, sessions = now.identify, now.visitors, now.guarded, now.parts.sessions
        keys = now.keys
        if _identity(config) != _identity(now.config):
            keys = make_keys(config.identity)
            _bind(keys, self._handler)
            visitors = make_visitors(config.server, config.identity, config.visitors)
            identify = make_identify(config.server, config.identity, visitors, keys)
            guarded = _guarded(identify, config.server.trusted_proxies)
            sessions = _sessions(config, keys)
        parts = self._handler.prepare(**_changeable(config, providers, guarded, sessions, visitors))
        return _prepared(config, self._handler, parts, identify, visitors, keys)

    def adopt(self, prepared: Prepared) -> None:
        """Put what `prepare` returned in force, from the next request on. Needs the running loop."""
        before, plan = self._prepared.front.health, _alerts(self.config)
        self._handler.adopt(prepared.parts)
        self._use(prepared)
        if _alerts(prepared.config) != plan:
            self._alerts.adopt(plan_of(prepared.config))
        if self._watch is not None:
            self._watch.cancel()
            self._watch = asyncio.create_task(self._watch_health(before))

    def _use(self, prepared: Prepared) -> None:
        front = prepared.front
        self._prepared = prepared
        self._health, self._hosts, self._info = front.health, front.hosts, front.info
        self._shows_details = front.shows_details
        secret = prepared.config.identity.secret.reveal()
        self._operators = None if prepared.keys is None else ApiKeys(prepared.keys, secret, scope=ADMIN)
        self._telemetry.name(prepared.config)
        self._answers: dict[str, Serve] = {path: file.serve for path, file in front.files.items()}
        self._answers |= {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/version": _version,
            "/api/info": self._api_info,
        }

    async def _watch_health(self, before: Health | None = None) -> None:
        if before is not None:
            await before.aclose()
        await self._health.report()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            answer = self._answers.get(scope["path"]) if b"%" not in scope.get("raw_path", b"") else None
            if answer is None:
                await self._handler(scope, receive, send)
                return
            path = scope["path"]
            if (facts := CURRENT.get()) is not None:
                facts.route = path
            try:
                # No page elsewhere can use an IP address to get here, and probes often do.
                if path != "/healthz" and (path != "/readyz" or names_a_host(scope)):
                    self._hosts.check(scope)
                if scope["method"] not in ("GET", "HEAD"):
                    raise MethodNotAllowed("GET, HEAD")
                await answer(scope, send)
            except ChatError as error:
                body = _json({"error": error.message, "code": error.code})
                await respond(send, Answer(status=error.status, body=body), error_headers(error))
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self._handler(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._handler.store.ping()
        except StoreEmptied as emptied:  # an operator may accept it while the server runs
            log.error("%s: %s", place_of(self._handler.store), emptied.advice)  # noqa: TRY400 - the advice has all details
        except Exception as error:
            await self._handler.aclose()
            store, why = self._handler.store, failure_name(error.__cause__ or error)
            said = f"the store can't be used: {place_of(store)}: {why}: {remedy_of(store)}"
            await send({"type": "lifespan.startup.failed", "message": said})
            return
        self._handler.start()
        self._telemetry.start()
        self._alerts.start()
        self._watch = asyncio.create_task(self._watch_health())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._watch.cancel()
        await asyncio.wait([self._watch])
        await self._health.aclose()
        await self.fleet.aclose()
        await self._alerts.aclose()
        await self._handler.aclose()
        await self._telemetry.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    def drain(self) -> None:
        """Report not ready, and refuse new answers: the server is about to end."""
        self._draining = True
        self._handler.drain()

    @property
    def running(self) -> int:
        """The number of running answers, with or without a reader."""
        return self._handler.running

    async def _healthz(self, _scope: Scope, send: Send) -> None:
        await respond(send, Answer(status=200, body=b'{"status":"ok"}'))

    async def _readyz(self, scope: Scope, send: Send) -> None:
        if self._draining:
            await respond(send, Answer(status=503, body=b'{"status":"draining"}'))
            return
        found = await self._health.readiness()
        body = found.body() if self._shows_details or is_local(scope) else found.public_body()
        await respond(send, Answer(status=200 if found.ready else 503, body=body))

    async def _api_info(self, _scope: Scope, send: Send) -> None:
        await respond(send, Answer(status=200, body=self._info))


def build(config: Config, caller_secret: bytes = b"") -> ServerApp:
    """Return the application. Nothing is opened or called yet, except the store's file.

    With a `caller_secret` the log names callers by a keyed hash.

    Raises ValueError or OSError if the store can't be opened.
    """
    providers = {name: make_provider(provider) for name, provider in config.providers.items()}
    keys = make_keys(config.identity)
    visitors = make_visitors(config.server, config.identity, config.visitors)
    identify = make_identify(config.server, config.identity, visitors, keys)
    telemetry, tally, counts = Telemetry(config), Tally(), Counts()
    tallies = (tally,) if config.admin_listen else ()
    handler = create_chat_handler(
        **_changeable(
            config, providers, _guarded(identify, config.server.trusted_proxies), _sessions(config, keys), visitors
        ),
        timeouts=config.timeouts,
        store=open_store(
            config.store, records_days=config.records_days, state=config.state, accept=config.accept_command
        ),
        journal=config.journal,
        degraded=config.degraded,
        lease=config.lease,
        observers=(LogObserver(secret=caller_secret), *telemetry.observers, *tallies, counts),
        logs=open_runs(config.runs_url, config.runs.keep_seconds),
    )
    _bind(keys, handler)
    prepared = _prepared(config, handler, handler.parts, identify, visitors, keys)
    alerts = make_alerts(config, handler, counts, telemetry.count_alert)
    return ServerApp(handler, prepared, telemetry, Fleet(handler, tally), alerts)


def _changeable(
    config: Config,
    providers: Mapping[str, Provider],
    identify: Identify | None,
    sessions: Sessions | None,
    visitors: Visitors | None,
) -> Changes:
    """Return the handler's arguments that a reload can change."""
    return {
        "dialects": make_dialects(config.dialects, blog_get=config.blog_get, responses_store=config.responses_store),
        "providers": providers,
        "profiles": config.profiles,
        "default_profile": config.default_profile,
        "limits": config.limits,
        "groups": config.groups,
        "prices": config.prices,
        "counting": {name: provider.counting for name, provider in config.providers.items()},
        "hard_caps": config.hard_caps,
        "identify": identify,
        "sessions": sessions,
        "visitors": visitors,
        "challenge": None if visitors is None or config.visitors is None else config.visitors.full_challenge,
        "origins": config.server.origins,
        "allowed_hosts": config.server.allowed_hosts,
        "trusted_proxies": config.server.trusted_proxies,
        "time_zone": config.server.time_zone,
        "max_body_bytes": config.server.max_body_bytes,
        "max_upload_bytes": config.server.max_upload_bytes,
        "max_streams": config.server.max_streams,
        "queue": config.queue,
        "provider_streams": {
            name: each.concurrent_streams
            for name, each in config.providers.items()
            if each.concurrent_streams is not None
        },
        "turn_secrets": [secret.reveal() for secret in config.turn_secrets],
    }


def _alerts(config: Config) -> tuple[object, ...]:
    """Return the settings of alerts."""
    return config.alerts, config.server.time_zone


def _identity(config: Config) -> tuple[object, ...]:
    """Return the settings of the ways to identify callers."""
    server = config.server
    return (
        config.identity,
        config.sessions,
        config.visitors,
        server.trusted_proxies,
        server.caller_header,
        server.group_header,
    )


def _sessions(config: Config, keys: KeyTable | None) -> Sessions | None:
    return make_sessions(config.sessions, config.identity, config.server.trusted_proxies, keys)


def _bind(keys: KeyTable | None, handler: ChatHandler) -> None:
    """Let keys in the store be read from the handler's copy of its controls."""
    if isinstance(keys, StoredKeys):
        keys.bind(handler.controls)


def _prepared(
    config: Config,
    handler: ChatHandler,
    parts: Parts,
    identify: Identify | None,
    visitors: Visitors | None,
    keys: KeyTable | None,
) -> Prepared:
    challenge = parts.settings.challenge
    health = Health(
        handler.store,
        parts.providers,
        {name: provider.key_from for name, provider in config.providers.items()},
        models=_models(config),
        identify=_checkable(parts.sessions, identify),
        draws_on_allowance=lambda: handler.draws_on_allowance,
        store_seconds=config.timeouts.store,
    )
    resumable = config.profiles[config.default_profile].on_disconnect != "cancel"
    takes_keys, strangers = config.identity.takes_keys, config.identity.accepts_strangers
    wants_key = takes_keys and not strangers
    described = document(
        dict(zip(config.dialects, parts.dialects, strict=True)),
        max_body_bytes=config.server.max_body_bytes,
        names_callers=config.identity.ways != ("address",),
        bearer=takes_keys,
        strangers=strangers,
        sessions=config.sessions is not None,
        visitors=visitors is not None,
        challenge=challenge is not None,
    )
    facts = _page_facts(config, parts, visitors, wants_key=wants_key)
    front = Front(
        health=health,
        files={**page_files(config.page, facts), PATH: page_file(PATH, described)},
        info=_json({"demo": config.is_demo, "model": config.model.partition(":")[2], "resumable": resumable}),
        hosts=parts.hosts,
        shows_details=config.server.readyz_details,
    )
    return Prepared(
        config=config,
        identify=identify,
        visitors=visitors,
        keys=keys,
        guarded=parts.settings.identify,
        parts=parts,
        front=front,
    )


async def _version(_scope: Scope, send: Send) -> None:
    await respond(send, Answer(status=200, body=_json({"version": __version__})))


def _guarded(identify: Identify | None, trusted_proxies: Sequence[str]) -> Identify | None:
    """Add a rate of refusals to `identify`. An IP address is always known, and needs no such rate."""
    return (
        identify
        if identify is None or isinstance(identify, PeerAddress)
        else Guarded(identify, PeerAddress(trusted_proxies))
    )


def _checkable(sessions: Sessions | None, identify: Identify | None) -> Identify | None:
    """Return what /readyz checks: the sessions, and the other ways."""
    if sessions is None or identify is None:
        return sessions or identify
    return FirstOf(sessions, identify)


def _page_facts(config: Config, parts: Parts, visitors: Visitors | None, *, wants_key: bool) -> PageFacts:
    """Return the page's facts, with the default profile first, then the others that every visitor may choose."""
    challenge = parts.settings.challenge
    rules = config.rules()
    default = next(profile for profile in rules.all if profile.name.lower() == config.default_profile.lower())
    offered = dict.fromkeys((default, *rules.open))
    if challenge is not None and challenge.before:  # the challenge decides, and not the visitor
        offered = dict.fromkeys((rules.named(challenge.before),))
    profiles = [
        OfferedProfile(
            name=profile.name,
            model=profile.model.partition(":")[2],
            system_prompt=profile.allow_system_prompt,
            resumable=profile.on_disconnect != "cancel",
            signed_turns=profile.signed_turns,
            images=_offered_images(profile, parts.terms.upstream),
        )
        for profile in offered
    ]
    return PageFacts(
        demo=config.is_demo,
        wants_key=wants_key,
        profiles=profiles,
        cookie=None if visitors is None else visitors.new_cookie,
        challenge=challenge.kind if challenge is not None and challenge.kind in SERVICES else "",
        max_upload_bytes=0 if parts.uploads is None else parts.uploads.most,
    )


def _offered_images(profile: Profile, upstream: Upstream) -> OfferedImages | None:
    if not profile.allow_images or "images" not in upstream.takes(profile.model):
        return None
    pixels = useful_pixels(split_model(profile.model)[1])
    return OfferedImages(most=profile.max_images, bytes=profile.max_image_bytes, pixels=pixels)


def _models(config: Config) -> dict[str, list[str]]:
    """Return the models of the profiles, by provider."""
    models: dict[str, list[str]] = {}
    for profile in config.profiles.values():
        for full in profile.models:
            provider, name = split_model(full)
            models.setdefault(provider, []).append(name)
    return models


def make_provider(config: ProviderConfig) -> Provider:
    """Return the provider of a resolved configuration."""
    key = None if config.api_key is None else config.api_key.reveal()
    if config.kind == "demo":
        return DemoProvider(config.base_url or None, key)
    preset = PRESETS[config.kind]
    given: ServerArguments = {
        "abort_bills": config.abort_bills,
        "api_keys": [each.reveal() for each in config.api_keys],
        "api_keys_file": config.api_keys_file or None,
        "credentials": config.credentials,
        "think_tags": config.think_tags,
    }
    match preset.wire:
        case "responses":
            return ResponsesProvider(key, config.base_url, **given)
        case "ollama":
            return OllamaProvider(key, config.base_url, **given)
        case "anthropic":
            return AnthropicProvider(key, config.base_url, **given)
        case "gemini":
            return GeminiProvider(key, config.base_url, **given)
        case "openai":
            version = config.api_version or AZURE_API_VERSION
            return OpenAIProvider(key, config.base_url, preset=preset, api_version=version, **given)
