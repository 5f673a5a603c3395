"""Types that several Protocols share."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, Protocol, runtime_checkable

Scope = MutableMapping[str, Any]
"""An ASGI HTTP connection scope."""

Now = Callable[[], float]
"""Unix time in seconds; tests pass their own clock."""


@runtime_checkable
class Closable(Protocol):
    """A part with open resources. The handler closes it."""

    async def aclose(self) -> None: ...
