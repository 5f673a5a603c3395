"""Signed random ids of visitors: made here, kept by the client, verified without a look-up.

An id is `cnv1_` and base64url (RFC 4648, section 5, without padding) of these bytes: 4 that name the secret, 16 random
ones, the time of issue, the end of the pass (both in Unix seconds), its kind, and an HMAC-SHA-256 (RFC 2104) of all
that, cut to 16 bytes. Without a pass its end is 1 for an id that was issued to a request without one, else 0.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from collections.abc import Sequence
from secrets import token_hex
from struct import Struct as Packing

from chat_nest.core.messages import PASSES, Visit
from chat_nest.identity.api_key import checked_secret

PREFIX = "cnv1_"
LONGEST_AGE = 366 * 86_400
"""Seconds for which an id is accepted."""
MOST_SECRETS = 2

_PARTS = Packing(">4s16sIIB")
_MAC = 16
_LENGTH = len(PREFIX) + (_PARTS.size + _MAC) * 4 // 3
_EARLY = 300
"""Seconds by which the clock of the server that issued an id may be ahead."""


class SignedIds:
    """Signs ids with the first of `secrets`, and verifies ids of each.

    Raises ValueError without a secret, for more than two, and for one of less than 32 bytes.
    """

    def __init__(self, secrets: Sequence[str | bytes]) -> None:
        if not 1 <= len(secrets) <= MOST_SECRETS:
            raise ValueError(f"visitors need a secret, and at most {MOST_SECRETS}: the newest first")
        keys = [derived_key(secret, "ids of visitors") for secret in secrets]
        self._keys = {hmac.digest(key, b"name", "sha256")[:4]: key for key in keys}
        self._name, self._key = next(iter(self._keys.items()))

    def new(self, now: float, counted_as: str = "") -> Visit:
        """Return a visit with a random id."""
        return Visit(id=token_hex(16), issued=int(now), counted_as=counted_as, first=bool(counted_as))

    def sign(self, visit: Visit) -> str:
        """Return what the client keeps."""
        kind = PASSES.index(visit.passed)
        passed_until = visit.passed_until or int(visit.first)
        parts = _PARTS.pack(self._name, bytes.fromhex(visit.id), visit.issued, passed_until, kind)
        mac = hmac.digest(self._key, parts, "sha256")[:_MAC]
        return PREFIX + urlsafe_b64encode(parts + mac).decode("ascii")

    def read(self, text: str, now: float) -> Visit | None:
        """Return the visit, without a pass that ended; None if the text is no id of these secrets, or is too old."""
        if len(text) != _LENGTH or not text.startswith(PREFIX):
            return None
        try:
            whole = urlsafe_b64decode(text[len(PREFIX) :])
        except (Error, ValueError):
            return None
        parts, mac = whole[: _PARTS.size], whole[_PARTS.size :]
        name, id, issued, passed_until, kind = _PARTS.unpack(parts)
        key = self._keys.get(name)
        if key is None or not hmac.compare_digest(hmac.digest(key, parts, "sha256")[:_MAC], mac):
            return None
        if not issued - _EARLY <= now < issued + LONGEST_AGE:
            return None
        if passed_until <= now:
            return Visit(id=id.hex(), issued=issued, first=passed_until == 1)
        return Visit(id=id.hex(), issued=issued, passed=PASSES[int(kind)], passed_until=passed_until)


def derived_key(secret: str | bytes, purpose: str) -> bytes:
    """Return a key of 32 bytes for one purpose. Raises ValueError for a secret that could be guessed."""
    return hmac.digest(checked_secret(secret), f"chat-nest: {purpose}".encode(), "sha256")
