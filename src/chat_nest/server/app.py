"""The composition root: from a Config to the ASGI application of `chat-nest serve`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from chat_nest import __version__
from chat_nest.alerts.counts import Counts
from chat_nest.alerts.service import Alerts
from chat_nest.asgi.create import create_chat_handler
from chat_nest.asgi.handler import ChatHandler
from chat_nest.asgi.hosts import names_a_host
from chat_nest.asgi.parts import Parts
from chat_nest.asgi.request import Receive, Send
from chat_nest.asgi.response import error_headers, respond
from chat_nest.core.errors import ChatError, MethodNotAllowed, StoreEmptied, failure_name
from chat_nest.core.protocols import Answer, Scope
from chat_nest.core.request_log import CURRENT
from chat_nest.identity.api_key import ADMIN
from chat_nest.identity.api_keys import ApiKeys
from chat_nest.identity.peer import is_local
from chat_nest.observers.log import LogObserver
from chat_nest.runs.urls import open_runs
from chat_nest.server.alerts import make_alerts, plan_of
from chat_nest.server.chat_arguments import changes_of
from chat_nest.server.config.settings import Config
from chat_nest.server.fleet import FleetReports
from chat_nest.server.front import Front, make_front
from chat_nest.server.health import Health, Readiness
from chat_nest.server.identification import Identification, identity_settings, make_identification
from chat_nest.server.providers import make_provider
from chat_nest.server.reload import Reload
from chat_nest.server.tally import Tally
from chat_nest.server.telemetry import Telemetry
from chat_nest.stores.places import place_of, remedy_of
from chat_nest.stores.starting import reach
from chat_nest.stores.urls import open_store

log = logging.getLogger("chat_nest.server")

Respond = Callable[[Scope, Send], Awaitable[None]]

_json = msgspec.json.Encoder().encode


class Prepared(Struct, frozen=True, kw_only=True, eq=False):
    """All that a configuration sets, ready to be put in force."""

    config: Config
    ways: Identification
    parts: Parts
    front: Front


class ServerApp:
    """The ASGI application: the chat endpoint, its page, and the health checks.

    The chat's path is passed on unchanged: a wrapper of `send` would cost time for every token.
    """

    def __init__(
        self, handler: ChatHandler, prepared: Prepared, telemetry: Telemetry, fleet: FleetReports, alerts: Alerts
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
        """Whether the process is about to end."""
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
        ways = now.ways
        if identity_settings(config) != identity_settings(now.config):
            ways = make_identification(config)
            ways.bind(self._handler)
        parts = self._handler.prepare(**asdict(changes_of(config, providers, ways)))
        return Prepared(config=config, ways=ways, parts=parts, front=make_front(config, self._handler, parts, ways))

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
        self._operators = None if prepared.ways.keys is None else ApiKeys(prepared.ways.keys, secret, scope=ADMIN)
        self._telemetry.name(prepared.config)
        self._answers: dict[str, Respond] = {path: file.serve for path, file in front.files.items()}
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
            await reach(self._handler.store, log.warning)
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

    def drain(self, *, refuse: bool = True) -> None:
        """Report not ready: the server is about to end. With `refuse`, new answers and those in a queue are refused."""
        self._draining = True
        if refuse:
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
    ways = make_identification(config)
    telemetry, tally, counts = Telemetry(config), Tally(), Counts()
    tallies = (tally,) if config.admin_listen else ()
    handler = create_chat_handler(
        **asdict(changes_of(config, providers, ways)),
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
    ways.bind(handler)
    front = make_front(config, handler, handler.parts, ways)
    prepared = Prepared(config=config, ways=ways, parts=handler.parts, front=front)
    alerts = make_alerts(config, handler, counts, telemetry.count_alert)
    return ServerApp(handler, prepared, telemetry, FleetReports(handler, tally), alerts)


def _alerts(config: Config) -> tuple[object, ...]:
    """Return the settings of alerts."""
    return config.alerts, config.server.time_zone


async def _version(_scope: Scope, send: Send) -> None:
    await respond(send, Answer(status=200, body=_json({"version": __version__})))
