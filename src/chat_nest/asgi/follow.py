"""Follow a run: send a reader that reconnects the earlier batches and then the new ones, in any dialect."""

from __future__ import annotations

import contextlib

from chat_nest.asgi.response_stream import ResponseStream
from chat_nest.core import header_fields
from chat_nest.core.errors import ChatError, ClientGone, Forgotten, RunsUnavailable
from chat_nest.core.protocols import Encoder, FollowedRun, Scope
from chat_nest.pipeline.outcome import followed_ending


def last_read(scope: Scope, id: str) -> int:
    """Return the number of the client's last batch of run `id`, from its Last-Event-ID; 0 if it names none."""
    run, _, number = header_fields.text(header_fields.value(scope, b"last-event-id") or b"").rpartition("-")
    return int(number) if run == id and number.isascii() and number.isdigit() and len(number) < 10 else 0


async def follow(stream: ResponseStream, followed: FollowedRun, encoder: Encoder, after: int) -> None:
    """Answer with the batches after number `after`, and the end of the run.

    A reader that leaves does not end the run.
    """
    number = after
    with contextlib.suppress(ClientGone):
        await stream.resume(encoder)
        if not after and (first := encoder.start(followed.model)):
            await stream.write(first)
        try:
            async with contextlib.aclosing(followed.read(after)) as batches:
                async for number, batch in batches:
                    if data := encoder.number(encoder.encode(batch), number):
                        await stream.write(data)
        except (LookupError, RunsUnavailable) as error:
            await stream.finish(encoder.fail(error if isinstance(error, RunsUnavailable) else Forgotten()))
            return
        ending = followed_ending(followed.finale)
        data = encoder.fail(ending) if isinstance(ending, ChatError) else encoder.finish(ending)
        await stream.finish(data if followed.finale is None else encoder.number(data, number + 1))
