"""The answers that run in any server of a store, and the stop of one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from chat_nest.core.protocols import ListsRunning, Store
from chat_nest.core.records import Record
from chat_nest.server.operator import Operator, Rejected

GONE_SECONDS = 3.0
"""How long a stop waits for the answer's end."""
MOST = 1_000


async def running(store: Store) -> Sequence[Record]:
    """Return the records of the running answers, the newest first."""
    return await store.running(MOST) if isinstance(store, ListsRunning) else ()


async def stop(operator: Operator, store: Store, run: str, reason: str) -> bool:
    """Stop a run; return whether it is over. Raises Rejected if no answer with this id runs."""
    if not any(record.run == run for record in await running(store)):
        raise Rejected("run", "must be the id of a running answer: see `chat-nest running`")
    await operator.stop(run, reason=reason)
    until = time.monotonic() + GONE_SECONDS
    while any(record.run == run for record in await running(store)):
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.1)
    return True
