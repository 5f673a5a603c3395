"""JSON Web Tokens: which are believed, and which files of keys are."""

from __future__ import annotations

import hmac
import json
import re
import sys
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from time import time
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from signing_keys import EC_KEY, ED_KEY, RSA_KEY, pem

from chat_nest.core.errors import Unauthorized
from chat_nest.core.extras import install
from chat_nest.identity.jwt import MAX_TOKEN, JsonWebTokens
from chat_nest.core.watched_file import LOOK_SECONDS
from chat_nest.core.limits import Limits
from chat_nest.core.messages import Caller

SECRET = "0123456789abcdef0123456789abcdef"
OTHER_EC = ec.generate_private_key(ec.SECP256R1())
SIGNERS = {"HS256": SECRET, "RS256": RSA_KEY, "ES256": EC_KEY, "EdDSA": ED_KEY}
ISSUER = "https://login.test/"


def token(algorithm: str = "HS256", key: Any = None, head: Mapping[str, Any] | None = None, **claims: Any) -> str:
    held: dict[str, Any] = {"sub": "ada", "aud": "chat", "iss": ISSUER, "exp": int(time()) + 600, **claims}
    held = {name: value for name, value in held.items() if value is not None}
    return jwt.encode(held, key or SIGNERS[algorithm], algorithm, headers=dict(head or {}))  # type: ignore[arg-type]


def b64(data: bytes | dict[str, Any]) -> str:
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def by_hand(head: bytes | dict[str, Any], claims: bytes | dict[str, Any], secret: bytes = SECRET.encode()) -> str:
    """A token with a good HS256 signature over whatever it says."""
    signed = f"{b64(head)}.{b64(claims)}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), 'sha256'))}"


def asking(token: str, header: str = "authorization") -> dict[str, Any]:
    value = f"Bearer {token}" if header == "authorization" else token
    return {"type": "http", "headers": [(header.encode(), value.encode("latin-1"))]}


def hs256(**options: Any) -> JsonWebTokens:
    return JsonWebTokens(["HS256"], "chat", **{"secret": SECRET, **options})


def of_file(folder: Path, content: bytes | Mapping[str, Any], algorithms: Sequence[str]) -> JsonWebTokens:
    file = folder / "keys"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return JsonWebTokens(algorithms, "chat", keys_file=file)


def jwk(key: Any, kid: str | None = None, **more: Any) -> dict[str, Any]:
    kinds = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    kind = next((kind for of, kind in kinds.items() if isinstance(key, of)), OKPAlgorithm)
    return {**kind.to_jwk(key.public_key(), as_dict=True), **({"kid": kid} if kid else {}), **more}  # type: ignore[attr-defined]


def refuse(identify: JsonWebTokens, scope: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized) as caught:
        identify(scope)
    assert (caught.value.message, caught.value.challenge) == ("Authentication is required", "Bearer")


# Which tokens are believed.


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256", "EdDSA"])
def test_each_algorithm_names_its_caller(tmp_path, algorithm):
    if algorithm == "HS256":
        identify = hs256()
    else:
        identify = of_file(tmp_path, pem(SIGNERS[algorithm]), [algorithm])
    for header in ("authorization", "x-api-key"):
        assert identify(asking(token(algorithm), header)) == Caller(id="jwt:ada")
    assert identify(asking(token(algorithm, aud=["shop", "chat"], iat=int(time()), nbf=int(time())))).id == "jwt:ada"
    for other in {"HS256", "RS256", "ES256", "EdDSA"} - {algorithm}:
        refuse(identify, asking(token(other)))


def test_the_claims_are_the_operators_choice():
    identify = hs256(caller_claim="email", group_claim="tenant")
    assert identify(asking(token(email="a@b", tenant="acme"))) == Caller(id="jwt:a@b", group="acme")
    assert identify(asking(token(email="a@b"))) == Caller(id="jwt:a@b")
    for claims in ({}, {"email": ""}, {"email": 7}, {"email": ["a"]}, {"email": "a\0"}, {"email": "x" * 257}):
        refuse(identify, asking(token(**claims)))
    for tenant in (7, "", ["acme"], {"a": 1}, "a\ud800", "x" * 257, False):
        refuse(identify, asking(by_hand({"alg": "HS256"}, {**CLAIMS, "email": "a", "tenant": tenant})))
    assert hs256()(asking(token(tenant=["a"]))) == Caller(id="jwt:ada"), "nobody asked for that claim"


def test_claims_give_profiles_and_limits():
    identify = hs256(profiles_claim="https://chat.test/profiles", limits_claim="limits")
    for profiles, expected in (("expanded", ("expanded",)), (["a", "b"], ("a", "b")), (None, None)):
        caller = identify(asking(by_hand({"alg": "HS256"}, {**CLAIMS, "https://chat.test/profiles": profiles})))
        assert (caller.profiles, caller.shares) == (expected, ())
    limits = {"tokens_per_day": 500, "usd_per_month": 2.5, "requests_per_day": "none", "concurrent_streams": None}
    [share] = identify(asking(token(limits=limits))).shares
    assert (share.scope, share.id) == ("key", "jwt:ada"), "all tokens of a caller share them"
    assert share.limits == Limits(tokens_per_day=500, usd_per_month=2.5)
    assert identify(asking(token(limits={}))).shares == ()
    assert hs256()(asking(token(limits={"canary": 1}, profiles=7))) == Caller(id="jwt:ada")


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        *(("profiles", value) for value in (7, "", [], [""], ["a", 7], {"a": 1}, ["a"] * 51, "a\0", ["x" * 257], True)),
        *(("limits", value) for value in (7, "none", ["tokens_per_day"], {"canary": 1}, {"max_output_tokens": 1})),
        *(("limits", {"tokens_per_day": value}) for value in (-1, 1.5, "5", True, 2**60, [1], float("inf"))),
        ("limits", {"usd_per_day": 10**9}),
    ],
    ids=repr,
)
def test_a_claim_that_breaks_its_rule_is_refused_and_logged_once(caplog, claim, value):
    identify = hs256(profiles_claim="profiles", limits_claim="limits")
    for _ in range(3):
        refuse(identify, asking(by_hand({"alg": "HS256"}, {**CLAIMS, claim: value})))
    [line] = caplog.messages
    assert line.startswith(f"a signed token is refused: its claim {claim}: ")
    assert "canary" not in line


def test_a_required_issuer_must_be_in_the_token():
    refuse(hs256(issuer=ISSUER), asking(token(iss="https://evil.test/")))
    refuse(hs256(issuer=ISSUER), asking(token(iss=None)))
    assert hs256(issuer=ISSUER)(asking(token())) == hs256()(asking(token(iss="whoever"))) == Caller(id="jwt:ada")


CLAIMS: dict[str, Any] = {"sub": "ada", "aud": "chat", "exp": 4_000_000_000}
HEAD = {"alg": "HS256", "typ": "JWT"}


def test_a_token_made_by_hand_would_be_believed():
    assert hs256()(asking(by_hand(HEAD, CLAIMS))) == Caller(id="jwt:ada")


@pytest.mark.parametrize(
    "bad",
    [
        token("HS256", "another secret of 32 bytes or more"),
        token(aud="shop"),
        token(aud=["shop"]),
        token(aud=None),
        token(aud="Chat"),
        token(exp=None),
        token(exp=int(time()) - 31),
        token(nbf=int(time()) + 600),
        token(iat=int(time()) + 600),
        token(sub=None),
        token()[:-1] + "-",
        token() + "a",
        token().rpartition(".")[0],
        token().rpartition(".")[0] + ".",
        "." + token(),
        "..",
        "a",
        by_hand({}, CLAIMS),
        by_hand({"alg": "none"}, CLAIMS),
        by_hand({"alg": "None"}, CLAIMS),
        by_hand({"alg": None}, CLAIMS),
        by_hand({"alg": ["HS256"]}, CLAIMS),
        by_hand({"alg": "hs256"}, CLAIMS),
        by_hand({"alg": "HS512"}, CLAIMS),
        by_hand({"alg": "RS256"}, CLAIMS),
        by_hand({**HEAD, "crit": ["exp"]}, CLAIMS),
        by_hand({**HEAD, "crit": []}, CLAIMS),
        by_hand({**HEAD, "b64": True, "crit": ["b64"]}, CLAIMS),
        by_hand({**HEAD, "b64": False}, CLAIMS),
        by_hand({**HEAD, "b64": False, "crit": ["b64"]}, CLAIMS),
        by_hand({**HEAD, "kid": 7}, CLAIMS),
        by_hand({**HEAD, "kid": {"a": 1}}, CLAIMS),
        by_hand(b"[]", CLAIMS),
        by_hand(b"\xff", CLAIMS),
        by_hand(b"{", CLAIMS),
        by_hand(HEAD, b"[]"),
        by_hand(HEAD, b'"ada"'),
        by_hand(HEAD, b"null"),
        by_hand(HEAD, b"[" * 2_000),
        by_hand(HEAD, b'{"a":' * 1_000),
        *(
            by_hand(HEAD, {**CLAIMS, "exp": exp})
            for exp in (True, "4000000000", float("inf"), float("nan"), [], {}, None, 0, -1, "soon")
        ),
        *(by_hand(HEAD, {**CLAIMS, "aud": aud}) for aud in (None, 7, [], {}, [7], {"chat": 1}, [["chat"]])),
        *(by_hand(HEAD, {**CLAIMS, "sub": sub}) for sub in (None, 7, "", [], "a\ud800", "a\n", "x" * 257)),
        *(by_hand(HEAD, {**CLAIMS, "nbf": nbf}) for nbf in ("soon", [], float("inf"), {})),
        "x" * MAX_TOKEN,
        "' OR 1=1; --",
        "é.é.é",
    ],
)
def test_row24_every_other_token_is_the_same_401(bad):
    refuse(hs256(), asking(bad))


def test_row24_a_token_without_a_signature_is_always_refused(tmp_path):
    unsigned = jwt.encode(CLAIMS, None, "none")  # type: ignore[arg-type]
    for algorithms, keys in [(["RS256"], pem(RSA_KEY)), (["ES256"], pem(EC_KEY)), (["EdDSA"], pem(ED_KEY))]:
        identify = of_file(tmp_path, keys, algorithms)
        refuse(identify, asking(unsigned))
        refuse(identify, asking(by_hand(HEAD, CLAIMS, keys)))  # the public key as a secret
        refuse(identify, asking(by_hand({**HEAD, "alg": algorithms[0]}, CLAIMS, keys)))


def test_row24_a_key_that_a_token_brings_along_is_not_used(tmp_path):
    identify = of_file(tmp_path, {"keys": [jwk(EC_KEY, "a")]}, ["ES256"])
    own = {"jwk": jwk(OTHER_EC), "jku": "http://127.0.0.1:1/jwks", "x5u": "http://127.0.0.1:1/x", "kid": "a"}
    refuse(identify, asking(token("ES256", OTHER_EC, own)))
    assert identify(asking(token("ES256", EC_KEY, own))) == Caller(id="jwt:ada")


def test_clocks_may_differ_by_the_leeway_only():
    just_over = token(exp=int(time()) - 20)
    assert hs256()(asking(just_over)) == Caller(id="jwt:ada")
    refuse(hs256(leeway=0), asking(just_over))


def test_a_token_is_refused_for_its_size_before_it_is_looked_into():
    long = token(more="x" * MAX_TOKEN)
    identify = hs256()
    looked_into: list[str] = []
    identify._jwt = SimpleNamespace(get_unverified_header=looked_into.append)  # type: ignore[assignment]
    refuse(identify, asking(long))
    assert looked_into == []
    refuse(identify, asking("x" * MAX_TOKEN))
    assert looked_into == ["x" * MAX_TOKEN]


@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_no_text_is_a_token(text):
    refuse(WITH_SECRET, asking(text))


WITH_SECRET = hs256()
GOOD = by_hand(HEAD, CLAIMS)


@given(st.integers(0, len(GOOD) - 1), st.sampled_from("ABab01-_.={ "))
def test_a_modified_token_is_refused_or_means_the_same(at, letter):
    """The last letter of a part in base64 has bits that mean nothing."""
    touched = GOOD[:at] + letter + GOOD[at + 1 :]
    try:
        caller = WITH_SECRET(asking(touched))
    except Unauthorized:
        return
    assert caller == Caller(id="jwt:ada")
    assert touched == GOOD or touched.rpartition(".")[0] == GOOD.rpartition(".")[0]


# Which keys are used.


def test_in_a_set_the_kid_chooses(tmp_path):
    set = {
        "keys": [
            jwk(EC_KEY, "a", use="sig", alg="ES256"),
            jwk(OTHER_EC, "b"),
            jwk(RSA_KEY, "r"),
            jwk(ED_KEY),
            jwk(ec.generate_private_key(ec.SECP384R1()), "p384"),
            {"kty": "later", "kid": "later"},
        ]
    }
    identify = of_file(tmp_path, set, ["ES256", "RS256", "EdDSA"])
    ada = Caller(id="jwt:ada")
    assert identify(asking(token("ES256", EC_KEY, {"kid": "a"}))) == ada
    assert identify(asking(token("ES256", OTHER_EC, {"kid": "b"}))) == ada
    assert identify(asking(token("RS256", RSA_KEY, {"kid": "r"}))) == ada
    assert identify(asking(token("RS256", RSA_KEY))) == ada, "there is only one for RS256"
    assert identify(asking(token("EdDSA", ED_KEY, {"kid": "new"}))) == ada, "a key without a name fits any"
    refuse(identify, asking(token("ES256", EC_KEY, {"kid": "b"})))
    refuse(identify, asking(token("ES256", EC_KEY, {"kid": "c"})))
    refuse(identify, asking(token("ES256", EC_KEY)))
    refuse(identify, asking(token("RS256", RSA_KEY, {"kid": "a"})))


def test_a_key_for_something_else_is_left_out(tmp_path):
    set = {"keys": [jwk(EC_KEY, "a"), jwk(RSA_KEY, "enc", use="enc"), jwk(RSA_KEY, "ps", alg="PS256")]}
    identify = of_file(tmp_path, set, ["ES256", "RS256"])
    for kid in ("enc", "ps"):
        refuse(identify, asking(token("RS256", RSA_KEY, {"kid": kid})))
    only = of_file(tmp_path, {"keys": [jwk(EC_KEY, "a"), jwk(RSA_KEY, "r")]}, ["ES256"])
    refuse(only, asking(token("RS256", RSA_KEY, {"kid": "r"})))


SHORT = rsa.generate_private_key(public_exponent=65_537, key_size=1_024)
PRIVATE = EC_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("content", "algorithms", "said"),
    [
        (PRIVATE, ["ES256"], "holds a private key"),
        (pem(RSA_KEY), ["ES256"], "can't be used for ES256"),
        (pem(EC_KEY), ["RS256"], "can't be used for RS256"),
        (pem(ec.generate_private_key(ec.SECP384R1())), ["ES256"], "can't be used for ES256"),
        (pem(SHORT), ["RS256"], "too short"),
        (pem(EC_KEY), ["ES256", "RS256"], "one algorithm only"),
        (pem(EC_KEY) * 2, ["ES256"], "one public key in PEM"),
        (pem(EC_KEY)[:80] + b"\n-----END PUBLIC KEY-----\n", ["ES256"], "can't be used for ES256"),
        (b"", ["ES256"], "one public key in PEM"),
        (b"ssh-ed25519 AAAA", ["EdDSA"], "one public key in PEM"),
        (b"{", ["ES256"], "no JWK Set"),
        ({}, ["ES256"], "no JWK Set"),
        ({"keys": {}}, ["ES256"], "has no key for ES256"),
        ({"keys": [7]}, ["ES256"], "no JWK Set"),
        ({"keys": []}, ["ES256"], "has no key for ES256"),
        ({"keys": [jwk(RSA_KEY)]}, ["ES256"], "has no key for ES256"),
        ({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}, ["ES256"], r"keys\[0\] is private"),
        ({"keys": [{**jwk(EC_KEY), "d": "AA"}]}, ["ES256"], r"keys\[0\] is private"),
        ({"keys": [jwk(RSA_KEY), {"kty": "EC", "crv": "P-256"}]}, ["ES256"], r"keys\[1\] can't be used"),
        ({"keys": [{**jwk(EC_KEY), "kid": 7}]}, ["ES256"], r"keys\[0\] can't be used"),
        ({"keys": [{"kty": []}]}, ["ES256"], r"keys\[0\] can't be used"),
        ({"keys": [{}]}, ["ES256"], r"keys\[0\] can't be used"),
        ({"keys": [jwk(SHORT)]}, ["RS256"], "too short"),
        ({"keys": [jwk(EC_KEY, "a"), jwk(OTHER_EC, "a")]}, ["ES256"], "same kid"),
        ({"keys": [jwk(EC_KEY), jwk(OTHER_EC)]}, ["ES256"], "same kid"),
        ({"keys": [jwk(EC_KEY, "a")] * 101}, ["ES256"], "at most 100"),
    ],
)
def test_keys_that_can_not_be_used_are_refused_at_the_start(tmp_path, content, algorithms, said):
    with pytest.raises(ValueError, match=said):
        of_file(tmp_path, content, algorithms)


async def test_a_set_that_has_changed_is_read_again(tmp_path):
    identify = of_file(tmp_path, {"keys": [jwk(EC_KEY, "a")]}, ["ES256"])
    clock = [1_000.0]
    assert identify._file is not None
    identify._file._clock = lambda: clock[0]
    identify._file._looked_at = clock[0]
    (tmp_path / "keys").write_text(json.dumps({"keys": [jwk(OTHER_EC, "b")]}))
    new, old = token("ES256", OTHER_EC, {"kid": "b"}), token("ES256", EC_KEY, {"kid": "a"})
    refuse(identify, asking(new))
    clock[0] += LOOK_SECONDS
    caller = identify(asking(new))
    assert isinstance(caller, Awaitable)
    assert await caller == identify(asking(new)) == Caller(id="jwt:ada")
    refuse(identify, asking(old))


@pytest.mark.parametrize(
    ("algorithms", "options", "said"),
    [
        ([], {"secret": SECRET}, "some of"),
        (["none"], {"secret": SECRET}, "some of"),
        (["HS256", "none"], {"secret": SECRET}, "some of"),
        (["HS512"], {"secret": SECRET}, "some of"),
        (["HS256", "RS256"], {"secret": SECRET, "keys_file": "x"}, "beside"),
        (["HS256"], {}, "needs a secret"),
        (["HS256"], {"secret": SECRET, "keys_file": "x"}, "no file"),
        (["HS256"], {"secret": "canary"}, "at least 32 bytes"),
        (["RS256"], {}, "need a file of public keys"),
        (["RS256"], {"keys_file": "x", "secret": SECRET}, "no secret"),
        (["RS256"], {"keys_file": "nowhere.pem"}, "no such file"),
        (["HS256"], {"secret": SECRET, "audience": ""}, "audience"),
        (["HS256"], {"secret": SECRET, "leeway": 301}, "leeway"),
        (["HS256"], {"secret": SECRET, "leeway": -1}, "leeway"),
    ],
)
def test_contradictory_settings_of_tokens_are_refused(algorithms, options, said):
    with pytest.raises(ValueError, match=said) as caught:
        JsonWebTokens(algorithms, **{"audience": "chat", **options})
    assert SECRET not in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("missing", ["jwt", "cryptography"])
def test_without_the_extra_the_error_names_it(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=re.escape(f"run: {install('jwt')}")):
        hs256()


def test_a_secret_is_in_no_repr():
    identify = hs256()
    assert SECRET not in repr(identify) + repr(identify._keys)
