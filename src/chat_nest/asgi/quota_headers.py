"""The RateLimit and RateLimit-Policy headers, with what a caller has left (draft-ietf-httpapi-ratelimit-headers-10).

A policy has the name of its limit in the profile. A limit of a group or of all callers has its scope as a prefix, and
is sent only if it refused the request. Amounts are in the policy's unit `qu`, or requests if it has none. Dollars are
sent as nano-dollars, because a quota is a whole number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from chat_nest.core.claims import OWN, Line, Quota
from chat_nest.core.limits import UNITS

_LARGEST = 10**15 - 1
"""The largest integer in a structured field (RFC 9651)."""
_UNITS = {unit: f';qu="{spec.quota}"' if spec.quota else "" for unit, spec in UNITS.items()}


def quota_headers(lines: Iterable[Line], quotas: Sequence[Quota]) -> list[tuple[bytes, bytes]]:
    """Return the headers: the policies of a request's limits, and the known states of them."""
    refused = {id(quota.line) for quota in quotas} if len(quotas) == 1 else set[int]()
    policies = [_policy(line) for line in lines if line.kind != "request" and _is_told(line, refused)]
    standings = [
        f'"{_name(quota.line)}";r={min(quota.room, _LARGEST)}{_reset(quota)}'
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


def _name(line: Line) -> str:
    return line.name if line.scope == "caller" else f"{line.scope}/{line.name}"


def _policy(line: Line) -> str:
    window = f";w={line.period}" if line.period else ""
    return f'"{_name(line)}";q={min(line.limit, _LARGEST)}{window}{_UNITS[line.unit]}'


def _reset(quota: Quota) -> str:
    return f";t={math.ceil(quota.resets_in)}" if 0 < quota.resets_in < math.inf else ""
