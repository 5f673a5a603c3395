"""What is said of each server is whole, and is true for its own host only."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers.presets import PRESETS, Preset
from chat_nest.providers.stream import ModelServer

every_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)


@every_preset
def test_a_preset_is_whole(preset: Preset) -> None:
    assert preset.key_env.endswith("_API_KEY")
    assert preset.check_path.startswith("/")
    url = urlsplit(preset.base_url)
    assert (url.scheme == "https" or not preset.hosted) if preset.base_url else preset.deployments
    assert not preset.base_url.endswith("/")
    assert preset.hosted is (url.hostname != "localhost")


@pytest.mark.parametrize(
    ("kind", "url", "bills"),
    [
        ("openai", None, "stops"),
        ("openai", "https://proxy.example/v1", "unknown"),
        ("openai", "http://127.0.0.1:8080/v1", "stops"),
        ("anthropic", None, "stops"),
        ("anthropic", "https://bedrock.example", "unknown"),
        ("gemini", None, "unknown"),
        ("groq", None, "unknown"),
        ("openrouter", None, "unknown"),
        ("azure", "https://mine.openai.azure.com", "unknown"),
        ("vllm", "http://gpu-1:8000/v1", "stops"),
        ("llamacpp", None, "stops"),
        ("ollama", "http://gpu-1:11434", "stops"),
    ],
)
def test_what_an_abandoned_answer_costs(kind: str, url: str | None, bills: str) -> None:
    server = ModelServer(PRESETS[kind], "k", url)
    assert server.abort_bills == bills
    assert ModelServer(PRESETS[kind], "k", url, abort_bills="full").abort_bills == "full"


def test_azure_needs_its_resource() -> None:
    with pytest.raises(ValueError, match="^base_url must be an http or https URL"):
        OpenAIProvider("k", preset=PRESETS["azure"])
