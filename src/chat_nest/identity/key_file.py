"""The file of API keys: the caller, the hash and the expiry of each key. It never holds a key itself.

A key is 160 random bits, so its hash needs no slow function: those protect passwords that can be guessed. The hash is
keyed (HMAC-SHA-256, RFC 2104) with a secret that is not in the file: write access to the file is not enough to make a
key.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import sys
from base64 import b32encode
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_bytes, token_hex
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from chat_nest.core.watched_file import MAX_BYTES

PREFIX = "cn_"
KEY = re.compile(r"cn_[a-z2-7]{32}", re.ASCII)
MIN_SECRET = 32
"""Bytes."""

SCOPES = ("chat", "sessions")
"""What a key may do: chat, or make session tokens for others."""

_Moment = Annotated[datetime, Meta(tz=True)]
_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class ApiKey(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One key. `name` describes its purpose for people; `hash` is of the key, in hex."""

    id: Annotated[str, Meta(pattern="^[0-9a-z_-]{1,64}$")]
    caller: _Name
    group: _Name | None = None
    name: Annotated[str, Meta(max_length=256)] = ""
    scopes: tuple[Annotated[str, Meta(pattern="^[a-z_]{1,32}$")], ...] = ("chat",)
    """Some of SCOPES."""
    hash: _Hash
    created: _Moment
    expires: _Moment | None = None
    revoked: _Moment | None = None

    def __repr__(self) -> str:
        """Return its id, without its caller or hash."""
        return f"ApiKey(id={self.id!r})"

    @property
    def caller_id(self) -> str:
        """The id as in `Caller.id`: never equal to that of a proxy's user or of an IP address."""
        return f"key:{self.caller}"

    def state(self, now: datetime) -> str:
        """`valid`, `expired` or `revoked`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"


class KeyFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`secret` shows whether a given secret made the keys, and reveals nothing else about it."""

    secret: _Hash
    keys: tuple[ApiKey, ...] = ()


class UnknownKey(Exception):
    """There is no key with this id."""


_decode = msgspec.json.Decoder(KeyFile).decode


def checked_secret(secret: str | bytes) -> bytes:
    """Return the secret as bytes. Raises ValueError for one that could be guessed."""
    secret = secret.encode() if isinstance(secret, str) else secret
    if len(secret) < MIN_SECRET:
        raise ValueError(f"the secret must have at least {MIN_SECRET} bytes, and be random")
    return secret


def key_hash(secret: bytes, key: str) -> bytes:
    """32 bytes."""
    return hmac.digest(secret, key.encode("ascii"), "sha256")


def secret_hash(secret: bytes) -> str:
    """Return the mark of a secret that the file stores."""
    return key_hash(secret, "chat-nest api keys").hex()  # not a key: those begin otherwise


def parse(data: bytes) -> KeyFile:
    """Parse the file. Raises ValueError, which names the place but not the text there."""
    try:
        file = _decode(data)
    except ValueError as error:  # msgspec's own, and bytes that are not UTF-8
        raise ValueError(f"this is not a file of API keys: {error}") from None
    for what, values in (("id", [key.id for key in file.keys]), ("hash", [key.hash for key in file.keys])):
        if len(set(values)) < len(values):
            raise ValueError(f"this is not a file of API keys: two of them have the same {what}")
    if not all(is_name(name) for key in file.keys for name in (key.caller, key.group or "-", key.name or "-")):
        raise ValueError("this is not a file of API keys: a name has characters that can't be printed")
    return file


def is_name(text: str) -> bool:
    """Return whether it can be the name of a caller or a group, in every store."""
    return 0 < len(text) <= 256 and text.isprintable()


def read_keys(path: Path) -> KeyFile:
    """Read the file. Raises OSError, ValueError."""
    return parse(path.read_bytes())


def create_key(
    path: Path,
    secret: bytes,
    *,
    caller: str,
    group: str | None,
    name: str,
    expires: datetime | None,
    scopes: Sequence[str] = ("chat",),
) -> tuple[ApiKey, str]:
    """Add a key to the file, which is created if missing, and return the key itself, which is stored nowhere.

    Raises OSError, and ValueError if the file can't be read or belongs to another secret.
    """
    key = PREFIX + b32encode(token_bytes(20)).decode("ascii").lower()
    with _locked(path):
        try:
            file = read_keys(path)
        except FileNotFoundError:
            file = KeyFile(secret=secret_hash(secret))
        check_secret(file, secret)
        made = ApiKey(
            id=token_hex(4),
            caller=caller,
            group=group,
            name=name,
            scopes=tuple(scopes),
            hash=key_hash(secret, key).hex(),
            created=_now(),
            expires=expires,
        )
        _write(path, replace(file, keys=(*file.keys, made)))
    return made, key


def check_secret(file: KeyFile, secret: bytes) -> None:
    """Raise ValueError if the file's keys were made with another secret."""
    if not hmac.compare_digest(file.secret, secret_hash(secret)):
        raise ValueError("its keys were made with another secret")


def revoke_keys(path: Path, ids: Sequence[str]) -> list[ApiKey]:
    """Mark the keys with these ids as revoked, and return them; a key that was revoked before stays as it was.

    Raises UnknownKey, with nothing revoked, OSError and ValueError.
    """
    with _locked(path):
        file = read_keys(path)
        for id in ids:
            if id not in {key.id for key in file.keys}:
                raise UnknownKey(id)
        now = _now()
        keys = [replace(key, revoked=key.revoked or now) if key.id in ids else key for key in file.keys]
        _write(path, replace(file, keys=tuple(keys)))
    return [key for key in keys if key.id in ids]


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    """Lock the file for one change at a time. It is replaced each time, so the lock is on its directory."""
    if sys.platform == "win32":
        yield
        return
    import fcntl  # noqa: PLC0415 - not there on Windows

    fd = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network file system may have no such locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write(path: Path, file: KeyFile) -> None:
    """Replace the whole file, so that a reader sees the old one or the new one. Only its owner can read it."""
    data = msgspec.json.format(msgspec.json.encode(file)) + b"\n"
    if len(data) > MAX_BYTES:
        raise ValueError(f"may have at most {MAX_BYTES} bytes: remove keys from it that are revoked or expired")
    path = Path(os.path.realpath(path))
    fresh = path.with_name(f".{path.name}.{token_hex(4)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as opened:
            _keep_owner(path, opened.fileno())
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    if sys.platform != "win32":
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(fd)  # a crash must not bring back the old file with a key that was revoked
        finally:
            os.close(fd)


def _keep_owner(path: Path, fd: int) -> None:
    """Keep the file's owner, so that the server can read it after a change by root. Raises PermissionError."""
    if sys.platform == "win32" or not path.exists():
        return
    owner, own = path.stat(), os.fstat(fd)
    if owner.st_uid != own.st_uid:
        os.fchown(fd, owner.st_uid, owner.st_gid)
