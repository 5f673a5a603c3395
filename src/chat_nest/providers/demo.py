"""The demo model, for a start without a key: SmolLM2-135M-Instruct, small and real, fluent and often wrong.

It runs in a separate process (see demo_server). The provider starts it at the first use, restarts it after a crash,
and ends it when the provider is closed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from msgspec.structs import replace

from chat_nest.core.deltas import Batch
from chat_nest.core.errors import (
    UpstreamError,
    UpstreamNotStarted,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
    UpstreamUnreachable,
)
from chat_nest.core.protocols import Prompt
from chat_nest.core.timeouts import Timeouts
from chat_nest.limits.numbers import DEMO_CONTEXT
from chat_nest.providers import demo_server
from chat_nest.providers.demo_process import DemoFailure, DemoServer
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers.openai_codec import lacks
from chat_nest.providers.presets import OPENAI_COMPATIBLE

log = logging.getLogger("chat_nest.providers")

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds between a failed start and the next one; each failure doubles them."""


class DemoProvider:
    """The demo model as a provider. Ignores the prompt's `model` and temperature.

    With a `base_url` (and `api_key`) it uses the server there, else it runs its own. After a failed start it waits
    before the next one, longer each time, and refuses requests at once meanwhile. `clock` is in seconds.
    """

    abort_bills = "stops"
    context_tokens = DEMO_CONTEXT
    """The context of one chat, to which the built-in profiles are fitted."""

    def lacks(self, prompt: Prompt) -> Sequence[str]:
        """See Provider. llama.cpp supports every option."""
        return lacks(prompt, OPENAI_COMPATIBLE["llamacpp"])

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._given = base_url
        self._provider = None if base_url is None else connect(base_url, api_key)
        self._server: DemoServer | None = None
        self._starting: asyncio.Task[OpenAIProvider] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._clock = clock
        self._failure: DemoFailure | None = None
        self._pause = 0.0
        self._retry_at = 0.0

    async def start(self) -> str:
        """Start the model unless it runs, and return its server's URL. Raises UpstreamUnreachable."""
        await self._running()
        return self._given or (self._server.url if self._server else "")

    @asynccontextmanager
    async def open(self, prompt: Prompt, timeouts: Timeouts) -> AsyncGenerator[AsyncIterator[Batch]]:
        """See Provider.open. If the model crashes, its streams raise UpstreamUnavailable."""
        try:
            async with asyncio.timeout(timeouts.first_token):
                provider = await self._running()
        except TimeoutError:
            raise UpstreamTimeout("The demo model is still starting. Please try again.", spent_nothing=True) from None
        server = self._server
        # Its server has the best temperature for such a small model.
        prompt = replace(prompt, model=demo_server.MODEL, temperature=None)
        async with AsyncExitStack() as stack:
            yield DemoBatches(await self._accepted(stack, provider, server, prompt, timeouts), server)

    async def check(self) -> None:
        """Start the model unless it runs, and request its list of models. Raises UpstreamError."""
        provider = await self._running()
        await provider.check()  # the demo model accepts any name

    async def aclose(self) -> None:
        """End the model's process and wait until it is gone. A later `open` starts it again."""
        server, self._server = self._server, None
        provider, self._failure = self._provider, None
        if self._given is None:
            self._provider = None
        unfinished = [task for task in (self._starting, self._closing) if task is not None]
        self._closing = asyncio.create_task(self._close(server, provider, unfinished))
        await asyncio.shield(self._closing)

    @staticmethod
    async def _accepted(
        stack: AsyncExitStack, provider: OpenAIProvider, server: DemoServer | None, prompt: Prompt, timeouts: Timeouts
    ) -> AsyncIterator[Batch]:
        """Try again if the connection was lost before the answer: llama.cpp closes each one after a stream, without
        notice.

        That is safe here: a local model costs nothing.
        """
        for tries_left in (2, 1, 0):
            try:
                return await stack.enter_async_context(provider.open(prompt, timeouts))
            except UpstreamError as error:
                if not (tries_left and isinstance(error, UpstreamUnavailable)):
                    raise await explain(error, server, spent_nothing=True) from None
        raise AssertionError

    async def _running(self) -> OpenAIProvider:
        if self._provider is not None and (self._given is not None or (self._server and self._server.alive)):
            return self._provider
        if self._starting is None:
            pause = self._retry_at - self._clock()
            if self._failure is not None and pause > 0:
                raise UpstreamNotStarted(self._failure.reason, retry_after=pause)
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(started)
        return await asyncio.shield(self._starting)  # the first caller may leave: others wait for the same start

    async def _start(self) -> OpenAIProvider:
        dead, self._provider = self._provider, None
        server = self._server = DemoServer()
        try:
            if dead is not None:
                await dead.aclose()
            await asyncio.to_thread(server.start)
        except DemoFailure as error:
            if server is self._server:  # else the provider closed it, which is no failure
                self._failed(error)
                raise UpstreamNotStarted(error.reason, retry_after=self._pause) from None
        finally:
            self._starting = None
        if server is not self._server or not server.alive:
            raise UpstreamUnreachable("The demo model did not start", spent_nothing=True)
        if self._failure is not None:
            log.info("the demo model has started")
            self._failure = None
        self._provider = connect(server.url, server.api_key)
        return self._provider

    def _failed(self, error: DemoFailure) -> None:
        """Log a reason once, and set the time of the next start."""
        if self._failure is None or str(error) != str(self._failure):
            log.error("%s", error)
            self._pause = 0.0
        self._failure = error
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
        self._retry_at = self._clock() + self._pause

    @staticmethod
    async def _close(
        server: DemoServer | None, provider: OpenAIProvider | None, unfinished: Sequence[asyncio.Task[Any]]
    ) -> None:
        if server is not None:
            await asyncio.to_thread(server.close)
        if unfinished:
            await asyncio.wait(unfinished)
        if provider is not None:
            await provider.aclose()


class DemoBatches:
    """The batches of a stream. If the model's process ended, its failure is the error."""

    def __init__(self, batches: AsyncIterator[Batch], server: DemoServer | None) -> None:
        self._batches = batches
        self._server = server

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        try:
            return await anext(self._batches)
        except UpstreamError as error:
            raise await explain(error, self._server) from None


def connect(url: str, api_key: str | None) -> OpenAIProvider:
    return OpenAIProvider(api_key=api_key, base_url=f"{url.removesuffix('/v1')}/v1", abort_bills="stops")


async def explain(error: UpstreamError, server: DemoServer | None, *, spent_nothing: bool = False) -> UpstreamError:
    """Return the error; UpstreamUnavailable if the model's process has ended, which may take a moment to show."""
    broken = isinstance(error, UpstreamTruncated | UpstreamUnreachable | UpstreamUnavailable)
    if server is None or not broken or not await asyncio.to_thread(server.wait, 0.5):
        return error
    return UpstreamUnavailable("The demo model stopped. Please try again.", spent_nothing=spent_nothing)


def started(task: asyncio.Task[OpenAIProvider]) -> None:
    """Retrieve the start's failure, which was logged, even if no caller waits for it any more."""
    if not task.cancelled():
        task.exception()
