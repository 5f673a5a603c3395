"""The first call of a store: its deadline is that of a request, which a busy machine may miss while it starts."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final

from chat_nest.core.errors import LimiterUnavailable, StoreEmptied, failure_name
from chat_nest.core.protocols import Store
from chat_nest.stores.places import place_of, sentence

SECONDS: Final = 10.0
"""How long an unreachable store is tried again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 2.0
_STARTING: Final = ("LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
"""Redis's answers that pass."""


async def reach(store: Store, note: Callable[[str], object]) -> None:
    """Return when the store answers, and note it once if that takes more than one call.

    A store that is unreachable, too slow or still starting is called again for 10 seconds. Raises what its `ping`
    raises: another failure, such as a wrong password, at once.
    """
    until: float | None = None
    pause = FIRST_PAUSE
    while True:
        try:
            await store.ping()
        except LimiterUnavailable as error:
            now = time.monotonic()
            if until is None and _may_pass(error):
                until = now + SECONDS
                why = failure_name(error.__cause__ or error)
                note(f"{sentence(place_of(store))} does not answer yet ({why}): trying again for {SECONDS:.0f} s")
            if until is None or now + pause > until or not _may_pass(error):
                raise
        else:
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _may_pass(error: LimiterUnavailable) -> bool:
    cause = error.__cause__
    if isinstance(error, StoreEmptied) or isinstance(cause, socket.gaierror):
        return False
    if isinstance(cause, ConnectionError | TimeoutError) or getattr(cause, "code", "") in _STARTING:
        return True
    state = getattr(cause, "sqlstate", "none")  # psycopg: None if the server did not say anything
    return state is None or state[:2] in ("57", "55")  # it starts or ends; it was too slow
