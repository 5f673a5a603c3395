"""Keys that verify JSON Web Tokens, from a PEM or a JWK Set (RFC 7517). Needs the extra `jwt`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

SYMMETRIC = frozenset({"HS256"})
BY_TYPE = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
ASYMMETRIC = frozenset(BY_TYPE.values())
MIN_RSA_BITS = 2_048
MOST_KEYS = 100


class SigningKey(Struct, frozen=True):
    """A key that verifies the signatures of one algorithm; `id` is the JWK's `kid`, if it has one."""

    algorithm: str
    key: Any
    id: str | None = None

    def __repr__(self) -> str:
        """Return it without the key, which may be a secret."""
        return f"SigningKey({self.algorithm!r}, id={self.id!r})"


def checked_algorithms(names: Sequence[str]) -> frozenset[str]:
    """Return the set of names. Raises ValueError for an empty or unsupported choice, and for both kinds together.

    With both, a public key could pass as the secret of a signature that any client can make (RFC 8725, section 2.1).
    """
    named = frozenset(names)
    if not named or not named <= SYMMETRIC | ASYMMETRIC:
        raise ValueError(f"the algorithms must be some of {', '.join(sorted(SYMMETRIC | ASYMMETRIC))}")
    if named & SYMMETRIC and named & ASYMMETRIC:
        raise ValueError("HS256 can't be accepted beside algorithms with public keys")
    return named


def parse_keys(data: bytes, algorithms: frozenset[str]) -> Sequence[SigningKey]:
    """Return the file's keys that fit one of the algorithms. Raises ValueError if there is none, or a private one."""
    if data.lstrip().startswith(b"{"):
        return _from_set(data, algorithms)
    if b"PRIVATE KEY" in data:
        raise ValueError("holds a private key: only the public one belongs here")
    if data.count(b"-----BEGIN ") != 1 or b"PUBLIC KEY-----" not in data:
        raise ValueError("must hold one public key in PEM, or a JWK Set")
    if len(algorithms) > 1:
        raise ValueError("holds one key, which fits one algorithm only: name that one, or use a JWK Set")
    (algorithm,) = algorithms
    from jwt.algorithms import get_default_algorithms  # noqa: PLC0415 - see jwt.py

    try:
        key = get_default_algorithms()[algorithm].prepare_key(data)
    except Exception:
        raise ValueError(f"its key can't be used for {algorithm}") from None
    return (SigningKey(algorithm, _strong(key)),)


def _from_set(data: bytes, algorithms: frozenset[str]) -> Sequence[SigningKey]:
    try:
        entries = [dict(entry) for entry in json.loads(data)["keys"]]
    except Exception:
        raise ValueError("this is no JWK Set: an object with a list of keys") from None
    if len(entries) > MOST_KEYS:
        raise ValueError(f"may hold at most {MOST_KEYS} keys")
    found: list[SigningKey] = []
    for number, entry in enumerate(entries):
        if entry.get("kty") == "oct" or "d" in entry:
            raise ValueError(f"keys[{number}] is private: only public ones belong here")
        try:
            key = _from_entry(entry, algorithms)
        except Exception:
            raise ValueError(f"keys[{number}] can't be used") from None
        if key is not None:
            _strong(key.key)
            found.append(key)
    if not found:
        raise ValueError(f"has no key for {', '.join(sorted(algorithms))}")
    if len({(key.algorithm, key.id) for key in found}) < len(found):
        raise ValueError("two of its keys have the same kid, or none")
    return found


def _from_entry(entry: Mapping[str, Any], algorithms: frozenset[str]) -> SigningKey | None:
    """Return the key; None for a key with another use. Raises any exception for a broken one."""
    from jwt import PyJWK  # noqa: PLC0415 - see jwt.py

    algorithm = BY_TYPE.get((entry["kty"], entry.get("crv")))
    if algorithm not in algorithms or entry.get("alg", algorithm) != algorithm or entry.get("use", "sig") != "sig":
        return None
    kid = entry.get("kid")
    assert kid is None or isinstance(kid, str)
    return SigningKey(algorithm, PyJWK(dict(entry), algorithm).key, kid)


def _strong(key: Any) -> Any:
    """Return the key. Raises ValueError for an RSA key that is too short (RFC 7518, section 3.3)."""
    if getattr(key, "curve", None) is None and 0 < getattr(key, "key_size", 0) < MIN_RSA_BITS:
        raise ValueError(f"its RSA key is too short: it must have at least {MIN_RSA_BITS} bits")
    return key
