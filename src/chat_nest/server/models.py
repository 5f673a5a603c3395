"""Which model answers each profile, and what the profiles of the config file allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from chat_nest.limits import BALANCED, BUILT_IN_PROFILES, Profile
from chat_nest.profiles import default_name
from chat_nest.server.providers import NAME, ProviderConfig, Tables
from chat_nest.server.sources import MODEL_VARIABLE, Sources, hint

OPENAI_MODEL = "gpt-4o-mini"
DEMO_MODEL = "smollm2-135m-instruct"
DEMO_TOKENS_PER_REQUEST = 8_192
"""The demo model's tokens are counted by a bound, their bytes, so its requests weigh more than they are."""


def resolve_profiles(
    sources: Sources,
    tables: Tables,
    default: str | None,
    providers: Mapping[str, ProviderConfig],
    environ: Mapping[str, str],
) -> tuple[dict[str, Profile], str]:
    """The profiles, by name in lower case, each with its model, and the name of the default one. Notes problems.

    The built-in profiles are there only where the configuration names none.
    """
    given: dict[str, Mapping[str, Any]] = {} if tables else {name: {"open": True} for name in BUILT_IN_PROFILES}
    for name, table in tables.items():
        if not NAME.fullmatch(name):
            sources.problem(("profiles", name), "a profile's name must be letters, digits, - and _")
        elif name.lower() in given:
            sources.problem(("profiles", name), "this profile is there twice: names are compared in lower case")
        else:
            _check_models(sources, name, table, providers)
            given[name.lower()] = table
    if sources.problems:
        return {}, ""
    model = _default_model(sources, given, providers, environ)
    profiles: dict[str, Profile] = {}
    for name, table in given.items():
        # A key left out keeps the built-in profile's value; a new profile starts from balanced, as the file has it.
        own = table if name in BUILT_IN_PROFILES else {**given.get("balanced", {}), **table}
        fixed = {"name": name, "open": table.get("open")}
        profile = replace(BUILT_IN_PROFILES.get(name, BALANCED), **{"model": model, **own, **fixed})
        known = providers.get(profile.model.partition(":")[0])
        profiles[name] = _for_demo(profile, own) if known is not None and known.kind == "demo" else profile
    try:
        return profiles, default_name(profiles, default)
    except ValueError as error:
        sources.refused(("default_profile",), error)
        return {}, ""


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
    lacking = [name for name, table in profiles.items() if "model" not in table]
    named = {table["model"] for table in profiles.values() if "model" in table}
    provider = "openai" if "openai" in providers else next(iter(providers)) if len(providers) == 1 else ""
    kind = providers[provider].kind if provider else None
    missing = ""
    if asked and kind == "demo":
        missing = f"{MODEL_VARIABLE}: is set, but no provider is: set OPENAI_API_KEY or OPENAI_BASE_URL"
    elif not lacking:
        if asked:
            sources.notes.append(f"{MODEL_VARIABLE} has no effect: every profile names its own model")
        return ""
    elif asked and kind is None:
        missing = f"{MODEL_VARIABLE}: there are several providers: name the models in [profiles.NAME] instead"
    elif asked:
        return f"{provider}:{asked}"
    elif "model" in profiles.get("balanced", {}):
        return str(profiles["balanced"]["model"])
    elif len(named) == 1:
        return str(named.pop())
    elif kind == "demo":
        return f"{provider}:{DEMO_MODEL}"
    elif provider == "openai":
        return f"openai:{OPENAI_MODEL}"
    else:
        here = sources.where(("profiles", "balanced" if "balanced" in lacking else lacking[0], "model"))
        missing = f'{here}: is missing: write "{provider or "PROVIDER"}:MODEL"'
        missing += f", or set {MODEL_VARIABLE}" if provider else ""
    sources.problems.append(missing)
    return ""


def _for_demo(profile: Profile, own: Mapping[str, Any]) -> Profile:
    """What suits the demo model, where the operator did not decide."""
    tokens = max(profile.tokens_per_request or 0, DEMO_TOKENS_PER_REQUEST)
    fitting = {"temperature": 0.0, "tokens_per_request": tokens}
    return replace(profile, **{key: value for key, value in fitting.items() if key not in own})
