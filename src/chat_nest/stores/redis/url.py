"""Read the URL of a Redis store: its servers, login, TLS and topology."""

from __future__ import annotations

from typing import Literal, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

from chat_nest.stores.places import addresses
from chat_nest.stores.redis.resp import HostPort

_TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})


class RedisAddress(Struct, frozen=True, kw_only=True):
    """Addresses of the servers and the login: a store's URL, parsed."""

    kind: Literal["single", "cluster", "sentinel"]
    addresses: tuple[HostPort, ...]
    tls: bool
    username: str | None
    password: str | None
    db: int = 0
    master: str = ""
    options: dict[str, str]

    @property
    def shown(self) -> str:
        """Return the servers without the login, for logs."""
        servers = addresses(self.addresses)
        kind = {"single": "", "cluster": " Cluster", "sentinel": " Sentinel"}[self.kind]
        return f"the Redis{kind} store at {servers}"


def read_url(url: str) -> RedisAddress:
    """Return the place that the URL names. Raises ValueError, which never repeats the URL.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB], redis+cluster://HOST:PORT,HOST:PORT, or
    redis+sentinel://HOST:PORT,HOST:PORT/MASTER[/DB]; rediss instead of redis for TLS. `?ssl_ca_certs=`,
    `&ssl_certfile=` and `&ssl_keyfile=` name its files. `?sentinel_password=` is for Sentinels with a password.
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
    return RedisAddress(
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


def _read_address(text: str, port: int) -> HostPort:
    try:
        split = urlsplit("//" + text)
        if split.hostname and not split.path:
            return split.hostname, port if split.port is None else split.port
    except ValueError:
        pass
    raise ValueError("store.url: each server must be HOST or HOST:PORT")
