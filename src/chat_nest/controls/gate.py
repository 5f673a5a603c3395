"""Pauses, blocks, stops and revoked keys: which requests they refuse, and which answers they stop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import msgspec
from msgspec import Struct

from chat_nest.controls.live import LiveControls
from chat_nest.core.controls import Control
from chat_nest.core.errors import Blocked, ChatError, Paused, SessionRevoked, Stopped, Unauthorized
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Now

PAUSE, BLOCK, STOP, KEY_REVOKED = "pause", "block", "stop", "api_key_revoked"
"""Kinds of rows. The name of a stop is the id of a run; that of a block `caller:KEY` or `network:CIDR`; that of a
revoked API key its id.
"""
ALL = "all"
"""The name of a pause of everything. The other names are SCOPE:NAME."""
SCOPES = ("provider", "model", "group", "caller", "profile")
STOP_SECONDS = 300.0
"""How long the row of a stop stays: a worker that is stalled for less obeys it."""
RETRY_SECONDS = 60.0
"""Retry-After of a pause with a late or unknown end."""

Address = IPv4Address | IPv6Address


class StopTerms(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The value of a pause or a block, as JSON."""

    stop_running: bool = False
    by: str = ""
    since: float = 0.0
    """Unix seconds."""


_terms = msgspec.json.Decoder(StopTerms).decode


def terms_of(row: Control) -> StopTerms:
    """Return the terms of a pause or a block; the defaults if they can't be read."""
    try:
        return _terms(row.value)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return StopTerms()


class Running(Struct, frozen=True, kw_only=True):
    """What of an answer or a request decides whether it is paused. `model` is PROVIDER:MODEL, or empty."""

    run: str
    caller: Caller
    profile: str
    model: str
    address: Address | None = None
    """The client's IP address, if it is known."""


class Gate:
    """Refuses requests before anything is reserved. Reads the copy of the controls in memory, and never waits."""

    def __init__(self, live: LiveControls, now: Now) -> None:
        self._live = live
        self._now = now
        self._networks = lru_cache(1_024)(_network)

    async def ready(self) -> None:
        """Return at once if the controls are known. Raises LimiterUnavailable if they can't be read."""
        if not self._live.known:
            await self._live.ready()

    def check_address(self, address: Address | None) -> None:
        """Raise Blocked for an IP address in a blocked network."""
        if any(self._blocks_of(address)):
            raise Blocked

    def check_caller(self, caller: Caller) -> None:
        """Raise Blocked for a blocked caller, and Unauthorized for one whose API key was revoked."""
        if self._live.has(BLOCK) and self._live.get(BLOCK, f"caller:{caller.key}") is not None:
            raise Blocked
        if self._has_revoked_key(caller):
            raise SessionRevoked() if _has_session(caller) else Unauthorized(challenge="Bearer")

    def check(self, caller: Caller, profile: str) -> None:
        """Raise what `check_caller` raises, or Paused if all is paused, or this caller, its group or the profile."""
        self.check_caller(caller)
        for name in _names(caller, profile) if self._live.has(PAUSE) else ():
            if (row := self._live.get(PAUSE, name)) is not None:
                raise self._paused(row)

    def open_models(self, models: Sequence[str]) -> Sequence[str]:
        """Return the models, PROVIDER:MODEL, that are not paused. Raises Paused if all of them are."""
        if not self._live.has(PAUSE):
            return models
        rows = [self._pause_of(model) for model in models]
        left = [model for model, row in zip(models, rows, strict=True) if row is None]
        if not left and (row := next(iter(rows), None)) is not None:
            raise self._paused(row)
        return left

    def pauses(self, model: str) -> bool:
        """Return whether the model PROVIDER:MODEL is paused."""
        return self._live.has(PAUSE) and self._pause_of(model) is not None

    @property
    def stops_any(self) -> bool:
        """Whether there may be a row that stops a running answer."""
        return any(self._live.has(kind) for kind in (PAUSE, BLOCK, STOP, KEY_REVOKED))

    def stopped(self, running: Running) -> ChatError | None:
        """Return the error that ends this answer; None if it may go on."""
        if self._has_revoked_key(running.caller):
            return SessionRevoked() if _has_session(running.caller) else Stopped("The API key was revoked")
        return Stopped("The answer was stopped by the operator") if self._stops(running) else None

    def _stops(self, running: Running) -> bool:
        if self._live.get(STOP, running.run) is not None:
            return True
        pauses = [*_names(running.caller, running.profile), *(_model_names(running.model) if running.model else ())]
        rows = [*(self._live.get(PAUSE, name) for name in pauses)]
        rows += [self._live.get(BLOCK, f"caller:{running.caller.key}"), *self._blocks_of(running.address)]
        return any(row is not None and terms_of(row).stop_running for row in rows)

    def _has_revoked_key(self, caller: Caller) -> bool:
        return caller.api_key is not None and self._live.get(KEY_REVOKED, caller.api_key) is not None

    def _blocks_of(self, address: Address | None) -> Iterable[Control]:
        """Yield the blocks of the networks that this IP address is in."""
        if address is not None and self._live.has(BLOCK):
            for row in self._live.of(BLOCK):
                network = self._networks(row.name)
                if network is not None and network.version == address.version and address in network:
                    yield row

    def _pause_of(self, model: str) -> Control | None:
        found = (self._live.get(PAUSE, name) for name in _model_names(model))
        return next((row for row in found if row is not None), None)

    def _paused(self, row: Control) -> Paused:
        left = RETRY_SECONDS if row.expires is None else row.expires - self._now()
        return Paused(retry_after=max(1.0, min(left, RETRY_SECONDS)))


def _names(caller: Caller, profile: str) -> Iterable[str]:
    yield ALL
    yield f"profile:{profile.lower()}"
    yield f"caller:{caller.key}"
    if caller.group is not None:
        yield f"group:{caller.group}"


def _model_names(model: str) -> Iterable[str]:
    yield f"provider:{model.partition(':')[0]}"
    yield f"model:{model}"


def _has_session(caller: Caller) -> bool:
    return any(share.scope == "session" for share in caller.shares)


def _network(name: str) -> IPv4Network | IPv6Network | None:
    """Return the network of a block's name; None for a block of a caller."""
    scope, _, network = name.partition(":")
    try:
        return ip_network(network) if scope == "network" else None
    except ValueError:
        return None
