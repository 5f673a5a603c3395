"""Which provider and model answers each profile, from the config file and from OPENAI_API_KEY and its like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.limits import BALANCED, BUILT_IN_PROFILES, Profile
from chat_nest.server.schema import ABORT_BILLS, PROVIDER_KINDS
from chat_nest.server.sources import MODEL_VARIABLE, Sources, hint

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_HOST = "api.openai.com"
OPENAI_MODEL = "gpt-4o-mini"
DEMO_MODEL = "smollm2-135m-instruct"
DEMO_TOKENS_PER_REQUEST = 8_192
"""The demo model's tokens are counted by a bound, their bytes, so its requests weigh more than they are."""
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
    kind: Literal["openai", "demo"]
    base_url: str = ""
    """Empty for a demo model that this server starts itself."""
    api_key: Secret | None = None
    key_from: str = "api_key"
    """Where the operator sets the key."""
    abort_bills: Literal["stops", "full", "unknown"] | None = None
    """What an answer costs that its reader left; None is the provider's own default."""


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


def resolve_profiles(
    sources: Sources, tables: Tables, providers: Mapping[str, ProviderConfig], environ: Mapping[str, str]
) -> dict[str, Profile]:
    """The built-in profiles and the file's, by name in lower case, each with its model. Notes problems."""
    given: dict[str, Mapping[str, Any]] = {name: {} for name in BUILT_IN_PROFILES}
    for name, table in tables.items():
        if not NAME.fullmatch(name):
            sources.problem(("profiles", name), "a profile's name must be letters, digits, - and _")
        elif given.get(name.lower()):
            sources.problem(("profiles", name), "this profile is there twice: names are compared in lower case")
        else:
            _check_models(sources, name, table, providers)
            given[name.lower()] = table
    if sources.problems:
        return {}
    model = _default_model(sources, given, providers, environ)
    profiles: dict[str, Profile] = {}
    for name, table in given.items():
        # A key left out keeps the built-in profile's value; a new profile starts from balanced, as the file has it.
        own = table if name in BUILT_IN_PROFILES else {**given["balanced"], **table}
        profile = replace(BUILT_IN_PROFILES.get(name, BALANCED), **{"model": model, **own, "name": name})
        known = providers.get(profile.model.partition(":")[0])
        profiles[name] = _for_demo(profile, own) if known is not None and known.kind == "demo" else profile
    return profiles


def _models(table: Mapping[str, Any]) -> tuple[str, ...]:
    return (*((table["model"],) if "model" in table else ()), *table.get("fallbacks", ()))


def _provider(sources: Sources, name: str, table: Mapping[str, Any], environ: Mapping[str, str]) -> ProviderConfig:
    here = ("providers", name)
    kind = table.get("kind", "demo" if name == "demo" else "openai")
    if kind not in PROVIDER_KINDS:
        sources.problem((*here, "kind"), f"must be one of {', '.join(PROVIDER_KINDS)}{hint(kind, PROVIDER_KINDS)}")
    bills = table.get("abort_bills")
    if bills is not None and bills not in ABORT_BILLS:
        sources.problem((*here, "abort_bills"), f"must be one of {', '.join(ABORT_BILLS)}{hint(bills, ABORT_BILLS)}")
    before = len(sources.problems)
    key, key_from = _key(sources, name, table, environ)
    url = table.get("base_url", "")
    if url:
        _check_url(sources, sources.where((*here, "base_url")), url, key)
    elif kind == "openai":
        if key is None and (found := _openai_from_environment(sources, environ)):
            return replace(found, abort_bills=bills)
        url = OPENAI_URL
    if len(sources.problems) == before and key is None and urlsplit(url).hostname == OPENAI_HOST:
        sources.problem(here, NO_KEY)
    return ProviderConfig(kind=kind, base_url=url, api_key=key, key_from=key_from, abort_bills=bills)


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


def _check_models(
    sources: Sources, name: str, table: Mapping[str, Any], providers: Mapping[str, ProviderConfig]
) -> None:
    for key in ("model", "fallbacks"):
        for full in (table["model"],) if key == "model" and key in table else table.get(key, ()):
            here = ("profiles", name, key)
            provider, colon, model = full.partition(":")
            if not colon or not model.strip():
                sources.problem(here, "must be PROVIDER:MODEL, such as openai:gpt-4o-mini")
            elif provider not in providers:
                said = "names a provider that is not configured: add [providers.NAME]"
                said += " or set OPENAI_API_KEY" if provider == "openai" else ""
                sources.problem(here, f"{said}{hint(provider, providers)}")


def _default_model(
    sources: Sources, profiles: Tables, providers: Mapping[str, ProviderConfig], environ: Mapping[str, str]
) -> str:
    """PROVIDER:MODEL of the profiles that name none. Notes a problem if there is none to take."""
    asked = environ.get(MODEL_VARIABLE, "").strip()
    named = {table["model"] for table in profiles.values() if "model" in table}
    provider = "openai" if "openai" in providers else next(iter(providers)) if len(providers) == 1 else ""
    kind = providers[provider].kind if provider else None
    missing = ""
    if asked and kind == "openai":
        if all("model" in table for table in profiles.values()):
            sources.notes.append(f"{MODEL_VARIABLE} has no effect: every profile names its own model")
        return f"{provider}:{asked}"
    if asked and kind == "demo":
        missing = f"{MODEL_VARIABLE}: is set, but no provider is: set OPENAI_API_KEY or OPENAI_BASE_URL"
    elif asked:
        missing = f"{MODEL_VARIABLE}: there are several providers: name the models in [profiles.NAME] instead"
    elif "model" in profiles["balanced"]:
        return str(profiles["balanced"]["model"])
    elif len(named) == 1:
        return str(named.pop())
    elif kind == "demo":
        return f"{provider}:{DEMO_MODEL}"
    elif provider == "openai":
        return f"openai:{OPENAI_MODEL}"
    else:
        here = sources.where(("profiles", "balanced", "model"))
        missing = f'{here}: is missing: write "{provider or "PROVIDER"}:MODEL"'
        missing += f", or set {MODEL_VARIABLE}" if provider else ""
    sources.problems.append(missing)
    return ""


def _for_demo(profile: Profile, own: Mapping[str, Any]) -> Profile:
    """What suits the demo model, where the operator did not decide."""
    tokens = max(profile.tokens_per_request or 0, DEMO_TOKENS_PER_REQUEST)
    fitting = {"temperature": 0.0, "tokens_per_request": tokens}
    return replace(profile, **{key: value for key, value in fitting.items() if key not in own})
