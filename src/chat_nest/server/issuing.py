"""API keys as operators ask for them, on the command line and on the operators' listener: texts, rules, and what they
show.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from chat_nest.core.messages import hashed
from chat_nest.core.protocols import Controls
from chat_nest.identity.api_key import ADMIN, MAX_OVERLAP, ApiKey, Rights
from chat_nest.identity.key_issuers import FileIssuer, KeyIssuer, StoreIssuer
from chat_nest.limits.profile_names import find_name
from chat_nest.limits.profiles import OTHERS
from chat_nest.server.config.identity import Identity
from chat_nest.server.operator import Rejected

MOMENT = "must be days or hours (90d, 24h), a date (2027-06-30) or a date and time"
OVERLAP = f"must be a number and m, h or d, at most {MAX_OVERLAP.days} days: 0h, 30m, 24h, 7d"
_SPAN = re.compile(r"([1-9][0-9]{0,4})([dh])", re.ASCII)
_OVERLAP = re.compile(r"([0-9]{1,5})([mhd])", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def issuer_of(identity: Identity, controls: Controls | None, *, by: str) -> KeyIssuer | None:
    """Return what issues the keys of a configuration; None if it has none. Keys in the store need its `controls`."""
    section, secret = identity.section, identity.secret.reveal().encode()
    if section.keys:
        assert controls is not None
        return StoreIssuer(controls, secret, by=by)
    return FileIssuer(Path(section.keys_file), secret, by=by, controls=controls) if section.keys_file else None


def moment_of(text: str, now: datetime, field: str = "expires") -> datetime:
    """Return when a key expires: a date is valid to its end, and without a zone it is in UTC. Raises Rejected."""
    short = _SPAN.fullmatch(text)
    try:
        if short is not None:
            until = now + timedelta(**{_UNITS[short[2]]: int(short[1])})
        else:
            given = datetime.fromisoformat(text)
            given += timedelta(days=len(text) == len("2026-11-30"))
            until = given.astimezone(UTC) if given.tzinfo else given.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise Rejected(field, MOMENT) from None
    if until <= now:
        raise Rejected(field, "must be in the future")
    return until


def overlap_of(text: str) -> timedelta:
    """Return the time for which a replaced key stays valid. Raises Rejected."""
    found = _OVERLAP.fullmatch(text.strip())
    overlap = None if found is None else timedelta(**{_UNITS[found[2]]: int(found[1])})
    if overlap is None or overlap > MAX_OVERLAP:
        raise Rejected("overlap", OVERLAP)
    return overlap


def check_rights(rights: Rights, profiles: Collection[str], groups: Collection[str]) -> None:
    """Raise Rejected if no request with such a key could be admitted: `profiles` and `groups` are the configured."""
    names = [name.strip().lower() for name in profiles]
    if not all(find_name(names, name) for name in rights.profiles):
        raise Rejected("profiles", f"must name profiles of this server: {', '.join(names)}")
    if rights.group is not None and groups and rights.group not in groups and OTHERS not in groups:
        said = f"there is no [groups.{rights.group}] and no [groups.{OTHERS}]"
        raise Rejected("group", f"must have limits, or every request with the key would get 403: {said}")
    if ADMIN in rights.scopes and len(rights.scopes) > 1:
        raise Rejected("scopes", "must not have admin beside another one: make two keys")


def described(key: ApiKey, now: datetime) -> dict[str, Any]:
    """Return what an operator may know of a key, as JSON's values. Times are in Unix seconds."""
    return {
        "id": key.id,
        "state": key.state(now),
        "caller": key.caller,
        "group": key.group,
        "name": key.name,
        "scopes": key.scopes,
        "profiles": key.profiles,
        "limits": key.limits,
        "expires": _unix(key.expires),
        "created": _unix(key.created),
        "revoked": _unix(key.revoked),
        "rotated_to": key.rotated_to,
        "in_usage": hashed(key.caller_id),
    }


def _unix(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())
