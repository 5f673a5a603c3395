"""Kept answers: the request, the text and the ending of an earlier run, for requests that refer to it."""

from __future__ import annotations

import asyncio
import contextlib

from msgspec import Struct

from chat_nest.core.deltas import AskedDelta, Batch
from chat_nest.core.errors import Lost, NotFound
from chat_nest.core.protocols import Finale, RunLogs

GONE = "There is no such answer here, or it is not kept any more"
PATIENCE = 1.0
"""Seconds to wait for an answer's ending: it may be on its way to the log."""


class Kept(Struct, frozen=True, kw_only=True):
    """`asked` is what its dialect kept with it. `finale` is None while the run goes on."""

    id: str
    model: str
    asked: str
    batches: tuple[Batch, ...] = ()
    finale: Finale | None = None


async def recall(logs: RunLogs, id: str, owner: str) -> Kept:
    """Return the kept answer with this run's id; of a running one, its text so far.

    Raises NotFound if this owner has none, or its beginning is no longer kept, and RunsUnavailable.
    """
    followed = await logs.find(id)
    if followed is None or followed.owner != owner or followed.id != id:
        raise NotFound(GONE)
    batches: list[Batch] = []
    finale: Finale | None = None
    with contextlib.suppress(TimeoutError):
        try:
            async with asyncio.timeout(PATIENCE), contextlib.aclosing(followed.read(0)) as reading:
                async for _, batch in reading:
                    batches.append(batch)
            finale = followed.finale or Finale(code=Lost.code, message=Lost.text)  # its process died
        except LookupError:
            raise NotFound(GONE) from None
    first = batches[0][0] if batches and batches[0] else None
    if not isinstance(first, AskedDelta):
        raise NotFound(GONE)
    return Kept(id=id, model=followed.model, asked=first.text, batches=tuple(batches[1:]), finale=finale)
