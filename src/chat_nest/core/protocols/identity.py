"""Identify the caller of a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, runtime_checkable

from chat_nest.core.messages import Caller
from chat_nest.core.protocols.shared import Scope

Identify = Callable[[Scope], Caller | Awaitable[Caller]]
"""Return the caller. Raises Unauthorized or Forbidden to refuse. Must never trust the body."""


@runtime_checkable
class CheckableIdentity(Protocol):
    """An Identify that /readyz can check: that the callers' keys are readable."""

    async def check(self) -> None:
        """Raise any exception if no caller can be identified now."""
        ...


@runtime_checkable
class TakesCredentials(Protocol):
    """An Identify that reads a key or a token: see identity.bearer for the headers."""

    def __call__(self, scope: Scope) -> Caller | Awaitable[Caller]: ...

    def claims(self, credential: str) -> bool:
        """Return whether a credential has the form of this way's own, valid or not."""
        ...


@runtime_checkable
class TakesHeader(Protocol):
    """An Identify that reads its own header, which only some requests have."""

    def __call__(self, scope: Scope) -> Caller | Awaitable[Caller]: ...

    def presented(self, scope: Scope) -> bool:
        """Return whether the request has that header, valid or not."""
        ...


@runtime_checkable
class AcceptsStrangers(Protocol):
    """An Identify that also accepts requests without any credential: by IP address, for example."""

    def is_stranger(self, scope: Scope) -> bool:
        """Return whether the request presents no credential, so that any program could have sent it."""
        ...
