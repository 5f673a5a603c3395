"""The names of callers in the log: hashes that only this deployment can compute.

The store's own hash of a caller (`Caller.key`) has no secret, so that budgets do not depend on one. With that hash in
the log, a reader could find each IPv4 address in hours, by trying all. So the log has a keyed hash of that hash.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex

from chat_nest.core.messages import Caller
from chat_nest.identity.peer import PeerAddress
from chat_nest.observers.log import log_name
from chat_nest.server.config.settings import Config

log = logging.getLogger("chat_nest.server")

SECRET_BYTES = 32
FILE = "caller-secret"


def names_by_address(secret: bytes, peers: PeerAddress) -> Callable[[str], str]:
    """Return a function for the log's name of an IP address; empty for a trusted proxy, which is no caller."""

    def name(host: str) -> str:
        scope = {"client": (host, 0)}
        return "" if peers.trusts(scope) else log_name(secret, peers(scope).key)

    return name


def caller_of(name: str) -> Caller:
    """Return the caller with this IP address, or with an id such as `user:ada`, `key:ada` or `jwt:ada`."""
    return Caller(id=PeerAddress()({"client": (name, 0)}).id)


def caller_secret(config: Config) -> bytes:
    """Return the deployment's secret: the configured one, else the one beside the store, which is created if missing.

    Raises OSError if it can't be kept.
    """
    if config.server.caller_secret:
        return config.server.caller_secret.encode()
    path = secret_path(config)
    if path is None:
        return token_hex(SECRET_BYTES).encode()
    try:
        return _read(path)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = path.with_name(f"{path.name}.{os.getpid()}.{token_hex(4)}")
        try:
            with open(made, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(token_hex(SECRET_BYTES).encode())
            with contextlib.suppress(FileExistsError):
                os.link(made, path)  # complete, and only once
        finally:
            made.unlink(missing_ok=True)
        return _read(path)


def kept_secret(config: Config) -> bytes:
    """Return the same as `caller_secret`; if it can't be kept, a secret for this start only, with a warning."""
    try:
        return caller_secret(config)
    except OSError as error:
        advice = "set server.caller_secret, else the log has new names for all callers after each start"
        log.warning("the secret of the callers' names can't be kept in %s (%s): %s", FILE, error.strerror, advice)
        return token_hex(SECRET_BYTES).encode()


def secret_path(config: Config) -> Path | None:
    """Return where the secret is kept: beside the SQLite file, or in the journal; None for a store in memory."""
    path = config.store.removeprefix("sqlite:///")
    if path != config.store:
        return Path(f"{path}.{FILE}")
    if config.store == "memory://":
        return None
    return Path(config.journal or ".") / FILE


def _read(path: Path) -> bytes:
    found = path.read_bytes().strip()
    if len(found) < SECRET_BYTES:
        raise OSError(0, f"{path} is too short")
    return found
