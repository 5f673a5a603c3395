"""A provider of your own is a class with one method: `uvicorn 07_your_provider:app`. No key is needed for this one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from chat_nest import Batch, FinishDelta, Prompt, TextDelta, Timeouts, Usage, UsageDelta, create_chat_handler


class Parrot:
    """Says it again, a word at a time."""

    abort_bills = "stops"  # an answer that is left early costs what was said

    @asynccontextmanager
    async def open(self, prompt: Prompt, timeouts: Timeouts) -> AsyncGenerator[AsyncIterator[Batch], None]:
        """Open a connection here, with the time-outs that you are given; raise an UpstreamError if it fails."""
        _ = timeouts
        yield self._answer(prompt)
        # And close the connection here, which is reached on every way out: done, cancelled, failed.

    async def _answer(self, prompt: Prompt) -> AsyncIterator[Batch]:
        words = prompt.messages[-1].content.split()[: prompt.max_output_tokens]
        for word in words:
            await asyncio.sleep(0.02)
            yield [TextDelta(word + " ")]
        yield [FinishDelta("stop"), UsageDelta(Usage(input_tokens=len(words), output_tokens=len(words)))]


app = create_chat_handler(providers={"parrot": Parrot()}, model="parrot:polly")
