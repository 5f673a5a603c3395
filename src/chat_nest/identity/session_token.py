"""The format of session tokens: what a token grants, signed (HMAC-SHA-256), with a version and the id of its secret.

    cns_1.SECRET-ID.GRANT.SIGNATURE

GRANT is JSON and SIGNATURE is of everything before it, both in base64url without padding (RFC 4648, section 5). The
same grant under `cnr_1` is a read token: its other prefix gives it another signature, so one can't be turned into the
other. A worker needs only the secret to verify a token.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from chat_nest.core.errors import InvalidSession
from chat_nest.identity.api_key import checked_secret

CHAT = "cns_"
"""The prefix of a token that may chat."""
READ = "cnr_"
"""The prefix of a token that may only follow the caller's runs."""
VERSION = "1"
LONGEST = 4_096
"""Characters of a token."""


class Grant(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a session may do. Times are Unix seconds. A worker refuses a grant with a field that it does not know."""

    id: str
    caller: str
    group: str | None = None
    profile: str | None = None
    profiles: tuple[str, ...] | None = None
    created: int
    expires: int
    origins: tuple[str, ...] = ()
    conversation: str | None = None
    requests: int | None = None
    tokens: int | None = None
    usd: float | None = None
    concurrent_streams: int | None = None
    key: str | None = None
    """The counters of the API key that made it, if that key has limits."""
    key_limits: dict[str, int | float] = {}
    made_by: str | None = None
    """The id of the API key that made it: its revocation revokes the session."""

    def __repr__(self) -> str:
        """Return its id: the rest names users."""
        return f"Grant(id={self.id!r})"


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Grant).decode


class Signer:
    """Signs with the first of `secrets`, and accepts the signatures of all. Raises ValueError for a guessable one."""

    def __init__(self, secrets: Sequence[str | bytes]) -> None:
        if not secrets:
            raise ValueError("at least one secret is needed")
        # A keyed copy costs half of what hmac.digest does, which derives both pads from the secret each time.
        self._secrets: Mapping[str, hmac.HMAC] = {
            _id_of(each): hmac.new(each, digestmod="sha256") for each in map(checked_secret, secrets)
        }
        self._signing = next(iter(self._secrets))

    def sign(self, prefix: str, grant: Grant) -> str:
        signed = f"{prefix}{VERSION}.{self._signing}.{_text(_encode(grant))}"
        return f"{signed}.{_signature(self._secrets[self._signing], signed)}"

    def grant(self, token: str) -> Grant:
        """Return what a token grants, expired or not. Raises InvalidSession if it is not signed by this deployment."""
        signed, _, signature = token.rpartition(".")
        head, _, body = signed.rpartition(".")
        prefix, _, secret = head.partition(".")
        known = self._secrets.get(secret)
        if known is None or prefix[4:] != VERSION:
            raise InvalidSession
        if not hmac.compare_digest(_signature(known, signed), signature):
            raise InvalidSession
        try:
            return _decode(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        except ValueError:  # signed by a newer version
            raise InvalidSession from None


def _id_of(secret: bytes) -> str:
    """Return the id of a secret, which says nothing else about it."""
    return hmac.digest(secret, b"chat-nest session secret", "sha256").hex()[:8]


def _signature(keyed: hmac.HMAC, signed: str) -> str:
    mac = keyed.copy()
    mac.update(signed.encode("ascii"))
    return _text(mac.digest())


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
