"""Rows 41 and 42 at `chat-nest serve`: cut, reset or silent at any byte of the answer, a client leaves one settlement and no call behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fault_proxy import Fault, FaultProxy
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from ledger_file import Recorded, recorded
from processes import until
from raw_client import HELLO, JSON, Client, Cut, connect, settled
from scripted_provider import DONE, Connection, ScriptedProvider, chunk, finish, stream, usage
from serve_command import command

PATHS = {
    "/api/chat": HELLO,
    "/v1/chat/completions": {**HELLO, "stream": True},
}
REPORTED = 17
"""What the provider counts for the whole answer."""
LARGEST = 1_500
"""Bytes of an answer: with a few to spare, so that it sometimes comes whole."""
faults = st.builds(
    Fault,
    st.sampled_from(["cut", "reset", "silent"]),
    at=st.integers(0, LARGEST),
    size=st.just(1),
    seconds=st.just(0.0),
)
OPTIONS = {
    "CHAT_NEST_SERVER_TRUSTED_PROXIES": "127.0.0.1",
    "CHAT_NEST_TIMEOUTS_HEARTBEAT": "0.05",
}


class Bench:
    """One server for all examples, each of which is a caller of its own."""

    def __init__(self, folder: Path, provider: ScriptedProvider) -> None:
        self.folder = folder
        self.provider = provider
        self.port = 0
        self.said_all: set[int] = set()
        """The requests whose answer the provider could give to its end."""

    async def answer(self, connection: Connection) -> None:
        """Say something, and the rest only after a while: clients leave before, in between and after."""
        number = len(self.provider.requests) - 1
        for step in stream(chunk("one "), 0.03, chunk("two "), 0.03, chunk("three"), finish(), usage(14, 3), DONE):
            await connection._step(step)
        self.said_all.add(number)

    async def settles_once(self, path: str, fault: Fault) -> Recorded:
        number = len(self.provider.requests)
        headers = {**JSON, "x-forwarded-for": f"192.0.2.{number + 1}"}
        whole = await self.ask_and_leave(path, headers, fault)
        closed = self.provider.requests[number].connection.closed
        await until(lambda: closed.done() or number in self.said_all)
        await until(lambda: len(recorded(self.folder)) > number)
        used = (await settled(self.port, headers=headers))["tokens_per_day"]["used"]
        rows = recorded(self.folder)
        assert len(self.provider.requests) == len(rows) == number + 1, "one call, one settlement"
        last = rows[-1]
        assert used == last.tokens > 0
        assert last.tokens == REPORTED if last.source == "reported" else last.source == "estimated"
        assert not whole or last == Recorded(REPORTED, "reported", "stop")
        assert last.ending in ("stop", "client_gone")
        return last

    async def ask_and_leave(self, path: str, headers: dict[str, str], fault: Fault) -> bool:
        """Return, once the fault has struck or the answer has ended, whether it came whole."""
        async with FaultProxy(self.port, fault) as proxy, connect(proxy.port) as client:
            client.send("POST", path, PATHS[path], headers)
            reading = asyncio.create_task(came_whole(client))
            try:
                await until(lambda: reading.done() or proxy.broke)
                if fault.kind == "silent" and proxy.broke:
                    client.reset()
                return await reading
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)


async def came_whole(client: Client) -> bool:
    try:
        reply = await client.reply()
        await reply.body()
    except Cut:
        return False
    return reply.complete


@asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[Bench]:
    async with ScriptedProvider() as provider, command(folder, provider.url, **OPTIONS) as served:
        made = Bench(folder, provider)
        made.port = served.port
        provider.scripts = [made.answer]
        yield made


def test_rows_41_and_42_a_request_is_settled_once_however_the_connection_fails(tmp_path) -> None:
    sources, endings = set(), set()

    # No shrinking: an example that waits in vain takes its whole time again at every attempt.
    @settings(
        max_examples=40,
        derandomize=True,
        deadline=None,
        report_multiple_bugs=False,
        phases=[Phase.explicit, Phase.generate],
    )
    @given(path=st.sampled_from(sorted(PATHS)), fault=faults)
    @example(path="/api/chat", fault=Fault("reset", 0))
    @example(path="/v1/chat/completions", fault=Fault("cut", LARGEST))
    def settles_once(path: str, fault: Fault) -> None:
        last = runner.run(asyncio.wait_for(each.settles_once(path, fault), 120))
        sources.add(last.source)
        endings.add(last.ending)

    with asyncio.Runner() as runner:
        one = bench(tmp_path)
        each = runner.run(one.__aenter__())
        try:
            settles_once()
        finally:
            runner.run(one.__aexit__(None, None, None))
    assert sources == {"reported", "estimated"}, "clients left before the end, and behind it"
    assert endings == {"stop", "client_gone"}
