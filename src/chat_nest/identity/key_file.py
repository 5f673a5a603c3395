"""The file of API keys of one machine. It never holds a key itself: see ApiKey.

A change replaces the whole file under a lock, so that two changes at once lose nothing, and a reader sees the file
before or after one.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import sys
from collections.abc import Generator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from secrets import token_hex

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from chat_nest.core.watched_file import MAX_BYTES
from chat_nest.identity.api_key import (
    ApiKey,
    Hash,
    Rights,
    UnknownKey,
    WrongKey,
    check_key,
    make_key,
    present_second,
    revoked_key,
    rotate_key,
    secret_hash,
)

_BYTE = re.compile(r"\(byte (\d+)\)")


class KeyFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`secret` shows whether a given secret made the keys, and reveals nothing else about it."""

    secret: Hash
    keys: tuple[ApiKey, ...] = ()


_decode = msgspec.json.Decoder(KeyFile).decode


def parse(data: bytes) -> KeyFile:
    """Parse the file. Raises ValueError, which names the place but not the text there."""
    try:
        file = _decode(data)
    except ValueError as error:  # msgspec's own, and bytes that are not UTF-8
        raise _wrong(_with_line(str(error), data)) from None
    for what, values in (("id", [key.id for key in file.keys]), ("hash", [key.hash for key in file.keys])):
        if len(set(values)) < len(values):
            raise _wrong(f"two of them have the same {what}")
    for index, key in enumerate(file.keys):
        try:
            check_key(key)
        except WrongKey as error:
            raise _wrong(f"keys[{index}].{error.field} {error.rule}") from None
    return file


def read_keys(path: Path) -> KeyFile:
    """Read the file. Raises OSError, ValueError."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"may have at most {MAX_BYTES} bytes")
    return parse(data)


def create_key(path: Path, secret: bytes, rights: Rights) -> tuple[ApiKey, str]:
    """Add a key to the file, which is created if missing, and return the key itself, which is stored nowhere.

    Raises OSError, and ValueError if the file can't be read or belongs to another secret.
    """
    with _locked(path):
        try:
            file = _read_own(path, secret)
        except FileNotFoundError:
            file = KeyFile(secret=secret_hash(secret))
        made, key = make_key(secret, rights, present_second())
        _write(path, replace(file, keys=(*file.keys, made)))
    return made, key


def rotate_in_file(
    path: Path, secret: bytes, id: str, overlap: timedelta, expires: datetime | None = None
) -> tuple[ApiKey, ApiKey, str]:
    """Replace a key by a new one with the same rights and counters: see `rotate_key`.

    Raises UnknownKey, NotRotatable, OSError and ValueError, with nothing changed.
    """
    with _locked(path):
        file = _read_own(path, secret)
        old = next((key for key in file.keys if key.id == id), None)
        if old is None:
            raise UnknownKey(id)
        ending, made, text = rotate_key(secret, old, overlap, present_second(), expires)
        _write(path, replace(file, keys=(*(ending if key is old else key for key in file.keys), made)))
    return ending, made, text


def revoke_keys(path: Path, ids: Sequence[str]) -> list[ApiKey]:
    """Mark the keys with these ids as revoked, and return them; a key that was revoked before stays as it was.

    Raises UnknownKey, with nothing revoked, OSError and ValueError.
    """
    with _locked(path):
        file = read_keys(path)
        for id in ids:
            if id not in {key.id for key in file.keys}:
                raise UnknownKey(id)
        now = present_second()
        keys = [revoked_key(key, now) if key.id in ids else key for key in file.keys]
        _write(path, replace(file, keys=tuple(keys)))
    return [key for key in keys if key.id in ids]


def check_secret(file: KeyFile, secret: bytes) -> None:
    """Raise ValueError if the file's keys were made with another secret."""
    if not hmac.compare_digest(file.secret, secret_hash(secret)):
        raise ValueError("its keys were made with another secret")


def _read_own(path: Path, secret: bytes) -> KeyFile:
    file = read_keys(path)
    check_secret(file, secret)
    return file


def _wrong(why: str) -> ValueError:
    return ValueError(f"this is not a file of API keys: {why}")


def _with_line(error: str, data: bytes) -> str:
    """Return a parser's error with the line, if it names a byte."""
    found = _BYTE.search(error)
    if found is None:
        return error
    line = data.count(b"\n", 0, int(found[1])) + 1
    return f"{error}, line {line}"


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
