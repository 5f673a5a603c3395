"""Which providers the config file and the environment make, with the keys where each vendor's users keep them."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat_nest.protocols import Provider
from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.providers.demo import DemoProvider
from chat_nest.providers.gemini import GeminiProvider
from chat_nest.providers.ollama import OllamaProvider
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers.presets import PRESETS
from chat_nest.server.app import make_provider
from chat_nest.server.config import Config, load
from chat_nest.server.providers import ProviderConfig, Secret
from chat_nest.server.sources import ConfigError

KEY = "sk-canary-0123456789"
OTHER = "sk-canary-9876543210"
KINDS = {
    "openai": OpenAIProvider,
    "anthropic": AnthropicProvider,
    "gemini": GeminiProvider,
    "ollama": OllamaProvider,
}


def loaded(folder: Path, text: str, **environ: str) -> Config:
    file = folder / "chat.toml"
    file.write_text(text + '\n[profiles.balanced]\nmodel = "p:m"\n')
    return load(str(file), environ)


def problem(folder: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, **environ)
    assert KEY not in str(caught.value)
    [said] = caught.value.problems
    return said.replace(f"{folder}/", "")


def table(kind: str, **more: str) -> str:
    if kind == "azure":
        more = {"base_url": "https://mine.openai.azure.com", **more}
    return "\n".join(["[providers.p]", f'kind = "{kind}"', *(f'{name} = "{value}"' for name, value in more.items())])


@pytest.mark.parametrize("kind", PRESETS)
def test_every_kind_finds_its_key_where_its_users_keep_it(tmp_path: Path, kind: str) -> None:
    preset = PRESETS[kind]
    provider = loaded(tmp_path, table(kind), **{preset.key_env: KEY}).providers["p"]
    assert provider.api_key is not None
    assert provider.api_key.reveal() == KEY
    assert provider.key_from == f"the environment variable {preset.key_env}"
    assert provider.base_url == (preset.base_url or "https://mine.openai.azure.com")
    made = make_provider(provider)
    assert type(made) is KINDS[preset.wire]
    assert KEY not in repr(made) + repr(provider)


@pytest.mark.parametrize("kind", PRESETS)
def test_a_key_that_is_named_wins_over_the_usual_one(tmp_path: Path, kind: str) -> None:
    environ = {PRESETS[kind].key_env: OTHER, "MINE": KEY}
    provider = loaded(tmp_path, table(kind, api_key_env="MINE"), **environ).providers["p"]
    assert provider.api_key is not None
    assert provider.api_key.reveal() == KEY


@pytest.mark.parametrize("kind", PRESETS)
def test_without_a_key_a_vendor_is_refused_and_an_own_server_is_not(tmp_path: Path, kind: str) -> None:
    if PRESETS[kind].hosted:
        said = problem(tmp_path, table(kind))
        assert said.startswith("chat.toml:1: providers.p: there is no API key: set ")
        assert (
            f"{PRESETS[kind].key_env}, or name another variable with api_key_env under [providers.p" in said
            or kind == "openai"
        )
    else:
        assert loaded(tmp_path, table(kind)).providers["p"].api_key is None


@pytest.mark.parametrize("kind", [kind for kind, preset in PRESETS.items() if preset.hosted and preset.base_url])
def test_a_vendors_key_is_not_sent_to_another_host(tmp_path: Path, kind: str) -> None:
    text = table(kind, base_url="https://proxy.example/api")
    assert loaded(tmp_path, text, **{PRESETS[kind].key_env: KEY}).providers["p"].api_key is None


def test_a_name_that_is_a_kind_needs_no_other_word(tmp_path: Path) -> None:
    text = '[providers.anthropic]\n[providers.ollama]\nbase_url = "http://gpu:11434"\n[providers.p]\nbase_url = "http://127.0.0.1:1/v1"'
    providers = loaded(tmp_path, text, ANTHROPIC_API_KEY=KEY).providers
    assert {name: provider.kind for name, provider in providers.items()} == {
        "anthropic": "anthropic",
        "ollama": "ollama",
        "p": "openai",
    }


def test_the_only_provider_takes_the_model_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "chat.toml"
    file.write_text("[providers.claude]\nkind = 'anthropic'\n")
    config = load(str(file), {"ANTHROPIC_API_KEY": KEY, "CHAT_NEST_MODEL": "claude-haiku-4-5"})
    assert {profile.model for profile in config.profiles.values()} == {"claude:claude-haiku-4-5"}
    with pytest.raises(ConfigError, match='profiles.balanced.model: is missing: write "claude:MODEL"'):
        load(str(file), {"ANTHROPIC_API_KEY": KEY})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (table("anthropic", base_url="https://api.anthropic.com/v1"), "chat.toml:3: providers.p.base_url: must not end with /v1, which is added: leave it out"),
        (table("ollama", base_url="http://localhost:11434/v1/"), 'which is added: leave it out, or set kind = "ollama_v1"'),
        ('[providers.p]\nkind = "azure"', "chat.toml:1: providers.p.base_url: is missing: write the resource's URL, https://NAME.openai.azure.com"),
        (table("groq", api_version="2024-10-21"), 'chat.toml:3: providers.p.api_version: is for kind = "azure" only: leave it out'),
        (table("anthropc"), "did you mean anthropic?"),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_to_do(tmp_path: Path, text: str, said: str) -> None:
    environ = {preset.key_env: KEY for preset in PRESETS.values()}
    assert said in problem(tmp_path, text, **environ)


def test_a_key_that_can_not_be_one_is_not_repeated(tmp_path: Path) -> None:
    said = problem(tmp_path, table("gemini"), GEMINI_API_KEY=f"{KEY} {KEY}")
    assert said == "GEMINI_API_KEY: must be a key of printable ASCII characters without spaces"


def made(config: ProviderConfig) -> Provider:
    return make_provider(config)


def test_providers_are_made_as_configured() -> None:
    assert isinstance(made(ProviderConfig(kind="demo")), DemoProvider)
    for kind, preset in PRESETS.items():
        url = preset.base_url or "https://mine.openai.azure.com"
        provider = made(ProviderConfig(kind=kind, base_url=url, api_key=Secret("k"), abort_bills="full"))
        assert (provider.base_url, provider.abort_bills) == (url, "full")
    azure = made(ProviderConfig(kind="azure", base_url="https://x", api_key=Secret("k"), api_version="2030-01-01"))
    assert azure._query == "?api-version=2030-01-01"


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("openai", "gpt-4o-mini"),
        ("anthropic", "claude-3-5-haiku-latest"),
        ("gemini", "gemini-2.5-flash"),
        ("groq", "llama-3.3-70b-versatile"),
    ],
)
def test_prices_are_known_by_a_kinds_own_url(tmp_path: Path, kind: str, model: str) -> None:
    config = loaded(tmp_path, table(kind), **{PRESETS[kind].key_env: KEY})
    found = config.known_prices().of(f"p:{model}")
    assert found is not None
    assert found.rates[0].output > 0
