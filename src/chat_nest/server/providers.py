"""Make the providers of a configuration."""

from __future__ import annotations

from chat_nest.core.protocols import Provider
from chat_nest.providers import PRESETS, PROVIDERS, DemoProvider, OpenAIProvider
from chat_nest.providers.model_server import ServerArguments
from chat_nest.providers.openai import AZURE_API_VERSION
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
    if preset.wire == "openai":  # the one format that several presets have
        version = config.api_version or AZURE_API_VERSION
        return OpenAIProvider(key, config.base_url, preset=preset, api_version=version, **given)
    return PROVIDERS[preset.wire](key, config.base_url, **given)
