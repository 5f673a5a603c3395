"""[identity]: the ways to identify callers, alone and together."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from scripted_provider import ScriptedProvider, answer
from signing_keys import EC_KEY, RSA_KEY, pem

from chat_nest.identity.api_key import Rights
from chat_nest.identity.api_keys import ApiKeys
from chat_nest.identity.jwt import JsonWebTokens
from chat_nest.identity.key_file import create_key, revoke_keys
from chat_nest.identity.peer import PeerAddress
from chat_nest.identity.trusted_header import TrustedHeader
from chat_nest.server.app import build
from chat_nest.server.config.excerpts import load_keys
from chat_nest.server.config.identity import make_identify, make_keys
from chat_nest.server.config.settings import Config, load
from chat_nest.server.config.sources import ConfigError

SECRET = "canary-secret-0123456789abcdef-0123456789abcdef"
KEYS = {"CHAT_NEST_IDENTITY_KEYS_FILE": "keys.json", "CHAT_NEST_IDENTITY_SECRET": SECRET}
TOKENS = '[identity]\njwt_algorithms = ["RS256"]\njwt_keys_file = "key.pem"\njwt_audience = "chat"\n'
HEADER = '[server]\ntrusted_proxies = ["10.0.0.7"]\ncaller_header = "x-user"\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """There are keys in it."""
    monkeypatch.chdir(tmp_path)
    create_key(Path("keys.json"), SECRET.encode(), Rights(caller="ada"))
    Path("key.pem").write_bytes(pem(RSA_KEY))
    return tmp_path


def loaded(text: str = "", **environ: str) -> Config:
    Path("chat.toml").write_text(text)
    return load("chat.toml", environ)


def identify(config: Config) -> object:
    return make_identify(config.server, config.identity, keys=make_keys(config.identity))


def problems(text: str = "", **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(text, **environ)
    assert "canary" not in str(caught.value)
    return list(caught.value.problems)


def test_each_way_is_chosen_by_its_settings():
    assert isinstance(identify(loaded()), PeerAddress)
    assert isinstance(identify(loaded(HEADER)), TrustedHeader)
    assert isinstance(identify(loaded(**KEYS)), ApiKeys)
    assert isinstance(identify(loaded(TOKENS)), JsonWebTokens)
    environ = {"CHAT_NEST_IDENTITY_JWT_ALGORITHMS": "HS256", "CHAT_NEST_IDENTITY_JWT_AUDIENCE": "chat"}
    assert isinstance(identify(loaded(**environ, CHAT_NEST_IDENTITY_SECRET=SECRET)), JsonWebTokens)


@pytest.mark.parametrize(
    ("text", "environ", "ways"),
    [
        ("", {}, ("address",)),
        (TOKENS, KEYS, ("api_key", "jwt")),
        (HEADER + TOKENS, KEYS, ("api_key", "jwt", "header")),
        (TOKENS + 'accept = ["address", "jwt"]\n', KEYS, ("jwt", "address")),
        (HEADER, {"CHAT_NEST_IDENTITY_ACCEPT": "address, header"}, ("header", "address")),
        (TOKENS, {**KEYS, "CHAT_NEST_IDENTITY_ACCEPT": "address"}, ("address",)),
    ],
)
def test_several_ways_are_accepted_from_the_strongest_to_the_weakest(text, environ, ways):
    config = loaded(text, **environ)
    assert config.identity.ways == ways
    kinds = {"api_key": ApiKeys, "jwt": JsonWebTokens, "header": TrustedHeader, "address": PeerAddress}
    made = identify(config)
    found = [made] if len(ways) == 1 else made._ways  # type: ignore[attr-defined]
    assert [type(each) for each in found] == [kinds[way] for way in ways]


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        (f'[identity]\nkeys_file = "keys.json"\nsecret = "{SECRET}"\n', {}),
        ('[identity]\nkeys_file = "keys.json"\nsecret_env = "MINE"\n', {"MINE": f" {SECRET}\n"}),
        ('[identity]\nkeys_file = "keys.json"\nsecret_env = "MINE"\n', {"CHAT_NEST_IDENTITY_SECRET": SECRET}),
        ('[identity]\nkeys_file = "keys.json"\nsecret = "x"\n', {"CHAT_NEST_IDENTITY_SECRET": SECRET}),
    ],
)
def test_the_secret_comes_from_either_place_and_is_shown_nowhere(text, environ):
    config = loaded(text, **environ)
    assert isinstance(identify(config), ApiKeys)
    assert "canary" not in repr(config)
    assert isinstance(identify(pickle.loads(pickle.dumps(config))), ApiKeys), "as workers get it"


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ('[identity]\naccept = ["canary"]\n', {}, "accept: must be some of api_key, session, jwt, header, visitor, address"),
        ('[identity]\naccept = ["api_key"]\n', {}, "chat.toml:2: identity.accept: api_key needs identity.keys or identity.keys_file"),
        ('[identity]\naccept = ["jwt"]\n', KEYS, "identity.accept: jwt needs identity.jwt_algorithms"),
        ('[identity]\naccept = ["header", "address"]\n', {}, "identity.accept: header needs server.caller_header"),
        ('[identity]\naccept = ["visitor"]\n', {}, "identity.accept: visitor needs [visitors]"),
        (TOKENS, {"CHAT_NEST_IDENTITY_SECRET": SECRET}, "identity.jwt_algorithms: RS256 need a file of public keys"),
        ("", {"CHAT_NEST_IDENTITY_SECRET": SECRET}, "identity.secret): has no meaning without keys, keys_file, jwt"),
        ("[identity]\njwt_leeway = 3\n", {}, "chat.toml:2: identity.jwt_leeway: needs jwt_algorithms"),
        ("[identity]\njwt_leeway = 301\n", {}, "must be a number of seconds from 0 to 300"),
        (TOKENS.replace("RS256", "none"), {}, "the algorithms must be some of ES256, EdDSA, HS256, RS256"),
        (TOKENS.replace('"RS256"', '"RS256", "HS256"'), {}, "HS256 can't be accepted beside"),
        (TOKENS.replace("jwt_audience", "jwt_issuer"), {}, "an audience is needed"),
        (TOKENS.replace("key.pem", "other.pem"), {}, "chat.toml:3: identity.jwt_keys_file: other.pem: there is no such file"),
        ("[identity]\n", {}, "chat.toml:1: identity: has no meaning without keys, keys_file, jwt_algorithms or accept"),
        (TOKENS.replace("RS256", "ES256"), {}, "its key can't be used for ES256"),
        ('[identity]\nkeys_file = "keys.json"\n', {}, "needs a secret, with which the keys' hashes are made: set CHAT"),
        ("", {**KEYS, "CHAT_NEST_IDENTITY_SECRET": "canary"}, "must have at least 32 bytes, and be random; set CHAT_NEST"),
        ("", {**KEYS, "CHAT_NEST_IDENTITY_SECRET": SECRET + "x"}, "its keys were made with another secret"),
        ("", {**KEYS, "CHAT_NEST_IDENTITY_KEYS_FILE": "no.json"}, "no such file; make it, and a key, with `chat-nest keys"),
        (f'[identity]\nkeys_file = "keys.json"\nsecret_env = "{SECRET}"\n', {}, "must name an environment variable"),
        (
            f'[identity]\nkeys_file = "keys.json"\nsecret = "{SECRET}"\nsecret_env = "MINE"\n',
            {"MINE": SECRET},
            "identity.secret_env: give either secret or secret_env, not both",
        ),
        (f'[identity]\nkeys = "store"\nkeys_file = "keys.json"\nsecret = "{SECRET}"\n', {"CHAT_NEST_STORE_URL": "sqlite:///x.db"}, "identity.keys: give either keys or keys_file, not both"),
        ('[identity]\nkeys = "canary"\n', {}, 'identity.keys: must be "store"; keys_file is for keys in a file'),
        ('[identity]\nkeys = "store"\n', {"CHAT_NEST_STORE_URL": "sqlite:///x.db"}, "identity.keys: needs a secret"),
        (f'[identity]\nkeys = "store"\nsecret = "{SECRET}"\n', {"CHAT_NEST_STORE_URL": "memory://"}, "identity.keys: needs a store that outlives the server"),
        ('[identity]\nkey_file = "keys.json"\n', {}, "there is no such key; did you mean keys_file?"),
    ],
)  # fmt: skip
def test_contradictory_and_missing_settings_are_named(text, environ, said):
    (problem,) = problems(text, **environ)
    assert said in problem


def test_keys_of_a_profile_that_is_gone_are_noted():
    ids = [
        create_key(Path("keys.json"), SECRET.encode(), Rights(caller="ada", profiles=("balanced", name)))[0].id
        for name in ("Expanded", "canary", "free", "canary")
    ]
    revoke_keys(Path("keys.json"), [ids[3]])
    [note] = [note for note in loaded(**KEYS).notes if "name a profile" in note]
    assert note.endswith(f"so their requests get 403: {ids[1]}")
    assert "canary" not in note


def test_keys_can_be_managed_without_a_provider_and_before_there_is_a_file():
    Path("keys.json").unlink()
    Path("chat.toml").write_text('[providers.x]\nkind = "anthropic"\n[groups.acme]\nusd_per_day = 1\n')
    found = load_keys("chat.toml", KEYS)
    identity = found.identity
    assert (identity.section.keys_file, identity.secret.reveal(), found.groups) == ("keys.json", SECRET, {"acme"})
    with pytest.raises(ConfigError, match="name the file of the keys"):
        load_keys("chat.toml", {})


def test_another_key_than_the_ones_of_the_file_is_of_no_use():
    Path("key.pem").write_bytes(pem(EC_KEY))
    assert problems(TOKENS) == ["chat.toml:3: identity.jwt_keys_file: key.pem: its key can't be used for RS256"]


@pytest.mark.parametrize("way", ["keys.json", "key.pem"])
async def test_row24_the_server_is_not_ready_while_its_file_can_not_be_read(way, monkeypatch):
    monkeypatch.setattr("chat_nest.core.watched_file.LOOK_SECONDS", 0.0)
    async with ScriptedProvider(answer("x")) as provider:
        environ = {"OPENAI_BASE_URL": provider.url, "CHAT_NEST_STORE_URL": "memory://"}
        app = build(loaded(TOKENS, **environ) if way == "key.pem" else loaded(**environ, **KEYS))
        try:
            assert (await app._health._ask()).ready
            Path(way).unlink()
            found = await app._health._ask()
            assert (found.ready, found.store.status) == (False, "ok")
        finally:
            await app._handler.aclose()
