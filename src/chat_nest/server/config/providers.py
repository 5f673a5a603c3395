"""Providers with their URLs and keys, from the config file and from environment variables such as OPENAI_API_KEY.

The file is long because each way to name a provider and its key is a separate rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any
from urllib.parse import urlsplit

from msgspec.structs import replace

from chat_nest.providers import PRESETS
from chat_nest.providers.credentials import Cloud, credentials_for
from chat_nest.providers.keys import KeyPool
from chat_nest.providers.model_server import LOCAL_HOSTS, is_in_clear
from chat_nest.providers.presets import Preset
from chat_nest.providers.think_tags import ThinkTags
from chat_nest.server.config.provider import ProviderConfig, Secret
from chat_nest.server.config.schema import ABORT_BILLS, COUNTING, PROVIDER_KINDS
from chat_nest.server.config.sources import MODEL_VARIABLE, Path, Sources, near
from chat_nest.server.local_servers import LocalServer

OPENAI_URL = PRESETS["openai"].base_url
OPENAI_HOST = "api.openai.com"
NO_KEY = "there is no API key: set OPENAI_API_KEY, or name another variable with api_key_env under [providers.openai]"
PART = re.compile(r"\{(\w+)\}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

KEY_SETTINGS = ("api_key", "api_key_env", "api_keys", "api_keys_file", "credentials")

FindLocal = Callable[[], LocalServer | None]
Tables = Mapping[str, Mapping[str, Any]]


def resolve_providers(
    sources: Sources,
    tables: Tables,
    profiles: Tables,
    environ: Mapping[str, str],
    find_local: FindLocal | None = None,
) -> dict[str, ProviderConfig]:
    """Return the providers by name, and note problems.

    They are the first of these that exist: those of the file; OpenAI by the environment; the vendor whose key is in the
    environment; what `find_local` finds on this machine; the demo model.
    """
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
    _add_by_usual_keys(sources, providers, named, environ)
    looks = not providers and "demo" not in named and not unused_keys(environ)
    if looks and find_local is not None and (local := find_local()) is not None:
        model = environ.get(MODEL_VARIABLE, "").strip() or local.model
        sources.notes.append(
            f"{local.kind} runs on this machine, so its {model} answers, not the demo model: "
            "serve --demo switches this off"
        )
        providers[local.kind] = ProviderConfig(kind=local.kind, base_url=local.base_url, model=local.model)
    if not providers:
        providers["demo"] = ProviderConfig(kind="demo", abort_bills="stops")
        if not environ.get("OPENAI_API_KEY", "-").strip():
            sources.notes.append("OPENAI_API_KEY is set but empty, so the demo model answers")
        for variable, setting in unused_keys(environ).items():
            said = "is set, but no provider is, so the demo model answers"
            needed = "" if [variable] == [*_vendor_keys(environ).values()] else f"{setting} and "
            sources.notes.append(f"{variable} {said}: set {needed}{MODEL_VARIABLE}=... as well")
    return providers


def unused_keys(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with a key of a vendor other than OpenAI, each with the setting that makes it a provider."""
    return {
        preset.key_env: f"CHAT_NEST_PROVIDERS_{kind.upper()}_KIND={kind}"
        for kind, preset in PRESETS.items()
        if preset.hosted and kind not in ("openai", "responses") and environ.get(preset.key_env, "").strip()
    }


def _add_by_usual_keys(
    sources: Sources, providers: dict[str, ProviderConfig], named: AbstractSet[str], environ: Mapping[str, str]
) -> None:
    """Add the vendors that profiles name without a table. Without any provider, add the only vendor with a key."""
    keys = _vendor_keys(environ)
    chosen = [kind for kind in keys if kind in named and kind not in providers]
    if not providers and not chosen and len(keys) == 1:
        chosen = [kind for kind in keys if PRESETS[kind].model or environ.get(MODEL_VARIABLE, "").strip()]
    for kind in chosen:
        key = _secret(sources, keys[kind], environ[keys[kind]])
        providers[kind] = ProviderConfig(
            kind=kind,
            base_url=_url_of(PRESETS[kind], environ),
            api_key=key,
            key_from=f"the environment variable {keys[kind]}",
            model=PRESETS[kind].model,
        )


def _vendor_keys(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the vendors other than OpenAI with a key in the environment and a known URL, each with its variable."""
    return {
        kind: preset.key_env
        for kind, preset in PRESETS.items()
        if preset.hosted and kind != "openai" and environ.get(preset.key_env, "").strip() and _url_of(preset, environ)
    }


def _url_of(preset: Preset, environ: Mapping[str, str]) -> str:
    """Return the preset's URL, or its form filled from the environment; empty if a part is missing."""
    parts = {name: environ.get(name, "").strip() for name in PART.findall(preset.url_form)}
    if not parts or not all(NAME.fullmatch(part) for part in parts.values()):
        return preset.base_url
    return preset.url_form.format_map(parts)


def _models(table: Mapping[str, Any]) -> tuple[str, ...]:
    models = [*((table["model"],) if "model" in table else ()), *table.get("fallbacks", ())]
    for rung in table.get("ladder", ()):
        models += (*(() if rung.model is None else (rung.model,)), *rung.fallbacks)
    return tuple(models)


def _provider(sources: Sources, name: str, table: Mapping[str, Any], environ: Mapping[str, str]) -> ProviderConfig:
    """Return one provider, or note its problems. It is long because what a field may be depends on those before it."""
    here = ("providers", name)
    kind = table.get("kind", name if name in PROVIDER_KINDS else "openai")
    if kind not in PROVIDER_KINDS:
        sources.problem((*here, "kind"), f"must be one of {', '.join(PROVIDER_KINDS)}{near(kind, PROVIDER_KINDS)}")
    bills = table.get("abort_bills")
    if bills is not None and bills not in ABORT_BILLS:
        sources.problem((*here, "abort_bills"), f"must be one of {', '.join(ABORT_BILLS)}{near(bills, ABORT_BILLS)}")
    counting = table.get("counting", "auto")
    if counting not in COUNTING:
        sources.problem((*here, "counting"), f"must be one of {', '.join(COUNTING)}{near(counting, COUNTING)}")
    preset = PRESETS.get(kind, Preset(hosted=False))
    most: int | None = table.get("concurrent_streams")
    think_tags: ThinkTags | None = table.get("think_tags")
    if think_tags is not None and preset.wire not in ("openai", "ollama"):
        sources.problem((*here, "think_tags"), "is for OpenAI's format and Ollama only: leave it out")
    if "api_version" in table and not preset.deployments:
        sources.problem((*here, "api_version"), 'is for kind = "azure" only: leave it out')
    before = len(sources.problems)
    key, key_from = _key(sources, name, table, environ)
    keys = _several_keys(sources, name, table)
    cloud: Cloud | None = table.get("credentials")
    has_keys = bool(keys or table.get("api_keys_file") or cloud)
    url = table.get("base_url", "")
    if url:
        where = sources.where((*here, "base_url"))
        _check_url(sources, where, url)
        _check_path(sources, where, url, preset)
        has_path = urlsplit(preset.base_url or preset.url_form).path  # not that of DeepSeek, Perplexity and Azure
        if kind in PRESETS and preset.wire == "openai" and has_path:
            _note_missing_path(sources, where, url)
    elif kind == "openai" and key is None and not has_keys and (found := _openai_from_environment(sources, environ)):
        return replace(found, abort_bills=bills, counting=counting, think_tags=think_tags, concurrent_streams=most)
    url = url or _url_of(preset, environ)
    if not url and preset.url_form:
        form, parts = PART.sub(r"\1", preset.url_form), PART.findall(preset.url_form)
        also = f", or set {' and '.join(parts)}" if parts else ""
        sources.problem((*here, "base_url"), f"is missing: write its URL, {form}{also}")
    if key is None and not has_keys and len(sources.problems) == before:
        key, key_from = _usual_key(sources, name, preset, url, environ)
    if cloud is not None and len(sources.problems) == before:
        try:
            credentials_for(cloud, url)
        except ValueError as error:
            sources.refused((*here, "credentials"), error)
    if (key is not None or has_keys) and "base_url" in table:
        _note_clear_text(sources, sources.where((*here, "base_url")), url)
    return ProviderConfig(
        kind=kind,
        base_url=url,
        api_key=key,
        api_keys=keys,
        api_keys_file=table.get("api_keys_file", ""),
        credentials=cloud,
        key_from=key_from,
        abort_bills=bills,
        counting=counting,
        think_tags=think_tags,
        concurrent_streams=most,
        api_version=table.get("api_version"),
        model=preset.model,
    )


def _check_path(sources: Sources, where: str, url: str, preset: Preset) -> None:
    """Note a URL with /v1 at its end: the server adds /v1 itself, except for OpenAI's format."""
    if preset.wire in ("anthropic", "ollama") and urlsplit(url).path.rstrip("/").endswith("/v1"):
        also = ', or set kind = "ollama_v1"' if preset.wire == "ollama" else ""
        sources.problems.append(f"{where}: must not end with /v1, which is added: leave it out{also}")


def _usual_key(
    sources: Sources, name: str, preset: Preset, url: str, environ: Mapping[str, str]
) -> tuple[Secret | None, str]:
    """Return the key from this vendor's usual variable. It is only ever sent to the vendor's hosts."""
    none = None, f"api_key_env of [providers.{name}]"
    host = urlsplit(url).hostname or ""
    if preset.hosts:
        own = re.fullmatch(preset.hosts, host) is not None
    else:
        own = not preset.base_url or host == urlsplit(preset.base_url).hostname
    if not preset.key_env or (preset.hosted and not own):
        return none
    value = environ.get(preset.key_env, "").strip()
    if value:
        return _secret(sources, preset.key_env, value), f"the environment variable {preset.key_env}"
    if preset.hosted:
        advice = f"set {preset.key_env}, or name another variable with api_key_env under [providers.{name}]"
        if preset.cloud:
            advice += f', or set credentials = "{preset.cloud}" there'
        sources.problem(("providers", name), f"there is no API key: {advice}")
    return none


def _key(
    sources: Sources, name: str, table: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[Secret | None, str]:
    """Return the one key and where it is set; no key if there are several."""
    direct, named = ("providers", name, "api_key"), ("providers", name, "api_key_env")
    ways = _key_ways(sources, name, table)
    if len(ways) > 1:
        sources.problem(ways[1], f"give either {ways[0][-1]} or {ways[1][-1]}, not both")
        return None, ""
    if not ways:
        return None, f"api_key_env of [providers.{name}]"
    if ways[0] not in (direct, named):
        return None, sources.where(ways[0])  # several keys, or none
    if ways == [direct]:
        return _secret(sources, sources.where(direct), table["api_key"]), sources.where(direct)
    variable: str = table["api_key_env"]
    value = environ.get(variable, "").strip()
    if not value:
        # Not repeated: it may be the key itself, in the wrong place.
        sources.problem(named, "must name an environment variable that is set; set it, or correct the name")
        return None, ""
    return _secret(sources, f"the environment variable {variable}", value), f"the environment variable {variable}"


def _key_ways(sources: Sources, name: str, table: Mapping[str, Any]) -> list[Path]:
    """Return the settings that hold or name keys. Variables CHAT_NEST_PROVIDERS_... override the file."""
    ways: list[Path] = [("providers", name, key) for key in KEY_SETTINGS if key in table]
    return [path for path in ways if path in sources.variables] or ways


def _several_keys(sources: Sources, name: str, table: Mapping[str, Any]) -> tuple[Secret, ...]:
    """Return the keys of `api_keys`. Notes problems, also of the file that `api_keys_file` names."""
    ways = _key_ways(sources, name, table)
    if len(ways) != 1 or ways[0][-1] not in ("api_keys", "api_keys_file"):
        return ()
    if ways[0][-1] == "api_keys":
        found = [_secret(sources, sources.where(ways[0]), key) for key in table["api_keys"]]
        if not found:
            sources.problem(ways[0], "must hold a key")
        return tuple(key for key in found if key is not None)
    try:
        KeyPool(file=table["api_keys_file"])
    except ValueError as error:
        sources.problem(ways[0], str(error))
    return ()


def _secret(sources: Sources, where: str, value: str) -> Secret | None:
    value = value.strip()
    if value.isascii() and value.isprintable() and " " not in value and value:
        return Secret(value)
    sources.problems.append(f"{where}: must be a key of printable ASCII characters without spaces")
    return None


def _openai_from_environment(sources: Sources, environ: Mapping[str, str]) -> ProviderConfig | None:
    """Return the provider of OPENAI_API_KEY and OPENAI_BASE_URL; None if neither is set."""
    url, key = (environ.get(name, "").strip() for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"))
    if not url and not key:
        return None
    secret = _secret(sources, "OPENAI_API_KEY", key) if key else None
    if url:
        _check_url(sources, "OPENAI_BASE_URL", url)
        _note_missing_path(sources, "OPENAI_BASE_URL", url)
        if secret is not None:
            _note_clear_text(sources, "OPENAI_BASE_URL", url)
    if not key and urlsplit(url).hostname == OPENAI_HOST:
        sources.problems.append(f"OPENAI_BASE_URL: {NO_KEY}")
    kind = "openai"
    if _is_at(url, PRESETS["litellm"].base_url):
        kind = "litellm"
        sources.notes.append(
            "OPENAI_BASE_URL: is taken for LiteLLM by its port: what an abandoned answer costs there is not known, so "
            "all that was held for it is charged; CHAT_NEST_PROVIDERS_OPENAI_ABORT_BILLS=stops is for a model server"
        )
    return ProviderConfig(
        kind=kind, base_url=url or OPENAI_URL, api_key=secret, key_from="the environment variable OPENAI_API_KEY"
    )


def _is_at(url: str, usual: str) -> bool:
    """Return whether the URL has this machine's address, and the port of the usual one."""
    try:
        parts = urlsplit(url)
        return parts.hostname in LOCAL_HOSTS and parts.port == urlsplit(usual).port
    except ValueError:
        return False


def _check_url(sources: Sources, where: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        sources.problems.append(f"{where}: must be a URL such as https://api.example.com/v1")
    elif parts.username is not None or parts.query or parts.fragment:
        sources.problems.append(f"{where}: must have no user, query or fragment; a key belongs into api_key_env")


def _note_missing_path(sources: Sources, where: str, url: str) -> None:
    try:
        path = urlsplit(url).path
    except ValueError:
        return
    if not path.strip("/"):
        sources.notes.append(
            f"{where}: has no path: most servers speak OpenAI's format at /v1, so add it if they answer 404"
        )


def _note_clear_text(sources: Sources, where: str, url: str) -> None:
    """Note a key that travels unencrypted over a network outside this machine and private networks."""
    try:
        in_clear = is_in_clear(url)
    except ValueError:
        return
    if in_clear:
        sources.notes.append(f"{where}: the key and every prompt travel unencrypted; use https")
