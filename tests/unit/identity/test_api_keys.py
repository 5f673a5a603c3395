"""API keys: who holds which, what the file tells, and how it changes."""

from __future__ import annotations

from typing import Any

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from stat import S_ISDIR

import pytest
from blockbuster import BlockBuster
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.core.errors import LimiterUnavailable, Unauthorized
from chat_nest.identity.api_keys import ApiKeys
from msgspec.structs import asdict
from chat_nest.core.limits import Limits
from chat_nest.identity.api_key import KEY, NotRotatable, Rights, UnknownKey
from chat_nest.identity.key_file import create_key, read_keys, revoke_keys, rotate_in_file
from chat_nest.limits.counters import RANGES
from chat_nest.core.watched_file import LOOK_SECONDS
from chat_nest.core.messages import Caller

SECRET = b"0123456789abcdef0123456789abcdef"


def new_key(file: Path, caller: str = "ada", **more: Any) -> tuple[str, str]:
    """Its id, and the key."""
    made, key = create_key(file, SECRET, Rights(caller=caller, **more))
    return made.id, key


def scope(*headers: tuple[str, str]) -> dict[str, object]:
    return {"type": "http", "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers]}


def bearer(key: str) -> dict[str, object]:
    return scope(("authorization", f"Bearer {key}"))


class Clock:
    """Seconds, as a test says."""

    def __init__(self, at: float = 1_000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


async def who(keys: ApiKeys, asking: dict[str, object]) -> Caller:
    caller = keys(asking)
    return await caller if isinstance(caller, Awaitable) else caller


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


# Who is who.


async def test_a_key_is_its_caller_in_either_header(file):
    id, key = new_key(file, "ada", group="acme")
    keys = ApiKeys(file, SECRET)
    ada = Caller(id="key:ada", group="acme", api_key=id)
    for headers in (("authorization", f"Bearer {key}"), ("Authorization", f"BEARER  {key}"), ("x-api-key", key)):
        assert await who(keys, scope(headers)) == ada


async def test_two_keys_of_one_caller_are_one_caller_and_no_other(file):
    all = [new_key(file, name)[1] for name in ("ada", "ada", "user:ada", "203.0.113.5", "unix")]
    keys = ApiKeys(file, SECRET)
    ids = [(await who(keys, bearer(key))).id for key in all]
    assert ids == ["key:ada", "key:ada", "key:user:ada", "key:203.0.113.5", "key:unix"]


def refusal_of(keys: ApiKeys, asking: dict[str, object]) -> tuple[str, str]:
    with pytest.raises(Unauthorized) as caught:
        keys(asking)
    assert caught.value.__cause__ is None
    return caught.value.message, caught.value.challenge


def test_row23_every_refusal_is_the_same(file):
    now = Clock(datetime(2026, 11, 30, tzinfo=UTC).timestamp())
    _, good = new_key(file)
    _, old = new_key(file, expires=datetime(2026, 11, 29, 23, 59, 59, tzinfo=UTC))
    gone_id, gone = new_key(file)
    revoke_keys(file, [gone_id])
    keys = ApiKeys(file, SECRET, now=now)
    assert keys(bearer(good)).id == "key:ada"
    wrong = [
        scope(),
        *(bearer(key) for key in (old, gone, good[:-1], good + "a", good.upper(), "", "x" * 70, "' OR 1=1 --", "é")),
        scope(("authorization", good)),
        scope(("authorization", f"Basic {good}")),
        scope(("authorization", f"Bearer\t{good}")),
        scope(("x-api-key", f"Bearer {good}")),
        scope(("authorization", f"Bearer {good}"), ("x-api-key", good)),
        scope(("authorization", f"Bearer {good}"), ("authorization", f"Bearer {good}")),
        scope(("x-api-key", good), ("X-Api-Key", good)),
    ]
    assert {refusal_of(keys, asking) for asking in wrong} == {("Authentication is required", "Bearer")}


def test_a_key_expires_on_the_second(file):
    until = datetime(2026, 11, 30, tzinfo=UTC)
    _, key = new_key(file, expires=until)
    now = Clock(until.timestamp() - 0.001)
    keys = ApiKeys(file, SECRET, now=now)
    assert keys(bearer(key)).id == "key:ada"
    now.at = until.timestamp()
    refusal_of(keys, bearer(key))


def test_row23_a_hash_is_compared_whole(file):
    """It is found by its first bytes, which must not be all that counts."""
    _, key = new_key(file)
    held = json.loads(file.read_text())
    held["keys"][0]["hash"] = held["keys"][0]["hash"][:-1] + ("0" if held["keys"][0]["hash"][-1] != "0" else "1")
    file.write_text(json.dumps(held))
    refusal_of(ApiKeys(file, SECRET), bearer(key))


def test_row23_hashes_are_compared_in_constant_time_even_without_a_match(file, monkeypatch):
    compared = []
    _, key = new_key(file)
    keys = ApiKeys(file, SECRET)
    compare = lambda one, other: compared.append((len(one), len(other))) or one == other
    monkeypatch.setattr("chat_nest.identity.api_keys.hmac.compare_digest", compare)
    assert keys(bearer(key)).id == "key:ada"
    refusal_of(keys, bearer("cn_" + "a" * 32))
    assert compared == [(32, 32)] * 2


@given(st.text(st.characters(max_codepoint=255), max_size=80), st.sampled_from(["authorization", "x-api-key"]))
def test_only_a_key_is_admitted(tmp_path_factory, text, name):
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    new_key(file)
    keys = ApiKeys(file, SECRET)
    for value in (text, f"Bearer {text}", f"Bearer cn_{text}"):
        refusal_of(keys, scope((name, value)))


# The file.


def test_a_key_is_random_and_nowhere_in_the_file_which_is_its_owners_alone(file):
    keys = {new_key(file)[1] for _ in range(20)}
    assert len(keys) == 20
    assert all(KEY.fullmatch(key) for key in keys)
    assert 2**160 == 32 ** len(next(iter(keys)).removeprefix("cn_"))
    text = file.read_text()
    assert not any(key in text or key.removeprefix("cn_") in text for key in keys)
    assert SECRET.decode() not in text
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(file.parent) == ["keys.json"]


def test_the_same_key_has_another_hash_with_another_secret(file, tmp_path):
    _, key = new_key(file)
    with pytest.raises(ValueError, match="made with another secret"):
        ApiKeys(file, b"another secret of 32 bytes or more")
    with pytest.raises(ValueError, match="made with another secret"):
        create_key(file, b"another secret of 32 bytes or more", Rights(caller="eve"))
    assert len(read_keys(file).keys) == 1
    assert key not in repr(read_keys(file))
    assert "ada" not in repr(read_keys(file))


@pytest.mark.parametrize("secret", ["", "x" * 31, b"x" * 31])
def test_a_secret_that_can_be_guessed_is_refused_and_not_repeated(file, secret):
    with pytest.raises(ValueError, match="at least 32 bytes") as caught:
        ApiKeys(file, secret)
    assert "xxx" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.update(more=1),
        lambda held: held.pop("secret"),
        lambda held: held["keys"][0].update(revokd="2026-11-30T00:00:00Z"),
        lambda held: held["keys"][0].update(revoked=True),
        lambda held: held["keys"][0].update(expires="2026-11-30T00:00:00"),
        lambda held: held["keys"][0].update(expires="tomorrow"),
        lambda held: held["keys"][0].update(caller=""),
        lambda held: held["keys"][0].update(caller="a\0b"),
        lambda held: held["keys"][0].update(group="a\x1bb"),
        lambda held: held["keys"][0].update(name="a\nb"),
        lambda held: held["keys"][0].update(hash="zz"),
        lambda held: held["keys"][0].update(profiles="canary"),
        lambda held: held["keys"][0].update(profiles=[""]),
        lambda held: held["keys"][0].update(profiles=["a"] * 51),
        lambda held: held["keys"][0].update(limits=["canary"]),
        lambda held: held["keys"][0].update(scopes=["canary"]),
        lambda held: held["keys"][0].update(scopes=["chat", "admin"]),
        lambda held: held["keys"][0].update(scopes=[]),
        lambda held: held["keys"][0].update(counts_as="../canary"),
        lambda held: held["keys"].append(held["keys"][0]),
        lambda held: held["keys"].append({**held["keys"][0], "id": "other"}),
    ],
)
def test_a_file_that_may_mean_something_else_is_refused(file, change):
    new_key(file, "canary")
    held = json.loads(file.read_text())
    change(held)
    file.write_text(json.dumps(held))
    with pytest.raises(ValueError, match="this is not a file of API keys") as caught:
        ApiKeys(file, SECRET)
    assert "canary" not in str(caught.value)
    assert held["keys"][0]["hash"] not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"caller": 7}, "`str`, got `int` - at `$.keys[1].caller`"),
        ({"limits": {"tokens_per_day": "canary"}}, "`$.keys[1].limits[...]`"),
        ({"limits": {"tokens_per_day": 1.5}}, "keys[1].limits.tokens_per_day must be a whole number from 0"),
        ({"limits": {"canary": 1}}, "keys[1].limits must have no other names than requests_per_minute"),
        ({"scopes": ["admin"], "limits": {"tokens_per_day": 1}}, "keys[1].scopes is admin: such a key can't chat"),
        ({"expires": 1790000000}, "at `$.keys[1].expires`"),
    ],
)
def test_a_wrong_value_is_named_by_its_place(file, change, said):
    new_key(file)
    new_key(file)
    held = json.loads(file.read_text())
    held["keys"][1].update(change)
    file.write_text(json.dumps(held))
    with pytest.raises(ValueError, match="this is not a file of API keys") as caught:
        read_keys(file)
    assert said in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_wrong_text_is_named_by_its_line(file):
    new_key(file)
    lines = file.read_text().splitlines()
    lines[4] += " canary"
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"byte \d+\), line 5$"):
        read_keys(file)
    file.write_text("\n".join(lines[:4]))
    with pytest.raises(ValueError, match="truncated"):
        read_keys(file)


def test_a_file_of_the_version_before_is_read(file):
    """Without profiles, limits and what a rotation adds."""
    _, key = new_key(file)
    [held] = json.loads(file.read_text())["keys"]
    assert set(held) == {"id", "caller", "scopes", "hash", "created"}, (
        "nor does a plain key have them: that version reads it"
    )
    assert ApiKeys(file, SECRET)(bearer(key)).id == "key:ada"


def test_a_key_with_every_limit_is_one_share(file):
    limits = dict.fromkeys(RANGES[Limits], 7)
    _, key = new_key(file, limits=limits)
    [share] = ApiKeys(file, SECRET)(bearer(key)).shares
    assert asdict(share.limits) == limits


def test_rotating_at_the_same_time_makes_one_successor(file):
    id, _ = new_key(file)

    def rotated(_: int) -> str:
        try:
            return rotate_in_file(file, SECRET, id, timedelta(days=1))[1].id
        except NotRotatable:
            return ""

    with ThreadPoolExecutor(8) as threads:
        made = sorted(threads.map(rotated, range(8)))
    assert made[:-1] == [""] * 7
    assert [key.rotated_to for key in read_keys(file).keys] == [made[-1], None]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"x" * (8 << 20) + b"x"])
def test_an_invalid_key_file_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=str(file)):
        ApiKeys(file, SECRET)


def test_a_file_that_is_not_there_is_named(file):
    with pytest.raises(ValueError, match=r"keys\.json: there is no such file"):
        ApiKeys(file, SECRET)


def test_revoking_keeps_the_first_time_and_all_or_nothing(file, monkeypatch):
    one, two = new_key(file)[0], new_key(file)[0]
    with pytest.raises(UnknownKey):
        revoke_keys(file, [one, "nobody"])
    assert {key.revoked for key in read_keys(file).keys} == {None}
    (first,) = revoke_keys(file, [one])
    monkeypatch.setattr("chat_nest.identity.key_file.present_second", lambda: datetime.now(UTC) + timedelta(days=1))
    again = {key.id: key for key in revoke_keys(file, [one, two])}
    assert again[one].revoked == first.revoked
    assert again[two].revoked > first.revoked
    assert [key.state(datetime.now(UTC)) for key in read_keys(file).keys] == ["revoked", "revoked"]


def test_changes_at_the_same_time_lose_nothing(file):
    new_key(file)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: new_key(file, f"caller-{number}"), range(40)))
    assert len(read_keys(file).keys) == 41


def test_a_write_that_fails_leaves_the_file_as_it_was(file, monkeypatch):
    new_key(file)
    before = file.read_bytes()

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chat_nest.identity.key_file.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        new_key(file)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == ["keys.json"]


def test_a_change_is_on_the_disk_and_so_is_its_name(file, monkeypatch):
    synced: list[bool] = []
    monkeypatch.setattr("chat_nest.identity.key_file.os.fsync", lambda fd: synced.append(S_ISDIR(os.fstat(fd).st_mode)))
    new_key(file)
    assert synced == [False, True]


def test_a_link_stays_one(file, tmp_path):
    target = tmp_path / "there" / "real.json"
    target.parent.mkdir()
    file.symlink_to(target)
    new_key(file)
    new_key(file)
    assert file.is_symlink()
    assert len(read_keys(target).keys) == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_file_that_root_changes_stays_its_owners(file):
    new_key(file)
    os.chown(file, 4711, 4712)
    new_key(file)
    assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o777) == (4711, 4712, 0o600)


# A file that changes while it is watched.


async def test_row24_a_revoked_key_is_refused_when_the_file_is_looked_at_again(file):
    clock = Clock()
    id, key = new_key(file)
    keys = ApiKeys(file, SECRET, clock=clock)
    revoke_keys(file, [id])
    clock.at += LOOK_SECONDS - 0.001
    assert keys(bearer(key)).id == "key:ada", "known for less than a second: nothing is asked"
    clock.at += 0.001
    with pytest.raises(Unauthorized):
        await who(keys, bearer(key))
    refusal_of(keys, bearer(key))
    _, other = new_key(file, "bob")
    clock.at += LOOK_SECONDS
    assert (await who(keys, bearer(other))).id == "key:bob"


def test_text_that_can_not_be_a_key_is_refused_without_reading_the_file(file):
    clock = Clock()
    new_key(file)
    keys = ApiKeys(file, SECRET, clock=clock)
    file.unlink()
    clock.at += LOOK_SECONDS
    for text in ("", "cn_short", "sk-of-another-service", "' OR 1=1 --"):
        refusal_of(keys, bearer(text))


async def test_a_file_that_did_not_change_is_not_read_again(file, monkeypatch):
    clock = Clock()
    _, key = new_key(file)
    keys = ApiKeys(file, SECRET, clock=clock)
    monkeypatch.setattr(keys._keys, "_parse", lambda _: pytest.fail("it was read again"))
    clock.at += LOOK_SECONDS
    assert (await who(keys, bearer(key))).id == "key:ada"


async def test_row24_an_unreadable_file_refuses_all_requests(file, caplog):
    clock = Clock()
    id, key = new_key(file)
    keys = ApiKeys(file, SECRET, clock=clock)
    whole = file.read_bytes()
    for broken, said in [
        (None, "there is no such file"),
        (b"", "this is not a file of API keys"),
        (whole.replace(b'"caller"', b'"called"'), "this is not a file of API keys"),
        (b"x" * (8 << 20) + b"x", "at most 8388608 bytes"),
    ]:
        if broken is None:
            file.unlink()
        else:
            file.write_bytes(broken)
        caplog.clear()
        for _ in range(3):
            clock.at += LOOK_SECONDS
            with pytest.raises(LimiterUnavailable) as caught:
                await who(keys, bearer(key))
            assert caught.value.retry_after == LOOK_SECONDS
        with pytest.raises(LimiterUnavailable):
            await who(keys, bearer(key))
        (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert said in line.getMessage()
        file.write_bytes(whole)
        clock.at += LOOK_SECONDS
        assert (await who(keys, bearer(key))).id == "key:ada"
    revoke_keys(file, [id])
    clock.at += LOOK_SECONDS
    with pytest.raises(Unauthorized):
        await who(keys, bearer(key))


async def test_simultaneous_requests_share_one_read_and_one_that_leaves_disturbs_no_other(file, monkeypatch):
    clock, looks, go_on = Clock(), [], threading.Event()
    _, key = new_key(file)
    keys = ApiKeys(file, SECRET, clock=clock)
    read = keys._keys._read

    def slow() -> bool:
        looks.append(1)
        assert go_on.wait(10)
        return read()

    monkeypatch.setattr(keys._keys, "_read", slow)
    clock.at += LOOK_SECONDS
    asking = [asyncio.ensure_future(who(keys, bearer(key))) for _ in range(50)]
    try:
        while not looks:
            await asyncio.sleep(0)
        asking[0].cancel()
        await asyncio.sleep(0)
    finally:
        go_on.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert [answer.id for answer in answers[1:] if isinstance(answer, Caller)] == ["key:ada"] * 49
    assert len(looks) == 1


async def test_the_file_is_looked_at_off_the_loop(file):
    clock = Clock()
    _, key = new_key(file)
    keys = ApiKeys(file, SECRET, clock=clock)
    new_key(file)
    blocking = BlockBuster()
    blocking.activate()
    try:
        clock.at += LOOK_SECONDS
        assert (await who(keys, bearer(key))).id == "key:ada"
    finally:
        blocking.deactivate()


def test_a_file_that_another_process_replaces_is_never_seen_half(file):
    """A writer in a process of its own, a reader here: every state that is read is whole."""
    new_key(file)
    writer = (
        "import sys; from pathlib import Path; from chat_nest.identity.api_key import Rights\nfrom chat_nest.identity.key_file import create_key\n"
        "for n in range(60):\n"
        f"    create_key(Path(sys.argv[1]), {SECRET!r}, Rights(caller='c'))\n"
    )
    with subprocess.Popen([sys.executable, "-c", writer, str(file)]) as process:
        try:
            while process.poll() is None:
                assert 1 <= len(read_keys(file).keys) <= 61
        finally:
            process.kill()
    assert process.returncode == 0
    assert len(read_keys(file).keys) == 61
