"""The RateLimit and RateLimit-Policy headers, with what a caller has left (draft-ietf-httpapi-ratelimit-headers-10).

A policy has the name of its limit in the profile. A limit of a group or of all callers has its scope as a prefix, and
is sent only if it refused the request. Amounts are in the policy's unit `qu`, or requests if it has none. Dollars are
sent as nano-dollars, because a quota is a whole number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

from chat_nest.core.claims import OWN, Line, Quota
from chat_nest.core.limits import UNITS, LineScope, Unit

_LARGEST = 10**15 - 1
"""The largest integer in a structured field (RFC 9651)."""
_UNITS = {unit: f';qu="{spec.quota}"' if spec.quota else "" for unit, spec in UNITS.items()}


def quota_headers(lines: Iterable[Line], quotas: Sequence[Quota]) -> list[tuple[bytes, bytes]]:
    """Return the headers: the policies of a request's limits, and the known states of them."""
    refused = {id(quota.line) for quota in quotas} if len(quotas) == 1 else set[int]()
    policies = [
        _policy(line.scope, line.name, line.limit, line.period, line.unit)
        for line in lines
        if line.kind != "request" and _is_told(line, refused)
    ]
    standings = [
        f'"{_name(quota.line.scope, quota.line.name)}";r={min(quota.room, _LARGEST)}{_reset(quota)}'
        for quota in quotas
        if quota.line.kind != "request" and _is_told(quota.line, refused)
    ]
    headers: list[tuple[bytes, bytes]] = []
    if policies:
        headers.append((b"ratelimit-policy", ", ".join(policies).encode("latin-1")))
    if standings:
        headers.append((b"ratelimit", ", ".join(standings).encode("latin-1")))
    return headers


def _is_told(line: Line, refused: set[int]) -> bool:
    return line.scope in OWN or id(line) in refused


def _name(scope: LineScope, name: str) -> str:
    return name if scope == "caller" else f"{scope}/{name}"


@lru_cache(1024)
def _policy(scope: LineScope, name: str, limit: int, period: int, unit: Unit) -> str:
    window = f";w={period}" if period else ""
    return f'"{_name(scope, name)}";q={min(limit, _LARGEST)}{window}{_UNITS[unit]}'


def _reset(quota: Quota) -> str:
    return f";t={math.ceil(quota.resets_in)}" if 0 < quota.resets_in < math.inf else ""
