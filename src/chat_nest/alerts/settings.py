"""The settings of alerts, and the outcome of an attempt to deliver one."""

from __future__ import annotations

from typing import Literal, Protocol

from msgspec import Struct

AlertType = Literal[
    "budget.threshold",
    "budget.used_up",
    "budget.debt",
    "provider.key_refused",
    "provider.breaker_open",
    "requests.refused",
    "visitors.new",
    "store.down",
    "settlements.pending",
    "ledger.drift",
    "test",
]


class Bounds(Struct, frozen=True, kw_only=True):
    """When to send an alert."""

    name: str = ""
    """The name of this installation, at the start of each text."""
    percents: tuple[int, ...] = (50, 80, 100)
    repeat_seconds: float = 3_600.0
    """The least time between two alerts of the same condition, except those of budgets: these come once a window."""
    store_seconds: float = 30.0
    breaker_seconds: float = 120.0
    pending_seconds: float = 300.0
    refused_per_minute: int = 120
    """Refused requests in the whole fleet, on the average of five minutes; 0 sends none."""
    visitors_per_minute: int = 60
    """New visitors in the whole fleet, on the average of five minutes; 0 sends none."""


class SendOutcome(Struct, frozen=True, kw_only=True):
    """How an attempt went. Unless it was `sent`, `why` is the reason, without an address or a secret."""

    sent: bool = False
    why: str = ""
    final: bool = False
    """Not to be tried again."""
    wait: float = 0.0
    """Seconds until the next attempt, at least."""


class Channel(Protocol):
    """A way to deliver alerts. `send` ends within SEND_SECONDS, and raises nothing but cancellation."""

    @property
    def kind(self) -> str:
        """`webhook` or `email`."""
        ...

    async def send(self, id: str, type: AlertType, text: str, body: bytes) -> SendOutcome: ...
    async def aclose(self) -> None: ...


SEND_SECONDS = 15.0
