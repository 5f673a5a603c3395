"""`create_chat_handler`, which builds the chat endpoint from its parts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from chat_nest.asgi.handler import ChatHandler
from chat_nest.asgi.parts import make_parts
from chat_nest.asgi.settings import HandlerSettings, takes_fields_of
from chat_nest.controls.gate import Gate
from chat_nest.controls.grants import Grants
from chat_nest.controls.live import LiveControls
from chat_nest.controls.memory import MemoryControls
from chat_nest.core.claims import Line
from chat_nest.core.protocols import (
    HasControls,
    Store,
    Swaps,
    Watches,
)
from chat_nest.counting.tokens import TokenCounters
from chat_nest.ledger.allowance import check_allowance
from chat_nest.ledger.degraded import DegradedMode
from chat_nest.ledger.delivery import Delivery
from chat_nest.ledger.journal import Journal
from chat_nest.ledger.learned import Learned
from chat_nest.ledger.ledger import Ledger
from chat_nest.limits.refusals import limit_error
from chat_nest.pipeline.callers import Callers
from chat_nest.pipeline.chat import Chat
from chat_nest.pipeline.fleet import SharedControls
from chat_nest.runs.urls import open_runs
from chat_nest.stores.urls import open_store

log = logging.getLogger("chat_nest")

OPENAI_URL = "https://api.openai.com/v1"

Part = TypeVar("Part")


@takes_fields_of(HandlerSettings)
def create_chat_handler(settings: HandlerSettings) -> ChatHandler:
    """Make the chat endpoint: an ASGI application to mount, or to run by itself.

    `api_key` and `base_url` belong to an OpenAI-compatible provider (default: OPENAI_API_KEY and OPENAI_BASE_URL).
    `model` is the model of every built-in profile. With `providers`, by name, `model` is PROVIDER:MODEL, or a model of
    the first provider. `profiles`, by name, replace the built-in constrained, balanced and expanded, which every caller
    may choose; `preset="npm"` gives those, and the `hard_caps`, the numbers of chat-nest-server. `default_profile` is
    for a request that names no profile (default: `balanced`, the only profile, or the only one with `open=True`). A
    caller without a `Caller.profile` may choose it and every profile with `open=True`.

    `store` is a URL (`memory://`, `sqlite:///chat-nest.db`) or a Store. If a process dies, its holds are charged after
    `lease` seconds. `identify` returns the Caller of an ASGI scope; by default callers are identified by the peer's IP
    address. `sessions` accepts the session tokens that it mints, before `identify`, or instead of IP addresses (see
    `chat_nest.Sessions`). With `visitors`, callers without an account are identified by a signed id in a cookie or
    a token, and `challenge` is what they must pass: see docs/visitors.md. `limits` are for all callers together.
    `groups`, by name, are for the callers of each group together (`default` is for groups without limits of their
    own). Windows begin at midnight in `time_zone`. `prices`, by PROVIDER:MODEL or PROVIDER:* (see `chat_nest.price`),
    override those of genai-prices. `counting`, by provider, is how prompts are counted before the model answers: "auto"
    (the default) takes the tightest bound there is, "bytes" counts UTF-8 bytes.

    `dialect` is the wire format: "native", "openai", "responses", "ai_sdk", "ag_ui", "anthropic", "blog", or a Dialect.
    `dialects` are several of them, each at its own paths. A body may have `max_body_bytes` without its images, and
    `max_upload_bytes` (32 MiB) with them if a profile has `allow_images`. While `max_streams` answers are running, a
    new chat is refused (503 `overloaded`) before anything is reserved.

    `journal` is a directory on this machine. It keeps settlements that the store did not accept, so that they outlive
    the process, and a note of each Redis or PostgreSQL store that was seen, so that an emptied store is not used.
    `degraded` is what this process may spend while the store is down; until then it is reserved in `limits`.

    `logs` keeps runs for readers that reconnect: a URL (see `chat_nest.runs.urls.open_runs`) or RunLogs.

    `provider_streams`, by provider, are the most streams at once, of all processes on the store together. With a
    `queue`, requests wait in fair order for these, for `max_streams`, and for a provider that answers 429 with
    Retry-After; without one they are refused. See docs/queue.md.

    `turn_secrets` sign the answers of profiles with `signed_turns`, each of at least 32 bytes: the first signs, and all
    of them are accepted.

    Pages of other origins may send requests if they are among `origins`; `*`, the default, is all of them, but not with
    a cookie. With named origins only, a request that no page sends needs a credential, if callers are otherwise
    identified by IP address. `cors_origins` is the old name of `origins`. `allowed_hosts` are the names that a request
    may have in Host, without a port (`example.com`, `*.example.com`). A server on loopback should allow only
    `localhost`, `127.0.0.1` and `[::1]`; it then lets in programs with any `origins`.
    `trusted_proxies` may set `X-Forwarded-For`, for the default `identify` and for networks that an operator blocks.

    The handler owns its providers, store and logs: `aclose()` closes them. Raises ValueError for a missing key; a
    profile, price or `counting` with an unknown provider; a default profile that is missing or closed; a limit in
    dollars for a model without a known price; a number out of its range; an unknown dialect, or two at one path; a time
    zone, origin, host, store URL or journal that can't be used; or an allowance that `limits` can't hold.

    Raises
    ------
    TypeError for an argument of the wrong type, or a part that lacks a method.

    """
    parts, now = make_parts(settings), settings.now
    store = _opened("store", settings.store, lambda url: open_store(url, now, state=settings.journal))
    live = LiveControls(store.controls if isinstance(store, HasControls) else MemoryControls(now), now)
    gate, grants = Gate(live, now), Grants(live)
    ledger = _ledger(
        settings, store, lambda: grants.raised(chat.terms.now.profiles.shared_lines(now())), parts.counters
    )
    chat = Chat(
        callers=Callers(parts.callers, ledger, gate, grants, now),
        terms=parts.terms,
        ledger=ledger,
        gate=gate,
        grants=grants,
        logs=_opened("logs", settings.logs, open_runs),
        observers=settings.observers,
        shared=_shared(store),
        now=settings.now,
    )
    handler = ChatHandler(chat, ledger, parts, controls=live, grants=grants)
    for observer in settings.observers:
        if issubclass(type(observer), Watches):
            cast(Watches, observer).watch(handler.figures)
    return handler


def _shared(store: Store) -> SharedControls | None:
    """Return the controls with which the workers on this store share the streams of providers, if it has such."""
    controls = store.controls if isinstance(store, HasControls) else None
    own = controls is None or isinstance(controls, MemoryControls) or not isinstance(controls, Swaps)
    return None if own else cast(SharedControls, controls)


def _ledger(
    settings: HandlerSettings, store: Store, shared_lines: Callable[[], Sequence[Line]], counters: TokenCounters
) -> Ledger:
    now, patience = settings.now, settings.timeouts.store
    journal = None if settings.journal is None else Journal(settings.journal)
    delivery = Delivery(store, journal=journal, patience=patience)
    degraded: DegradedMode | None = None
    if settings.degraded is not None:
        check_allowance(settings.degraded, settings.limits)
        degraded = DegradedMode(store, settings.degraded, shared_lines, delivery, now=now, deadline=patience / 2)
    learned = Learned(store, counters, now)
    return Ledger(
        store,
        limit_error,
        lease=settings.lease,
        patience=patience,
        delivery=delivery,
        degraded=degraded,
        learned=learned,
    )


def _opened(name: str, part: Part | str, opener: Callable[[str], Part]) -> Part:
    """Open what a URL names. Errors name the key of a configuration file; here that is the argument `name`."""
    if not isinstance(part, str):
        return part
    try:
        return opener(part)
    except ValueError as error:
        raise ValueError(re.sub(r"^(store|runs)\.url", name, str(error))) from None
