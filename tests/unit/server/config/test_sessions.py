"""[sessions]: secrets from a file or a variable, and settings without use."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from chat_nest.identity.api_key import Rights
from chat_nest.identity.key_file import create_key
from chat_nest.identity.sessions import Sessions
from chat_nest.server.config.identity import make_keys
from chat_nest.server.config.sessions import make_sessions
from chat_nest.server.config.settings import Config, load
from chat_nest.server.config.sources import ConfigError

OLD, NEW = "canary-old-secret-" + "5b" * 12, "canary-new-secret-" + "6c" * 12


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("secrets").write_text(f"# the first signs\n{NEW}\n\n {OLD} \n")
    return tmp_path


def loaded(text: str = "", **environ: str) -> Config:
    Path("chat.toml").write_text(text)
    return load("chat.toml", environ)


def made(config: Config) -> Sessions:
    sessions = make_sessions(config.sessions, config.identity, (), make_keys(config.identity))
    assert sessions is not None
    return sessions


def accepts(sessions: Sessions, secret: str) -> bool:
    token = Sessions([secret]).create(caller="ada").token
    try:
        return bool(sessions({"type": "http", "headers": [(b"x-api-key", token.encode())]}))
    except Exception:
        return False


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        (f'[sessions]\nsecrets = ["{NEW}", "{OLD}"]\n', {}),
        ('[sessions]\nsecrets_file = "secrets"\n', {}),
        ("", {"CHAT_NEST_SESSIONS_SECRETS": f"{NEW}, {OLD}"}),
        ('[sessions]\nsecrets_file = "none"\n', {"CHAT_NEST_SESSIONS_SECRETS": f"{NEW},{OLD}"}),
    ],
)
def test_the_first_secret_signs_and_all_are_accepted(text: str, environ: dict[str, str]) -> None:
    config = pickle.loads(pickle.dumps(loaded(text, **environ)))
    assert "canary" not in repr(config)
    assert config.identity.ways == ("session",)
    sessions = made(config)
    assert accepts(sessions, NEW)
    assert accepts(sessions, OLD)
    assert not accepts(sessions, OLD[::-1])
    only_new = Sessions([NEW])
    assert only_new({"type": "http", "headers": [(b"x-api-key", sessions.create(caller="ada").token.encode())]})
    assert sessions.operators is None, "no key may make one: there is no file of keys"


def test_with_a_file_of_keys_both_ways_are_accepted() -> None:
    create_key(Path("keys.json"), OLD.encode(), Rights(caller="ada"))
    environ = {"CHAT_NEST_IDENTITY_KEYS_FILE": "keys.json", "CHAT_NEST_IDENTITY_SECRET": OLD}
    config = loaded(CHAT_NEST_SESSIONS_SECRETS=NEW, **environ)
    assert config.identity.ways == ("api_key", "session")
    assert made(config).operators is not None
    assert make_sessions(loaded(**environ).sessions, config.identity, (), None) is None


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ("[sessions]\n", {}, "sessions.secrets: needs a secret: set CHAT_NEST_SESSIONS_SECRETS to one of your own"),
        ("", {"CHAT_NEST_SESSIONS_SECRETS": "canary"}, "sessions.secrets): secret 1: the secret must have at least 32"),
        (
            "",
            {"CHAT_NEST_SESSIONS_SECRETS": f"{NEW},canary"},
            "CHAT_NEST_SESSIONS_SECRETS (in a file: sessions.secrets): secret 2: the secret must have at least 32 bytes",
        ),
        ('[sessions]\nsecrets_file = "none"\n', {}, "chat.toml:2: sessions.secrets_file: can't be read: No such file"),
        (
            f'[sessions]\nsecrets_file = "secrets"\nsecrets = ["{NEW}"]\n',
            {},
            "sessions.secrets_file: give either secrets or secrets_file, not both",
        ),
        (
            f'[identity]\naccept = ["address"]\n[sessions]\nsecrets = ["{NEW}"]\n',
            {},
            'sessions: has no meaning while identity.accept leaves "session" out',
        ),
        (f'[sessions]\nsecrets = ["{NEW}"]\nexpires_in = 86401\n', {}, "sessions.expires_in: must be at most 86400"),
        ('[identity]\naccept = ["session"]\n', {}, "identity.accept: session needs [sessions]"),
    ],
)
def test_missing_and_useless_settings_are_named(text: str, environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(text, **environ)
    assert any(said in problem for problem in caught.value.problems), caught.value.problems
    assert "canary" not in str(caught.value)
