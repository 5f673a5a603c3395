"""The configuration file that `chat-nest init` writes: a provider, a profile, limits and where it listens."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping

from msgspec import Struct

from chat_nest.providers import PRESETS
from chat_nest.server.config.models import DEMO_MODEL, OPENAI_MODEL
from chat_nest.server.config.sources import MODEL_VARIABLE
from chat_nest.server.local_servers import LocalServer

DEMO = "demo"


class FoundProvider(Struct, frozen=True):
    """A provider that could answer, and why it is offered."""

    kind: str
    base_url: str
    """Empty if it is the kind's own."""
    model: str
    """Empty if the user must choose."""
    why: str


class Choices(Struct, frozen=True, kw_only=True):
    kind: str
    """A name in PRESETS, or `demo`."""
    base_url: str = ""
    key_env: str = ""
    """The variable of the provider's key; empty if it needs none."""
    model: str
    host_name: str = ""
    """The public name of a server behind a proxy on this machine; empty for one that only this machine reaches."""
    store: str = "sqlite:///chat-nest.db"
    tokens_per_day: int = 50_000
    """Of each caller."""
    tokens_in_all: int = 1_000_000
    keys: bool = False
    """Whether callers need API keys."""


def find_providers(environ: Mapping[str, str], find_local: Callable[[], LocalServer | None]) -> list[FoundProvider]:
    """Return the providers that could answer at once, the best first; the demo model is always the last."""
    asked = environ.get(MODEL_VARIABLE, "").strip()
    found: list[FoundProvider] = []
    url = environ.get("OPENAI_BASE_URL", "").strip()
    if url or environ.get("OPENAI_API_KEY", "").strip():
        why = "OPENAI_BASE_URL is set" if url else "OPENAI_API_KEY is set"
        found.append(FoundProvider("openai", url, asked or OPENAI_MODEL, why))
    for kind, preset in PRESETS.items():
        if preset.hosted and kind not in ("openai", "responses") and environ.get(preset.key_env, "").strip():
            found.append(FoundProvider(kind, "", asked or preset.model, f"{preset.key_env} is set"))
    if (local := find_local()) is not None:
        found.append(FoundProvider(local.kind, local.base_url, asked or local.model, "it runs on this machine"))
    found.append(FoundProvider(DEMO, "", DEMO_MODEL, "tiny, on this machine, often wrong"))
    return found


def usual_model(kind: str) -> str:
    """Return the model of a provider of which the user gave only the name; empty if there is none."""
    return {"openai": OPENAI_MODEL, "responses": OPENAI_MODEL, DEMO: DEMO_MODEL}.get(kind) or PRESETS[kind].model


def key_variable(kind: str, base_url: str, environ: Mapping[str, str] | None = None) -> str:
    """Return the variable of the provider's key; empty if it needs none. A server of the user's own may have one.

    `environ` is this process's by default.
    """
    preset = PRESETS.get(kind)
    environ = os.environ if environ is None else environ
    if preset is None or not preset.hosted:
        return ""
    is_own = kind == "openai" and bool(base_url)
    return "" if is_own and not environ.get(preset.key_env, "").strip() else preset.key_env


def starter_config(choices: Choices) -> str:
    """Return the file's text. It passes `chat-nest check` as soon as the provider's key is in its variable."""
    parts = (_HEAD, _server(choices), _store(choices), _provider(choices), _profile(choices), _limits(choices))
    return "\n".join((*parts, _identity(choices)))


_HEAD = """\
# The configuration of Chat Nest. Every key is optional, and lines that begin with "# " show further ones.
#   chat-nest check --config THIS_FILE    print its limits, or each mistake with its line
#   chat-nest serve --config THIS_FILE    serve
# All keys: docs/configuration.md. A variable replaces any of them: CHAT_NEST_SERVER_PORT is [server] port.
"""


def _server(choices: Choices) -> str:
    lines = ["[server]", 'host = "127.0.0.1"                    # "0.0.0.0" listens on every interface', "port = 8000"]
    if choices.host_name:
        lines += [
            'trusted_proxies = ["127.0.0.1", "::1"] # the proxy in front; X-Forwarded-For counts from these only',
            f"allowed_hosts = [{_text(choices.host_name)}]",
        ]
    else:
        lines.append('# trusted_proxies = ["127.0.0.1"]     # with a proxy in front: deploy/nginx, deploy/caddy')
    lines.append('time_zone = "UTC"                     # hours, days and months of budgets begin in this zone')
    return "\n".join(lines) + "\n"


def _store(choices: Choices) -> str:
    return (
        "[store]                               # budgets and usage records; several machines: redis:// or postgresql://\n"
        f"url = {_text(choices.store)}\n"
    )


def _provider(choices: Choices) -> str:
    lines = [f"[providers.{choices.kind}]", f"kind = {_text(choices.kind)}"]
    if choices.base_url:
        lines.append(f"base_url = {_text(choices.base_url)}")
    if choices.key_env:
        lines.append(
            f"api_key_env = {_text(choices.key_env)}    # the variable that holds the key, which is in no file"
        )
        lines.append('# api_keys_file = "keys.txt"           # or several keys, one a line, that share the load')
    return "\n".join(lines) + "\n"


def _profile(choices: Choices) -> str:
    sized = [] if choices.kind == DEMO else ["max_output_tokens = 2_000"]
    return "\n".join(
        (
            "[profiles.balanced]                   # what a caller gets; more profiles: [profiles.NAME]",
            f"model = {_text(f'{choices.kind}:{choices.model}')}",
            *sized,
            f"tokens_per_day = {choices.tokens_per_day:_}    # of each caller",
            "requests_per_minute = 30",
            "concurrent_streams = 5",
            '# usd_per_day = 0.50                  # needs the model\'s price: [prices."PROVIDER:MODEL"]',
            "# allow_system_prompt = true          # clients may send system prompts",
            "# allow_tools = true",
            "# allow_images = true",
            "",
        )
    )


def _limits(choices: Choices) -> str:
    return (
        "[limits]                              # of all callers together\n"
        f"tokens_per_day = {choices.tokens_in_all:_}\n"
        "# usd_per_month = 100.0\n"
    )


def _identity(choices: Choices) -> str:
    head = "" if choices.keys else "# "
    return (
        f"{head}[identity]                          # callers need a key: `chat-nest keys create NAME` makes one\n"
        f'{head}keys_file = "keys.json"             # the secret of its hashes: CHAT_NEST_IDENTITY_SECRET\n'
    )


def _text(value: str) -> str:
    """Return a TOML string: JSON's escapes are TOML's."""
    return json.dumps(value, ensure_ascii=False)
