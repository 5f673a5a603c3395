"""Which providers there are, with their URLs and keys, from the config file and from OPENAI_API_KEY and its like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.providers.presets import PRESETS, Preset
from chat_nest.server.schema import ABORT_BILLS, PROVIDER_KINDS
from chat_nest.server.sources import Sources, hint

OPENAI_URL = PRESETS["openai"].base_url
OPENAI_HOST = "api.openai.com"
NO_KEY = "there is no API key: set OPENAI_API_KEY, or name another variable with api_key_env under [providers.openai]"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

Tables = Mapping[str, Mapping[str, Any]]


class Secret:
    """A value that shows itself only when asked: not in a repr, a log line or a traceback."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"


class ProviderConfig(Struct, frozen=True, kw_only=True):
    kind: str
    """A name in PRESETS, or `demo`."""
    base_url: str = ""
    """Empty for a demo model that this server starts itself."""
    api_key: Secret | None = None
    key_from: str = "api_key"
    """Where the operator sets the key."""
    abort_bills: Literal["stops", "full", "unknown"] | None = None
    """What an answer costs that its reader left; None is the provider's own default."""
    api_version: str | None = None
    """Azure's; None is the default."""


def resolve_providers(
    sources: Sources, tables: Tables, profiles: Tables, environ: Mapping[str, str]
) -> dict[str, ProviderConfig]:
    """The providers by name: the file's, else OpenAI's by the environment, else the demo model. Notes problems."""
    providers: dict[str, ProviderConfig] = {}
    for name, table in tables.items():
        if not NAME.fullmatch(name):
            sources.problem(("providers", name), "a provider's name must be letters, digits, - and _")
            continue
        providers[name] = _provider(sources, name, table, environ)
    named = {model.partition(":")[0] for table in profiles.values() for model in _models(table)}
    if "openai" not in providers and (not providers or "openai" in named):
        found = _openai_from_environment(sources, environ)
        if found is not None:
            providers["openai"] = found
    if not providers:
        providers["demo"] = ProviderConfig(kind="demo", abort_bills="stops")
        if not environ.get("OPENAI_API_KEY", "-").strip():
            sources.notes.append("OPENAI_API_KEY is set but empty, so the demo model answers")
    return providers


def _models(table: Mapping[str, Any]) -> tuple[str, ...]:
    return (*((table["model"],) if "model" in table else ()), *table.get("fallbacks", ()))


def _provider(sources: Sources, name: str, table: Mapping[str, Any], environ: Mapping[str, str]) -> ProviderConfig:
    here = ("providers", name)
    kind = table.get("kind", name if name in PROVIDER_KINDS else "openai")
    if kind not in PROVIDER_KINDS:
        sources.problem((*here, "kind"), f"must be one of {', '.join(PROVIDER_KINDS)}{hint(kind, PROVIDER_KINDS)}")
    bills = table.get("abort_bills")
    if bills is not None and bills not in ABORT_BILLS:
        sources.problem((*here, "abort_bills"), f"must be one of {', '.join(ABORT_BILLS)}{hint(bills, ABORT_BILLS)}")
    preset = PRESETS.get(kind, Preset(hosted=False))
    if "api_version" in table and not preset.deployments:
        sources.problem((*here, "api_version"), 'is for kind = "azure" only: leave it out')
    before = len(sources.problems)
    key, key_from = _key(sources, name, table, environ)
    url = table.get("base_url", "")
    if url:
        where = sources.where((*here, "base_url"))
        _check_url(sources, where, url, key)
        _check_path(sources, where, url, preset)
    elif kind == "openai" and key is None and (found := _openai_from_environment(sources, environ)):
        return replace(found, abort_bills=bills)
    url = url or preset.base_url
    if not url and preset.deployments:
        sources.problem((*here, "base_url"), "is missing: write the resource's URL, https://NAME.openai.azure.com")
    if key is None and len(sources.problems) == before:
        key, key_from = _usual_key(sources, name, preset, url, environ)
    return ProviderConfig(
        kind=kind,
        base_url=url,
        api_key=key,
        key_from=key_from,
        abort_bills=bills,
        api_version=table.get("api_version"),
    )


def _check_path(sources: Sources, where: str, url: str, preset: Preset) -> None:
    """Paths that begin with /v1 are ours to add, except for OpenAI's format."""
    if preset.wire in ("anthropic", "ollama") and urlsplit(url).path.rstrip("/").endswith("/v1"):
        also = ', or set kind = "ollama_v1"' if preset.wire == "ollama" else ""
        sources.problems.append(f"{where}: must not end with /v1, which is added: leave it out{also}")


def _usual_key(
    sources: Sources, name: str, preset: Preset, url: str, environ: Mapping[str, str]
) -> tuple[Secret | None, str]:
    """The key from the variable in which this vendor's users keep it. It is never sent to another host than theirs."""
    none = None, f"api_key_env of [providers.{name}]"
    own = urlsplit(url).hostname == urlsplit(preset.base_url).hostname if preset.base_url else True
    if not preset.key_env or (preset.hosted and not own):
        return none
    value = environ.get(preset.key_env, "").strip()
    if value:
        return _secret(sources, preset.key_env, value), f"the environment variable {preset.key_env}"
    if preset.hosted:
        advice = f"set {preset.key_env}, or name another variable with api_key_env under [providers.{name}]"
        sources.problem(("providers", name), f"there is no API key: {advice}")
    return none


def _key(
    sources: Sources, name: str, table: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[Secret | None, str]:
    """The key and where it is set. A variable CHAT_NEST_PROVIDERS_... wins over what the file says."""
    direct, named = ("providers", name, "api_key"), ("providers", name, "api_key_env")
    keys = [path for path in (direct, named) if path[-1] in table]
    if len(keys) == 2:
        keys = [path for path in keys if path in sources.variables] or keys
    if len(keys) == 2:
        sources.problem(named, "give either api_key or api_key_env, not both")
        return None, ""
    if not keys:
        return None, f"api_key_env of [providers.{name}]"
    if keys == [direct]:
        return _secret(sources, sources.where(direct), table["api_key"]), sources.where(direct)
    variable: str = table["api_key_env"]
    value = environ.get(variable, "").strip()
    if not value:
        # Not repeated: it may be the key itself, put at the wrong place.
        sources.problem(named, "must name an environment variable that is set; set it, or correct the name")
        return None, ""
    return _secret(sources, f"the environment variable {variable}", value), f"the environment variable {variable}"


def _secret(sources: Sources, where: str, value: str) -> Secret | None:
    value = value.strip()
    if value.isascii() and value.isprintable() and " " not in value and value:
        return Secret(value)
    sources.problems.append(f"{where}: must be a key of printable ASCII characters without spaces")
    return None


def _openai_from_environment(sources: Sources, environ: Mapping[str, str]) -> ProviderConfig | None:
    """What OPENAI_API_KEY and OPENAI_BASE_URL say; None where neither is set."""
    url, key = (environ.get(name, "").strip() for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"))
    if not url and not key:
        return None
    secret = _secret(sources, "OPENAI_API_KEY", key) if key else None
    if url:
        _check_url(sources, "OPENAI_BASE_URL", url, secret)
    if not key and urlsplit(url).hostname == OPENAI_HOST:
        sources.problems.append(f"OPENAI_BASE_URL: {NO_KEY}")
    return ProviderConfig(
        kind="openai", base_url=url or OPENAI_URL, api_key=secret, key_from="the environment variable OPENAI_API_KEY"
    )


def _check_url(sources: Sources, where: str, url: str, key: Secret | None) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        sources.problems.append(f"{where}: must be a URL such as https://api.example.com/v1")
    elif parts.username is not None or parts.query or parts.fragment:
        sources.problems.append(f"{where}: must have no user, query or fragment; a key belongs into api_key_env")
    elif parts.scheme == "http" and key is not None and not _is_near(host):
        sources.notes.append(f"{where}: the key and every prompt travel unencrypted; use https")


def _is_near(host: str) -> bool:
    """Whether the name or address is this machine's or a private network's."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return host == "localhost" or "." not in host
