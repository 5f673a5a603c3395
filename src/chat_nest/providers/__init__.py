"""Model providers, one file each, with a sans-IO codec. http.py holds the only HTTP session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.providers.demo import DemoProvider
from chat_nest.providers.gemini import GeminiProvider
from chat_nest.providers.ollama import OllamaProvider
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers.presets import OPENAI_COMPATIBLE, Preset
from chat_nest.providers.responses import ResponsesProvider

__all__ = [
    "AnthropicProvider",
    "DemoProvider",
    "GeminiProvider",
    "OllamaProvider",
    "OpenAIProvider",
    "ResponsesProvider",
]


PROVIDERS: Final[
    Mapping[str, type[OpenAIProvider | ResponsesProvider | AnthropicProvider | GeminiProvider | OllamaProvider]]
] = {
    "openai": OpenAIProvider,
    "responses": ResponsesProvider,
    "anthropic": AnthropicProvider,
    "gemini": GeminiProvider,
    "ollama": OllamaProvider,
}
"""By the wire format of a Preset. A new format is a file here and a row of this table."""

PRESETS: Final[Mapping[str, Preset]] = {
    **{wire: provider.preset for wire, provider in PROVIDERS.items()},
    **OPENAI_COMPATIBLE,
}
"""Every kind of server, by the name of its `kind` in the config file."""
