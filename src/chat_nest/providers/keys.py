"""The API keys of one provider: the choice of a key for a request, and the rest of a key that the provider refused.

A request takes the key with the fewest running answers; among these, the one that was used longest ago. A refused key
rests for as long as the provider asks, within bounds: for the requested model, or for all models if the refusal is
about the account. The only key of a provider never rests, so a single key works as without a pool.

Time is an argument, in seconds of any clock that does not go back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final

from msgspec import Struct

from chat_nest.core.errors import (
    UpstreamAuth,
    UpstreamError,
    UpstreamForbidden,
    UpstreamModelNotFound,
    UpstreamQuota,
    UpstreamRateLimited,
)
from chat_nest.core.protocols import KeyRest
from chat_nest.core.watched_file import WatchedFile
from chat_nest.providers.refusals import LONGEST_RESET

log = logging.getLogger("chat_nest.upstream")

MOST_KEYS: Final = 1_000
LONGEST_TOLD: Final = 60.0
"""Seconds. The longest Retry-After for a client: a key may be added meanwhile."""
EVERY_MODEL: Final = ""
_ENDED_RESTS: Final = 64
"""With more rests than this, a key forgets those that are over."""


class _Pause(Struct, frozen=True):
    """The rest of a key if the provider names no time: `first` seconds, doubled each time, up to `most`."""

    first: float
    most: float
    whole: bool = False
    """The rest is for every model, because the key or its account is the reason."""
    loud: bool = False
    """An operator has to act."""


_PAUSES: Final[tuple[tuple[type[UpstreamError], _Pause], ...]] = (
    # A subclass comes before its class.
    (UpstreamQuota, _Pause(300.0, LONGEST_RESET, whole=True, loud=True)),
    (UpstreamForbidden, _Pause(60.0, 600.0, loud=True)),
    (UpstreamAuth, _Pause(600.0, 600.0, whole=True, loud=True)),
    (UpstreamModelNotFound, _Pause(60.0, 60.0)),
    (UpstreamRateLimited, _Pause(5.0, 60.0)),
)


class _Rest(Struct, frozen=True):
    since: float
    until: float
    times: int
    """Refusals in a row. Refusals of concurrent requests count as one."""
    kind: type[UpstreamError]


class Key:
    """One key and its state. Its repr holds a fingerprint: the first 8 digits of its SHA-256."""

    __slots__ = ("fingerprint", "rests", "running", "used", "value")

    def __init__(self, value: str) -> None:
        self.value = value
        self.fingerprint = sha256(value.encode()).hexdigest()[:8]
        self.running = 0
        """Running answers with this key."""
        self.used = 0
        """When it was last chosen, as a count of choices."""
        self.rests: dict[str, _Rest] = {}
        """By model, or EVERY_MODEL. A rest that is over stays until the key is accepted."""

    def __repr__(self) -> str:
        return f"Key({self.fingerprint})"

    def rest(self, model: str, now: float) -> _Rest | None:
        """Return the longest current rest for this model."""
        found = [rest for name in {model, EVERY_MODEL} if (rest := self.rests.get(name)) and rest.until > now]
        return max(found, key=lambda rest: rest.until, default=None)


class KeyPool:
    """The keys of `keys` or of `file`.

    A file has one key a line, and `#` begins a comment. It is read again when it changes. If the file can't be read any
    more, the keys stay as they were. Raises ValueError for no key, a key with blanks or characters beyond ASCII, or
    more than MOST_KEYS; its text never holds a key.
    """

    def __init__(self, keys: Sequence[str] = (), file: str | Path | None = None, *, name: str = "") -> None:
        self.name = name
        """The provider's, for the log."""
        self._file = (
            None if file is None else WatchedFile(file, parse_keys, keeps=True, logger="chat_nest.pipeline.upstream")
        )
        self._listed: Sequence[str] = ()
        self._keys: list[Key] = []
        self._choices = 0
        found = None if self._file is None else self._file.content
        self._take(_checked([key.strip() for key in keys], "api_keys") if found is None else found)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def secrets(self) -> list[str]:
        """Return every key, for the filter of what must not be logged."""
        return [key.value for key in self._keys]

    async def refresh(self) -> None:
        """Check the file for changes, at most once a second. Keys that stay in it keep their rests."""
        if self._file is None:
            return
        found = self._file.recent()
        found = await self._file.current() if found is None else found
        if found is not self._listed:
            self._take(found)

    def choose(self, model: str, now: float, tried: Sequence[Key] = ()) -> Key | None:
        """Return the key for the next attempt; None if each key was `tried` or rests."""
        awake = [key for key in self._keys if key not in tried and (len(self) == 1 or key.rest(model, now) is None)]
        return min(awake, key=lambda key: (key.running, key.used), default=None)

    def first_awake(self, now: float) -> Key:
        """Return the key whose rest of all models ends first."""
        return min(self._keys, key=lambda key: rest.until if (rest := key.rest(EVERY_MODEL, now)) else now)

    def rests(self, now: float) -> list[KeyRest]:
        """Return the longest current rest of each key that rests, the first to end first."""
        found: list[KeyRest] = []
        for key in self._keys:
            current = [(rest.until, model, rest.kind.code) for model, rest in key.rests.items() if rest.until > now]
            if current and len(self) > 1:
                until, model, code = max(current)
                found.append(KeyRest(model, until - now, code))
        return sorted(found, key=lambda rest: rest.seconds)

    def chosen(self, key: Key) -> None:
        """Count a running answer of this key, until it is `left`."""
        self._choices += 1
        key.used = self._choices
        key.running += 1

    def left(self, key: Key) -> None:
        key.running -= 1

    def accepted(self, key: Key, model: str, sent_at: float) -> None:
        """Note that the provider accepted a request sent at that time: earlier refusals no longer count."""
        for name in {model, EVERY_MODEL} if key.rests else ():
            if (rest := key.rests.get(name)) is not None and rest.since <= sent_at:
                del key.rests[name]

    def failed(self, key: Key, model: str, error: UpstreamError, now: float) -> None:
        """Start a rest of the key if the error is about it, and there are other keys; `error.of_key` is then True."""
        pause = next((pause for kind, pause in _PAUSES if isinstance(error, kind)), None)
        if pause is None or len(self) < 2:
            return
        error.of_key = True
        name = EVERY_MODEL if pause.whole else model
        before = key.rests.get(name)
        times = 1 if before is None else before.times + (before.until <= now)
        seconds = max(error.resets_after or 0.0, min(pause.first * 2 ** min(times - 1, 12), pause.most))
        if before is not None and before.until >= now + seconds:
            return
        if len(key.rests) >= _ENDED_RESTS:
            key.rests = {name: rest for name, rest in key.rests.items() if rest.until > now}
        key.rests[name] = _Rest(now, now + seconds, times, type(error))
        if before is None or before.until <= now:
            whom = "every model" if pause.whole else model
            said = f"{error.code} ({error.detail})" if error.detail else error.code
            level = logging.ERROR if pause.loud else logging.WARNING
            log.log(level, "%s: key %s rests for %.0f s, for %s: %s", self.name, key.fingerprint, seconds, whom, said)

    def exhausted(self, model: str, now: float) -> UpstreamError:
        """Return the error for a request when all keys rest: the error of the key with the shortest rest."""
        rests = [rest for key in self._keys if (rest := key.rest(model, now)) is not None]
        first = min(rests, key=lambda rest: rest.until, default=None)
        if first is None:  # all keys that were tried for this request have been removed from the file
            return UpstreamAuth(spent_nothing=True)
        error = first.kind(spent_nothing=True)
        if error.retryable:
            error.retry_after = min(first.until - now, LONGEST_TOLD)
        error.of_key = True
        error.detail = f"every key rests, the first for {first.until - now:.0f} s"
        return error

    def _take(self, listed: Sequence[str]) -> None:
        known = {key.value: key for key in self._keys}
        self._keys = [known.get(value) or Key(value) for value in listed]
        self._listed = listed


def parse_keys(data: bytes) -> tuple[str, ...]:
    """Parse the keys of a file: one a line; blank lines and text after `#` are ignored. Raises ValueError."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("must be UTF-8 text with one key a line") from None
    keys: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        key, *comment = line.split(maxsplit=1)[:2] if line.strip() else [""]
        if not key or key.startswith("#"):
            continue
        if comment and not comment[0].startswith("#"):
            raise ValueError(f"line {number}: must be one key, and nothing behind it but a # with a comment")
        keys.append(key)
    return tuple(_checked(keys, "the file"))


def _checked(keys: Sequence[str], name: str) -> Sequence[str]:
    keys = list(dict.fromkeys(keys))
    if not keys:
        raise ValueError(f"{name} must hold a key")
    if len(keys) > MOST_KEYS:
        raise ValueError(f"{name} must hold at most {MOST_KEYS} keys")
    if not all(key and key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError(f"{name} must hold keys of printable ASCII characters without blanks")
    return keys


class KeyUse:
    """Counts a key's running answer. An error inside, also during the answer, may start a rest of the key."""

    __slots__ = ("_key", "_keys", "_model", "_now")

    def __init__(self, keys: KeyPool, key: Key, model: str, now: Callable[[], float]) -> None:
        self._keys, self._key, self._model, self._now = keys, key, model, now

    def __enter__(self) -> None:
        self._keys.chosen(self._key)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UpstreamError):
            self._keys.failed(self._key, self._model, error, self._now())
        self._keys.left(self._key)
