"""Alerts of real servers: once for all workers, also after a kill, and changed by a reload."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from asyncio.subprocess import PIPE, STDOUT
from contextlib import closing, contextmanager

import forked_command
import pytest
from mail_server import Inbox, mail_server
from postgres_server import new_database, shared_url
from raw_client import ask
from redis_servers import RedisServer
from scripted_provider import ScriptedProvider, answer
from serve_command import command
from webhook_receiver import SECRET, Receiver

CONFIG = """
[providers.p]
kind = "openai"
base_url = "{provider}"
api_key = "sk-scripted"
[profiles.balanced]
model = "p:m"
requests_per_minute = "none"
requests_per_day = "none"
concurrent_streams = "none"
[limits]
requests_per_day = {limit}
[store]
url = "{store}"
"""
ALERTS = """
[alerts]
webhook = "{url}"
webhook_secrets_file = "secret"
name = "prod"
percents = [80, 100]
store_seconds = 1
"""


def write(folder, provider, store, alerts="", *, limit=20):
    (folder / "secret").write_text(f"# of the webhook\n{SECRET}\n")
    text = CONFIG.format(provider=provider.url, store=store, limit=limit) + alerts
    (folder / "chat.toml").write_text(text)


def serving(folder, *options):
    return command(folder, "", "", "--config", "chat.toml", *options)


async def run(folder, *arguments):
    """The exit code and the output of a command."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await forked_command.run(
        *(*arguments, "--config", "chat.toml"), cwd=folder, env=clean, stdout=PIPE, stderr=STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def ask_times(port, count):
    replies = await asyncio.gather(*(ask(port) for _ in range(count)))
    return [reply.status for reply in replies]


@contextmanager
def store_of(kind, folder):
    """The URL of an empty store."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/store.db"
        return
    if kind == "redis":
        server = RedisServer()
        url, remove = server.url, server.stop
    else:
        url, remove = new_database(shared_url())
    try:
        yield url
    finally:
        remove()


@pytest.mark.parametrize("kind", ["sqlite", "redis", "postgres"])
async def test_a_fleet_that_crosses_a_share_at_once_sends_one_alert(tmp_path, kind):
    """A server with two workers and another one, which all look at the store while each receives requests."""
    async with ScriptedProvider(answer("ok")) as provider, Receiver() as receiver:
        with store_of(kind, tmp_path) as store:
            write(tmp_path, provider, store, ALERTS.format(url=receiver.url))
            async with serving(tmp_path, "--workers", "2") as one, serving(tmp_path) as two:
                statuses = await asyncio.gather(ask_times(one.port, 9), ask_times(two.port, 8))
                assert sum(statuses, []) == [200] * 17
                [first] = await receiver.delivered(1)
                statuses = await asyncio.gather(ask_times(one.port, 3), ask_times(two.port, 3))
                assert sum(statuses, []).count(200) == 3
                _, second = await receiver.delivered(2)
                for server in (one, two):  # an end sends what is due, and nothing again
                    server.process.terminate()
                    assert await server.ended() == 0
        assert len(receiver.attempts) == 2
    assert first.body["type"] == "budget.threshold"
    assert first.body["text"].startswith("prod: all callers: requests_per_day is at 85 % (17 requests of 20 requests)")
    assert first.body["data"]["percent"] == 80
    assert second.body["type"] == "budget.used_up"
    assert first.id != second.id


async def test_an_alert_is_delivered_after_its_sender_was_killed_and_restarted(tmp_path):
    """A minute, for which the attempt belonged to the killed process, is taken out of the store."""
    async with ScriptedProvider(answer("ok")) as provider, Receiver(None) as receiver:
        write(tmp_path, provider, f"sqlite:///{tmp_path}/store.db", ALERTS.format(url=receiver.url))
        async with serving(tmp_path) as served:
            assert await ask_times(served.port, 17) == [200] * 17
            await receiver.attempted(1)
            assert (await ask_times(served.port, 1)) == [200]  # a receiver that hangs holds up nothing
            await served.kill()
        with closing(sqlite3.connect(tmp_path / "store.db")) as store, store:
            taken = store.execute("DELETE FROM firsts WHERE key LIKE 'alert-attempt:%'")
            assert taken.rowcount == 1
        async with serving(tmp_path):
            [delivery] = await receiver.delivered(1)
        assert receiver.attempts == [delivery.id, delivery.id]
        async with serving(tmp_path) as served:
            assert (await ask_times(served.port, 4)).count(200) == 2  # the next alert, and none before it again
            _, last = await receiver.delivered(2)
    assert last.body["type"] == "budget.used_up"
    assert len(receiver.attempts) == 3


async def test_a_reload_turns_alerts_on_and_off(tmp_path):
    async with ScriptedProvider(answer("ok")) as provider, Receiver() as receiver, Receiver() as other:
        store = f"sqlite:///{tmp_path}/store.db"
        write(tmp_path, provider, store)
        async with serving(tmp_path, "--workers", "2") as served:
            assert await ask_times(served.port, 17) == [200] * 17
            write(tmp_path, provider, store, ALERTS.format(url=receiver.url))
            code, said = await run(tmp_path, "reload")
            assert code == 0
            assert "in force: alerts" in said
            await receiver.delivered(1)
            write(tmp_path, provider, store, ALERTS.format(url=other.url))
            assert (await run(tmp_path, "reload"))[0] == 0
            assert (await ask_times(served.port, 4)).count(200) == 3
            await other.delivered(1)
        assert len(receiver.attempts) == 1


async def test_an_alert_is_sent_while_the_store_is_down(tmp_path):
    async with ScriptedProvider(answer("ok")) as provider, Receiver() as receiver:
        server = RedisServer()
        try:
            write(tmp_path, provider, server.url, ALERTS.format(url=receiver.url))
            async with serving(tmp_path, "--workers", "2") as served:
                assert await ask_times(served.port, 1) == [200]
                server.kill()
                [delivery] = await receiver.delivered(1)
                assert (await ask(served.port)).status == 503
            assert delivery.body["type"] == "store.down"
            assert "Redis" in delivery.body["text"]
            assert (tmp_path / "chat-nest-journal" / "alerts.db").exists()
        finally:
            server.stop()


async def test_a_test_alert_reports_the_outcome(tmp_path):
    inbox = Inbox()
    async with ScriptedProvider() as provider, Receiver() as receiver, mail_server(inbox, tls="none") as port:
        mail = (
            f'email = ["ops@example.org"]\nemail_from = "nest@example.org"\nsmtp_host = "127.0.0.1"\n'
            f'smtp_port = {port}\nsmtp_security = "none"\n'
        )
        write(tmp_path, provider, "memory://", ALERTS.format(url=receiver.url) + mail)
        code, said = await run(tmp_path, "alerts", "test")
        assert (code, said) == (0, "chat-nest: webhook: sent\nchat-nest: email: sent\n")
        [delivery], [(recipients, message, _)] = receiver.deliveries, inbox.messages
        assert delivery.body["text"] == "prod: this is a test of alerts; nothing has happened"
        assert recipients == ["ops@example.org"]
        assert message["Message-ID"] == f"<{delivery.id}@example.org>"
        receiver.answers, inbox.answer = [503], "554 no"
        code, said = await run(tmp_path, "alerts", "test")
    assert code == 1
    assert said == "chat-nest: webhook: not sent: status 503\nchat-nest: email: not sent: the mail server answers 554\n"


async def test_a_test_alert_without_a_receiver_names_the_missing_setting(tmp_path):
    async with ScriptedProvider() as provider:
        write(tmp_path, provider, "memory://")
        assert await run(tmp_path, "alerts", "test") == (
            2,
            "chat-nest: there is no receiver: set alerts.webhook or alerts.email\n",
        )
