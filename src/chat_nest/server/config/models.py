"""The model of each profile, and what the profiles of the config file allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from chat_nest.limits.numbers import DEMO_CONTEXT, PresetName
from chat_nest.limits.profile_names import default_name
from chat_nest.limits.spec import Profile, built_in_profiles, fitted
from chat_nest.server.config.provider import ProviderConfig
from chat_nest.server.config.providers import NAME, Tables, unused_keys
from chat_nest.server.config.sources import MODEL_VARIABLE, Sources, hint

OPENAI_MODEL = "gpt-4o-mini"
DEMO_MODEL = "smollm2-135m-instruct"


def resolve_profiles(
    sources: Sources,
    tables: Tables,
    default: str | None,
    preset: PresetName,
    providers: Mapping[str, ProviderConfig],
    environ: Mapping[str, str],
) -> tuple[dict[str, Profile], str]:
    """Return the profiles, by name in lower case, each with its model, and the name of the default one. Notes problems.

    The built-in profiles, with the numbers of `preset`, exist only if the configuration has no profiles.
    """
    built_in = built_in_profiles(preset)
    given: dict[str, Mapping[str, Any]] = {} if tables else {name: {"open": True} for name in built_in}
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
        # A missing key keeps the built-in profile's value; a new profile starts from balanced, as in the file.
        own = table if name in built_in else {**given.get("balanced", {}), **table}
        fixed = {"name": name, "open": table.get("open")}
        profile = replace(built_in.get(name, built_in["balanced"]), **{"model": model, **own, **fixed})
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
    ladder = [full for rung in table.get("ladder", ()) for full in (rung.model, *rung.fallbacks) if full is not None]
    named = {"model": [table["model"]] if "model" in table else (), "fallbacks": table.get("fallbacks", ())}
    for key, models in {**named, "ladder": ladder}.items():
        for full in models:
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
    """Return PROVIDER:MODEL for profiles without a model. Notes a problem if there is none."""
    asked = environ.get(MODEL_VARIABLE, "").strip()
    lacking = [name for name, table in profiles.items() if "model" not in table]
    named = {table["model"] for table in profiles.values() if "model" in table}
    provider = "openai" if "openai" in providers else next(iter(providers)) if len(providers) == 1 else ""
    kind = providers[provider].kind if provider else None
    missing = ""
    if asked and kind == "demo":
        ways = [f"{setting} as well" for setting in unused_keys(environ).values()]
        said = " or ".join(ways or ["OPENAI_API_KEY", "OPENAI_BASE_URL"])
        missing = f"{MODEL_VARIABLE}: is set, but no provider is: set {said}"
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
    elif provider and (usual := providers[provider].model):
        return f"{provider}:{usual}"
    else:
        here = sources.where(("profiles", "balanced" if "balanced" in lacking else lacking[0], "model"))
        missing = f'{here}: is missing: write "{provider or "PROVIDER"}:MODEL"'
        missing += f", or set {MODEL_VARIABLE}" if provider else ""
    sources.problems.append(missing)
    return ""


def _for_demo(profile: Profile, own: Mapping[str, Any]) -> Profile:
    """Fit a profile to the demo model, if the operator did not set these values."""
    suited = fitted(replace(profile, temperature=0.0), DEMO_CONTEXT)
    return replace(suited, **{key: getattr(profile, key) for key in own})
