"""`chat-nest keys`: what it says, what it changes, and that a key is told once."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from forked_command import COMMAND

from chat_nest.cli.commands import chat_nest
from chat_nest.identity.api_key import KEY
from chat_nest.identity.key_file import read_keys
from chat_nest.core.messages import Caller

SECRET = "canary-secret-0123456789abcdef-0123456789abcdef"
ENVIRON = {"CHAT_NEST_IDENTITY_KEYS_FILE": "keys.json", "CHAT_NEST_IDENTITY_SECRET": SECRET}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **environ: str | None) -> Result:
    clean = {name: None for name in os.environ if name.startswith(("CHAT_NEST_", "OPENAI_"))}
    result = CliRunner(env={**clean, **ENVIRON, **environ}).invoke(chat_nest, ["keys", *arguments])
    assert SECRET not in result.output
    return result


def create(*arguments: str) -> str:
    result = run("create", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.removesuffix("\n")


def test_a_new_key_is_alone_on_standard_output():
    Path("chat.toml").write_text("[groups.acme]\nusd_per_day = 1\n")
    result = run("create", "ada", "--name", "laptop", "--group", "acme", "--config", "chat.toml")
    assert KEY.fullmatch(result.stdout.removesuffix("\n"))
    (key,) = read_keys(Path("keys.json")).keys
    assert (key.caller, key.name, key.group, key.expires, key.revoked) == ("ada", "laptop", "acme", None, None)
    assert result.stderr == f"Key {key.id} of ada, good until it is revoked. It is shown this once:\n"


def test_it_is_shown_that_once():
    key = create("ada")
    id = read_keys(Path("keys.json")).keys[0].id
    for arguments in (
        ["list"],
        ["list", "--json"],
        ["revoke", id],
        ["revoke", key],
        ["revoke", f"x{key}"],
        ["create", ""],
    ):
        assert key not in run(*arguments).output


@pytest.mark.parametrize(
    ("when", "until"),
    [
        ("90d", lambda now: now + timedelta(days=90)),
        ("24h", lambda now: now + timedelta(hours=24)),
        ("2999-06-30", lambda _: datetime(2999, 7, 1, tzinfo=UTC)),
        ("2999-06-30T18:00", lambda _: datetime(2999, 6, 30, 18, tzinfo=UTC)),
        ("2999-06-30T18:00+02:00", lambda _: datetime(2999, 6, 30, 16, tzinfo=UTC)),
    ],
)
def test_when_a_key_expires(when, until):
    before = datetime.now(UTC).replace(microsecond=0)
    create("ada", "--expires", when)
    (key,) = read_keys(Path("keys.json")).keys
    assert key.expires is not None
    assert until(before) <= key.expires <= until(datetime.now(UTC))


@pytest.mark.parametrize("when", ["", "soon", "0d", "-1d", "90", "1999-01-01", "2999-13-01", "99999d9", "9999-12-31"])
def test_a_time_that_is_none_or_over_is_refused(when):
    result = run("create", "ada", "--expires", when)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--expires must be" in result.stderr
    assert not Path("keys.json").exists()


@pytest.mark.parametrize(
    "arguments", [[""], ["a\nb"], ["\x1b[31m"], ["x" * 257], ["ada", "--group", ""], ["ada", "--name", "a\tb"]]
)
def test_a_name_that_can_not_be_one_is_refused(arguments):
    result = run("create", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "must be 1 to 256 printable characters" in result.stderr


def test_a_group_is_noted_if_the_configuration_has_none():
    assert "no [groups.acme]" in run("create", "ada", "--group", "acme").stderr
    Path("chat.toml").write_text("[groups.acme]\nusd_per_day = 1\n")
    assert "no [groups" not in run("create", "ada", "--group", "acme", "--config", "chat.toml").stderr


def test_a_group_without_limits_is_refused_if_other_groups_have_limits():
    Path("chat.toml").write_text("[groups.acme]\nusd_per_day = 1\n")
    assert run("create", "ada", "--group", "acme", "--config", "chat.toml").exit_code == 0
    refused = run("create", "ada", "--group", "other", "--config", "chat.toml")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "there is no [groups.other]" in refused.stderr
    Path("chat.toml").write_text("[groups.default]\nusd_per_day = 1\n")
    assert run("create", "ada", "--group", "other", "--config", "chat.toml").exit_code == 0


def test_the_rights_of_a_key_are_kept_and_listed():
    Path("chat.toml").write_text('[profiles.open]\nmodel = "p:m"\n[profiles.Closed]\nmodel = "p:l"\n')
    config = ("--config", "chat.toml")
    limits = ("--limit", "tokens_per_day=50_000", "--limit", "usd_per_month=2.5", "--limit", "concurrent_streams=0")
    create(
        "ada", "--profile", "closed", "--profile", "open", "--scope", "chat", "--scope", "sessions", *limits, *config
    )
    create("bob", "--scopes", "sessions,chat", *config)
    ada, bob = read_keys(Path("keys.json")).keys
    assert (ada.profiles, ada.scopes, bob.scopes) == (("closed", "open"), ("chat", "sessions"), ("sessions", "chat"))
    assert ada.limits == {"tokens_per_day": 50_000, "usd_per_month": 2.5, "concurrent_streams": 0}
    line = run("list").stdout.splitlines()[1].split()
    assert line[4:7] == [
        "chat,sessions", "closed,open", "tokens_per_day=50000,usd_per_month=2.5,concurrent_streams=0"
    ]  # fmt: skip
    [shown, _] = json.loads(run("list", "--json").stdout)
    assert (shown["profiles"], shown["limits"], shown["revoked"]) == (["closed", "open"], ada.limits, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "canary"], "--profile must name profiles of this server: constrained, balanced, expanded"),
        (["--profile", "balanced", "--profile", "canary"], "--profile must name profiles"),
        (["--scope", "canary"], "--scope must be some of chat, sessions, admin"),
        (["--scope", "chat,admin"], "--scope must not have admin beside another one: make two keys"),
        (["--scope", ""], "--scope must be some of"),
        (["--scope", "admin", "--limit", "tokens_per_day=1"], "--scope is admin: such a key can't chat"),
        (["--limit", "canary=1"], "--limit must have no other names than requests_per_minute"),
        (["--limit", "tokens_per_day"], "--limit must be NAME=NUMBER"),
        (["--limit", "tokens_per_day=canary"], "--limit must be NAME=NUMBER"),
        (["--limit", "tokens_per_day=1.5"], "--limit tokens_per_day must be a whole number from 0"),
        (["--limit", "tokens_per_day=-1"], "--limit tokens_per_day must be a whole number from 0"),
        (["--limit", "usd_per_day=1e400"], "--limit usd_per_day must be 0, or a number of dollars"),
        (["--limit", "usd_per_day=nan"], "--limit must be NAME=NUMBER"),
    ],
)
def test_rights_that_make_no_sense_are_refused(arguments, said):
    result = run("create", "ada", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "canary" not in result.stderr
    assert not Path("keys.json").exists()


def test_a_rotation_prints_the_new_key_and_ends_the_old_one():
    old = create("ada", "--limit", "tokens_per_day=5", "--profile", "expanded", "--name", "laptop")
    [first] = read_keys(Path("keys.json")).keys
    result = run("rotate", first.id)
    new = result.stdout.removesuffix("\n")
    assert KEY.fullmatch(new)
    assert new != old
    first, second = read_keys(Path("keys.json")).keys
    assert (second.counts_as, second.limits, second.profiles, second.name) == (
        first.id, {"tokens_per_day": 5}, ("expanded",), "laptop"
    )  # fmt: skip
    assert timedelta(hours=23) < first.expires - datetime.now(UTC) <= timedelta(hours=24)
    assert f"Key {first.id} of ada is good until" in result.stderr
    for arguments, said in (
        ([first.id], f"can't be rotated: it was replaced by {second.id}: rotate that one"),
        ([second.id, "--overlap", "31d"], "--overlap must be a number and m, h or d, at most 30 days"),
        ([second.id, "--overlap", "soon"], "--overlap must be a number and m, h or d, at most 30 days"),
        ([second.id, "--expires", "soon"], "--expires must be days or hours"),
        (["0000"], "there is no key with the ID 0000"),
        ([new], "there is no key with an ID like that"),
    ):
        refused = run("rotate", *arguments)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert said in refused.stderr
        assert new not in refused.stderr
    assert len(read_keys(Path("keys.json")).keys) == 2
    third = run("rotate", second.id, "--overlap", "0h", "--expires", "90d")
    assert third.exit_code == 0
    states = [key.state(datetime.now(UTC)) for key in read_keys(Path("keys.json")).keys]
    assert states == ["valid", "expired", "valid"]
    run("revoke", first.id)
    assert "it was replaced" in run("rotate", first.id).stderr


def test_keys_in_the_store_are_there_for_every_command(monkeypatch):
    environ = {
        "CHAT_NEST_IDENTITY_KEYS_FILE": None,
        "CHAT_NEST_IDENTITY_KEYS": "store",
        "CHAT_NEST_STORE_URL": "sqlite:///store.db",
    }
    assert "There are no keys" in run("list", **environ).stdout
    result = run("create", "ada", "--reason", "a demo", **environ)
    assert KEY.fullmatch(result.stdout.removesuffix("\n"))
    [shown] = json.loads(run("list", "--json", **environ).stdout)
    assert run("rotate", shown["id"], **environ).exit_code == 0
    assert run("revoke", shown["id"], "0000", **environ).exit_code == 2
    assert run("revoke", shown["id"], **environ).exit_code == 0
    assert sorted(key["state"] for key in json.loads(run("list", "--json", **environ).stdout)) == ["revoked", "valid"]
    other = run("create", "eve", **{**environ, "CHAT_NEST_IDENTITY_SECRET": "another secret of 32 bytes or more"})
    assert (other.exit_code, other.stdout) == (1, "")
    assert "its keys were made with another secret" in other.stderr
    memory = run("list", **{**environ, "CHAT_NEST_STORE_URL": "memory://"})
    assert memory.exit_code == 2
    assert "needs a store that outlives the server" in memory.stderr
    with monkeypatch.context() as hurried:
        hurried.setattr("chat_nest.stores.starting.SECONDS", 0.0)
        gone = run("list", **{**environ, "CHAT_NEST_STORE_URL": "redis://127.0.0.1:1"})
    assert (gone.exit_code, gone.stdout) == (1, "")
    assert not Path("keys.json").exists()


def test_the_list_shows_the_state_of_each_key():
    create("ada", "--group", "acme", "--name", "laptop")
    create("bob", "--expires", "1h")
    file = json.loads(Path("keys.json").read_text())
    file["keys"][1]["expires"] = "2020-01-01T00:00:00Z"
    Path("keys.json").write_text(json.dumps(file))
    create("eve")
    run("revoke", read_keys(Path("keys.json")).keys[2].id)
    result = run("list")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [(row[1], row[2], row[3], row[10]) for row in rows[1:]] == [
        ("valid", "ada", "acme", "laptop"),
        ("expired", "bob", "-", "-"),
        ("revoked", "eve", "-", "-"),
    ]
    assert rows[1][9] == Caller(id="key:ada").key, "as in the records of usage"
    assert "\x1b" not in result.output
    listed = json.loads(run("list", "--json").stdout)
    assert [key["state"] for key in listed] == ["valid", "expired", "revoked"]
    assert "hash" not in listed[0]


def test_an_empty_list_explains_the_next_step():
    create("ada")
    Path("keys.json").write_text(json.dumps({**json.loads(Path("keys.json").read_text()), "keys": []}))
    assert "chat-nest keys create" in run("list").stdout
    assert json.loads(run("list", "--json").stdout) == []


def test_revoking_is_confirmed_and_can_be_repeated():
    create("ada")
    id = read_keys(Path("keys.json")).keys[0].id
    first, again = run("revoke", id), run("revoke", id)
    assert first.exit_code == again.exit_code == 0
    assert first.stdout == again.stdout
    assert first.stdout.startswith(f"Revoked {id} of ada, as of ")
    assert read_keys(Path("keys.json")).keys[0].revoked is not None


def test_an_id_that_is_not_there_revokes_none():
    create("ada")
    id = read_keys(Path("keys.json")).keys[0].id
    result = run("revoke", id, "00000000")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "there is no key with the ID 00000000" in result.stderr
    assert read_keys(Path("keys.json")).keys[0].revoked is None


@pytest.mark.parametrize("arguments", [["list"], ["revoke", "00000000"]])
def test_a_missing_file_is_an_error_that_explains_how_to_create_it(arguments):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "keys.json: there is no such file: the first `chat-nest keys create CALLER` makes it" in result.stderr


@pytest.mark.parametrize("arguments", [["list"], ["revoke", "00000000"], ["create", "ada"]])
def test_a_file_that_is_none_is_left_alone(arguments):
    Path("keys.json").write_text("{}")
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "keys.json: this is not a file of API keys" in result.stderr
    assert Path("keys.json").read_text() == "{}"


def test_a_place_that_can_not_be_written_to_is_named():
    result = run("create", "ada", CHAT_NEST_IDENTITY_KEYS_FILE="nowhere/keys.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nowhere/keys.json: No such file or directory" in result.stderr
    result = run("create", "ada", CHAT_NEST_IDENTITY_SECRET="another secret of 32 bytes or more")
    assert result.exit_code == 0
    result = run("create", "ada")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "made with another secret" in result.stderr


def test_without_a_file_or_a_secret_the_error_names_the_settings():
    result = run("list", CHAT_NEST_IDENTITY_KEYS_FILE=None, CHAT_NEST_IDENTITY_SECRET=None)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "CHAT_NEST_IDENTITY_KEYS_FILE" in result.stderr
    result = run("create", "ada", CHAT_NEST_IDENTITY_SECRET=None)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "CHAT_NEST_IDENTITY_SECRET" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["create"], ["list"], ["revoke"]])
def test_help_has_an_example(arguments):
    assert "chat-nest keys" in run(*arguments, "--help").stdout


def on_a_terminal(*arguments: str, **environ: str) -> bytes:
    main, side = pty.openpty()
    try:
        env = {"PATH": os.environ["PATH"], "TERM": "xterm", **ENVIRON, **environ}
        subprocess.run([COMMAND, "keys", *arguments], stdout=side, env=env, check=True, stderr=subprocess.DEVNULL)
        return os.read(main, 65_536)
    finally:
        os.close(main)
        os.close(side)


def test_colors_are_for_terminals_that_want_them():
    create("ada")
    assert b"\x1b[32mvalid" in on_a_terminal("list")
    assert b"\x1b" not in on_a_terminal("list", NO_COLOR="1")
    assert b"\x1b[1mcn_" in on_a_terminal("create", "ada")


# The trail of acts.


def trail() -> list[dict[str, str]]:
    result = CliRunner(env=ENVIRON).invoke(chat_nest, ["audit", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_each_change_of_the_file_is_in_the_trail_and_no_look_at_it():
    create("ada", "--reason", "new here")
    id = read_keys(Path("keys.json")).keys[0].id
    run("list")
    assert run("rotate", id, "--reason", "yearly").exit_code == 0
    assert run("revoke", id, "--reason", "leaked").exit_code == 0
    assert run("revoke", "none").exit_code == 2
    acts = trail()
    assert [(act["act"], act["target"], act["reason"]) for act in acts] == [
        ("revoke_key", id, "leaked"),
        ("rotate_key", id, "yearly"),
        ("create_key", id, "new here"),
    ]
    assert {act["by"].partition(":")[0] for act in acts} == {"cli"}
    assert acts[-1]["detail"] == f"caller {Caller(id='key:ada').key}, scopes chat"


def test_a_reason_that_can_not_be_kept_changes_nothing():
    assert run("create", "ada", "--reason", "x" * 600).exit_code == 1
    assert not Path("keys.json").exists()


@pytest.mark.parametrize("store", ["memory://", "sqlite:///gone"])
def test_a_key_is_revoked_with_a_warning_if_the_store_fails(store):
    Path("gone").mkdir()
    create("ada")
    id = read_keys(Path("keys.json")).keys[0].id
    result = run("revoke", id, CHAT_NEST_STORE_URL=store)
    assert result.exit_code == 0
    assert read_keys(Path("keys.json")).keys[0].revoked is not None
    assert "warning: it is done, but not in the audit trail, and the running answers" in result.stderr
    assert "warning" not in run("list", CHAT_NEST_STORE_URL=store).stderr
