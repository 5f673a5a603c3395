"""What a caller may still spend, as headers: RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-10).

A policy is a limit by its name in a profile; a group's and all callers' have their scope in front, and are told only
where they refused the request. Amounts are in the policy's unit `qu`: requests where none is named; dollars are told in
nano-dollars, since a quota is a whole number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from chat_nest.limits import Line, Quota

_LARGEST = 10**15 - 1
"""Of an integer in a structured field (RFC 9651)."""
_UNITS = {"requests": "", "tokens": ';qu="tokens"', "nanousd": ';qu="nanousd"', "streams": ';qu="concurrent-requests"'}


def quota_headers(lines: Iterable[Line], quotas: Sequence[Quota]) -> list[tuple[bytes, bytes]]:
    """The policies of a request's lines, and how those stand that are known."""
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
    return line.scope == "caller" or id(line) in refused


def _name(line: Line) -> str:
    return line.name if line.scope == "caller" else f"{line.scope}/{line.name}"


def _policy(line: Line) -> str:
    window = f";w={line.period}" if line.period else ""
    return f'"{_name(line)}";q={min(line.limit, _LARGEST)}{window}{_UNITS[line.unit]}'


def _reset(quota: Quota) -> str:
    return f";t={math.ceil(quota.resets_in)}" if 0 < quota.resets_in < math.inf else ""
