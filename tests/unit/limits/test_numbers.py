"""The numbers that are built in."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import asdict

from chat_nest import BALANCED, HardCaps, Profile, create_chat_handler
from chat_nest.limits.spec import built_in_caps, built_in_profiles
from chat_nest.limits.numbers import DEMO_CONTEXT, MAX_BODY_BYTES, PresetName
from chat_nest.providers import demo_server
from chat_nest.providers.demo import DemoProvider
from chat_nest.server.config.settings import load
from chat_nest.server.config.sources import ConfigError
from chat_nest.counting.tokens import counter_for

NPM = {
    "constrained": (150, 4, 0.5, 2_048, 15, 30_000),
    "balanced": (400, 6, 0.7, 2_048, 30, 70_000),
    "expanded": (3_000, 12, 0.8, 12_000, 60, 200_000),
}
DEFAULT = {
    "constrained": (1_000, 20, 0.5, 16_000, 15, 50_000),
    "balanced": (2_000, 40, 0.7, 32_000, 30, 200_000),
    "expanded": (8_000, 100, 0.8, 48_000, 60, 500_000),
}
NPM_CAPS = (4_096, 20, 2.0, 16_000, 60, 500_000)
PROSE = (
    "The harbour was quiet that morning, and the boats lay with their bows towards the town. An old man mended a net "
    "while his granddaughter counted the gulls on the wall; she had reached seventeen when the bell began to ring. "
)


def numbers(of: Profile | HardCaps) -> tuple[float | None, ...]:
    named = ("max_output_tokens", "max_messages", "temperature", "tokens_per_request", "requests_per_minute")
    return tuple(getattr(of, name) for name in (*named, "tokens_per_day"))


@pytest.mark.parametrize(("preset", "expected"), [("default", DEFAULT), ("npm", NPM)])
def test_each_preset_by_its_name(preset: PresetName, expected: dict[str, tuple[float, ...]]) -> None:
    assert {name: numbers(profile) for name, profile in built_in_profiles(preset).items()} == expected
    assert all(profile.open for profile in built_in_profiles(preset).values())
    assert numbers(built_in_caps("npm")) == NPM_CAPS
    assert built_in_caps("default") == HardCaps() == HardCaps(temperature=2.0)
    assert numbers(Profile()) == numbers(BALANCED) == DEFAULT["balanced"]


def test_a_file_chooses_the_preset(tmp_path) -> None:
    file = tmp_path / "chat.toml"
    file.write_text(
        'preset = "npm"\n[profiles.balanced]\ntokens_per_day = "none"\n[profiles.own]\nmax_messages = 30\n'
        "[hard_caps]\nrequests_per_minute = 20\n"
    )
    config = load(str(file), {"OPENAI_API_KEY": "k"})
    balanced, own = config.rules().all
    assert numbers(balanced) == (400, 6, 0.7, 2_048, 20, 500_000)
    assert numbers(own) == (400, 20, 0.7, 2_048, 20, 500_000)  # a new one starts from balanced; the ceiling holds
    config = load(str(file), {"OPENAI_API_KEY": "k", "CHAT_NEST_PRESET": "default"})
    assert config.rules().all[0].tokens_per_request == 32_000


def test_a_variable_chooses_the_preset() -> None:
    config = load("", {"OPENAI_API_KEY": "k", "CHAT_NEST_PRESET": "npm"})
    assert {profile.name: numbers(profile) for profile in config.rules().all} == NPM
    assert numbers(config.hard_caps) == NPM_CAPS


@pytest.mark.parametrize("word", ["", "NPM", "none", "old"])
def test_an_unknown_preset_is_named(word: str) -> None:
    with pytest.raises(ConfigError, match=r"^CHAT_NEST_PRESET \(in a file: preset\): must be default or npm$"):
        load("", {"CHAT_NEST_PRESET": word})


def test_an_app_chooses_the_preset() -> None:
    create_chat_handler(api_key="k", preset="npm")
    with pytest.raises(ValueError, match='^preset must be "default" or "npm"$'):
        create_chat_handler(api_key="k", preset="old")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="either `profiles` or `preset`"):
        create_chat_handler(api_key="k", preset="npm", profiles=built_in_profiles("npm"))


@pytest.mark.parametrize("name", DEFAULT)
def test_a_body_holds_what_a_built_in_profile_admits(name: str) -> None:
    profile = built_in_profiles()[name]
    assert profile.tokens_per_request is not None
    counter = counter_for("gpt-4o-mini")
    turn = PROSE * 40
    turns = min(profile.max_messages, profile.tokens_per_request // counter.count(turn) + 1)
    text = turn * -(-profile.tokens_per_request // counter.count(turn * turns))
    messages = [{"id": "0123456789abcdef", "role": "assistant", "content": text} for _ in range(turns)]
    assert counter.count(text) * turns > profile.tokens_per_request, "more than may be asked for, and still read"
    assert len(json.dumps({"messages": messages}, indent=1)) < MAX_BODY_BYTES


def test_the_demo_model_holds_what_its_profiles_admit() -> None:
    assert demo_server.CONTEXT == demo_server.SLOTS * DEMO_CONTEXT
    assert DemoProvider.context_tokens == DEMO_CONTEXT
    for preset, most in (("default", (512, 3_072)), ("npm", (400, 2_048))):
        [_, balanced, _] = load("", {"CHAT_NEST_PRESET": preset}).rules().all
        assert (balanced.max_output_tokens, balanced.tokens_per_request) == most
    own = load("", {"CHAT_NEST_PROFILES_BALANCED_MAX_OUTPUT_TOKENS": "900"}).profiles["balanced"]
    assert (own.max_output_tokens, own.tokens_per_request) == (900, 3_072)


def test_a_profile_keeps_the_other_defaults() -> None:
    built_in = asdict(built_in_profiles("npm")["balanced"])
    assert {name for name, value in asdict(BALANCED).items() if built_in[name] != value} == {
        *("open", "max_output_tokens", "max_messages", "tokens_per_request", "tokens_per_day"),
    }
