"""Session tokens: what one grants, and what no token can do."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import msgspec
import pytest

from chat_nest import Profile, create_chat_handler
from chat_nest.controls import LiveControls, MemoryControls
from chat_nest.core.errors import (
    ChatError,
    InvalidSession,
    LimiterUnavailable,
    OriginNotAllowed,
    SessionExpired,
    SessionRevoked,
)
from chat_nest.core.limits import Limits, Share, Totals
from chat_nest.core.messages import Caller
from chat_nest.identity.bearer import FOLLOWS
from chat_nest.identity.session_fields import BadField
from chat_nest.identity.session_token import CHAT, READ, Grant, Signer
from chat_nest.identity.sessions import REVOKED, Session, Sessions, revocation, session_of
from chat_nest.testing import ScriptedProvider, collect

SECRET, OTHER = "a-canary-secret-of-this-deployment-1", "b-canary-secret-of-that-deployment-2"
NOON = 1_790_000_000.5


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def request(token: str, *, follows: bool = False, **headers: str) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    marked = {FOLLOWS: True} if follows else {}
    return {"type": "http", "headers": [(b"authorization", b"Bearer " + token.encode()), *named], **marked}


def outcome(sessions: Sessions, token: str, **more: Any) -> type[ChatError] | Caller:
    try:
        found = sessions(request(token, **more))
    except ChatError as error:
        assert "canary" not in str(error)
        return type(error)
    assert isinstance(found, Caller)
    return found


def test_a_session_names_its_caller_and_its_rights(clock: Clock) -> None:
    sessions = Sessions([SECRET], now=clock)
    made = sessions.create(
        caller="user_42",
        group="acme",
        profile="balanced",
        limits={"usd": 0.05, "tokens": 20_000, "requests": 10, "concurrent_streams": 1},
        conversation="c_17",
    )
    assert (made.expires_at, made.id[:2]) == (int(NOON) + 600, "s_")
    assert made.token not in repr(made)
    caller = sessions(request(made.token))
    assert isinstance(caller, Caller)
    assert (caller.id, caller.group, caller.profile) == ("session:user_42", "acme", "balanced")
    session, conversation = caller.shares
    assert (session.scope, session.id, session.ends_at) == ("session", made.id, made.expires_at)
    assert session.totals == Totals(requests=10, tokens=20_000, usd=0.05)
    assert session.limits == Limits(concurrent_streams=1)
    assert conversation.scope == "conversation"
    assert session_of(caller) == made.id
    other = sessions(request(sessions.create(caller="eve", conversation="c_17").token))
    assert other.shares[1].id != conversation.id, "another user's conversation of the same name"
    free = sessions(request(sessions.create(caller="bob", profiles=["a", "b"]).token))
    assert (free.profile, free.profiles, free.group) == (None, ("a", "b"), None)
    assert session_of(Caller(id="x")) == ""
    assert Sessions([SECRET], prefix="", now=clock)(request(made.token)).id == "user_42"


def test_every_change_of_a_token_is_refused(clock: Clock) -> None:
    sessions = Sessions([SECRET], now=clock)
    token = sessions.create(caller="ada").token
    assert isinstance(outcome(sessions, token), Caller)
    for end in range(1, len(token)):
        assert outcome(sessions, token[:end]) is InvalidSession
    for place in range(len(token)):
        for other in "A-":
            changed = token[:place] + other + token[place + 1 :]
            assert changed == token or outcome(sessions, changed) is InvalidSession, place
    head, secret, grant, signature = token.split(".")
    richer = json.loads(urlsafe_b64decode(grant + "==")) | {"caller": "eve"}
    forged = urlsafe_b64encode(msgspec.json.encode(richer)).rstrip(b"=").decode()
    for wrong in (
        f"{head}.{secret}.{forged}.{signature}",
        f"{head}.{secret}.{grant}.",
        f"{head}..{grant}.{signature}",
        f"cns_2.{secret}.{grant}.{signature}",
        f"{READ}1.{secret}.{grant}.{signature}",
        token + "=",
        token + ".x",
        CHAT,
        "cns_1",
        "cns_1...",
    ):
        assert outcome(sessions, wrong) is InvalidSession, wrong
        assert outcome(sessions, wrong, follows=True) is InvalidSession, wrong


def test_another_deployment_s_token_is_none_here(clock: Clock) -> None:
    here, there = Sessions([SECRET], now=clock), Sessions([OTHER], now=clock)
    assert outcome(here, there.create(caller="ada").token) is InvalidSession
    claims_to_be_ours = there.create(caller="ada").token.split(".")
    claims_to_be_ours[1] = here.create(caller="ada").token.split(".")[1]
    assert outcome(here, ".".join(claims_to_be_ours)) is InvalidSession


def test_the_tokens_that_are_in_browsers_now_are_those_of_the_next_release() -> None:
    """Their format, down to the byte: another one needs another version."""
    signer = Signer(["golden-secret-of-at-least-thirty-two-bytes"])
    grant = Grant(
        id="s_0123456789abcdef01234567",
        caller="ada",
        group="acme",
        profile="balanced",
        created=1_790_000_000,
        expires=1_790_000_600,
        requests=3,
        usd=0.5,
        origins=("https://example.com",),
        conversation="c_17",
    )
    granted = (
        "9dbd0637.eyJpZCI6InNfMDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3IiwiY2FsbGVyIjoiYWRhIiwiZ3JvdXAiOiJhY21lIiwicHJvZmlsZSI6"
        "ImJhbGFuY2VkIiwiY3JlYXRlZCI6MTc5MDAwMDAwMCwiZXhwaXJlcyI6MTc5MDAwMDYwMCwib3JpZ2lucyI6WyJodHRwczovL2V4YW1wbGUuY29t"
        "Il0sImNvbnZlcnNhdGlvbiI6ImNfMTciLCJyZXF1ZXN0cyI6MywidXNkIjowLjV9"
    )
    chats = f"cns_1.{granted}.9q_EitPSf5ySmPcVsOgDbcfaOK026FjCgJCZLUgWPGw"
    reads = f"cnr_1.{granted}.Z4hdVhuyRZXa3k4lKFhqy2y8Li_DKJirZCTT-D4uzzc"
    assert (signer.sign(CHAT, grant), signer.sign(READ, grant)) == (chats, reads)
    assert signer.grant(chats) == signer.grant(reads) == grant
    for length in range(1, 5):  # each padding of base64
        named = Grant(id="s", caller="a" * length, created=1, expires=2)
        assert signer.grant(signer.sign(CHAT, named)) == named


def test_two_secrets_are_valid_while_one_replaces_the_other(clock: Clock) -> None:
    before, during, after = (Sessions(each, now=clock) for each in ([SECRET], [OTHER, SECRET], [OTHER]))
    old, new = before.create(caller="ada").token, during.create(caller="ada").token
    assert isinstance(outcome(during, old), Caller)
    assert isinstance(outcome(during, new), Caller)
    assert isinstance(outcome(after, new), Caller)
    assert outcome(after, old) is InvalidSession
    assert outcome(before, new) is InvalidSession


def test_a_grant_of_a_newer_version_is_refused_and_not_half_understood(clock: Clock) -> None:
    class Newer(Grant, frozen=True, kw_only=True):
        only_on_sundays: bool = True

    sessions, signer = Sessions([SECRET], now=clock), Signer([SECRET])
    grant = Newer(id="s_1", caller="ada", created=int(NOON), expires=int(NOON) + 9)
    assert isinstance(outcome(sessions, signer.sign(CHAT, Grant(id="s", caller="a", created=1, expires=2**31))), Caller)
    assert outcome(sessions, signer.sign(CHAT, msgspec.structs.replace(grant, only_on_sundays=False))) is InvalidSession


async def test_it_ends_at_its_time_and_when_it_is_revoked(clock: Clock) -> None:
    sessions = Sessions([SECRET], now=clock)
    made = sessions.create(caller="ada", expires_in=60)
    controls = MemoryControls(clock)
    live = LiveControls(controls, clock)
    sessions.bind(lambda _: None, live)
    clock.now = made.expires_at - 0.01
    assert isinstance(outcome(sessions, made.token), Caller)
    await sessions.revoke(made.id)
    [act] = await controls.acts(9)
    assert (act.act, act.target, act.by, act.reason) == ("revoke_session", made.id, "", "")
    await sessions.revoke(made.id, by="ops", reason="stolen")
    [act, _] = await controls.acts(9)
    assert (act.act, act.target, act.by, act.reason) == ("revoke_session", made.id, "ops", "stolen")
    [row] = live.of(REVOKED)
    assert (row.name, row.reason, row.expires) == (made.id, "stolen", clock.now + 86_400), "no token lasts longer"
    assert outcome(sessions, made.token) is SessionRevoked
    assert outcome(sessions, made.read_token, follows=True) is SessionRevoked
    clock.now = made.expires_at
    assert outcome(sessions, made.token) is SessionExpired


def test_a_read_token_only_follows(clock: Clock) -> None:
    sessions = Sessions([SECRET], now=clock)
    made: Session = sessions.create(caller="ada")
    assert outcome(sessions, made.read_token) is InvalidSession
    assert outcome(sessions, made.read_token, follows=True) == outcome(sessions, made.token)


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"origin": "https://app.example"}, True),
        ({"origin": "HTTPS://App.Example"}, True),
        ({"origin": "https://xn--bcher-kva.example"}, True),
        ({"origin": "https://app.example:8443"}, False),
        ({"origin": "http://app.example"}, False),
        ({"origin": "https://app.example.evil.example"}, False),
        ({"origin": "https://evil.example?https://app.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({}, False),
        ({"sec_fetch_site": "same-origin", "host": "app.example"}, True),
        ({"sec_fetch_site": "same-origin", "host": "app.example:443"}, True),
        ({"sec_fetch_site": "same-origin", "host": "evil.example"}, False),
        ({"sec_fetch_site": "none", "host": "app.example"}, False),
    ],
)
def test_a_session_may_be_used_by_its_pages_only(clock: Clock, headers: dict[str, str], allowed: bool) -> None:
    sessions = Sessions([SECRET], now=clock)
    token = sessions.create(caller="ada", origins=["https://APP.example:443", "https://xn--bcher-kva.example"]).token
    found = outcome(sessions, token, **headers)
    assert isinstance(found, Caller) if allowed else found is OriginNotAllowed


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("caller", {"caller": None}),
        ("caller", {"caller": ""}),
        ("caller", {"caller": "a\ncanary"}),
        ("caller", {"caller": 7}),
        ("caller", {"caller": "canary" * 50}),
        ("group", {"group": ""}),
        ("profile", {"profile": ["canary"]}),
        ("profiles", {"profiles": []}),
        ("profiles", {"profiles": "canary"}),
        ("profiles[1]", {"profiles": ["a", ""]}),
        ("profiles", {"profiles": ["a"], "profile": "b"}),
        ("expires_in", {"expires_in": 0}),
        ("expires_in", {"expires_in": 86_401}),
        ("expires_in", {"expires_in": True}),
        ("expires_in", {"expires_in": 60.5}),
        ("origins", {"origins": "https://canary.example"}),
        ("origins[0]", {"origins": ["https://canary.example/page"]}),
        ("origins[0]", {"origins": ["https://bücher.example"]}),
        ("origins[0]", {"origins": ["*"]}),
        ("origins[0]", {"origins": ["null"]}),
        ("limits", {"limits": [1]}),
        ("limits", {"limits": {"canary": 1}}),
        ("limits.tokens", {"limits": {"tokens": 0}}),
        ("limits.tokens", {"limits": {"tokens": 1.0}}),
        ("limits.requests", {"limits": {"requests": -1}}),
        ("limits.concurrent_streams", {"limits": {"concurrent_streams": 2**51}}),
        ("limits.usd", {"limits": {"usd": float("nan")}}),
        ("limits.usd", {"limits": {"usd": 0}}),
        ("limits.usd", {"limits": {"usd": "canary"}}),
        ("conversation", {"conversation": "\x00"}),
        ("body", {"canary": 1}),
    ],
)
def test_a_field_that_breaks_its_rule_is_named_and_its_value_is_not(field: str, asked: dict[str, Any]) -> None:
    with pytest.raises(BadField) as caught:
        Sessions([SECRET]).mint({"caller": "ada", **asked})
    assert caught.value.field == field
    assert "canary" not in str(caught.value)


def test_a_token_has_a_length_that_every_server_takes() -> None:
    sessions = Sessions([SECRET])
    origins = [f"https://{'x' * 200}{number}.example" for number in range(20)]
    with pytest.raises(BadField, match="more than 4096 characters") as caught:
        sessions.create(caller="ada", origins=origins)
    assert caught.value.field == "body"


@pytest.mark.parametrize(
    ("secrets", "said"),
    [
        ([], "^at least one secret is needed$"),
        (["short"], "at least 32 bytes"),
        ([SECRET, "canary"], "at least 32 bytes"),
    ],
)
def test_a_secret_that_could_be_guessed_is_refused_at_the_start(secrets: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Sessions(secrets)
    assert "canary" not in str(caught.value)


def test_a_lifetime_is_at_most_a_day() -> None:
    with pytest.raises(ValueError, match="from 1 to 86400"):
        Sessions(SECRET, expires_in=86_401)
    assert Sessions(SECRET, expires_in=86_400, now=lambda: NOON).create(caller="ada").expires_at == int(NOON) + 86_400


async def test_only_the_id_of_a_session_can_be_revoked() -> None:
    sessions = Sessions([SECRET])
    with pytest.raises(RuntimeError, match="belong to no chat"):
        await sessions.revoke("s_" + "0" * 24)
    sessions.bind(lambda _: None, LiveControls(MemoryControls()))
    for wrong in ("", "s_1", "s_" + "g" * 24, sessions.create(caller="canary").token):
        with pytest.raises(ValueError, match="the id of a session is") as caught:
            await sessions.revoke(wrong)
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "given", "status"),
    [
        (["balanced", "expanded", "free"], {"profile": "free"}, 403),  # elsewhere the old name of `expanded`
        (["balanced", "expanded", "free"], {"profiles": ["expanded", "Free"]}, 403),
        (["balanced", "expanded"], {"profile": "free"}, 201),
        (["balanced", "expanded", "free"], {"profile": " EXPANDED"}, 201),
        (["balanced", "expanded", "free"], {"profile": "nosuch"}, 403),
        (["balanced", "expanded", "free"], {}, 201),
    ],
)
async def test_a_key_of_some_profiles_makes_no_session_of_another_by_any_name(
    names: list[str], given: dict[str, Any], status: int
) -> None:
    def operator(scope: Any) -> Caller:
        return Caller(id="app", profiles=("expanded",))

    handler = create_chat_handler(
        providers={"p": ScriptedProvider([])},
        profiles={name: Profile(name=name, model=f"p:{name}") for name in names},
        sessions=Sessions([SECRET], operators=operator),
    )
    answer = await collect(handler, {"caller": "user", **given}, path="/api/sessions")
    assert answer.status == status
    if status == 201:
        token = msgspec.json.decode(answer.body)["token"]
        grant = Signer([SECRET]).grant(token)
        assert {each.strip().lower() for each in (grant.profile, *(grant.profiles or ())) if each} <= {
            "expanded",
            "free",
        }
    await handler.aclose()


def test_which_credentials_are_sessions(clock: Clock) -> None:
    sessions = Sessions([SECRET], now=clock)
    made = sessions.create(caller="ada")
    assert sessions.claims(made.token)
    assert sessions.claims(made.read_token)
    assert not sessions.claims("cn-a-key-of-this-server")


def test_a_session_draws_on_the_limits_of_the_key_that_made_it(clock: Clock) -> None:
    sessions = Sessions([SECRET], now=clock)
    key = Share(scope="key", id="a1b2c3", limits=Limits(tokens_per_day=500, usd_per_month=2.5))
    shares = (key, Share(scope="address", id="203.0.113.5"))
    made = sessions.mint({"caller": "ada"}, Caller(id="key:backend", api_key="k1", shares=shares))
    caller = outcome(sessions, made.token)
    assert isinstance(caller, Caller)
    assert caller.api_key == "k1"
    assert [share for share in caller.shares if share.scope != "session"] == [key]


async def test_a_session_waits_for_the_store_while_revocations_are_unknown(clock: Clock) -> None:
    held = MemoryControls(clock)
    sessions = Sessions([SECRET], now=clock)
    one, other = sessions.create(caller="ada"), sessions.create(caller="bob")
    put, act = revocation(other.id, NOON, "", "")
    await held.change([put], act=act)
    away = Away(held)
    live = LiveControls(away, clock)  # type: ignore[arg-type]
    sessions.bind(lambda _: None, live)
    late = sessions(request(one.token))
    assert not isinstance(late, Caller)
    with pytest.raises(LimiterUnavailable):
        await late
    with pytest.raises(LimiterUnavailable):
        await sessions.check()
    away.answers = True
    late = sessions(request(one.token))
    assert not isinstance(late, Caller)
    assert (await late).id == "session:ada"
    await sessions.check()
    with pytest.raises(SessionRevoked):
        sessions(request(other.token))
    await live.aclose()


class Away:
    """The controls of a store that does not answer until `answers`."""

    def __init__(self, controls: MemoryControls) -> None:
        self._controls = controls
        self.answers = False

    async def watch(self, known: int) -> Any:
        if not self.answers:
            raise LimiterUnavailable
        return await self._controls.watch(known or -1)


def test_a_session_of_other_pages_is_refused_with_the_reason(clock: Clock) -> None:
    sessions = Sessions([SECRET], now=clock)
    made = sessions.create(caller="ada", origins=["https://app.example"])
    with pytest.raises(OriginNotAllowed, match="^This session may not be used from here: it was made for other pages$"):
        sessions(request(made.token, origin="https://evil.example"))
