"""Several ways to identify a caller: the first that applies, and none weaker than what the request presents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any

import jwt
import pytest

from chat_nest.core.errors import LimiterUnavailable, Unauthorized
from chat_nest.core.messages import Caller
from chat_nest.identity.api_keys import ApiKeys
from chat_nest.identity.first_of import FirstOf
from chat_nest.identity.guarded import Guarded
from chat_nest.identity.jwt import JsonWebTokens
from chat_nest.identity.api_key import Rights
from chat_nest.identity.key_file import create_key
from chat_nest.identity.peer import PeerAddress
from chat_nest.identity.trusted_header import TrustedHeader

SECRET = b"s" * 32
TOKEN = jwt.encode({"sub": "ada", "aud": "chat", "exp": time() + 86_400}, SECRET, "HS256")
FORGED = jwt.encode({"sub": "ada", "aud": "chat", "exp": time() + 86_400}, b"t" * 32, "HS256")
PROXY, STRANGER = "10.0.0.7", "203.0.113.9"


@pytest.fixture
def made(tmp_path: Path) -> tuple[ApiKeys, str]:
    file = tmp_path / "keys.json"
    _, key = create_key(file, SECRET, Rights(caller="ada"))
    return ApiKeys(file, SECRET), key


def scope(peer: str = STRANGER, **headers: str) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "client": (peer, 1), "headers": named}


def who(chain: Any, peer: str = STRANGER, **headers: str) -> str:
    try:
        return chain(scope(peer, **headers)).id
    except Unauthorized:
        return "refused"


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "x-goog-api-key", "api-key"])
def test_a_credential_belongs_to_one_way_and_never_falls_through(made: tuple[ApiKeys, str], header: str) -> None:
    keys, key = made
    chain = FirstOf(keys, JsonWebTokens(["HS256"], "chat", secret=SECRET), PeerAddress())

    def sent(credential: str) -> Mapping[str, str]:
        return {header: f"Bearer {credential}" if header == "authorization" else credential}

    assert who(chain, **sent(key)) == "key:ada"
    assert who(chain, **sent(TOKEN)) == "jwt:ada"
    assert who(chain) == STRANGER
    for wrong in (key[:-1], key[:-1] + ("a" if key[-1] != "a" else "b"), FORGED, TOKEN[:-1], "sk-1234", "", "a b"):
        assert who(chain, **sent(wrong)) == "refused", wrong
        assert not chain.is_stranger(scope(**sent(wrong)))
    assert who(chain, **sent(key), **{"x_api_key" if header != "x-api-key" else "api_key": key}) == "refused"
    assert chain.is_stranger(scope())
    assert who(chain, authorization=f"Basic {key}") == "refused"


def test_a_header_of_a_proxy_comes_before_the_address_and_is_believed_of_the_proxy_only(
    made: tuple[ApiKeys, str],
) -> None:
    keys, key = made
    chain = FirstOf(keys, TrustedHeader([PROXY], "x-user"), PeerAddress([PROXY]))
    assert who(chain, PROXY, x_user="eve") == "user:eve"
    assert who(chain, PROXY, x_user="eve", x_api_key=key) == "key:ada"
    assert who(chain, PROXY, x_user="eve", x_api_key="cn_wrong") == "refused"
    assert who(chain, PROXY, x_user="") == "refused", "a proxy that names an empty user"
    assert who(chain, STRANGER, x_user="eve") == "refused", "a stranger who claims to be a proxy's user"
    assert who(chain, PROXY, x_forwarded_for=STRANGER) == STRANGER
    assert not chain.is_stranger(scope(PROXY, x_user="eve"))
    assert chain.is_stranger(scope(PROXY))
    without = FirstOf(keys, TrustedHeader([PROXY], "x-user"))
    assert who(without, PROXY) == "refused"
    assert not without.is_stranger(scope(PROXY))


def test_a_custom_function_gets_requests_that_no_way_before_it_claims(made: tuple[ApiKeys, str]) -> None:
    keys, key = made

    def own(scope: Any) -> Caller:
        return Caller(id="own" if dict(scope["headers"]).get(b"authorization") == b"Bearer mine" else "nobody")

    chain = FirstOf(keys, own)
    assert who(chain, authorization="Bearer mine") == "own"
    assert who(chain) == "nobody"
    assert who(chain, x_api_key=key) == "key:ada"
    assert who(chain, x_api_key=key[:-1]) == "refused"
    assert not chain.is_stranger(scope())


def test_without_keys_a_placeholder_in_their_place_is_ignored() -> None:
    chain = FirstOf(TrustedHeader([PROXY], "x-user"), PeerAddress())
    assert who(chain, authorization="Bearer sk-placeholder") == STRANGER


def test_the_rate_of_refusals_knows_strangers_too(made: tuple[ApiKeys, str]) -> None:
    keys, _ = made
    assert Guarded(FirstOf(keys, PeerAddress()), PeerAddress()).is_stranger(scope())
    assert not Guarded(keys, PeerAddress()).is_stranger(scope())


async def test_each_file_is_checked(made: tuple[ApiKeys, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_nest.core.watched_file.LOOK_SECONDS", 0.0)
    chain = FirstOf(made[0], PeerAddress())
    await chain.check()
    (tmp_path / "keys.json").unlink()
    with pytest.raises(LimiterUnavailable):
        await chain.check()


def test_what_can_not_work_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="at least one way"):
        FirstOf()
    with pytest.raises(ValueError, match="PeerAddress would never be used"):
        FirstOf(PeerAddress(), PeerAddress())
