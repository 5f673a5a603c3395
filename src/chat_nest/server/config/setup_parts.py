"""The parts of scripts/setup that a configuration needs: extras, and the demo model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from chat_nest.runs.urls import REDIS
from chat_nest.server.config.providers import resolve_providers
from chat_nest.server.config.values import read
from chat_nest.stores.urls import driver_of

USD = "usd_per_"
CLOUDS = ("aws", "google")


def needed_parts(command: str, file: str = "", environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return what `chat-nest COMMAND --config FILE` needs besides the server. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    sources, values = read(file, environ)
    drivers = {
        driver_of(values["store"].get("url", "")),
        "redis" if values["runs"].get("url", "").startswith(REDIS) else "",
    }
    parts = {
        **{driver: True for driver in sorted(drivers) if driver},
        "jwt": any(key.startswith("jwt_") for key in values["identity"]),
        "altcha": values["challenge"].get("kind") == "proof_of_work",
        **{cloud: any(each.get("credentials") == cloud for each in values["providers"].values()) for cloud in CLOUDS},
        "email": bool(values["alerts"].get("email")),
        "metrics": values["metrics"].get("enabled", False),
        "traces": bool(values["traces"].get("endpoint")),
        "prices": _limits_dollars(values) and not values["prices"],
    }
    if command == "serve":
        providers = resolve_providers(sources, values["providers"], values["profiles"], environ)
        sources.raise_problems()
        parts["demo"] = any(provider.kind == "demo" and not provider.base_url for provider in providers.values())
    return tuple(part for part, needed in parts.items() if needed)


def _limits_dollars(values: Mapping[str, Mapping[str, Any]]) -> bool:
    shared = ("limits", "visitors", "addresses", "networks")
    tables = (*(values[name] for name in shared), *values["profiles"].values(), *values["groups"].values())
    return any(key.startswith(USD) for table in tables for key in table)
