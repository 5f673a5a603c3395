"""Callers identified by the subject of a JSON Web Token (RFC 7519) that another service has signed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from chat_nest.core.extras import explain
from chat_nest.core.limits import Share
from chat_nest.core.messages import Caller
from chat_nest.core.protocols import Scope
from chat_nest.core.watched_file import WatchedFile
from chat_nest.identity.api_key import MAX_PROFILES, WrongKey, as_limits, checked_limits, checked_secret, is_name
from chat_nest.identity.bearer import credential, refused
from chat_nest.identity.jwt_keys import SYMMETRIC, SigningKey, checked_algorithms, parse_keys

_log = logging.getLogger("chat_nest.identity")

MAX_TOKEN = 8_192
"""Characters; a longer token is refused without parsing."""
MAX_LEEWAY = 300.0


class JsonWebTokens:
    """Identifies the caller by the claim `caller_claim` of the token in `Authorization: Bearer TOKEN`.

    Only the given algorithms are accepted: HS256 with a `secret` (at least 32 bytes), or some of RS256, ES256 and EdDSA
    with the public keys in `keys_file`. The file has one key in PEM or several in a JWK Set (RFC 7517), and is read
    again within a second of a change. A token must have `exp`, `audience` in `aud`, and `issuer`, if given, in `iss`.
    Clocks may differ by `leeway` seconds. `group_claim` names the claim with the caller's group; a token without it has
    no group. `profiles_claim` names the claim with the profiles that the caller may choose, a name or a list of names,
    and `limits_claim` the one with limits of the caller's tokens, such as `{"tokens_per_day": 50000}`: they hold beside
    those of the profile. Every fault of a token raises the same Unauthorized, also a claim that breaks its rule.

    Raises ValueError for arguments that don't fit together, for keys that can't be used, and without the extra `jwt`.
    """

    def __init__(
        self,
        algorithms: Sequence[str],
        audience: str,
        *,
        secret: str | bytes = "",
        keys_file: str | Path = "",
        issuer: str = "",
        caller_claim: str = "sub",
        group_claim: str = "",
        profiles_claim: str = "",
        limits_claim: str = "",
        leeway: float = 30.0,
    ) -> None:
        self._jwt = _pyjwt()
        named = checked_algorithms(algorithms)
        self._checks = _checks(audience, issuer, leeway)
        self._file: WatchedFile[Sequence[SigningKey]] | None = None
        self._keys: Sequence[SigningKey] = ()
        if named == SYMMETRIC:
            if keys_file or not secret:
                raise ValueError("HS256 needs a secret, and no file of public keys")
            self._keys = (SigningKey("HS256", checked_secret(secret)),)
        else:
            if secret or not keys_file:
                raise ValueError(f"{', '.join(sorted(named))} need a file of public keys, and no secret")
            self._file = WatchedFile(keys_file, lambda data: parse_keys(data, named))
        self._caller_claim = caller_claim
        self._faults: set[tuple[str, str]] = set()
        self._group_claim = group_claim
        self._profiles_claim = profiles_claim
        self._limits_claim = limits_claim

    def __call__(self, scope: Scope) -> Caller | Awaitable[Caller]:
        token = credential(scope, MAX_TOKEN)
        keys = self._keys if self._file is None else self._file.recent()
        return self._late(token) if keys is None else self._subject(keys, token)

    def claims(self, credential: str) -> bool:
        """Return whether a credential has the three parts of a token (RFC 7515, section 7.1)."""
        return credential.count(".") == 2

    async def check(self) -> None:
        """Raise LimiterUnavailable while the file of keys can't be read."""
        if self._file is not None:
            await self._file.current()

    async def _late(self, token: str) -> Caller:
        assert self._file is not None
        return self._subject(await self._file.current(), token)

    def _subject(self, keys: Sequence[SigningKey], token: str) -> Caller:
        try:
            claims = self._claims(keys, token)
        except Exception:  # whatever a library can raise for a forged token
            raise refused() from None
        name, group = claims.get(self._caller_claim), claims.get(self._group_claim) if self._group_claim else None
        if not _is_name(name) or not (group is None or _is_name(group)):
            raise refused()
        id = f"jwt:{name}"
        return Caller(id=id, group=group, profiles=self._profiles(claims), shares=self._shares(claims, id))

    def _profiles(self, claims: Mapping[str, Any]) -> tuple[str, ...] | None:
        value = claims.get(self._profiles_claim) if self._profiles_claim else None
        if value is None:
            return None
        names = cast("list[object]", value) if isinstance(value, list) else [value]
        if not 1 <= len(names) <= MAX_PROFILES or not all(_is_name(name) for name in names):
            self._log_fault(self._profiles_claim, f"must be a name, or a list of 1 to {MAX_PROFILES} names")
            raise refused()
        return tuple(str(name) for name in names)

    def _shares(self, claims: Mapping[str, Any], id: str) -> tuple[Share, ...]:
        value = claims.get(self._limits_claim) if self._limits_claim else None
        if value is None:
            return ()
        try:
            limits = checked_limits(value)
        except WrongKey as error:
            self._log_fault(self._limits_claim, f"{error.field} {error.rule}")
            raise refused() from None
        return (Share(scope="key", id=id, limits=as_limits(limits)),) if limits else ()

    def _log_fault(self, claim: str, rule: str) -> None:
        """Log what is wrong with a signed token, once for each rule: its client gets no details."""
        if (claim, rule) not in self._faults:
            self._faults.add((claim, rule))
            _log.warning("a signed token is refused: its claim %s: %s", claim, rule)

    def _claims(self, keys: Sequence[SigningKey], token: str) -> Mapping[str, Any]:
        """Return the claims of a valid token. Raises any exception for another."""
        head = self._jwt.get_unverified_header(token)
        if "crit" in head:
            raise ValueError("it has a critical extension, and none is supported (RFC 7515, section 4.1.11)")
        key = _one(keys, head)
        claims: Mapping[str, Any] = self._jwt.decode(token, key.key, algorithms=[key.algorithm], **self._checks)
        if not isinstance(claims["exp"], int | float) or isinstance(claims["exp"], bool):
            raise TypeError("exp must be a number")
        return claims


def _one(keys: Sequence[SigningKey], head: Mapping[str, Any]) -> SigningKey:
    """Return the one key that fits the token. Raises ValueError if none or several do."""
    fitting = [key for key in keys if key.algorithm == head.get("alg")]
    if "kid" in head:
        fitting = [key for key in fitting if key.id is None or key.id == head["kid"]]
    (key,) = fitting
    return key


def _checks(audience: str, issuer: str, leeway: float) -> Mapping[str, Any]:
    """Return what PyJWT checks beside the signature. Raises ValueError."""
    if not audience:
        raise ValueError("an audience is needed: tokens that are meant for others must not be accepted")
    if not 0 <= leeway <= MAX_LEEWAY:
        raise ValueError(f"the leeway must be from 0 to {MAX_LEEWAY:g} seconds")
    required = ["exp", "aud", *(["iss"] if issuer else [])]
    return {"audience": audience, "issuer": issuer or None, "leeway": leeway, "options": {"require": required}}


def _is_name(value: object) -> bool:
    return isinstance(value, str) and is_name(value)


def _pyjwt() -> ModuleType:
    try:
        jwt = import_module("jwt")  # here: only servers with tokens need it
        import_module("cryptography")  # pyjwt imports it only when it is needed
    except ImportError as error:
        raise ValueError(explain("JSON Web Tokens need", "jwt", error)) from None
    return jwt
