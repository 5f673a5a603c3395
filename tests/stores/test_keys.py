"""API keys in every store: who they let in, in which process, and that a revoked one never comes back."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest
from chat_nest import Caller, Limits, Profile
from chat_nest.controls.live import LiveControls
from chat_nest.core.claims import Claim, Granted, Refused
from chat_nest.core.controls import Control
from chat_nest.core.errors import Forbidden, LimiterUnavailable, Unauthorized
from chat_nest.identity.api_key import NotRotatable, Rights, UnknownKey, WrongKey, present_second, rotate_key
from chat_nest.identity.api_keys import ApiKeys
from chat_nest.identity.key_issuers import StoreIssuer
from chat_nest.identity.stored_keys import IN_FORCE, REVOKED, StoredKeys, row_of
from chat_nest.limits.profiles import Profiles
from chat_nest.limits.spec import HardCaps

SECRET = b"0123456789abcdef0123456789abcdef"
OTHER = b"another secret of 32 bytes or more"
DAY = timedelta(days=1)


def bearer(text):
    return {"type": "http", "headers": [(b"authorization", f"Bearer {text}".encode())]}


class Server:
    """A process that accepts the store's keys. `look` is what its task does every 0.75 s."""

    def __init__(self, store, secret=SECRET, now=time.time):
        self.live = LiveControls(store.controls, now)
        self.table = StoredKeys(secret)
        self.table.bind(self.live)
        self.keys = ApiKeys(self.table, secret)

    async def look(self):
        await self.live._look()
        return self

    async def caller(self, text):
        found = self.keys(bearer(text))
        return found if isinstance(found, Caller) else await found

    async def lets_in(self, text):
        try:
            return bool(await self.caller(text))
        except Unauthorized:
            return False


def issuer(store, secret=SECRET):
    return StoreIssuer(store.controls, secret, by="cli:test")


async def test_every_process_accepts_a_new_key_and_refuses_a_revoked_one_at_its_next_read(store):
    one, two = await Server(store).look(), await Server(store).look()
    made = await issuer(store).create(
        Rights(caller="ada", group="acme", profiles=("expanded", "balanced"), limits={"tokens_per_day": 500})
    )
    for server in (one, two):
        caller = await (await server.look()).caller(made.text)
        assert (caller.id, caller.group, caller.profiles) == ("key:ada", "acme", ("expanded", "balanced"))
        [share] = caller.shares
        assert (share.scope, share.id, share.limits) == ("key", made.key.id, Limits(tokens_per_day=500))
    [revoked] = await issuer(store).revoke([made.key.id], "leaked")
    assert revoked.revoked is not None
    for server in (one, two):
        assert not await (await server.look()).lets_in(made.text)
    assert [each.state(present_second()) for each in await issuer(store).keys()] == ["revoked"]
    acts = await store.controls.acts(5)
    assert [(act.by, act.act, act.target, act.reason) for act in acts] == [
        ("cli:test", "revoke_key", made.key.id, "leaked"),
        ("cli:test", "create_key", made.key.id, ""),
    ]


async def test_a_process_that_read_the_keys_by_a_clock_ahead_is_right_once_the_clock_is(store):
    keys = issuer(store)
    valid = await keys.create(Rights(caller="ada", expires=present_second() + DAY))
    revoked = await keys.create(Rights(caller="ada"))
    await keys.revoke([revoked.key.id])
    ahead = 100 * DAY.total_seconds()
    server = await Server(store, now=lambda: time.time() + ahead).look()
    await server.lets_in(valid.text)  # it reads the keys
    ahead = 0.0
    await server.look()
    assert await server.lets_in(valid.text)
    assert not await server.lets_in(revoked.text)


async def test_only_hashes_are_in_the_store(store):
    made = await issuer(store).create(Rights(caller="ada"))
    found = await store.controls.watch(-1)
    assert made.text.removeprefix("cn_") not in repr(found)
    assert SECRET.decode() not in repr(found)
    assert made.text not in repr(await store.controls.acts(5)) + repr(made)


async def test_both_keys_of_a_rotation_draw_on_one_budget_at_once(store):
    made = await issuer(store).create(Rights(caller="ada", limits={"requests_per_day": 10, "concurrent_streams": 50}))
    rotated = await issuer(store).rotate(made.key.id, DAY)
    again = await issuer(store).rotate(rotated.key.id, DAY)
    server = await Server(store).look()
    callers = [await server.caller(each.text) for each in (made, rotated, again)]
    rules = Profiles({"balanced": Profile(requests_per_minute=None)}, Limits(), HardCaps(), "UTC")

    async def reserve(number):
        lines = rules.lines(callers[number % 3], rules.all[0], 1, store_now)
        claim = Claim(id=f"r{number}", fingerprint="f", lines=lines, max_output_tokens=1)
        return await store.reserve(claim, 60)

    store_now = 1_900_000_000.0
    answers = await asyncio.gather(*(reserve(number) for number in range(30)))
    assert sum(isinstance(answer, Granted) for answer in answers) == 10
    assert sum(isinstance(answer, Refused) for answer in answers) == 20


async def test_a_rotated_key_ends_after_the_overlap_and_never_later_than_before(store):
    ends = present_second() + timedelta(hours=1)
    short = await issuer(store).create(Rights(caller="ada", expires=ends))
    long = await issuer(store).create(Rights(caller="bob", expires=ends + 9 * DAY))
    forever = await issuer(store).create(Rights(caller="eve"))
    rotated = [await issuer(store).rotate(each.key.id, DAY) for each in (short, long, forever)]
    assert [each.key.expires for each in rotated] == [ends, ends + 9 * DAY, None], "no right is made longer"
    old = [each.replaces for each in rotated]
    assert old[0].expires == ends
    assert all(present_second() <= each.expires <= present_second() + DAY for each in old)
    assert [each.rotated_to for each in old] == [each.key.id for each in rotated]
    with pytest.raises(NotRotatable, match=f"replaced by {rotated[0].key.id}"):
        await issuer(store).rotate(short.key.id, DAY)
    leaked = await issuer(store).rotate(rotated[2].key.id, timedelta(0))
    server = await Server(store).look()
    assert [await server.lets_in(each.text) for each in (forever, rotated[2], leaked)] == [True, False, True]
    await issuer(store).revoke([leaked.key.id])
    with pytest.raises(NotRotatable, match="it is revoked"):
        await issuer(store).rotate(leaked.key.id, DAY)
    with pytest.raises(WrongKey, match="overlap must be at most 30 days"):
        await issuer(store).rotate(rotated[1].key.id, 31 * DAY)


async def test_a_rotation_that_meets_a_revocation_does_not_bring_the_key_back(store):
    made = await issuer(store).create(Rights(caller="ada"))
    old, new, text = rotate_key(
        SECRET, made.key, DAY, present_second()
    )  # by an operator who read before the other wrote
    await issuer(store).revoke([made.key.id])
    await store.controls.change([row_of(old, SECRET), row_of(new, SECRET)])
    server = await Server(store).look()
    assert [await server.lets_in(each) for each in (made.text, text)] == [False, True]
    rows = {row.kind: row for row in (await store.controls.watch(-1)).rows if row.name == made.key.id}
    assert rows[IN_FORCE].expires < rows[REVOKED].expires, "the row that forbids it is the last to go"
    states = {key.id: key.state(present_second()) for key in await issuer(store).keys()}
    assert states == {made.key.id: "revoked", new.id: "valid"}


async def test_changes_at_once_lose_nothing(store):
    made = await asyncio.gather(*(issuer(store).create(Rights(caller=f"c{number}")) for number in range(20)))
    await asyncio.gather(*(issuer(store).revoke([each.key.id]) for each in made[:10]))
    server = await Server(store).look()
    assert [await server.lets_in(each.text) for each in made] == [False] * 10 + [True] * 10
    with pytest.raises(UnknownKey):
        await issuer(store).revoke([made[11].key.id, "none"])
    assert await (await server.look()).lets_in(made[11].text)


async def test_a_key_of_another_secret_or_version_is_refused_with_the_reason(store, caplog):
    made = await issuer(store).create(Rights(caller="ada"))
    with pytest.raises(ValueError, match="made with another secret"):
        await issuer(store, OTHER).create(Rights(caller="eve"))
    with pytest.raises(ValueError, match="made with another secret"):
        await issuer(store, OTHER).rotate(made.key.id, DAY)
    await store.controls.change([Control(kind=IN_FORCE, name="newer", value='{"secret":"canary"}')])
    other = await Server(store, OTHER).look()
    assert not await other.lets_in(made.text)
    said = caplog.text
    assert f"{made.key.id} in the store was made with another secret" in said
    assert "the API key newer in the store can't be read" in said
    assert "canary" not in said
    assert await (await Server(store).look()).lets_in(made.text)


async def test_a_value_too_long_for_a_row_is_refused_with_its_field(store):
    long = tuple(f"{number:>0200}" for number in range(50))
    with pytest.raises(WrongKey, match="profiles must be shorter"):
        await issuer(store).create(Rights(caller="ada", profiles=long))
    assert await issuer(store).keys() == []


async def test_an_outdated_copy_of_the_keys_admits_no_caller(store):
    """The store went away after the key was seen: for a second the key is known, then nobody is."""
    made = await issuer(store).create(Rights(caller="ada"))
    at = [1_000.0]
    live = LiveControls(store.controls, clock=lambda: at[0])
    table = StoredKeys(SECRET)
    keys = ApiKeys(table, SECRET)
    with pytest.raises(LimiterUnavailable):
        await keys(bearer(made.text))
    table.bind(live)
    await live._look()
    if table.recent() is None:
        pytest.fail("a look makes the copy recent")
    look, live._look = live._look, lambda: _fail()
    at[0] += 0.999
    assert keys(bearer(made.text)).id == "key:ada"
    at[0] += 0.002
    if live._looked_at != float("inf"):  # a store in memory can't go away
        with pytest.raises(LimiterUnavailable):
            await keys(bearer(made.text))
        live._look = look
        assert (await keys(bearer(made.text))).id == "key:ada"
    await live.aclose()


async def _fail():
    raise LimiterUnavailable


@pytest.mark.parametrize(
    ("scopes", "chat", "sessions", "admin"),
    [
        (("chat",), "in", Forbidden, Unauthorized),
        (("sessions",), Forbidden, "in", Unauthorized),
        (("chat", "sessions"), "in", "in", Unauthorized),
        (("admin",), Unauthorized, Unauthorized, "in"),
    ],
)
async def test_a_key_has_only_its_scopes(scopes, chat, sessions, admin):
    from chat_nest.stores.memory import MemoryStore

    store = MemoryStore()
    made = await issuer(store).create(Rights(caller="ada", scopes=scopes))
    table = StoredKeys(SECRET)
    table.bind(LiveControls(store.controls))
    for scope, expected in (("chat", chat), ("sessions", sessions), ("admin", admin)):
        keys = ApiKeys(table, SECRET, scope=scope)
        if expected == "in":
            assert keys(bearer(made.text)).id == "key:ada"
            assert (await keys.holder(bearer(made.text))).id == made.key.id
        else:
            with pytest.raises(expected):
                keys(bearer(made.text))
