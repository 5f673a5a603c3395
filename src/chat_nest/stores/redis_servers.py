"""Which Redis server to ask: one server, the master that Sentinel names, or the master of a Cluster's slot.

A server is asked only after it has said that it never evicts keys, on each new connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from random import shuffle
from typing import Any, Literal, Protocol, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct
from redis.asyncio import Connection, SSLConnection
from redis.exceptions import AskError, MovedError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as Broken

_log = logging.getLogger(__name__)

Word = str | bytes | int
Address = tuple[str, int]

_SLOTS = 16_384
_ASK_WITHIN = 0.25
"""Seconds for one server to say where the others are: another may know too."""
_TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})


class UnsafeServer(Exception):
    """The server works, and budgets kept on it could be lost."""


class Place(Struct, frozen=True, kw_only=True):
    """Where the servers are and how to log in: a store's URL, taken apart."""

    kind: Literal["single", "cluster", "sentinel"]
    addresses: tuple[Address, ...]
    tls: bool
    username: str | None
    password: str | None
    db: int = 0
    master: str = ""
    options: dict[str, str]


def read_url(url: str) -> Place:
    """Return the place that the URL names. Raises ValueError, which never repeats the URL.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB], redis+cluster://HOST:PORT,HOST:PORT, or
    redis+sentinel://HOST:PORT,HOST:PORT/MASTER[/DB]; rediss instead of redis for TLS, of which `?ssl_ca_certs=`,
    `&ssl_certfile=` and `&ssl_keyfile=` name files. Sentinels that want a password get `?sentinel_password=`.
    """
    split = urlsplit(url)
    start, _, kind = split.scheme.partition("+")
    if start not in {"redis", "rediss"} or kind not in {"", "cluster", "sentinel"} or split.fragment:
        raise ValueError("store.url must begin with redis://, rediss://, redis+cluster:// or redis+sentinel://")
    login, _, hosts = split.netloc.rpartition("@")
    username, _, password = login.partition(":")
    path = [part for part in split.path.split("/") if part]
    options = dict(parse_qsl(split.query, keep_blank_values=True))
    if (
        options.keys()
        - (_TLS_OPTIONS if start == "rediss" else set[str]())
        - (_SENTINEL_OPTIONS if kind == "sentinel" else set[str]())
    ):
        raise ValueError("store.url: after `?` may come ssl_ca_certs, ssl_certfile or ssl_keyfile with rediss, and "
                         "sentinel_username or sentinel_password with redis+sentinel")  # fmt: skip
    master = path.pop(0) if kind == "sentinel" and path else ""
    if kind == "sentinel" and not master:
        raise ValueError("store.url must name the master after the sentinels: redis+sentinel://HOST:PORT/MASTER")
    if len(path) > (kind != "cluster") or not all(part.isdecimal() for part in path):
        raise ValueError("store.url: the database must be one number, and a Cluster has none")
    port = 26_379 if kind == "sentinel" else 6_379
    return Place(
        kind=cast("Literal['single', 'cluster', 'sentinel']", kind or "single"),
        addresses=tuple(_read_address(host, port) for host in hosts.split(","))
        if kind
        else (_read_address(hosts, port),),
        tls=start == "rediss",
        username=unquote(username) or None,
        password=unquote(password) or None,
        db=int(path[0]) if path else 0,
        master=unquote(master),
        options=options,
    )


def _read_address(text: str, port: int) -> Address:
    try:
        split = urlsplit("//" + text)
        if split.hostname and not split.path:
            return split.hostname, port if split.port is None else split.port
    except ValueError:
        pass
    raise ValueError("store.url: each server must be HOST or HOST:PORT")


class Server:
    """Connections to one server, at most `most`; who finds none free waits until its own deadline.

    A call that fails half-way, or is cancelled, closes its connection: no one else reads its answer. A connection that
    turns out to have been closed while it was idle is replaced, and the command sent once more, so every command that
    is sent here must be one that may be repeated.
    """

    def __init__(self, address: Address, connect: Callable[[Address], Connection], most: int) -> None:
        self.address = address
        self._new = connect
        self._slots = asyncio.Semaphore(most)
        self._idle: list[Connection] = []
        self._retired = False

    async def call(self, *words: Word) -> Any:
        """Raises what redis-py raises, UnsafeServer, and OSError. Never answers late: give it a deadline."""
        async with self._slots:
            if self._idle:
                try:
                    return await self._exchange(self._idle.pop(), words)
                except (Broken, OSError):
                    await self._close_idle()  # they are likely to be as dead
            connection = self._new(self.address)
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                await self._check(connection)
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            return await self._exchange(connection, words)

    async def check(self) -> None:
        """Raise UnsafeServer if the server may evict keys, and let no open connection be used any more."""
        try:
            _must_never_evict(await self.call("INFO", "memory"))
        except UnsafeServer:
            await self._close_idle()
            raise

    async def _check(self, connection: Connection) -> None:
        await connection.send_command("INFO", "memory")
        _must_never_evict(await connection.read_response())

    async def _exchange(self, connection: Connection, words: Sequence[Word]) -> Any:
        try:
            await connection.send_command(*words, check_health=False)
            answer = cast(Any, await connection.read_response())
        except ResponseError:
            await self._keep(connection)
            raise
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        await self._keep(connection)
        return answer

    async def _keep(self, connection: Connection) -> None:
        if self._retired or not connection.is_connected:
            await connection.disconnect(nowait=True)
        else:
            self._idle.append(connection)

    async def _close_idle(self) -> None:
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close the idle connections now, and those in use when they are given back."""
        self._retired = True
        while self._idle:
            with contextlib.suppress(RedisError, OSError):
                await self._idle.pop().disconnect()


class Servers(Protocol):
    """The servers of one place."""

    async def call(self, tag: str, *words: Word) -> Any:
        """Ask the server that keeps what has this hash tag. Raises as Server.call does."""
        ...

    async def check(self) -> None:
        """Raise unless every server that may be asked answers and never evicts keys."""
        ...

    async def aclose(self) -> None: ...


def open_servers(place: Place, most: int, timeout: float) -> Servers:
    """Return the servers, of which nothing is opened yet; `most` connections each, `timeout` seconds to connect."""

    def connect(address: Address) -> Connection:
        return _connection(place, address, place.username, place.password, place.db, timeout)

    def ask(address: Address) -> Connection:
        options = place.options
        return _connection(
            place, address, options.get("sentinel_username"), options.get("sentinel_password"), 0, timeout
        )

    if place.kind == "cluster":
        return _Cluster(place, connect, most)
    if place.kind == "sentinel":
        return _Sentinel(place, connect, ask, most)
    return _Single(Server(place.addresses[0], connect, most))


def _connection(
    place: Place, address: Address, username: str | None, password: str | None, db: int, timeout: float
) -> Connection:
    host, port = address
    login: dict[str, Any] = {"host": host, "port": port, "username": username, "password": password, "db": db}
    # No socket_timeout: with one, redis-py sends under asyncio.wait_for, which may swallow a cancellation on Python
    # 3.11. Every call has a deadline of its own.
    login |= {"protocol": 2, "socket_timeout": None, "socket_connect_timeout": timeout}
    if not place.tls:
        return Connection(**login)
    files: dict[str, Any] = {name: path for name, path in place.options.items() if name in _TLS_OPTIONS}
    return SSLConnection(**login, **files)


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

    async def check(self) -> None:
        await self._server.check()

    async def aclose(self) -> None:
        await self._server.aclose()


class _Sentinel:
    """The master, by the word of the first sentinel that answers; asked again on trouble."""

    def __init__(
        self, place: Place, connect: Callable[[Address], Connection], ask: Callable[[Address], Connection], most: int
    ) -> None:
        self._place = place
        self._connect = connect
        self._ask = ask
        self._most = most
        self._master: Server | None = None
        self._sure = False
        self._lock = asyncio.Lock()

    async def call(self, tag: str, *words: Word) -> Any:  # noqa: ARG002 - the master has every tag
        master = await self._find()
        try:
            return await master.call(*words)
        except (Broken, ReadOnlyError, OSError, TimeoutError, asyncio.CancelledError):
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
                        await self._master.aclose()
                    self._master = Server(address, self._connect, self._most)
                self._sure = True
            return self._master

    async def _ask_sentinels(self) -> Address:
        for address in self._place.addresses:
            words = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._place.master)
            answer = await _ask_once(self._ask(address), words)
            if answer:
                return answer[0].decode(), int(answer[1])
        raise Broken("no sentinel names the master")


class _Cluster:
    """The master of each slot, learned from any server that answers, and again on trouble.

    A slot on its way to another server is not served (ASK, TRYAGAIN): half of its counters would be missing.
    """

    def __init__(self, place: Place, connect: Callable[[Address], Connection], most: int) -> None:
        self._seeds = place.addresses
        self._connect = connect
        self._most = most
        self._servers: dict[Address, Server] = {}
        self._slots: list[tuple[int, int, Address]] = []
        self._sure = False
        self._lock = asyncio.Lock()

    async def call(self, tag: str, *words: Word) -> Any:
        slot = crc_hqx(tag.encode(), 0) % _SLOTS
        server = await self._find(slot)
        try:
            return await server.call(*words)
        except MovedError as moved:
            self._sure = False
            host, _, port = str(moved).rpartition(" ")[2].rpartition(":")  # `SLOT HOST:PORT`; no HOST means the same
            return await self._at((host or server.address[0], int(port))).call(*words)
        except AskError:
            raise
        except (Broken, ReadOnlyError, ResponseError, OSError, TimeoutError, asyncio.CancelledError) as error:
            self._sure = self._sure and isinstance(error, ResponseError) and not isinstance(error, ReadOnlyError)
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

    def _at(self, address: Address) -> Server:
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = Server(address, self._connect, self._most)
        return server

    async def _learn(self) -> None:
        """Ask the servers, in any order, for the slots; the first answer counts."""
        known = list({*self._servers, *self._seeds})
        shuffle(known)
        for asked in known:
            answer = await _ask_once(self._connect(asked), ("CLUSTER", "SLOTS"))
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
            await self._servers.pop(address).aclose()


async def _ask_once(connection: Connection, words: Sequence[Word]) -> Any:
    """Return the answer, or None where there is none in time."""
    try:
        async with asyncio.timeout(_ASK_WITHIN):
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command(*words, check_health=False)
            return cast(Any, await connection.read_response())
    except (RedisError, OSError, TimeoutError) as error:
        _log.debug("a Redis server did not say where the others are: %s", type(error).__name__)
        return None
    finally:
        await connection.disconnect(nowait=True)
