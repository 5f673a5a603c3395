"""Make the providers of a configuration."""

from __future__ import annotations

from chat_nest.core.protocols import Provider
from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.providers.demo import DemoProvider
from chat_nest.providers.gemini import GeminiProvider
from chat_nest.providers.model_server import ServerArguments
from chat_nest.providers.ollama import OllamaProvider
from chat_nest.providers.openai import AZURE_API_VERSION, OpenAIProvider
from chat_nest.providers.presets import PRESETS
from chat_nest.providers.responses import ResponsesProvider
from chat_nest.server.config.provider import ProviderConfig


def make_provider(config: ProviderConfig) -> Provider:
    """Return the provider of a resolved configuration."""
    key = None if config.api_key is None else config.api_key.reveal()
    if config.kind == "demo":
        return DemoProvider(config.base_url or None, key)
    preset = PRESETS[config.kind]
    given: ServerArguments = {
        "abort_bills": config.abort_bills,
        "api_keys": [each.reveal() for each in config.api_keys],
        "api_keys_file": config.api_keys_file or None,
        "credentials": config.credentials,
        "think_tags": config.think_tags,
    }
    match preset.wire:
        case "responses":
            return ResponsesProvider(key, config.base_url, **given)
        case "ollama":
            return OllamaProvider(key, config.base_url, **given)
        case "anthropic":
            return AnthropicProvider(key, config.base_url, **given)
        case "gemini":
            return GeminiProvider(key, config.base_url, **given)
        case "openai":
            version = config.api_version or AZURE_API_VERSION
            return OpenAIProvider(key, config.base_url, preset=preset, api_version=version, **given)
