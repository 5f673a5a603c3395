"""The config file, the environment over it, and what refuses to start."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_nest.core.extras import install
from chat_nest.core.limits import Limits
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.limits import COUNTERS
from chat_nest.limits.counters import LIMITS
from chat_nest.limits.prices import price
from chat_nest.limits.spec import BALANCED, BUILT_IN_PROFILES, EXPANDED, HARD_CAPS, Allowance
from chat_nest.server.config.excerpts import load_store
from chat_nest.server.config.schema import PROVIDER_KINDS
from chat_nest.server.config.settings import Config, load
from chat_nest.server.config.sources import ConfigError

KEY = "sk-canary-0123456789"


def loaded(folder: Path, text: str, **environ: str) -> Config:
    file = folder / "chat.toml"
    file.write_text(text)
    return load(str(file), environ)


def problems(folder: Path, text: str, **environ: str) -> list[str]:
    """What the configuration is refused for, without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, **environ)
    assert KEY not in str(caught.value)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


# What is taken as it stands.


def test_nothing_at_all_is_the_demo_model_under_the_built_in_profiles():
    config = load("", {})
    assert config.is_demo
    assert config.model == "demo:smollm2-135m-instruct"
    assert (config.server.host, config.server.port, config.store) == ("127.0.0.1", 8000, "sqlite:///chat-nest.db")
    assert set(config.profiles) == {"constrained", "balanced", "expanded"}
    assert [profile.temperature for profile in config.profiles.values()] == [0.0, 0.0, 0.0]
    assert [profile.tokens_per_request for profile in config.profiles.values()] == [3072, 3072, 3072]
    assert [profile.max_output_tokens for profile in config.profiles.values()] == [512, 512, 512]
    assert config.profiles["balanced"].tokens_per_day == BALANCED.tokens_per_day
    assert (config.limits, config.hard_caps, config.timeouts) == (Limits(), HARD_CAPS, Timeouts())


def test_a_key_in_the_environment_is_openai_with_the_profiles_as_they_are_built_in():
    config = load("", {"OPENAI_API_KEY": KEY})
    assert not config.is_demo
    assert config.providers["openai"].base_url == "https://api.openai.com/v1"
    assert config.providers["openai"].api_key.reveal() == KEY
    assert list(config.profiles.values()) == list(BUILT_IN_PROFILES.values())
    assert config.model == "openai:gpt-4o-mini"


def test_a_base_url_alone_is_a_provider_too_since_local_servers_need_no_key():
    config = load("", {"OPENAI_BASE_URL": "http://127.0.0.1:11434/v1", "CHAT_NEST_MODEL": "llama3.2:3b"})
    assert config.providers["openai"].base_url == "http://127.0.0.1:11434/v1"
    assert config.providers["openai"].api_key is None
    assert {profile.model for profile in config.profiles.values()} == {"openai:llama3.2:3b"}


def test_an_empty_key_is_no_key_and_is_reported():
    config = load("", {"OPENAI_API_KEY": " "})
    assert config.is_demo
    assert config.notes == ("OPENAI_API_KEY is set but empty, so the demo model answers",)


def test_a_base_url_without_v1_is_noted_for_the_format_of_openai(tmp_path):
    said = "has no path: most servers speak OpenAI's format at /v1, so add it if they answer 404"
    base = "http://127.0.0.1:11434"
    for end in ("", "/"):
        assert load("", {"OPENAI_BASE_URL": base + end}).notes == (f"OPENAI_BASE_URL: {said}",)
    assert load("", {"OPENAI_BASE_URL": f"{base}/v1"}).notes == ()
    kinds = {kind: f'[providers.p]\nkind = "{kind}"\nbase_url = "{base}"\napi_key = "k"\n' for kind in PROVIDER_KINDS}
    noted = {
        kind for kind, text in kinds.items() if loaded(tmp_path, text, CHAT_NEST_MODEL="m" * (kind != "demo")).notes
    }
    assert {"openai", "ollama_v1", "vllm", "llamacpp", "groq", "openrouter", "mistral", "litellm", "bedrock"} <= noted
    assert not noted & {"anthropic", "gemini", "ollama", "azure", "deepseek", "perplexity", "demo"}
    (note,) = loaded(tmp_path, kinds["vllm"], CHAT_NEST_MODEL="m").notes
    assert note.endswith(f"chat.toml:3: providers.p.base_url: {said}")


def test_for_keys_of_other_vendors_the_way_to_use_them_is_reported():
    keys = {"ANTHROPIC_API_KEY": KEY, "AZURE_OPENAI_API_KEY": KEY}
    said = "_API_KEY is set, but no provider is, so the demo model answers: set"
    azure = "CHAT_NEST_PROVIDERS_AZURE_KIND=azure"
    assert set(load("", keys).notes) == {
        f"ANTHROPIC{said} CHAT_NEST_MODEL=... as well",
        f"AZURE_OPENAI{said} {azure} and CHAT_NEST_MODEL=... as well",
    }
    with pytest.raises(ConfigError, match=f"CHAT_NEST_MODEL: is set, but no provider is: set {azure} as well"):
        load("", {"AZURE_OPENAI_API_KEY": KEY, "CHAT_NEST_MODEL": "gpt-5"})
    for environ in (keys, {**keys, "CHAT_NEST_PROVIDERS_ANTHROPIC_KIND": "anthropic"}):
        config = load("", {**environ, "CHAT_NEST_MODEL": "claude-haiku-4-5"})
        assert config.model == "anthropic:claude-haiku-4-5"
        assert config.notes == ()


def test_every_section_is_read(tmp_path):
    config = loaded(
        tmp_path,
        """
        [server]
        host = "::1"
        port = 8080
        trusted_proxies = ["10.0.0.0/8", "unix"]
        origins = ["https://example.com"]
        time_zone = "Europe/Paris"
        max_body_bytes = 1000

        [store]
        url = "memory://"

        [providers.local]
        kind = "openai"
        base_url = "http://127.0.0.1:8081/v1"
        api_key_env = "LOCAL_KEY"
        abort_bills = "full"
        counting = "bytes"

        [providers.demo]
        kind = "demo"

        [profiles.balanced]
        model = "local:a:b"
        fallbacks = ["demo:smollm2"]
        tokens_per_day = 5

        [profiles.expanded]
        open = true

        [profiles.Support]
        concurrent_streams = 2
        allow_system_prompt = true

        [limits]
        tokens_per_day = 9_000_000
        tokens_per_minute = 8
        requests_per_minute = 7
        concurrent_streams = 6

        [hard_caps]
        max_output_tokens = 100

        [timeouts]
        connect = 1
        first_token = 2.5
        heartbeat = 5
        commit = 0.5
        store = 0.25
        """,
        LOCAL_KEY=KEY,
    )
    assert (config.server.host, config.server.port, config.server.max_body_bytes) == ("::1", 8080, 1000)
    assert config.server.trusted_proxies == ("10.0.0.0/8", "unix")
    assert config.server.origins == ("https://example.com",)
    assert config.server.time_zone == "Europe/Paris"
    assert config.store == "memory://"
    local = config.providers["local"]
    assert (local.kind, local.base_url, local.abort_bills) == ("openai", "http://127.0.0.1:8081/v1", "full")
    assert (local.counting, config.providers["demo"].counting) == ("bytes", "auto")
    assert local.api_key.reveal() == KEY
    assert local.key_from == "the environment variable LOCAL_KEY"
    balanced, support, expanded = (config.profiles[name] for name in ("balanced", "support", "expanded"))
    assert (balanced.model, balanced.fallbacks, balanced.tokens_per_day) == ("local:a:b", ("demo:smollm2",), 5)
    assert balanced.requests_per_minute == BALANCED.requests_per_minute
    # A new name starts from balanced as the file has it; a built-in profile that names no model takes balanced's.
    assert (support.model, support.tokens_per_day, support.concurrent_streams) == ("local:a:b", 5, 2)
    assert support.name == "support"
    assert support.allow_system_prompt
    assert (balanced.open, expanded.open, support.open) == (None, True, None)
    assert (expanded.model, expanded.fallbacks, expanded.tokens_per_day) == ("local:a:b", (), EXPANDED.tokens_per_day)
    assert config.limits == Limits(
        tokens_per_day=9_000_000, tokens_per_minute=8, requests_per_minute=7, concurrent_streams=6
    )
    assert config.hard_caps.max_output_tokens == 100
    assert config.hard_caps.max_messages == HARD_CAPS.max_messages
    assert config.timeouts == Timeouts(connect=1, first_token=2.5, heartbeat=5, commit=0.5, store=0.25)


def test_what_the_operator_decided_for_a_demo_profile_stays(tmp_path):
    config = loaded(tmp_path, "[profiles.balanced]\ntemperature = 0.5\ntokens_per_request = 100\n[profiles.expanded]\n")
    assert (config.profiles["balanced"].temperature, config.profiles["balanced"].tokens_per_request) == (0.5, 100)
    assert config.profiles["expanded"].temperature == 0


def test_a_profile_on_another_model_does_not_inherit_what_suits_the_demo(tmp_path):
    config = loaded(
        tmp_path, '[providers.demo]\n[profiles.balanced]\nmodel = "demo:x"\n[profiles.paid]\nmodel = "openai:y"\n',
        OPENAI_API_KEY=KEY,
    )  # fmt: skip
    assert config.profiles["balanced"].temperature == 0
    assert config.profiles["paid"].temperature == BALANCED.temperature
    assert config.providers["openai"].api_key.reveal() == KEY


def test_the_only_model_that_the_file_names_is_everyones(tmp_path):
    text = '[providers.a]\nbase_url = "http://127.0.0.1:1/v1"\n[profiles.own]\nmodel = "a:m"\n[profiles.balanced]\n'
    assert {name: each.model for name, each in loaded(tmp_path, text).profiles.items()} == {
        "own": "a:m",
        "balanced": "a:m",
    }


# Which profiles there are, and who may choose them.


def test_once_a_profile_is_named_the_built_in_ones_are_gone_and_only_the_default_one_is_open(tmp_path):
    config = loaded(
        tmp_path, "[profiles.balanced]\ntokens_per_day = 5\n[profiles.expanded]\n[profiles.own]\nopen = true\n"
    )
    assert list(config.profiles) == ["balanced", "expanded", "own"]
    assert [profile.name for profile in config.rules().open] == ["balanced", "own"]
    named = load("", {"CHAT_NEST_PROFILES_EXPANDED_TOKENS_PER_DAY": "5"})
    assert (list(named.profiles), named.default_profile) == (["expanded"], "expanded")
    assert [profile.name for profile in load("", {}).rules().open] == ["constrained", "balanced", "expanded"]


def test_a_profile_does_not_inherit_that_balanced_is_open(tmp_path):
    config = loaded(tmp_path, "[profiles.balanced]\nopen = true\n[profiles.paid]\n")
    assert [profile.name for profile in config.rules().open] == ["balanced"]


@pytest.mark.parametrize(
    ("text", "environ", "default"),
    [
        ("", {}, "balanced"),
        ("", {"CHAT_NEST_DEFAULT_PROFILE": "Expanded"}, "expanded"),
        ("[profiles.own]\n", {}, "own"),
        ("[profiles.own]\n[profiles.guest]\nopen = true\n", {}, "guest"),
        ("[profiles.own]\n[profiles.guest]\nopen = true\n[profiles.balanced]\n", {}, "balanced"),
        ("default_profile = 'OWN'\n[profiles.own]\n[profiles.guest]\nopen = true\n", {}, "own"),
        ("default_profile = 'own'\n[profiles.own]\n[profiles.b]\n", {"CHAT_NEST_DEFAULT_PROFILE": "b"}, "b"),
    ],
)
def test_the_default_profile(tmp_path, text, environ, default):
    assert loaded(tmp_path, text, **environ).default_profile == default


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[profiles.a]\n[profiles.b]\n",
            "chat.toml: default_profile: must name the profile of a caller without its own: a, b; "
            'write default_profile="a", for example',
        ),
        ("default_profile = 'c'\n[profiles.a]\n", "chat.toml:1: default_profile: must name one of the profiles: a"),
        (
            "default_profile = 'a'\n[profiles.a]\nopen = false\n[profiles.b]\nopen = true\n",
            "chat.toml:1: default_profile: is a, which is closed, while b is open: name an open one, or close every profile",
        ),
        ("default_profile = 3\n", "chat.toml:1: default_profile: must be a string that is not empty"),
        ("defaultprofile = 'a'\n", "chat.toml:1: defaultprofile: there is no such section; did you mean default_profile?"),
        (
            "[server]\ndefault_profile = 'a'\n",
            "chat.toml:2: server.default_profile: put it above the first [section]: in TOML a key belongs to the section "
            "that it follows",
        ),
        (
            "[profiles]\ndefault_profile = 'a'\n",
            "chat.toml:2: profiles.default_profile: put it above the first [section]: in TOML a key belongs to the section "
            "that it follows",
        ),
        (
            "[profiles.a]\ndefault_profile = 'a'\n",
            "chat.toml:2: profiles.a.default_profile: put it above the first [section]: in TOML a key belongs to the "
            "section that it follows",
        ),
    ],
)  # fmt: skip
def test_a_default_profile_that_can_not_be(tmp_path, text, said):
    assert problems(tmp_path, text) == [said]


def test_a_value_above_a_hard_cap_is_reported_and_not_refused(tmp_path):
    caps = "[hard_caps]\nmax_output_tokens = 4096\ntokens_per_day = 5\n"
    config = loaded(tmp_path, f'[profiles.expanded]\nmax_output_tokens = 9000\ntokens_per_day = "none"\n{caps}')
    here = f"{tmp_path}/chat.toml"
    assert config.notes == (
        f"{here}:2: profiles.expanded.max_output_tokens: hard_caps.max_output_tokens is lower and wins (4096); lift it "
        "to use this value",
        f"{here}:3: profiles.expanded.tokens_per_day: hard_caps.tokens_per_day is lower and wins (5); lift it to use "
        "this value",
    )
    [expanded] = config.rules().all
    assert (expanded.max_output_tokens, expanded.tokens_per_day) == (4096, 5)


# A limit that is off, and one that is nothing.

WORDS = """
[profiles.balanced]
tokens_per_request = "none"
requests_per_minute = "none"
tokens_per_day = "none"
usd_per_day = "none"
concurrent_streams = 0
[limits]
tokens_per_day = 0
usd_per_month = "none"
[groups.acme]
requests_per_hour = "none"
usd_per_day = 0.0
[hard_caps]
max_messages = "none"
tokens_per_day = "none"
"""


def test_each_limit_can_be_off_or_nothing(tmp_path):
    config = loaded(tmp_path, WORDS)
    balanced = config.profiles["balanced"]
    assert (balanced.tokens_per_request, balanced.requests_per_minute, balanced.tokens_per_day) == (None, None, None)
    assert (balanced.usd_per_day, balanced.concurrent_streams) == (None, 0)
    assert config.limits == Limits(tokens_per_day=0)
    assert config.groups == {"acme": Limits(usd_per_day=0)}
    assert config.hard_caps == HARD_CAPS


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        *((f"CHAT_NEST_PROFILES_BALANCED_{name}".upper(), name) for name in LIMITS),
        *((f"CHAT_NEST_LIMITS_{each.name}".upper(), each.name) for each in COUNTERS),
    ],
)
def test_each_limit_can_be_off_or_nothing_by_a_variable(variable, name):
    def value_of(word: str) -> float | None:
        config = load("", {variable: word})
        return getattr(config.limits if "_LIMITS_" in variable else config.profiles["balanced"], name)

    assert value_of("none") is None
    assert value_of("0") == 0
    assert value_of("1") == 1


@pytest.mark.parametrize(
    "word", ["-1", "-0.5", "1.5", "1.0", "1e3", "nan", "inf", "true", "nine", "None", "", "9" * 30]
)
@pytest.mark.parametrize("name", ["tokens_per_day", "requests_per_minute", "concurrent_streams", "tokens_per_request"])
def test_a_variable_that_breaks_its_rule_is_named(name, word):
    variable = f"CHAT_NEST_PROFILES_BALANCED_{name}".upper()
    with pytest.raises(ConfigError) as caught:
        load("", {variable: word})
    [said] = caught.value.problems
    assert said.startswith(f"{variable} (in a file: profiles.balanced.{name}): must be a whole number from 0 to ")
    assert said.endswith(", or none")


@pytest.mark.parametrize("value", ["-1", "-0.5", "nan", "inf", "true", '"nine"', '"None"', "1e-10", "1000001", "[]"])
@pytest.mark.parametrize("section", ["profiles.balanced", "limits", "groups.acme"])
def test_dollars_that_break_their_rule_are_named(tmp_path, section, value):
    rule = 'must be 0, or a number of dollars from 0.000000001 to 1000000, or "none"'
    assert problems(tmp_path, f"[{section}]\nusd_per_hour = {value}\n") == [
        f"chat.toml:2: {section}.usd_per_hour: {rule}"
    ]


@pytest.mark.parametrize("value", ["-1", "1.0", "nan", "true", '"5"', '"off"', "150119988", "{}"])
@pytest.mark.parametrize("section", ["profiles.balanced", "limits", "groups.acme", "hard_caps"])
def test_a_rate_that_breaks_its_rule_is_named(tmp_path, section, value):
    rule = 'must be a whole number from 0 to 150119987, or "none"'
    assert problems(tmp_path, f"[{section}]\nrequests_per_minute = {value}\n") == [
        f"chat.toml:2: {section}.requests_per_minute: {rule}"
    ]


def test_a_key_sent_in_the_clear_is_reported(tmp_path):
    near = '[providers.openai]\nbase_url = "http://%s/v1"\napi_key = "k"\n'
    assert loaded(tmp_path, near % "192.168.1.5:8000").notes == ()
    assert loaded(tmp_path, near % "localhost").notes == ()
    for host in ("127.0.0.9:1", "[::1]:1", "[fd00::5]:1", "gpu-1:8000", "localhost.", "a.localhost"):
        assert loaded(tmp_path, near % host).notes == ()
    for host in ("llm.example.com", "8.8.8.8:8000", "[2606:4700::1111]", "localhost.example.com"):
        (note,) = loaded(tmp_path, near % host).notes
        assert note.endswith(
            "chat.toml:2: providers.openai.base_url: the key and every prompt travel unencrypted; use https"
        )
    assert loaded(tmp_path, '[providers.openai]\nbase_url = "https://llm.example.com/v1"\napi_key = "k"\n').notes == ()


@pytest.mark.parametrize(
    ("kind", "url", "variable"),
    [
        ("ollama", "http://llm.example.com:11434", "OLLAMA_API_KEY"),
        ("vllm", "http://llm.example.com:8000/v1", "VLLM_API_KEY"),
        ("anthropic", "http://api.anthropic.com", "ANTHROPIC_API_KEY"),
    ],
)
def test_a_vendors_usual_key_sent_in_the_clear_is_reported(tmp_path, kind, url, variable):
    text = f'[providers.p]\nkind = "{kind}"\nbase_url = "{url}"\n[profiles.balanced]\nmodel = "p:m"\n'
    (note,) = loaded(tmp_path, text, **{variable: "k"}).notes
    assert "unencrypted" in note


# The environment and the command line.


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path):
    file = tmp_path / "chat.toml"
    file.write_text('[server]\nhost = "10.0.0.1"\nport = 1\ntime_zone = "Asia/Tokyo"\n')
    environ = {"CHAT_NEST_SERVER_PORT": "2", "CHAT_NEST_SERVER_HOST": "10.0.0.2"}
    server = load(str(file), environ).server
    assert (server.host, server.port, server.time_zone) == ("10.0.0.2", 2, "Asia/Tokyo")
    server = load(str(file), environ, host="::1", port=0).server
    assert (server.host, server.port) == ("::1", 0)


def test_every_kind_of_value_can_come_from_the_environment(tmp_path):
    config = loaded(
        tmp_path,
        '[providers.My-One]\nbase_url = "http://127.0.0.1:1/v1"\n',
        CHAT_NEST_PROVIDERS_MY_ONE_API_KEY=KEY,
        CHAT_NEST_PROVIDERS_SPARE_BASE_URL="http://127.0.0.1:2/v1",
        CHAT_NEST_PROFILES_BALANCED_MODEL="My-One:m",
        CHAT_NEST_PROFILES_BALANCED_FALLBACKS="spare:a, spare:b",
        CHAT_NEST_PROFILES_BALANCED_ALLOW_SYSTEM_PROMPT="true",
        CHAT_NEST_PROFILES_BALANCED_TEMPERATURE="0.25",
        CHAT_NEST_SERVER_ORIGINS="https://a.example,https://b.example",
        CHAT_NEST_SERVER_TRUSTED_PROXIES="",
        CHAT_NEST_STORE_URL="memory://",
        CHAT_NEST_LIMITS_TOKENS_PER_DAY="10",
        CHAT_NEST_HARD_CAPS_MAX_MESSAGES="3",
        CHAT_NEST_TIMEOUTS_IDLE="4.5",
        CHAT_NEST_CONFIG="not looked at here",
    )
    assert config.providers["My-One"].api_key.reveal() == KEY
    assert config.providers["spare"].base_url == "http://127.0.0.1:2/v1"
    balanced = config.profiles["balanced"]
    assert (balanced.model, balanced.fallbacks) == ("My-One:m", ("spare:a", "spare:b"))
    assert (balanced.allow_system_prompt, balanced.temperature) == (True, 0.25)
    assert config.server.origins == ("https://a.example", "https://b.example")
    assert config.server.trusted_proxies == ()
    assert config.store == "memory://"
    assert config.limits.tokens_per_day == 10
    assert config.hard_caps.max_messages == 3
    assert config.timeouts.idle == 4.5


def test_a_key_from_the_environment_wins_over_the_variable_that_the_file_names(tmp_path):
    text = '[providers.openai]\napi_key_env = "UNSET"\n'
    config = loaded(tmp_path, text, CHAT_NEST_PROVIDERS_OPENAI_API_KEY=KEY)
    assert config.providers["openai"].api_key.reveal() == KEY


def test_a_provider_of_the_file_without_url_and_key_takes_openais_variables(tmp_path):
    text = '[providers.openai]\nabort_bills = "full"\ncounting = "bytes"\n'
    openai = loaded(tmp_path, text, OPENAI_API_KEY=KEY, OPENAI_BASE_URL="https://eu.example/v1").providers["openai"]
    assert (openai.base_url, openai.api_key.reveal(), openai.abort_bills) == ("https://eu.example/v1", KEY, "full")
    assert openai.counting == "bytes"


def test_openais_key_is_not_sent_to_another_server_of_the_file(tmp_path):
    text = '[providers.openai]\nbase_url = "https://other.example/v1"\n'
    assert loaded(tmp_path, text, OPENAI_API_KEY=KEY).providers["openai"].api_key is None


def test_openais_variables_add_nothing_to_a_file_that_does_not_use_them(tmp_path):
    text = '[providers.a]\nbase_url = "http://127.0.0.1:1/v1"\n[profiles.balanced]\nmodel = "a:m"\n'
    assert set(loaded(tmp_path, text, OPENAI_API_KEY=KEY).providers) == {"a"}


# What refuses to start, by its whole sentence where that is the point.


@pytest.mark.parametrize(
    ("store", "journal"),
    [
        ('url = "memory://"', None),
        ('url = "sqlite:///x.db"', None),
        ('url = "redis://127.0.0.1"', "chat-nest-journal"),
        ('url = "redis+cluster://127.0.0.1:1"', "chat-nest-journal"),
        ('url = "postgresql://127.0.0.1/x"', "chat-nest-journal"),
        ('url = "redis://127.0.0.1"\njournal = "off"', None),
        ('url = "sqlite:///x.db"\njournal = "kept"', "kept"),
    ],
)
def test_a_store_that_may_be_away_has_a_journal(tmp_path, store, journal):
    assert loaded(tmp_path, f"[store]\n{store}\n").journal == journal


def test_an_impossible_journal_is_refused_if_configured_and_else_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat-nest-journal").touch()
    said = "the journal can't be kept in"
    notes = loaded(tmp_path, '[store]\nurl = "redis://127.0.0.1"\n').notes
    assert [said in note for note in notes] == [True, False]
    assert "nothing remembers the store" in notes[1]
    [problem] = problems(tmp_path, '[store]\nurl = "redis://127.0.0.1"\njournal = "chat-nest-journal"\n')
    assert problem.startswith(f"chat.toml:3: store.journal: {said}")


@pytest.mark.parametrize(
    ("store", "state", "noted"),
    [
        ('url = "redis://h"', "chat-nest-journal", False),
        ('url = "redis://h"\njournal = "there"', "there", False),
        ('url = "redis://h"\nstate = "there"', "there", False),
        ('url = "redis://h"\njournal = "off"', None, True),
        ('url = "redis://h"\njournal = "off"\nstate = "off"', None, False),
        ('url = "sqlite:///chat-nest.db"', None, False),
        ('url = "memory://"', None, False),
    ],
)
def test_where_it_is_remembered_that_the_store_was_seen(tmp_path, monkeypatch, store, state, noted):
    monkeypatch.chdir(tmp_path)
    config = loaded(tmp_path, f"[store]\n{store}\n")
    assert config.state == state
    assert any("nothing remembers the store" in note for note in config.notes) is noted


def test_a_directory_of_what_is_remembered_that_can_not_be_used_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    [problem] = problems(tmp_path, '[store]\nurl = "redis://h"\nstate = "file"\n')
    assert problem.startswith("chat.toml:3: store.state: what is remembered of the store can't be kept in")


def test_an_allowance_for_an_outage(tmp_path):
    text = "[limits]\ntokens_per_day = 1000\nusd_per_month = 5\n[degraded]\ntokens = 100\nusd = 0.5\nrequests = 7\n"
    assert loaded(tmp_path, text).degraded == Allowance(tokens=100, usd=0.5, requests=7)
    assert loaded(tmp_path, "[limits]\ntokens_per_day = 1000\n").degraded is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[degraded]\ntokens = 100\n",
            "chat.toml:1: degraded: needs a budget for all callers to be held in, such as limits.tokens_per_day",
        ),
        (
            "[limits]\ntokens_per_day = 100\n[degraded]\ntokens = 100\n",
            "chat.toml:4: degraded.tokens: must be below limits.tokens_per_day: every process holds as much",
        ),
        (
            "[limits]\ntokens_per_day = 100\n[degraded]\nrequests = 100\n",
            "chat.toml:3: degraded.tokens: must be set, because there is limits.tokens_per_day",
        ),
        (
            '[store]\nurl = "memory://"\n[limits]\ntokens_per_day = 100\n[degraded]\ntokens = 10\n',
            "chat.toml:5: degraded: memory:// is never down: leave it out",
        ),
    ],
)
def test_an_allowance_that_nothing_can_hold_is_refused(tmp_path, text, said):
    assert problems(tmp_path, text) == [said]


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_one(tmp_path):
    text = "[server]\nhost = '127.0.0.1'\n\nprot = 1\n"
    assert problems(tmp_path, text) == ["chat.toml:4: server.prot: there is no such key; did you mean port?"]


def test_an_unknown_section_is_reported_with_the_place_of_its_key(tmp_path):
    assert problems(tmp_path, "port = 1\n[profile.balanced]\n") == [
        "chat.toml:1: port: there is no such section; it belongs into [server]",
        "chat.toml:2: profile: there is no such section; did you mean profiles?",
    ]


def test_all_problems_are_reported_at_once_with_their_places(tmp_path):
    text = """
providers.a.base_url = "http://127.0.0.1:1/v1"
"profiles"."fast one".max_output_tokens = 0

[profiles.balanced]
fallbacks = [
  "a:m",
  1,
]
tokens_per_day = -1 # spent
tokens_per_minute = 1e3
requests_per_minute = true
tokens_per_request = 99999999999999999999999
temperature = nan
[limits]
concurrent_streams = "3"
[hard_caps]
temperature = 2.5
[timeouts]
idle = inf
total = 0
store = nan
"""
    count = "must be a whole number from 1 to 1125899906842624"
    limit = 'must be a whole number from 0 to 1125899906842624, or "none"'
    rate = 'must be a whole number from 0 to 150119987, or "none"'
    seconds = "must be a number of seconds above 0 and at most 86400"
    assert problems(tmp_path, text) == [
        f"chat.toml:3: profiles.'fast one'.max_output_tokens: {count}",
        "chat.toml:6: profiles.balanced.fallbacks: must be a list of strings",
        f"chat.toml:10: profiles.balanced.tokens_per_day: {limit}",
        f"chat.toml:11: profiles.balanced.tokens_per_minute: {rate}",
        f"chat.toml:12: profiles.balanced.requests_per_minute: {rate}",
        f"chat.toml:13: profiles.balanced.tokens_per_request: {limit}",
        "chat.toml:14: profiles.balanced.temperature: must be a number from 0 to 2",
        f"chat.toml:16: limits.concurrent_streams: {limit}",
        "chat.toml:18: hard_caps.temperature: must be a number from 0 to 2",
        f"chat.toml:20: timeouts.idle: {seconds}",
        f"chat.toml:21: timeouts.total: {seconds}",
        f"chat.toml:22: timeouts.store: {seconds}",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server\n", "chat.toml:1: this is not TOML: Expected ']' at the end of a table declaration"),
        ("server = 3\n", "chat.toml:1: server: must be a table: [server]"),
        ("providers = 3\n", "chat.toml:1: providers: must be tables with a name each: [providers.NAME]"),
        ("[providers]\na = 3\n", "chat.toml:2: providers.a: must be a table: [providers.a], with keys such as kind"),
        ("[server]\nport = 65536\n", "chat.toml:2: server.port: must be a whole number from 0 (any free port) to 65535"),
        ("[server]\nport = '80'\n", "chat.toml:2: server.port: must be a whole number from 0 (any free port) to 65535"),
        ("[server]\nhost = ''\n", "chat.toml:2: server.host: must be a string that is not empty"),
        (
            '[server]\ntime_zone = "Europe/Pariss"\n',
            "chat.toml:2: server.time_zone: must be the IANA name of a time zone, such as Europe/Paris; "
            "did you mean Europe/Paris?",
        ),
        (
            '[server]\ntrusted_proxies = ["10.0.0.1/8"]\n',
            "chat.toml:2: server.trusted_proxies: trusted proxy '10.0.0.1/8' is not an address, a network or the word "
            "unix: 10.0.0.1/8 has host bits set",
        ),
        (
            '[server]\norigins = ["example.com"]\n',
            "chat.toml:2: server.origins: 'example.com' must be `*` or an origin such as https://example.com, "
            "without a path",
        ),
        (
            '[store]\nurl = "mysql://x"\n',
            "chat.toml:2: store.url: must be memory://, sqlite:///relative/path.db, sqlite:////absolute/path.db, or begin with postgresql://, redis://, rediss://, redis+cluster:// or redis+sentinel://",
        ),
        (
            '[store]\nurl = "sqlite:////no/such/folder/x.db"\n',
            "chat.toml:2: store.url: the directory of the SQLite file does not exist: /no/such/folder",
        ),
        ('[store]\nurl = "sqlite:////tmp"\n', "chat.toml:2: store.url: the SQLite file is a directory: /tmp"),
        (
            '[providers.a]\nkind = "opnai"\n',
            f"chat.toml:2: providers.a.kind: must be one of {', '.join(PROVIDER_KINDS)}; did you mean openai?",
        ),
        (
            '[providers.demo]\nabort_bills = "stop"\n',
            "chat.toml:2: providers.demo.abort_bills: must be one of stops, full, unknown; did you mean stops?",
        ),
        (
            '[providers.demo]\ncounting = "byte"\n',
            "chat.toml:2: providers.demo.counting: must be one of auto, bytes; did you mean bytes?",
        ),
        (
            "[providers.openai]\n",
            "chat.toml:1: providers.openai: there is no API key: set OPENAI_API_KEY, or name another variable with "
            "api_key_env under [providers.openai]",
        ),
        (
            f'[providers.openai]\napi_key_env = "{KEY}"\n',
            "chat.toml:2: providers.openai.api_key_env: must name an environment variable that is set; set it, or "
            "correct the name",
        ),
        (
            f'[providers.openai]\napi_key = "{KEY}"\napi_key_env = "HOME"\n',
            "chat.toml:3: providers.openai.api_key_env: give either api_key or api_key_env, not both",
        ),
        (
            f'[providers.openai]\napi_key = "{KEY} {KEY}"\n',
            "chat.toml:2: providers.openai.api_key: must be a key of printable ASCII characters without spaces",
        ),
        (f"[providers.openai]\napi_key = ['{KEY}']\n", "chat.toml:2: providers.openai.api_key: must be a string that is not empty"),
        (
            f'[providers.a]\nbase_url = "https://me:{KEY}@a.example/v1"\n',
            "chat.toml:2: providers.a.base_url: must have no user, query or fragment; a key belongs into api_key_env",
        ),
        (
            '[providers.a]\nbase_url = "a.example/v1"\n',
            "chat.toml:2: providers.a.base_url: must be a URL such as https://api.example.com/v1",
        ),
        (
            '[profiles.balanced]\nmodel = "gpt-4o"\n',
            "chat.toml:2: profiles.balanced.model: must be PROVIDER:MODEL, such as openai:gpt-4o-mini",
        ),
        (
            '[providers.local]\nbase_url = "http://127.0.0.1:1/v1"\n[profiles.x]\nmodel = "local:m"\nfallbacks = ["locla:m"]\n',
            "chat.toml:5: profiles.x.fallbacks: names a provider that is not configured: add [providers.NAME]; "
            "did you mean local?",
        ),
        (
            '[profiles.balanced]\nmodel = "openai:gpt-4o"\n',
            "chat.toml:2: profiles.balanced.model: names a provider that is not configured: add [providers.NAME] or set "
            "OPENAI_API_KEY; there are demo",
        ),
        (
            '[providers.local]\nbase_url = "http://127.0.0.1:1/v1"\n',
            'chat.toml: profiles.balanced.model: is missing: write "local:MODEL", or set CHAT_NEST_MODEL',
        ),
        (
            "[profiles.Fast]\nmax_messages = 1\n[profiles.fast]\n",
            "chat.toml:3: profiles.fast: this profile is there twice: names are compared in lower case",
        ),
        ('[profiles."a b"]\n', "chat.toml:1: profiles.'a b': a profile's name must be letters, digits, - and _"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_place_and_rule(tmp_path, text, said):
    assert problems(tmp_path, text) == [said]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[limits]\ntokens_per_day = none\n", ':2: this is not TOML: Invalid value: text needs straight quotes, such as "none"'),
        ("[limits]\ntokens_per_day = 50,000\n", "a statement: write thousands with underscores, such as 50_000"),
        ("[timeouts]\nidle = 60s\n", 'a statement: a number has no unit; text needs straight quotes, such as "none"'),
        ("[server]\nreadyz_details = True\n", ":2: this is not TOML: Invalid value: true and false are in lower case"),
        ("[server]\nport: 8000\n", "a key/value pair: write KEY = VALUE, and a section as [NAME]"),
        ('{"server": {}}', "Invalid statement: this is JSON: write KEY = VALUE, and a section as [NAME]"),
        ("[server]\nport = 1\nport = 2\n", ":3: this is not TOML: this key is there twice"),
        ("[prices.openai:gpt-4o-mini]\ninput = 1\n", 'that is not letters, digits, - and _ needs quotes: [prices."NAME"]'),
        (f"[providers.openai]\napi_key = {KEY}\n", 'Invalid value: text needs straight quotes, such as "none"'),
    ],
)  # fmt: skip
def test_a_line_that_is_not_toml_is_refused_with_how_to_write_it(tmp_path, text, said):
    (problem,) = problems(tmp_path, text)
    assert problem.endswith(said)
    assert KEY not in problem


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (
            {"CHAT_NEST_LIMITS_TOKENS_PER_DAY": '"none"'},
            "CHAT_NEST_LIMITS_TOKENS_PER_DAY (in a file: limits.tokens_per_day): must be a whole number from 0 to "
            "1125899906842624, or none",
        ),
        ({"CHAT_NEST_SERVR_PORT": "1"}, "CHAT_NEST_SERVR_PORT: there is no such setting; did you mean CHAT_NEST_SERVER_PORT?"),
        (
            {"CHAT_NEST_PROVIDERS_OPENAI_APIKEY": KEY},
            "CHAT_NEST_PROVIDERS_OPENAI_APIKEY: there is no such setting; did you mean "
            "CHAT_NEST_PROVIDERS_OPENAI_API_KEY?",
        ),
        (
            {"CHAT_NEST_SERVER_PORT": "eighty"},
            "CHAT_NEST_SERVER_PORT (in a file: server.port): must be a whole number from 0 (any free port) to 65535",
        ),
        (
            {"CHAT_NEST_TIMEOUTS_IDLE": "nan"},
            "CHAT_NEST_TIMEOUTS_IDLE (in a file: timeouts.idle): must be a number of seconds above 0 and at most 86400",
        ),
        (
            {"CHAT_NEST_MODEL": "gpt-4o"},
            "CHAT_NEST_MODEL: is set, but no provider is: set OPENAI_API_KEY or OPENAI_BASE_URL",
        ),
        (
            {"OPENAI_BASE_URL": "https://api.openai.com/v1"},
            "OPENAI_BASE_URL: there is no API key: set OPENAI_API_KEY, or name another variable with api_key_env under "
            "[providers.openai]",
        ),
        ({"OPENAI_BASE_URL": "localhost:11434"}, "OPENAI_BASE_URL: must be a URL such as https://api.example.com/v1"),
        ({"OPENAI_API_KEY": f"{KEY}\n{KEY}"}, "OPENAI_API_KEY: must be a key of printable ASCII characters without spaces"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_refused_by_its_name(environ, said):
    with pytest.raises(ConfigError) as caught:
        load("", environ)
    assert caught.value.problems == (said,)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(ConfigError, match="nope.toml: there is no such file"):
        load(str(tmp_path / "nope.toml"), {})
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin.toml: must be UTF-8 text"):
        load(str(tmp_path / "latin.toml"), {})
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(str(tmp_path), {})


def test_a_byte_order_mark_and_crlf_are_fine(tmp_path):
    (tmp_path / "windows.toml").write_bytes(b"\xef\xbb\xbf[server]\r\nport = 5\r\n")
    assert load(str(tmp_path / "windows.toml"), {}).server.port == 5


# Keys stay secret.


def test_a_key_shows_in_no_repr_and_travels_to_another_process(tmp_path):
    config = loaded(tmp_path, f'[providers.openai]\napi_key = "{KEY}"\n')
    assert KEY not in repr(config)
    assert KEY not in str(config.providers)
    assert pickle.loads(pickle.dumps(config)).providers["openai"].api_key.reveal() == KEY


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.text(st.characters(codec="utf-8"), max_size=300))
def test_any_file_is_a_configuration_or_a_config_error(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text(text, newline="")
    try:
        load(str(file), {})
    except ConfigError as error:
        assert error.problems


# Groups, prices, and the proxy that says who asks.

MONEY = """
[providers.local]
base_url = "http://127.0.0.1:8081/v1"
[profiles.balanced]
model = "local:llama"
"""


def test_groups_and_prices_are_read(tmp_path):
    config = loaded(
        tmp_path,
        MONEY
        + """
usd_per_day = 0.5
[groups.default]
tokens_per_hour = 1000
[groups.acme]
usd_per_month = 20
[prices."local:*"]
input = 0.1
output = 0.2
cached_input = 0
""",
    )
    assert config.groups == {"default": Limits(tokens_per_hour=1000), "acme": Limits(usd_per_month=20.0)}
    assert config.prices["local:*"] == price(input=0.1, output=0.2, cached_input=0)
    assert config.profiles["balanced"].usd_per_day == 0.5


def test_the_demo_model_is_free():
    config = load("", {"CHAT_NEST_LIMITS_USD_PER_DAY": "1"})
    assert config.known_prices().of(config.model).rates[0].output == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MONEY + "usd_per_day = 0.5\n", "price of 'local:llama' is not known"),
        (MONEY + "[limits]\nusd_per_day = 1\n", "price of 'local:llama' is not known"),
        (MONEY + "[groups.a]\nusd_per_day = 1\n", "price of 'local:llama' is not known"),
        (MONEY + "usd_per_day = -1\n", "must be 0, or a number of dollars"),
        (MONEY + 'usd_per_day = "much"\n', "must be 0, or a number of dollars"),
        (MONEY + "[groups.a]\ntokens_per_dya = 1\n", "did you mean tokens_per_day?"),
        (MONEY + "[groups.a]\nrequests_per_minute = 1125899906842624\n", "requests_per_minute"),
        (MONEY + '[prices."local:llama"]\ninput = 1\n', "needs output, in dollars for a million tokens"),
        (MONEY + '[prices."local:llama"]\n', "needs input and output"),
        (MONEY + '[prices."llama"]\ninput = 1\noutput = 1\n', "must be PROVIDER:MODEL"),
        (MONEY + '[prices."other:m"]\ninput = 1\noutput = 1\n', "of a provider that is there; there are local:*"),
        (MONEY + '[prices."local:m"]\ninput = -1\noutput = 1\n', "must be a number of dollars from 0"),
        ('[server]\ncaller_header = "x-user"\n', "needs trusted_proxies"),
        ('[server]\ngroup_header = "x-team"\ntrusted_proxies = ["10.0.0.7"]\n', "must be names of headers"),
    ],
)
def test_money_that_can_not_be_counted_refuses_to_start(tmp_path, text, said):
    [problem] = problems(tmp_path, text)
    assert said in problem


# Records.


def test_records_are_kept_for_ninety_days_or_as_configured(tmp_path):
    assert load("", {}).records_days == 90
    assert loaded(tmp_path, "[store]\nrecords_days = 0.5\n").records_days == 0.5
    assert loaded(tmp_path, "[store]\nrecords_days = 7\n", CHAT_NEST_STORE_RECORDS_DAYS="0").records_days == 0
    assert problems(tmp_path, "[store]\nrecords_days = -1\n") == [
        "chat.toml:2: store.records_days: must be a number of days from 0, which keeps none, to 36500"
    ]


@pytest.mark.parametrize("url", ["memory://", "redis://user:hunter2@localhost/0"])
def test_days_of_records_are_noted_if_none_are_kept(tmp_path, url):
    scheme = url.partition(":")[0]
    config = loaded(tmp_path, f'[store]\nurl = "{url}"\nrecords_days = 7\n')
    assert [note.replace(f"{tmp_path}/", "") for note in config.notes if "records" in note] == [
        f"chat.toml:3: store.records_days: has no effect: a store of {scheme}:// keeps no records"
    ]
    assert not [note for note in loaded(tmp_path, f'[store]\nurl = "{url}"\n').notes if "records" in note]
    assert not [note for note in loaded(tmp_path, "[store]\nrecords_days = 7\n").notes if "records" in note]


def test_the_store_alone_needs_no_key(tmp_path):
    (tmp_path / "chat.toml").write_text('[providers.openai]\napi_key_env = "NOT_SET"\n[store]\nrecords_days = 3\n')
    store, zone = load_store(str(tmp_path / "chat.toml"), {"CHAT_NEST_SERVER_TIME_ZONE": "Asia/Tokyo"})
    assert (store.url, store.records_days, zone.key) == ("sqlite:///chat-nest.db", 3, "Asia/Tokyo")
    (tmp_path / "chat.toml").write_text("[store]\nurll = 'x'\n")
    with pytest.raises(ConfigError, match="there is no such key"):
        load_store(str(tmp_path / "chat.toml"), {})


def test_a_store_without_its_driver_is_named_once(tmp_path, monkeypatch):
    for name in [each for each in sys.modules if re.match(r"chat_nest\.(stores|runs)\.redis", each)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hiredis", None)
    [problem] = problems(tmp_path, '[store]\nurl = "redis://h"\n')
    assert problem.endswith(f"store.url: Redis needs a package that is not installed: run: {install('redis')}")
    assert problem.count("store.url") == 1


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("store.url", ["x", "redis://", "redis://h/x", "rediss://h?x=1", "postgresql://[", "sqlite:///no/such/x.db"]),
        ("store.journal", ["/dev/null"]),
        ("runs.url", ["x", "redis://", "redis://h/x", "local://x"]),
        ("server.caller_header", ["a b"]),
        ("server.trusted_proxies", [["x"]]),
        ("server.origins", [["x y"]]),
        ("server.time_zone", ["x"]),
        ("identity.keys_file", ["nowhere.json"]),
        ("identity.jwt_algorithms", [["none"]]),
        ("dialects.native", ["x y"]),
        ("providers.openai.kind", ["x", "Groq"]),
        ("providers.openai.base_url", ["x"]),
        ("providers.openai.abort_bills", ["x"]),
        ("profiles.balanced.model", ["x"]),
        ("profiles.balanced.on_disconnect", ["x"]),
        ("limits.tokens_per_minute", [2**50]),
        ("limits.usd_per_day", [1e-12]),
        ("degraded.tokens", [5]),
        ("default_profile", ["x"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_problem_names_its_key_twice(tmp_path, key, values):
    *tables, name = key.split(".")
    for value in values:
        head = f"[{'.'.join(tables)}]\n" if tables else ""
        found = problems(tmp_path, f"{head}{name} = {json.dumps(value)}\n")
        assert found, value
        for problem in found:
            assert problem.count(key) <= 1, problem
            assert not problem.partition(f"{key}: ")[2].startswith((name, key)), problem
            words = [part.strip() for part in problem.split(": ")]
            assert len(set(words)) == len(words), problem


def test_the_old_name_of_origins_has_the_same_meaning(tmp_path):
    config = loaded(tmp_path, '[server]\ncors_origins = ["https://example.com"]\n')
    assert config.server.origins == ("https://example.com",)
    assert any("server.cors_origins: is the old name of origins" in note for note in config.notes)
    (problem,) = problems(tmp_path, '[server]\ncors_origins = ["*"]\norigins = ["*"]\n')
    assert problem.endswith("chat.toml:2: server.cors_origins: is the old name of origins: keep origins only")
    (problem,) = problems(tmp_path, '[server]\ncors_origins = ["example.com"]\n')
    assert "server.cors_origins: 'example.com' must be `*` or an origin" in problem
