"""Wait until the answer for a reader is over, even if the server cancels the request's own task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from chat_nest.asgi.request import ABORT, GONE, Receive
from chat_nest.core.errors import ClientGone, Shutdown, SlowReader
from chat_nest.pipeline.lifecycle import Lifecycle, State

log = logging.getLogger("chat_nest.asgi")

Result = TypeVar("Result")


async def attend(
    life: Lifecycle, story: asyncio.Task[Result], extensions: Mapping[str, Any], receive: Receive
) -> Result | None:
    """Return the pipeline's result, or None when there is no more to do for the reader.

    Raises what the pipeline raises.
    """
    stop_watching = _watch(extensions, receive, life)
    try:
        await life.released
    except asyncio.CancelledError:
        life.leave(Shutdown())  # a server may cancel the task of a client that has disconnected
        if life.state is not State.DETACHED:
            await asyncio.wait([story])
        raise
    finally:
        stop_watching()
    if life.lost and (abort := extensions.get(ABORT)) is not None:
        abort()
    return story.result() if story.done() and not story.cancelled() else None


def _watch(extensions: Mapping[str, Any], receive: Receive, life: Lifecycle) -> Callable[[], object]:
    """Notify the request when its client disconnects, until the returned function is called."""
    when_gone = extensions.get(GONE)
    if when_gone is None:
        return asyncio.create_task(_until_gone(receive, life)).cancel
    when_gone(partial(_leave, life))
    return partial(when_gone, None)


def _leave(life: Lifecycle, slow: bool) -> None:
    life.leave(SlowReader() if slow else ClientGone())


async def _until_gone(receive: Receive, life: Lifecycle) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except Exception as failure:
        log.error("request %s: the server lost sight of its client: %s", life.id, type(failure).__name__)  # noqa: TRY400
    life.leave(ClientGone())
