"""Alerts by mail, to a real SMTP server with TLS and a login."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from mail_server import CA, PASSWORD, Inbox, mail_server

from chat_nest.alerts import email as of_email
from chat_nest.alerts.email import Email, Mail, recipients_of

TEXT = "all callers: usd_per_month is at 80 % ($80.00 of $100.00); at this pace the limit is reached on 23 November"


def channel(port, *, security="starttls", password="", user="", to=("ops@example.org",)):
    trusted = ssl.create_default_context()
    CA.configure_trust(trusted)
    mail = Mail(
        host="127.0.0.1", port=port, security=security, user=user, sender="nest@example.org", recipients=to
    )  # fmt: skip
    return Email(mail, password, tls=trusted)


async def send(sender):
    return await sender.send("msg_1", "budget.threshold", TEXT, b'{"data":{"percent":80}}')


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_a_mail_arrives_encrypted_and_whole(security):
    inbox = Inbox()
    async with mail_server(inbox, tls=security) as port:
        assert (await send(channel(port, security=security, to=("a@example.org", "b@example.org")))).sent
    [(recipients, message, encrypted)] = inbox.messages
    assert recipients == ["a@example.org", "b@example.org"]
    assert encrypted
    assert message["Subject"].startswith("Chat Nest: all callers: usd_per_month is at 80 %")
    assert message["Message-ID"] == "<msg_1@example.org>"
    assert message["Auto-Submitted"] == "auto-generated"
    text = message.get_payload(decode=True).decode()
    assert TEXT in text
    assert '{"data":{"percent":80}}' in text


async def test_no_mail_leaves_without_encryption_unless_it_may():
    inbox = Inbox()
    async with mail_server(inbox, tls="none") as port:
        outcome = await send(channel(port))
        assert not outcome.sent
        assert inbox.messages == []
        assert (await send(channel(port, security="none"))).sent
    assert len(inbox.messages) == 1


async def test_a_certificate_of_another_authority_is_refused():
    inbox = Inbox()
    async with mail_server(inbox) as port:
        sender = Email(channel(port)._mail, tls=ssl.create_default_context())
        assert not (await send(sender)).sent
    assert inbox.messages == []


async def test_a_wrong_password_is_reported_without_showing_it():
    inbox = Inbox()
    async with mail_server(inbox, login=True) as port:
        outcome = await send(channel(port, user="nest", password="wrong horse"))
        assert (outcome.sent, outcome.why) == (False, "the mail server answers 535")
        assert (await send(channel(port, user="nest", password=PASSWORD))).sent
    assert len(inbox.messages) == 1


async def test_a_server_that_is_full_or_hangs_is_a_failure_that_passes(monkeypatch):
    async with mail_server(Inbox("452 full")) as port:
        assert (await send(channel(port))).why == "the mail server answers 452"
    monkeypatch.setattr(of_email, "SEND_SECONDS", 0.2)
    silent = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    async with silent:
        outcome = await send(channel(silent.sockets[0].getsockname()[1]))
    assert not outcome.sent
    assert not outcome.final


@pytest.mark.parametrize(
    "address", ["ops", "@example.org", "ops@", "a b@example.org", "a@b.org\r\nBcc: c@d.org", "é@x.org"]
)
def test_an_invalid_address_is_refused(address):
    with pytest.raises(ValueError, match="must be e-mail addresses"):
        recipients_of([address])
