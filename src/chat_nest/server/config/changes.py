"""What a reload changes: the configuration in force, with the new values that a running server can take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.server.config.settings import Config

CHANGED_WHOLE = frozenset(
    {
        "admin_keys", "alerts", "blog_get", "budget_status", "default_profile", "dialects", "file", "groups",
        "hard_caps", "identity", "limits", "notes", "page", "preset", "prices", "profiles", "providers", "queue",
        "responses_store", "sessions", "turn_secrets", "visitors",
    }
)  # fmt: skip
"""The fields of Config that a running server can change. Any other one takes a restart."""
CHANGED_OF_SERVER = frozenset(
    {
        "allowed_hosts", "body_seconds", "caller_header", "cors_origins", "drain_seconds", "group_header",
        "header_seconds", "idle_seconds", "max_body_bytes", "max_connections", "max_connections_per_address",
        "max_streams", "max_upload_bytes", "origins", "readyz_details", "time_zone", "trusted_proxies",
    }
)  # fmt: skip
"""The same, of ServerSection."""
_SILENT = frozenset({"file", "notes"})
_KEYS: Mapping[str, str] = {
    "accept_command": "",
    "admin_keys": "admin.key",
    "admin_listen": "admin.listen",
    "blog_get": "dialects.blog_get",
    "budget_status": "dialects.budget_status",
    "journal": "store.journal",
    "lease": "store.lease",
    "records_days": "store.records_days",
    "responses_store": "dialects.responses_store",
    "state": "store.state",
    "store": "store.url",
    "turn_secrets": "signatures.secrets",
}
"""The keys of the config file for fields with other names."""


class Changes(Struct, frozen=True):
    config: Config
    """To put in force."""
    changed: tuple[str, ...]
    """The tables and keys with other values than before, such as `profiles.balanced`."""
    kept: tuple[str, ...]
    """Those with other values that only a restart puts in force."""


def changes_of(before: Config, found: Config) -> Changes:
    """Compare the configuration in force with the one that was read. Names in the result have no values."""
    merged: dict[str, Any] = {}
    changed: list[str] = []
    kept: list[str] = []
    for name in before.__struct_fields__:
        old, new = getattr(before, name), getattr(found, name)
        if old == new:
            continue
        if name in CHANGED_WHOLE:
            merged[name] = new
            changed += [] if name in _SILENT else _names(name, old, new)
        elif name == "server":
            names = [key for key in old.__struct_fields__ if getattr(old, key) != getattr(new, key)]
            merged[name] = replace(old, **{key: getattr(new, key) for key in names if key in CHANGED_OF_SERVER})
            changed += [f"server.{key}" for key in names if key in CHANGED_OF_SERVER]
            kept += [f"server.{key}" for key in names if key not in CHANGED_OF_SERVER]
        else:
            kept += _names(name, old, new)
    return Changes(replace(before, **merged), tuple(changed), tuple(kept))


def _names(name: str, old: Any, new: Any) -> list[str]:
    """Return the names of what differs: `limits.tokens_per_day`, `profiles.balanced`, or the field's own."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        olds, news = cast("Mapping[str, object]", old), cast("Mapping[str, object]", new)
        return [f"{name}.{key}" for key in sorted({*olds, *news}) if olds.get(key) != news.get(key)]
    if isinstance(old, Struct) and type(old) is type(new) and name != "identity":
        return [f"{name}.{key}" for key in old.__struct_fields__ if getattr(old, key) != getattr(new, key)]
    return [_KEYS.get(name, name)]
