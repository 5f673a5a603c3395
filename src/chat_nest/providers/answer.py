"""The answer to one request: its batches as they come, and what is left of its body."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from chat_nest.core.deltas import Batch, Delta, FinishDelta
from chat_nest.core.errors import UpstreamError, UpstreamProtocol
from chat_nest.providers.codec import Codec
from chat_nest.providers.http import HTTPStream
from chat_nest.providers.think_tags import Thoughts

logger = logging.getLogger("chat_nest.providers")

END_SECONDS: Final = 0.05
"""Seconds to wait for the body's end after the last event, so that the connection can be used again."""
REST_LIMIT: Final = 1 << 16
"""The most bytes read of a body that is not part of an answer."""
DROP_SLICE: Final = 1 << 14
"""The most bytes of unread output that are decoded at once."""

_STREAMS: Final = (b"data:", b"event:", b"id:", b"retry:")
_MAY_BE_AN_ANSWER: Final = frozenset(
    ("application/json", "application/x-ndjson", "application/octet-stream", "text/plain", "text/event-stream")
)


class Batches:
    """The batches of one answer: one read gives one batch. `first` was read before.

    One that was `made_whole`, and is no stream, had all been produced before it came.
    """

    def __init__(
        self, answer: HTTPStream, codec: Codec | Thoughts, first: bytes = b"", *, made_whole: bool = False
    ) -> None:
        self._answer = answer
        self._codec = codec
        self._first = first
        self._made_whole = made_whole
        self._cut: UpstreamError | None = None
        """The end of a broken connection, which is raised after the text that was held back."""

    def __aiter__(self) -> Batches:
        return self

    async def __anext__(self) -> Batch:
        while not self._codec.over:
            try:
                data, self._first = self._first or await self._answer.read(), b""
            except UpstreamError as cut:
                if held := self._held(cut):
                    return held
                raise
            if not data:
                break
            deltas = self._codec.feed(data)
            if deltas:
                return deltas
        self._raise_cut()
        last = await self._end()
        if not last:
            raise StopAsyncIteration
        return last

    async def pass_on(self, take: Callable[[Batch], bool]) -> bool:
        """See protocols.PassOn."""
        codec, full = self._codec, False

        def read(data: bytes) -> bool:
            nonlocal full
            deltas = codec.feed(data)
            full = bool(deltas) and not take(deltas)
            return not (full or codec.over)

        self._raise_cut()
        if self._first:
            first, self._first = self._first, b""
            read(first)
        if not (full or codec.over):
            try:
                await self._answer.pass_on(read)
            except UpstreamError as cut:
                held = self._held(cut)
                if held and not take(held):
                    return True
                raise
        if full:
            return True
        last = await self._end()
        return bool(last) and not take(last)

    def _held(self, cut: UpstreamError) -> list[Delta]:
        """Return the text that was held back when the connection broke, such as half a tag. The next call raises."""
        if self._codec.over:
            return []
        held: list[Delta] = []
        with suppress(UpstreamError):
            held = [delta for delta in self._codec.end(whole=False) if not isinstance(delta, FinishDelta)]
        if held:
            self._cut = cut
        return held

    def _raise_cut(self) -> None:
        if self._cut is not None:
            cut, self._cut = self._cut, None
            raise cut

    def drop(self, count: Callable[[Batch], None]) -> bool:
        """See protocols.ReadsAhead."""
        codec, (pieces, more) = self._codec, self._answer.take_unread()
        pieces, self._first = [self._first, *pieces], b""
        for piece in pieces:
            for at in range(0, len(piece), DROP_SLICE):
                if not codec.over:
                    with suppress(UpstreamError):
                        count(codec.feed(piece[at : at + DROP_SLICE]))
        unseen = (more or self._made_whole) and not codec.over
        if not codec.over:
            with suppress(UpstreamError):
                count(codec.end(whole=False))
        return unseen

    async def _end(self) -> list[Delta]:
        """Return what the end of the body decides; nothing if the last event decided it."""
        answer = self._answer
        last = self._codec.end(whole=answer.whole and answer.framed)
        if not answer.whole:
            await rest(answer, END_SECONDS)
        return last


async def beginning(answer: HTTPStream, media_type: str) -> bytes:
    """Return the beginning of a body whose type is not the requested one, without blanks.

    It is read if it is JSON, or a stream with another type. Raises UpstreamProtocol for anything else, such as an HTML
    page, which is not from a model.
    """
    first = b""
    while media_type in _MAY_BE_AN_ANSWER and len(first) < 6 and (data := await answer.read()):
        first = (first + data).lstrip(b" \t\r\n\xef\xbb\xbf")
        if first.startswith((b"{", b"[", b":")):
            return first
    if not first.startswith(_STREAMS):
        logger.warning("the provider answered 200 without a stream: %s", UpstreamProtocol.code)
        raise UpstreamProtocol(spent_nothing=True)
    return first


async def rest(answer: HTTPStream, seconds: float, limit: int = REST_LIMIT) -> bytes:
    """Return the rest of the body, if it is short and comes soon: the connection can then be used again."""
    with suppress(UpstreamError, TimeoutError):
        async with asyncio.timeout(seconds):
            return await answer.read_body(limit)
    return b""
