"""Redis topologies: one server, the master that Sentinel names, or the master of a Cluster's slot.

Each new connection to a server first verifies that the server never evicts keys.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from binascii import crc_hqx
from collections.abc import Sequence
from random import shuffle
from typing import Any, Protocol

from chat_nest.stores.redis.resp import Broken, Denied, HostPort, Login, Wire, Word
from chat_nest.stores.redis.url import RedisAddress

_log = logging.getLogger(__name__)

_SLOTS = 16_384
_ASK_WITHIN = 0.25
"""Seconds for one server to report the others: another may know them too."""
_NO_MASTER = frozenset({"READONLY", "LOADING", "MASTERDOWN"})
"""The errors of a server that is not the master, or is not yet."""


class UnsafeServer(Exception):
    """The server works, but could lose the budgets kept on it."""


class Server:
    """The connection to one server, opened by the first call that finds none.

    If a call finds its connection closed, it is sent once more on a new one, so every command here must be repeatable.
    """

    def __init__(self, address: HostPort, login: Login) -> None:
        self.address = address
        self._login = login
        self._wire: Wire | None = None
        self._opening = asyncio.Lock()
        self._retired = False

    async def call(self, *words: Word) -> Any:
        """Send one command. Raises Denied, Broken, UnsafeServer and OSError. Give it a deadline: it has none."""
        if self._wire is not None and self._wire.usable:
            try:
                return await self._wire.ask(*words)
            except Broken:
                pass
        wire = await self._opened()
        return await wire.ask(*words)

    async def check(self) -> None:
        """Raise UnsafeServer and retire the connection if the server may evict keys."""
        try:
            _must_never_evict(await self.call("INFO", "memory"))
        except UnsafeServer:
            if self._wire is not None:
                self._wire.abort()
            raise

    async def wire(self) -> Wire:
        """Open a separate connection that the caller closes. Raises Denied, Broken and OSError."""
        return await self._login.open(self.address)

    def retire(self) -> None:
        """Refuse new calls, and close the connection when the running ones are answered."""
        self._retired = True
        if self._wire is not None:
            self._wire.retire()

    async def aclose(self) -> None:
        """Close the connection now."""
        self._retired = True
        if self._wire is not None:
            self._wire.abort()
            await self._wire.wait_closed()

    async def _opened(self) -> Wire:
        async with self._opening:
            if self._wire is None or not self._wire.usable:
                wire = await self._login.open(self.address)
                try:
                    _must_never_evict(await wire.ask("INFO", "memory"))
                    if self._retired:
                        raise Broken
                except BaseException:
                    wire.abort()
                    raise
                self._wire = wire
            return self._wire


class Servers(Protocol):
    """The servers of one place."""

    async def call(self, tag: str, *words: Word) -> Any:
        """Call the server that keeps this hash tag's keys. Raises as Server.call does."""
        ...

    async def wire(self, tag: str) -> Wire:
        """Open a separate connection to that server for blocking commands; the caller closes it."""
        ...

    async def check(self) -> None:
        """Raise unless every server that may be used answers and never evicts keys."""
        ...

    async def aclose(self) -> None: ...


def open_servers(place: RedisAddress, tls: ssl.SSLContext | None) -> Servers:
    """Return the servers; none of them is opened yet."""
    login = Login(tls, place.username, place.password, place.db)
    if place.kind == "cluster":
        return _Cluster(place.addresses, login)
    if place.kind == "sentinel":
        options = place.options
        ask = Login(tls, options.get("sentinel_username"), options.get("sentinel_password"), 0)
        return _Sentinel(place, login, ask)
    return _Single(Server(place.addresses[0], login))


def _must_never_evict(info: Any) -> None:
    policy = next((line[17:] for line in info.decode().splitlines() if line.startswith("maxmemory_policy:")), "")
    if policy != "noeviction":
        raise UnsafeServer(
            "the Redis server may throw away counters when its memory is full: maxmemory-policy must be noeviction"
        )


class _Single:
    def __init__(self, server: Server) -> None:
        self._server = server

    async def call(self, tag: str, *words: Word) -> Any:  # noqa: ARG002 - one server has every tag
        return await self._server.call(*words)

    async def wire(self, tag: str) -> Wire:  # noqa: ARG002
        return await self._server.wire()

    async def check(self) -> None:
        await self._server.check()

    async def aclose(self) -> None:
        await self._server.aclose()


class _Sentinel:
    """The master that the first answering sentinel names; looked up again on trouble."""

    def __init__(self, place: RedisAddress, login: Login, ask: Login) -> None:
        self._place = place
        self._login = login
        self._ask = ask
        self._master: Server | None = None
        self._sure = False
        self._lock = asyncio.Lock()

    async def call(self, tag: str, *words: Word) -> Any:  # noqa: ARG002 - the master has every tag
        master = await self._find()
        try:
            return await master.call(*words)
        except (Broken, Denied, OSError, asyncio.CancelledError) as error:
            self._sure = self._sure and isinstance(error, Denied) and error.code not in _NO_MASTER
            raise

    async def wire(self, tag: str) -> Wire:  # noqa: ARG002
        master = await self._find()
        try:
            return await master.wire()
        except (Broken, Denied, OSError, asyncio.CancelledError):
            self._sure = False
            raise

    async def check(self) -> None:
        self._sure = False
        await (await self._find()).check()

    async def aclose(self) -> None:
        if self._master is not None:
            await self._master.aclose()

    async def _find(self) -> Server:
        async with self._lock:
            if self._master is None or not self._sure:
                address = await self._ask_sentinels()
                if self._master is None or self._master.address != address:
                    if self._master is not None:
                        self._master.retire()
                    self._master = Server(address, self._login)
                self._sure = True
            return self._master

    async def _ask_sentinels(self) -> HostPort:
        for address in self._place.addresses:
            words = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._place.master)
            answer = await _ask_once(self._ask, address, words)
            if answer:
                return answer[0].decode(), int(answer[1])
        raise Broken("no sentinel names the master")


class _Cluster:
    """The master of each slot, learned from any server that answers, and again on trouble.

    A slot that moves to another server is not used (ASK, TRYAGAIN): half of its counters would be missing.
    """

    def __init__(self, seeds: tuple[HostPort, ...], login: Login) -> None:
        self._seeds = seeds
        self._login = login
        self._servers: dict[HostPort, Server] = {}
        self._slots: list[tuple[int, int, HostPort]] = []
        self._sure = False
        self._lock = asyncio.Lock()

    async def call(self, tag: str, *words: Word) -> Any:
        slot = crc_hqx(tag.encode(), 0) % _SLOTS
        server = await self._find(slot)
        try:
            return await server.call(*words)
        except (Broken, Denied, OSError, asyncio.CancelledError) as error:
            moved = isinstance(error, Denied) and error.code == "MOVED"
            self._sure = self._sure and isinstance(error, Denied) and not moved and error.code not in _NO_MASTER
            if not moved:
                raise
            host, _, port = str(error).rpartition(" ")[2].rpartition(":")  # `SLOT HOST:PORT`; no HOST means the same
            return await self._at((host or server.address[0], int(port))).call(*words)

    async def wire(self, tag: str) -> Wire:
        server = await self._find(crc_hqx(tag.encode(), 0) % _SLOTS)
        try:
            return await server.wire()
        except (Broken, Denied, OSError, asyncio.CancelledError):
            self._sure = False
            raise

    async def check(self) -> None:
        self._sure = False
        await self._find(0)
        await asyncio.gather(*(self._at(address).check() for address in {address for _, _, address in self._slots}))

    async def aclose(self) -> None:
        for server in self._servers.values():
            await server.aclose()

    async def _find(self, slot: int) -> Server:
        if not self._sure:
            async with self._lock:
                if not self._sure:
                    await self._learn()
        for first, last, address in self._slots:
            if first <= slot <= last:
                return self._at(address)
        raise Broken("no server of the Cluster has the slot")

    def _at(self, address: HostPort) -> Server:
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = Server(address, self._login)
        return server

    async def _learn(self) -> None:
        """Query the servers, in any order, for the slots; the first answer counts."""
        known = list({*self._servers, *self._seeds})
        shuffle(known)
        for asked in known:
            answer = await _ask_once(self._login, asked, ("CLUSTER", "SLOTS"))
            if answer:
                self._slots = [
                    (int(first), int(last), ((master[0] or b"").decode() or asked[0], int(master[1])))
                    for first, last, master, *_ in answer
                ]
                self._sure = True
                break
        else:
            raise Broken("no server of the Cluster answers")
        masters = {address for _, _, address in self._slots}
        for address in [address for address in self._servers if address not in masters]:
            self._servers.pop(address).retire()


async def _ask_once(login: Login, address: HostPort, words: Sequence[Word]) -> Any:
    """Return the answer, or None if none comes in time."""
    wire: Wire | None = None
    try:
        async with asyncio.timeout(_ASK_WITHIN):
            wire = await login.open(address)
            return await wire.ask(*words)
    except (Broken, Denied, OSError) as error:  # TimeoutError is an OSError
        _log.debug("a Redis server did not say where the others are: %s", type(error).__name__)
        return None
    finally:
        if wire is not None:
            wire.abort()
