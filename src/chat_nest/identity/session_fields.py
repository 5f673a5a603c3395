"""The rules for the fields of a new session: each error names the field and the rule, never the value."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final, cast

from chat_nest.core.claims import MAX_AMOUNT
from chat_nest.core.origins import normal_origin
from chat_nest.identity.api_key import is_name

MAX_SECONDS: Final = 86_400
MAX_ORIGINS: Final = 20
MAX_PROFILES: Final = 50
LEAST_USD, MOST_USD = 0.000_000_001, 1_000_000
LIMITS: Final = ("usd", "tokens", "requests", "concurrent_streams")
FIELDS: Final = ("caller", "group", "profile", "profiles", "expires_in", "origins", "limits", "conversation")


class BadField(ValueError):
    """A field broke a rule: `rule` completes "FIELD must ..."."""

    def __init__(self, field: str, rule: str) -> None:
        self.field, self.rule = field, rule
        super().__init__(f"{field} {rule}")


def checked(asked: Mapping[str, Any], default_seconds: int) -> dict[str, Any]:
    """Return the checked fields of a session, by their names in a Grant, without `id` and the times.

    `expires_in` is the lifetime in seconds. Raises BadField.
    """
    for name in asked:
        if name not in FIELDS:
            raise BadField("body", f"must have no other fields than {', '.join(FIELDS)}")
    if asked.get("caller") is None:
        raise BadField("caller", "is missing: name the user of the session")
    found: dict[str, Any] = {name: _name(name, asked.get(name)) for name in ("caller", "group", "conversation")}
    found["profile"] = _name("profile", asked.get("profile"))
    found["profiles"] = _profiles(asked.get("profiles"))
    if found["profile"] is not None and found["profiles"] is not None:
        raise BadField("profiles", "must not be there beside profile: one is a ceiling, the other a choice")
    found["origins"] = _origins(asked.get("origins"))
    found["expires_in"] = _seconds(asked.get("expires_in"), default_seconds)
    return {**found, **_limits(asked.get("limits"))}


def _name(field: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not is_name(value):
        raise BadField(field, "must be a string of 1 to 256 printable characters")
    return value


def _profiles(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_PROFILES:  # pyright: ignore[reportUnknownArgumentType]
        raise BadField("profiles", f"must be a list of 1 to {MAX_PROFILES} names of profiles")
    return tuple(_name(f"profiles[{index}]", each) or "" for index, each in enumerate(value))  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]


def _origins(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or len(value) > MAX_ORIGINS:  # pyright: ignore[reportUnknownArgumentType]
        raise BadField("origins", f"must be a list of at most {MAX_ORIGINS} origins")
    found: list[str] = []
    for index, each in enumerate(value):  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
        try:
            found.append(normal_origin(each if isinstance(each, str) else "").decode())
        except ValueError as error:
            raise BadField(f"origins[{index}]", str(error)) from None
    return tuple(found)


def _seconds(value: object, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SECONDS:
        raise BadField("expires_in", f"must be a whole number of seconds from 1 to {MAX_SECONDS}")
    return value


def _limits(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(name in LIMITS for name in value):  # pyright: ignore[reportUnknownVariableType]
        raise BadField("limits", f"must be an object with some of {', '.join(LIMITS)}")
    amounts = cast("Mapping[str, object]", value)
    found = {name: _count(name, amounts.get(name)) for name in LIMITS[1:]}
    return {"usd": _usd(amounts.get("usd")), **found}


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_AMOUNT:
        raise BadField(f"limits.{name}", f"must be a whole number from 1 to {MAX_AMOUNT}")
    return value


def _usd(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise BadField("limits.usd", "must be a number of dollars")
    if not LEAST_USD <= value <= MOST_USD:
        raise BadField("limits.usd", f"must be a number of dollars from {LEAST_USD:.9f} to {MOST_USD}")
    return float(value)
