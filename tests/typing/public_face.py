"""What a type checker says of programs that use Chat Nest: `scripts/check` runs mypy on this file, nothing else does.

Each `type: ignore` is a mistake that the checker must find: one that it no longer finds is an unused ignore, an error.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from chat_nest import (
    Batch,
    Caller,
    ChatError,
    ChatHandler,
    Dialect,
    Ending,
    FinishDelta,
    Identify,
    Limits,
    LogObserver,
    MemoryStore,
    Observer,
    Report,
    PeerAddress,
    Profile,
    Prompt,
    Provider,
    Scope,
    Store,
    TextDelta,
    Timeouts,
    create_chat_handler,
    price,
)
from chat_nest.core.protocols import BatchesCalls
from chat_nest.dialects import Native
from chat_nest.providers import AnthropicProvider
from chat_nest.stores.postgres import PostgresStore
from chat_nest.stores.redis import RedisStore
from chat_nest.stores.sqlite import SQLiteStore
from chat_nest.testing import FakeClock, ScriptedProvider, answer


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


class Deaf:
    """An observer that is not told of refusals."""

    def started(self, id: str, caller: Caller, profile: str, model: str) -> None: ...
    def finished(self, ending: Ending) -> None: ...


class Listening(Deaf):
    def refused(self, id: str, caller: Caller | None, error: ChatError) -> None: ...


provider: Provider = Parrot()
scripted: Provider = ScriptedProvider(answer("Hello"))
claude: Provider = AnthropicProvider("key")
store: Store = MemoryStore(FakeClock())
dialect: Dialect = Native()
observer: Observer = Listening()
lines: Observer = LogObserver()
identify: Identify = waiting
handler: ChatHandler = create_chat_handler(observers=[observer, lines], store=store, dialect=dialect, identify=identify)

batching: tuple[type[BatchesCalls], ...] = (SQLiteStore, PostgresStore, RedisStore)
one_by_one: type[BatchesCalls] = MemoryStore  # type: ignore[assignment]

mute: Provider = Mute()  # type: ignore[assignment]
deaf: Observer = Deaf()  # type: ignore[assignment]
no_store: Store = Parrot()  # type: ignore[assignment]
no_dialect: Dialect = "native"  # type: ignore[assignment]
no_caller: Identify = nobody  # type: ignore[assignment]

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


class Reporting:
    def reported(self, report: Report) -> None: ...


create_chat_handler(observers=[Reporting(), LogObserver()])
create_chat_handler(observers=[object()])  # type: ignore[list-item]
create_chat_handler(prices={"p:m": 0.15})  # type: ignore[dict-item]
create_chat_handler(store=5)  # type: ignore[arg-type]
create_chat_handler(max_stream=5)  # type: ignore[call-arg]

handler.reload(limits=Limits(tokens_per_day=5), prices=None)
handler.reload(limits=5)  # type: ignore[arg-type]
handler.reload(limit=None)  # type: ignore[call-arg]
handler.reload(store="memory://")  # type: ignore[call-arg]
Caller("ada")  # type: ignore[call-arg]
