"""The servers that Chat Nest knows by name, as data: where each is, how it takes its key, and where it is different.

A preset says what is true of a kind of server; the four wire formats have a file each. `kind` in the config file is a
name in PRESETS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

Wire = Literal["openai", "anthropic", "gemini", "ollama"]

EVENT_STREAM: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"


class Preset(Struct, frozen=True, kw_only=True):
    wire: Wire = "openai"
    base_url: str = ""
    """Empty where only the operator can know it. Paths begin where it ends."""
    hosted: bool = True
    """A vendor's service, which needs a key and bills; else a server that the operator runs."""
    key_env: str = ""
    """The variable that this vendor's users keep their key in."""
    key_header: str = "authorization"
    key_prefix: str = "Bearer "
    headers: Mapping[str, str] = {}
    """What every request brings besides the key."""
    media_type: str = EVENT_STREAM
    check_path: str = "/models"
    """A GET that costs nothing, and that needs the key where one is needed."""
    lists_models: bool = True
    """Whether the answer at `check_path` lists every name that a request may have as its model."""
    abort_bills: Literal["stops", "full", "unknown"] = "unknown"
    """What an abandoned answer costs; see Provider. Believed for `base_url`'s own host, and where not `hosted`."""

    # OpenAI's wire format only.
    stream_options: bool = True
    """Understands `stream_options.include_usage`; where not, it sends its usage anyway, or none."""
    running_usage: bool = False
    """Understands `stream_options.continuous_usage_stats`: what came until a reader left is then counted exactly."""
    newer_token_field: bool = True
    """Takes `max_completion_tokens` for OpenAI's newer models; where not, `max_tokens` for all."""
    deployments: bool = False
    """Azure's URLs: a deployment instead of a model, and `api-version`."""


OPENAI = Preset(base_url="https://api.openai.com/v1", key_env="OPENAI_API_KEY", abort_bills="stops")
ANTHROPIC = Preset(
    wire="anthropic",
    base_url="https://api.anthropic.com",
    key_env="ANTHROPIC_API_KEY",
    key_header="x-api-key",
    key_prefix="",
    headers={"anthropic-version": "2023-06-01"},
    check_path="/v1/models?limit=1000",
    abort_bills="stops",
)
GEMINI = Preset(
    wire="gemini",
    base_url="https://generativelanguage.googleapis.com/v1beta",
    key_env="GEMINI_API_KEY",
    key_header="x-goog-api-key",  # its other way, ?key=, ends up in the logs of every proxy
    key_prefix="",
    check_path="/models?pageSize=1000",
)
OLLAMA = Preset(
    wire="ollama",
    base_url="http://localhost:11434",
    hosted=False,
    key_env="OLLAMA_API_KEY",
    media_type=NDJSON,
    check_path="/api/tags",
    abort_bills="stops",
)

PRESETS: Final[Mapping[str, Preset]] = {
    "openai": OPENAI,
    "anthropic": ANTHROPIC,
    "gemini": GEMINI,
    "ollama": OLLAMA,
    "ollama_v1": Preset(
        base_url="http://localhost:11434/v1",
        hosted=False,
        key_env="OLLAMA_API_KEY",
        abort_bills="stops",
        newer_token_field=False,
    ),
    "vllm": Preset(
        base_url="http://localhost:8000/v1",
        hosted=False,
        key_env="VLLM_API_KEY",
        abort_bills="stops",
        running_usage=True,
        newer_token_field=False,
    ),
    "llamacpp": Preset(
        base_url="http://localhost:8080/v1",
        lists_models=False,  # it answers to any name
        hosted=False,
        key_env="LLAMA_API_KEY",
        abort_bills="stops",
        newer_token_field=False,
    ),
    "groq": Preset(base_url="https://api.groq.com/openai/v1", key_env="GROQ_API_KEY", newer_token_field=False),
    # What an abandoned answer costs depends on whom the router chose.
    "openrouter": Preset(
        base_url="https://openrouter.ai/api/v1", key_env="OPENROUTER_API_KEY", check_path="/key", lists_models=False
    ),
    # Refuses every field that it does not know, with 422, and sends its usage unasked.
    "mistral": Preset(
        base_url="https://api.mistral.ai/v1",
        key_env="MISTRAL_API_KEY",
        stream_options=False,
        newer_token_field=False,
    ),
    "azure": Preset(
        key_env="AZURE_OPENAI_API_KEY",
        key_header="api-key",
        key_prefix="",
        check_path="/openai/models",
        lists_models=False,  # a request names a deployment
        deployments=True,
    ),
}
