"""What is said of each server is whole, and is true for its own host only."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from provider_table import table

from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers import PRESETS
from chat_nest.providers.presets import Preset
from chat_nest.providers.model_server import ModelServer

every_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)


@every_preset
def test_a_preset_is_whole(preset: Preset) -> None:
    assert preset.key_env.isupper()
    assert preset.check_path.startswith("/")
    assert bool(preset.base_url) is not bool(preset.url_form)
    url = urlsplit(preset.base_url or preset.url_form)
    assert url.scheme == "https" or not preset.hosted
    assert not (preset.base_url + preset.url_form).endswith("/")
    assert preset.hosted or preset.proxy or url.hostname == "localhost"
    assert not (preset.hosted and url.hostname == "localhost")
    re.compile(preset.hosts)


def test_a_key_belongs_to_one_vendor() -> None:
    shared = [preset.key_env for kind, preset in PRESETS.items() if preset.hosted and kind != "responses"]  # OpenAI's
    assert len(shared) == len(set(shared))


@every_preset
def test_each_rule_for_abandoned_answers_has_a_source_or_is_the_safe_one(preset: Preset) -> None:
    known = preset in (PRESETS[kind] for kind in ("openai", "anthropic", "ollama", "ollama_v1", "llamacpp"))
    assert preset.abort_bills == "unknown" or known or preset.abort_source.startswith("https://")
    assert preset.abort_bills == "unknown" or not preset.proxy


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
        ("lmstudio", None, "stops"),
        ("sglang", "http://gpu-1:30000/v1", "stops"),
        ("litellm", None, "unknown"),
        ("litellm", "http://127.0.0.1:4000/v1", "unknown"),
        ("litellm", "http://[::1]:4000/v1", "unknown"),
        ("chat_nest", "http://localhost:8001/v1", "unknown"),
        ("chat_nest", "https://nest.example.com/v1", "unknown"),
        ("deepseek", None, "unknown"),
        # On this machine each of these is a gateway that passes requests on to the vendor.
        *(
            (kind, "http://127.0.0.1:8080/v1", "unknown")
            for kind in ("groq", "openrouter", "gemini", "azure", "bedrock")
        ),
        *((kind, "http://127.0.0.1:8080/v1", "stops") for kind in ("responses", "anthropic")),
        *((kind, "http://127.0.0.1:8080/v1", "stops") for kind in ("jan", "tgi", "localai", "vllm")),
        ("jan", "http://desk:1337/v1", "stops"),
        ("tgi", "http://gpu-1:8080/v1", "stops"),
        ("localai", "http://gpu-1:8080/v1", "unknown"),
        ("bedrock", "https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1", "unknown"),
    ],
)
def test_what_an_abandoned_answer_costs(kind: str, url: str | None, bills: str) -> None:
    class Server(ModelServer):
        preset = PRESETS[kind]

    assert Server("k", url).abort_bills == bills
    assert Server("k", url, abort_bills="full").abort_bills == "full"


def test_azure_needs_its_resource() -> None:
    with pytest.raises(ValueError, match="^base_url must be an http or https URL"):
        OpenAIProvider("k", preset=PRESETS["azure"])


def test_the_table_of_the_documentation_is_the_presets() -> None:
    documented = (Path(__file__).parents[3] / "docs/providers.md").read_text()
    assert table() in documented, "print it with tests/provider_table.py"
