"""What a type checker says of programs that use Chat Nest: `scripts/check` runs mypy on this file, nothing else does.

Each `type: ignore` is a mistake that the checker must find: one that it no longer finds is an unused ignore, an error.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from chat_nest import Caller, Limits, PeerAddress, Profile, Timeouts, create_chat_handler
from chat_nest.deltas import Batch, FinishDelta, TextDelta
from chat_nest.dialects.native import Native
from chat_nest.prices import price
from chat_nest.protocols import Prompt, Scope


class Parrot:
    @asynccontextmanager
    async def open(self, prompt: Prompt, timeouts: Timeouts) -> AsyncGenerator[AsyncIterator[Batch], None]:
        yield self._answer(prompt)

    async def _answer(self, prompt: Prompt) -> AsyncIterator[Batch]:
        yield [TextDelta(prompt.messages[-1].content)]
        yield [FinishDelta("stop")]


class Mute:
    """A provider without `open`."""


def plain(scope: Scope) -> Caller:
    return Caller(id=str(scope["client"]))


async def waiting(scope: Scope) -> Caller:
    return plain(scope)


def nobody(scope: Scope) -> None:
    return None


def name_only(scope: Scope) -> str:
    return "ada"


create_chat_handler(identify=plain, dialect="openai")
create_chat_handler(identify=waiting, dialects=["native", "blog", Native("/talk")])
create_chat_handler(identify=PeerAddress(), limits=Limits(tokens_per_day=5, usd_per_day=5))
create_chat_handler(providers={"p": Parrot()}, profiles={"balanced": Profile(model="p:m")}, prices={"p:*": price(input=1, output=2)})  # fmt: skip

create_chat_handler(dialect="opnai")  # type: ignore[arg-type]
create_chat_handler(dialects=["nativ"])  # type: ignore[list-item]
create_chat_handler(identify=nobody)  # type: ignore[arg-type]
create_chat_handler(identify=name_only)  # type: ignore[arg-type]
create_chat_handler(limits=Limits(tokens_per_day="5"))  # type: ignore[arg-type]
create_chat_handler(providers={"p": Mute()})  # type: ignore[dict-item]
create_chat_handler(observers=[object()])  # type: ignore[list-item]
create_chat_handler(prices={"p:m": 0.15})  # type: ignore[dict-item]
create_chat_handler(store=5)  # type: ignore[arg-type]
create_chat_handler(max_stream=5)  # type: ignore[call-arg]
Caller("ada")  # type: ignore[call-arg]
