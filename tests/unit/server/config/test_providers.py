"""Which providers the config file and the environment make, with the keys where each vendor's users keep them."""

from __future__ import annotations

from pathlib import Path

from typing import Any
import pytest

from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.providers.demo import DemoProvider
from chat_nest.providers.gemini import GeminiProvider
from chat_nest.providers.ollama import OllamaProvider
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers import PRESETS
from chat_nest.providers.responses import ResponsesProvider
from chat_nest.server.config.provider import ProviderConfig, Secret
from chat_nest.server.config.settings import Config, load
from chat_nest.server.config.sources import ConfigError
from chat_nest.server.providers import make_provider

KEY = "sk-canary-0123456789"
OTHER = "sk-canary-9876543210"
KINDS = {
    "openai": OpenAIProvider,
    "anthropic": AnthropicProvider,
    "gemini": GeminiProvider,
    "ollama": OllamaProvider,
    "responses": ResponsesProvider,
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


URLS = {
    "azure": "https://mine.openai.azure.com",
    "bedrock": "https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1",
    "vertex": "https://aiplatform.googleapis.com/v1/projects/mine/locations/global/endpoints/openapi",
    "chat_nest": "https://nest.example.com/v1",
}


def table(kind: str, **more: str) -> str:
    if kind in URLS:
        more = {"base_url": URLS[kind], **more}
    return "\n".join(["[providers.p]", f'kind = "{kind}"', *(f'{name} = "{value}"' for name, value in more.items())])


@pytest.mark.parametrize("kind", PRESETS)
def test_every_kind_finds_its_key_in_the_usual_variable(tmp_path: Path, kind: str) -> None:
    preset = PRESETS[kind]
    provider = loaded(tmp_path, table(kind), **{preset.key_env: KEY}).providers["p"]
    assert provider.api_key is not None
    assert provider.api_key.reveal() == KEY
    assert provider.key_from == f"the environment variable {preset.key_env}"
    assert provider.base_url == (preset.base_url or URLS[kind])
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
def test_without_a_key_a_vendor_is_refused_and_a_model_server_is_not(tmp_path: Path, kind: str) -> None:
    if PRESETS[kind].hosted:
        said = problem(tmp_path, table(kind))
        assert said.startswith("chat.toml:1: providers.p: there is no API key: set ")
        assert (
            f"{PRESETS[kind].key_env}, or name another variable with api_key_env under [providers.p" in said
            or kind == "openai"
        )
    else:
        assert loaded(tmp_path, table(kind)).providers["p"].api_key is None


@pytest.mark.parametrize("kind", [kind for kind, preset in PRESETS.items() if preset.hosted and kind != "azure"])
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
        ('[providers.p]\nkind = "azure"', "chat.toml:1: providers.p.base_url: is missing: write its URL, https://NAME.openai.azure.com"),
        ('[providers.p]\nkind = "bedrock"', "write its URL, https://bedrock-runtime.AWS_REGION.amazonaws.com/openai/v1, or set AWS_REGION"),
        (table("groq", api_version="2024-10-21"), 'chat.toml:3: providers.p.api_version: is for kind = "azure" only: leave it out'),
        (table("anthropc"), "did you mean anthropic?"),
    ],
)  # fmt: skip
def test_each_refusal_has_a_remedy(tmp_path: Path, text: str, said: str) -> None:
    environ = {preset.key_env: KEY for preset in PRESETS.values()}
    assert said in problem(tmp_path, text, **environ)


def test_a_key_that_can_not_be_one_is_not_repeated(tmp_path: Path) -> None:
    said = problem(tmp_path, table("gemini"), GEMINI_API_KEY=f"{KEY} {KEY}")
    assert said == "GEMINI_API_KEY: must be a key of printable ASCII characters without spaces"


def made(config: ProviderConfig) -> Any:
    return make_provider(config)


def test_providers_are_made_as_configured() -> None:
    assert isinstance(made(ProviderConfig(kind="demo")), DemoProvider)
    for kind, preset in PRESETS.items():
        url = preset.base_url or URLS[kind]
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
def test_prices_are_found_by_the_url_of_a_kind(tmp_path: Path, kind: str, model: str) -> None:
    config = loaded(tmp_path, table(kind), **{PRESETS[kind].key_env: KEY})
    found = config.known_prices().of(f"p:{model}")
    assert found is not None
    assert found.rates[0].output > 0


# What the environment alone makes.

VENDORS = [kind for kind, preset in PRESETS.items() if preset.hosted and preset.base_url]
VENDORS = [kind for kind in VENDORS if PRESETS[kind].key_env != "OPENAI_API_KEY"]


@pytest.mark.parametrize("kind", VENDORS)
def test_the_only_key_in_the_environment_chooses_its_vendor(kind: str) -> None:
    preset = PRESETS[kind]
    config = load("", {preset.key_env: KEY, "CHAT_NEST_MODEL": "its-model"})
    assert list(config.providers) == [kind]
    found = config.providers[kind]
    assert (found.kind, found.base_url, found.key_from) == (
        kind, preset.base_url, f"the environment variable {preset.key_env}"
    )  # fmt: skip
    assert found.api_key is not None
    assert found.api_key.reveal() == KEY
    assert config.model == f"{kind}:its-model"
    assert made(found).abort_bills == preset.abort_bills


@pytest.mark.parametrize("kind", VENDORS)
def test_a_key_without_a_model_uses_the_vendors_usual_one_or_is_reported_as_unused(kind: str) -> None:
    preset = PRESETS[kind]
    config = load("", {preset.key_env: KEY})
    if preset.model:
        assert config.model == f"{kind}:{preset.model}"
    else:
        assert config.is_demo
        assert config.notes == (
            f"{preset.key_env} is set, but no provider is, so the demo model answers: set CHAT_NEST_MODEL=... as well",
        )


@pytest.mark.parametrize("kind", VENDORS)
def test_openais_variables_win_over_a_vendors_key(kind: str) -> None:
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        environ = {PRESETS[kind].key_env: OTHER, variable: "http://127.0.0.1:1/v1"}
        assert list(load("", environ).providers) == ["openai"]


def test_of_several_keys_none_is_chosen_without_a_word_from_the_operator() -> None:
    environ = {"GROQ_API_KEY": KEY, "PERPLEXITY_API_KEY": KEY}
    config = load("", environ)
    assert config.is_demo
    assert config.notes == tuple(
        f"{kind.upper()}_API_KEY is set, but no provider is, so the demo model answers: "
        f"set CHAT_NEST_PROVIDERS_{kind.upper()}_KIND={kind} and CHAT_NEST_MODEL=... as well"
        for kind in ("groq", "perplexity")
    )
    chosen = load("", {**environ, "CHAT_NEST_PROVIDERS_GROQ_KIND": "groq", "CHAT_NEST_MODEL": "m"})
    assert (list(chosen.providers), chosen.model) == (["groq"], "groq:m")


def test_a_profile_that_names_a_vendor_needs_no_table_but_its_key(tmp_path: Path) -> None:
    file = tmp_path / "chat.toml"
    file.write_text('[profiles.balanced]\nmodel = "groq:a"\nfallbacks = ["perplexity:b"]\n')
    config = load(str(file), {"GROQ_API_KEY": KEY, "PERPLEXITY_API_KEY": KEY, "MISTRAL_API_KEY": OTHER})
    assert list(config.providers) == ["groq", "perplexity"]


def test_a_table_is_never_joined_by_a_key_that_nothing_names(tmp_path: Path) -> None:
    assert list(loaded(tmp_path, table("ollama"), PERPLEXITY_API_KEY=KEY).providers) == ["p"]


def test_bedrocks_url_has_the_region_of_the_environment() -> None:
    environ = {"AWS_BEARER_TOKEN_BEDROCK": KEY, "AWS_REGION": "eu-west-1"}
    config = load("", environ)
    assert config.providers["bedrock"].base_url == URLS["bedrock"]
    assert config.model == "bedrock:openai.gpt-oss-20b-1:0"
    for region in ("", "evil.example.com/", "a@evil", "x/../y#"):
        assert load("", {**environ, "AWS_REGION": region}).is_demo


@pytest.mark.parametrize(
    ("kind", "url", "sent"),
    [
        ("bedrock", "https://bedrock-mantle.us-east-2.api.aws/openai/v1", True),
        ("bedrock", "https://bedrock-runtime.evil.s3.amazonaws.com/openai/v1", False),
        ("bedrock", "https://bedrock-runtime.eu-west-1.amazonaws.com.evil.example/openai/v1", False),
        ("vertex", "https://europe-west1-aiplatform.googleapis.com/v1/x", True),
        ("vertex", "https://evilaiplatform.googleapis.com/v1/x", False),
        ("vertex", "https://aiplatform-googleapis.com/v1/x", False),
    ],
)
def test_which_hosts_of_a_cloud_get_its_key(tmp_path: Path, kind: str, url: str, sent: bool) -> None:
    found = loaded(tmp_path, table(kind, base_url=url), **{PRESETS[kind].key_env: KEY}).providers["p"]
    assert (found.api_key is not None) is sent


@pytest.mark.parametrize("kind", ["litellm", "chat_nest"])
def test_a_proxy_on_this_machine_may_bill(tmp_path: Path, kind: str) -> None:
    text = table(kind, base_url="http://127.0.0.1:4000/v1")
    assert made(loaded(tmp_path, text).providers["p"]).abort_bills == "unknown"
    text = table(kind, base_url="http://127.0.0.1:4000/v1", abort_bills="stops")
    assert made(loaded(tmp_path, text).providers["p"]).abort_bills == "stops"


# Several keys.


def test_several_keys_are_a_list_or_a_file(tmp_path: Path) -> None:
    provider = loaded(tmp_path, f'[providers.p]\nkind = "groq"\napi_keys = ["{KEY}", "{OTHER}"]').providers["p"]
    assert [key.reveal() for key in provider.api_keys] == [KEY, OTHER]
    assert provider.key_count == 2
    assert KEY not in repr(provider)
    file = tmp_path / "keys"
    file.write_text(f"{KEY} # ours\n{OTHER}\n")
    provider = loaded(tmp_path, table("groq", api_keys_file=str(file))).providers["p"]
    assert (provider.key_count, provider.api_keys_file) == (2, str(file))
    assert provider.key_from.endswith("providers.p.api_keys_file")
    made = make_provider(provider)
    assert isinstance(made, OpenAIProvider)
    assert made._keys is not None
    assert made._keys.secrets == [KEY, OTHER]


def test_several_keys_come_from_the_environment(tmp_path: Path) -> None:
    environ = {"CHAT_NEST_PROVIDERS_P_API_KEYS": f"{KEY}, {OTHER}"}
    provider = loaded(tmp_path, table("groq", api_key_env="ELSEWHERE"), **environ).providers["p"]
    assert [key.reveal() for key in provider.api_keys] == [KEY, OTHER]


def test_a_file_of_keys_takes_the_place_of_the_usual_variable(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)
    for kind in ("openai", "groq", "ollama"):
        provider = loaded(tmp_path, table(kind, api_keys_file=str(file)), OPENAI_API_KEY=OTHER, GROQ_API_KEY=OTHER)
        assert (provider.providers["p"].api_key, provider.providers["p"].key_count) == (None, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('api_keys = []', "chat.toml:3: providers.p.api_keys: must hold a key"),
        (f'api_keys = ["{KEY} x"]', "chat.toml:3: providers.p.api_keys: must be a key of printable ASCII characters without spaces"),
        (f'api_keys = "{KEY}"', "chat.toml:3: providers.p.api_keys: must be a list of strings"),
        (f'api_key = "{KEY}"\napi_keys = ["{OTHER}"]', "chat.toml:4: providers.p.api_keys: give either api_key or api_keys, not both"),
        (f'api_keys = ["{KEY}"]\napi_keys_file = "x"', "chat.toml:4: providers.p.api_keys_file: give either api_keys or api_keys_file, not both"),
        ('api_keys_file = "missing"', "chat.toml:3: providers.p.api_keys_file: missing: there is no such file"),
    ],
)  # fmt: skip
def test_keys_that_can_not_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert problem(tmp_path, f'[providers.p]\nkind = "groq"\n{text}') == said


def test_credentials_of_a_cloud_take_the_place_of_a_key(tmp_path: Path) -> None:
    text = table("bedrock", credentials="aws")
    provider = loaded(tmp_path, text, AWS_BEARER_TOKEN_BEDROCK=KEY).providers["p"]
    assert (provider.credentials, provider.api_key, provider.key_count) == ("aws", None, 0)
    assert provider.key_from.endswith("providers.p.credentials")
    made = make_provider(provider)
    assert isinstance(made, OpenAIProvider)
    assert made._credentials is not None


def test_credentials_that_can_not_be_used(tmp_path: Path) -> None:
    assert "credentials: need a base_url of Bedrock" in problem(tmp_path, table("groq", credentials="aws"))
    assert 'credentials: must be "aws" or "google"' in problem(tmp_path, table("groq", credentials="azure"))
    said = problem(tmp_path, table("bedrock", credentials="aws") + f'\napi_key = "{KEY}"')
    assert said.endswith("give either api_key or credentials, not both")
    assert problem(tmp_path, table("vertex")).endswith(', or set credentials = "google" there')


@pytest.mark.parametrize(
    ("url", "bills"),
    [
        ("http://127.0.0.1:4000/v1", "unknown"),
        ("http://localhost:4000", "unknown"),
        ("http://[::1]:4000/v1", "unknown"),
        ("http://127.0.0.1:8080/v1", "stops"),
        ("http://127.0.0.1:11434/v1", "stops"),
        ("https://gateway.example.com:4000/v1", "unknown"),
    ],
)
def test_a_gateway_at_litellms_port_is_not_taken_for_a_model_that_bills_nothing(url: str, bills: str) -> None:
    """Whether LiteLLM tells its provider of a reader who left depends on both: BerriAI/litellm, pull request 30223."""
    config = load("", {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY})
    made = make_provider(config.providers["openai"])
    assert isinstance(made, OpenAIProvider)
    assert made.abort_bills == bills
    assert any("taken for LiteLLM" in note for note in config.notes) is (":4000" in url and "example" not in url)
    environ = {"OPENAI_BASE_URL": url, "CHAT_NEST_PROVIDERS_OPENAI_ABORT_BILLS": "stops"}
    made = make_provider(load("", environ).providers["openai"])
    assert isinstance(made, OpenAIProvider)
    assert made.abort_bills == "stops"
