"""API keys of two workers, in the file and in the store: made and changed by the command and over the admin API."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import AsyncExitStack

import forked_command
import pytest
from raw_client import JSON, ask, connect
from scripted_provider import HANG, ScriptedProvider, answer, chunk, stream
from serve_command import command

SECRET = "canary-secret-0123456789abcdef-0123456789abcdef"
ADMIN = re.compile(rb"Admin +at http://127\.0\.0\.1:(\d+)")
CONFIG = """
[providers.p]
kind = "openai"
base_url = "{url}"
api_key = "sk-scripted"
[profiles.balanced]
model = "p:m"
requests_per_minute = "none"
tokens_per_day = "none"
[profiles.expanded]
model = "p:large"
requests_per_minute = "none"
tokens_per_day = 5000
[prices."p:m"]
input = 1.0
output = 2.0
[store]
url = "sqlite:///{folder}/store.db"
[sessions]
secrets = ["{secret}"]
[identity]
{keys}
secret = "{secret}"
[admin]
listen = "127.0.0.1:0"
"""
KEPT = {"file": 'keys_file = "{folder}/keys.json"', "store": 'keys = "store"'}


async def keys(folder, *arguments, code=0):
    """What the command writes."""
    process = await forked_command.run(
        *("keys", *arguments, "--config", "chat.toml"),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/bin"},
    )
    out, error = await process.communicate()
    assert process.returncode == code, error
    assert SECRET.encode() not in out + error
    return (out or error).decode().rstrip("\n")


def bearer(key):
    return {**JSON, "authorization": f"Bearer {key}"}


async def until(port, key, status):
    """Ask until so many answers in a row have the status: with two workers, both have it then."""
    in_a_row = 0
    while in_a_row < 12:
        reply = await ask(port, headers=bearer(key))
        in_a_row = in_a_row + 1 if reply.status == status else 0
    return json.loads(reply.raw) if status != 200 else None


class Admin:
    def __init__(self, port, key):
        self.port, self.key = port, key

    async def __call__(self, method, path, status=200, **fields):
        body = json.dumps(fields).encode() if fields else b""
        async with connect(self.port) as client:
            headers = {name: value for name, value in bearer(self.key).items() if body or name not in JSON}
            reply = await client.request(method, f"/admin/v1/{path}", body, headers=headers)
            await reply.body()
        assert reply.status == status, reply.raw
        return json.loads(reply.raw)


async def check_scopes(served, admin, keys_of):
    """A key of one kind is nothing to the listener of another, and only the right one mints."""
    for name, chat, mint, operate in (
        ("chat", 200, 403, 401),
        ("sessions", 403, 201, 401),
        ("admin", 401, 401, 200),
        ("none", 401, 401, 401),
    ):
        key = keys_of[name]
        assert (await ask(served.port, headers=bearer(key))).status == chat, name
        made = await ask(served.port, {"caller": "u"}, path="/api/sessions", headers=bearer(key))
        assert made.status == mint, name
        await Admin(admin.port, key)("GET", "running", operate)


async def check_refusals(admin):
    for fields, field in (
        ({"caller": ""}, "caller"),
        ({"caller": "a\x1bb"}, "caller"),
        ({"caller": "a", "profiles": ["balanced", "canary"]}, "profiles"),
        ({"caller": "a", "profiles": "balanced"}, "profiles"),
        ({"caller": "a", "profiles": [1]}, "profiles"),
        ({"caller": "a", "scopes": ["canary"]}, "scopes"),
        ({"caller": "a", "scopes": []}, "scopes"),
        ({"caller": "a", "scopes": ["chat", "admin"]}, "scopes"),
        ({"caller": "a", "limits": {"canary": 1}}, "limits"),
        ({"caller": "a", "limits": {"tokens_per_day": "canary"}}, "limits.tokens_per_day"),
        ({"caller": "a", "limits": {"tokens_per_day": -1}}, "limits.tokens_per_day"),
        ({"caller": "a", "limits": {"tokens_per_day": True}}, "limits.tokens_per_day"),
        ({"caller": "a", "profiles": ["expanded"], "limits": {"usd_per_day": 1}}, "limits.usd_per_day"),
        ({"caller": "a", "expires": "canary"}, "expires"),
        ({"caller": "a", "expires": "2001-01-01"}, "expires"),
        ({"caller": "a", "canary": 1}, "body"),
    ):
        said = await admin("POST", "keys", 400, **fields)
        assert (said["code"], said["field"]) == ("bad_request", field), said
        assert "canary" not in json.dumps(said)
    assert (await admin("POST", "keys/none/rotate", 404, overlap="1h"))["code"] == "not_found"
    assert (await admin("DELETE", "keys/none", 404))["code"] == "not_found"


@pytest.mark.parametrize("kept", KEPT)
async def test_two_workers_accept_keys_made_by_operators(tmp_path, kept):
    async with ScriptedProvider(answer("Hello", 3)) as provider:
        lines = KEPT[kept].format(folder=tmp_path)
        text = CONFIG.format(url=provider.url, folder=tmp_path, secret=SECRET, keys=lines)
        (tmp_path / "chat.toml").write_text(text)
        operator = await keys(tmp_path, "create", "ops", "--scope", "admin")
        by_command = await keys(tmp_path, "create", "ada", "--limit", "requests_per_day=14", "--profile", "expanded")
        minter = await keys(tmp_path, "create", "backend", "--scope", "sessions")
        options = ("--workers", "2", "--config", str(tmp_path / "chat.toml"))
        async with command(tmp_path, provider.url, "sk-x", *options) as served:
            admin = Admin(int((await served.until(ADMIN.pattern))[1]), operator)
            await until(served.port, by_command, 200)
            assert {request.json()["model"] for request in provider.requests} == {"large"}, (
                "a closed profile is open to it"
            )
            made = await admin("POST", "keys", 201, caller="bob", name="laptop", limits={"tokens_per_day": 4_000})
            plain = made.pop("key")
            await until(served.port, plain, 200)
            assert {"sk-x", by_command, plain}.isdisjoint(served.said.decode().split())
            await check_scopes(
                served, admin, {"chat": plain, "sessions": minter, "admin": operator, "none": "cn_" + "a" * 32}
            )
            await check_refusals(admin)

            listed = await admin("GET", "keys")
            assert listed["kept_in"] == kept
            [ops, ada, backend, bob] = sorted(
                listed["keys"], key=lambda key: ["ops", "ada", "backend", "bob"].index(key["caller"])
            )
            assert bob == made
            assert (ada["profiles"], ada["limits"], ada["state"]) == (["expanded"], {"requests_per_day": 14}, "valid")
            assert (bob["name"], bob["group"], bob["expires"], bob["revoked"]) == ("laptop", None, None, None)
            assert (ops["scopes"], backend["scopes"]) == (["admin"], ["sessions"])

            rotated = await admin("POST", f"keys/{ada['id']}/rotate", 201, overlap="1h")
            assert rotated["replaces"]["rotated_to"] == rotated["id"]
            new = rotated["key"]
            while (reply := await ask(served.port, headers=bearer(new))).status == 401:
                pass
            assert reply.status in (200, 429), reply.raw
            told = await until(served.port, new, 429)
            assert (told["limit"], told["scope"]) == ("requests_per_day", "key")
            await until(served.port, by_command, 429)
            assert sum(request.json()["model"] == "large" for request in provider.requests) == 14
            assert (await admin("POST", f"keys/{ada['id']}/rotate", 409, overlap="1h"))["code"] == "not_rotatable"

            await keys(tmp_path, "revoke", bob["id"])
            assert (await until(served.port, plain, 401))["code"] == "unauthorized"
            assert (await admin("DELETE", f"keys/{rotated['id']}", reason="leaked"))["state"] == "revoked"
            await until(served.port, new, 401)
            table = await keys(tmp_path, "list")
            assert len(table.splitlines()) == 6
            assert "requests_per_day=14" in table
            acts = (await admin("GET", "audit"))["acts"]
            assert [each["act"] for each in acts if each["by"] == f"key:{ops['id']}"] == [
                "revoke_key", "rotate_key", "create_key"
            ]  # fmt: skip
            held = served.said + json.dumps([listed, acts]).encode()
            for file in tmp_path.glob("*.db*"):
                held += file.read_bytes()
            for text in (operator, by_command, minter, plain, new):
                assert text.removeprefix("cn_").encode() not in held


async def test_a_reload_moves_the_keys_from_the_file_into_the_store(tmp_path):
    async with ScriptedProvider(answer("Hello", 3)) as provider:

        def write(kept):
            lines = KEPT[kept].format(folder=tmp_path)
            text = CONFIG.format(url=provider.url, folder=tmp_path, secret=SECRET, keys=lines)
            (tmp_path / "chat.toml").write_text(text)

        write("store")
        new = await keys(tmp_path, "create", "ada")
        new_operator = await keys(tmp_path, "create", "ops", "--scope", "admin")
        write("file")
        old = await keys(tmp_path, "create", "ada")
        operator = await keys(tmp_path, "create", "ops", "--scope", "admin")
        options = ("--workers", "2", "--config", str(tmp_path / "chat.toml"))
        async with command(tmp_path, provider.url, "sk-x", *options) as served:
            port = int((await served.until(ADMIN.pattern))[1])
            await until(served.port, old, 200)
            await until(served.port, new, 401)
            write("store")
            assert (await Admin(port, operator)("POST", "reload"))["changed"] == ["identity"]
            await until(served.port, new, 200)
            await until(served.port, old, 401)
            await Admin(port, operator)("GET", "keys", 401)
            listed = await Admin(port, new_operator)("GET", "keys")
            assert (listed["kept_in"], len(listed["keys"])) == ("store", 2)


async def test_without_the_store_no_key_is_good_for_more_than_a_second(tmp_path):
    async with ScriptedProvider(answer("Hello", 3)) as provider:
        text = CONFIG.format(url=provider.url, folder=tmp_path, secret=SECRET, keys=KEPT["store"])
        (tmp_path / "chat.toml").write_text(text)
        key = await keys(tmp_path, "create", "ada")
        operator = await keys(tmp_path, "create", "ops", "--scope", "admin")
        async with command(tmp_path, provider.url, "sk-x", "--config", str(tmp_path / "chat.toml")) as served:
            admin = Admin(int((await served.until(ADMIN.pattern))[1]), operator)
            await until(served.port, key, 200)
            (tmp_path / "store.db").rename(tmp_path / "gone.db")
            (tmp_path / "store.db").mkdir()
            for file in tmp_path.glob("store.db-*"):
                file.unlink()
            while (reply := await get(served.port, "/v1/models", key)).status != 503:
                await asyncio.sleep(0.01)
            assert json.loads(reply.raw)
            await admin("GET", "running", 503)


async def get(port, path, key):
    async with connect(port) as client:
        reply = await client.request("GET", path, headers=bearer(key))
        await reply.body()
        return reply


async def opened(clients, port, key):
    """Begin an answer that does not end; its first token has come."""
    client = await clients.enter_async_context(connect(port))
    reply = await client.post(headers=bearer(key))
    assert reply.status == 200, reply.raw
    assert (await reply.until("token")).data == '"one"'
    return reply


@pytest.mark.parametrize("kept", KEPT)
async def test_to_revoke_a_key_ends_its_answers_and_its_sessions_in_both_workers(tmp_path, kept):
    async with ScriptedProvider(*[stream(chunk("one"), HANG)] * 40) as provider, AsyncExitStack() as clients:
        text = CONFIG.format(url=provider.url, folder=tmp_path, secret=SECRET, keys=KEPT[kept].format(folder=tmp_path))
        (tmp_path / "chat.toml").write_text(text)
        operator = await keys(tmp_path, "create", "ops", "--scope", "admin")
        both = [
            await keys(tmp_path, "create", "app", "--scope", "chat,sessions", "--name", f"key {number}")
            for number in range(3)
        ]
        options = ("--workers", "2", "--config", str(tmp_path / "chat.toml"))
        async with command(tmp_path, provider.url, "sk-x", *options) as served:
            admin = Admin(int((await served.until(ADMIN.pattern))[1]), operator)
            listed = {key["name"]: key["id"] for key in (await admin("GET", "keys"))["keys"]}
            ids = [listed[f"key {number}"] for number in range(3)]
            sessions, answers = [], []
            for number, key in enumerate(both):
                made = await ask(served.port, {"caller": f"user{number}"}, path="/api/sessions", headers=bearer(key))
                sessions.append(json.loads(made.raw)["token"])
                used = [await opened(clients, served.port, each) for each in [key, sessions[-1]] * 4]
                answers.append(used)
            await keys(tmp_path, "revoke", ids[0], "--reason", "leaked")
            assert (await admin("DELETE", f"keys/{ids[1]}", reason="left"))["state"] == "revoked"
            for used in answers[:2]:
                ends = [(await reply.until("error")).json()["code"] for reply in used]
                assert ends == ["stopped", "session_revoked"] * 4
            for key, session in zip(both[:2], sessions, strict=False):
                await until(served.port, key, 401)
                assert (await until(served.port, session, 401))["code"] == "session_revoked"
                refused = await ask(served.port, {"caller": "user"}, path="/api/sessions", headers=bearer(key))
                assert refused.status == 401
            while provider.active > len(answers[2]):
                await asyncio.sleep(0.01)
            assert len((await admin("GET", "running"))["running"]) == len(answers[2]), "the others are settled"
            acts = (await admin("GET", "audit"))["acts"]
            by = {each["target"]: each for each in acts if each["act"] == "revoke_key"}
            assert [by[id]["reason"] for id in ids[:2]] == ["leaked", "left"]
            assert by[ids[0]]["by"].startswith("cli:")
            assert by[ids[0]]["detail"] == by[ids[1]]["detail"]
            assert len([each for each in acts if each["act"] == "create_key"]) == 4
            for reply in answers[2]:
                assert b"event: error" not in reply.raw
