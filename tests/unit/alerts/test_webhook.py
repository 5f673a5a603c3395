"""Webhooks: the signature of Standard Webhooks, and what each answer of the receiver means."""

from __future__ import annotations

import base64
import socket

import pytest
from webhook_receiver import SECRET, Receiver, is_signed

from chat_nest.alerts import webhook
from chat_nest.alerts.webhook import Webhook, secret_bytes, signatures

BODY = b'{"type":"test"}'


def test_the_signature_is_that_of_the_reference_implementation():
    # From the tests of https://github.com/standard-webhooks/standard-webhooks.
    key = secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signatures([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!!!!", "whsec_" + base64.b64encode(b"x" * 23).decode(),
     "whsec_" + base64.b64encode(b"x" * 65).decode()],
)  # fmt: skip
def test_another_secret_is_refused(secret):
    with pytest.raises(ValueError, match=r"^must be whsec_ and 24 to 64 random bytes in base64$"):
        secret_bytes(secret)


async def send(url, *secrets):
    return await Webhook(url, secrets or (SECRET,)).send("msg_1", "test", "text", BODY)


async def test_a_delivery_is_signed_by_each_secret():
    other = "whsec_" + base64.b64encode(b"b" * 32).decode()
    async with Receiver() as receiver:
        assert (await send(receiver.url, other, SECRET)).sent
        [delivery] = receiver.deliveries
    assert delivery.id == "msg_1"
    assert is_signed(delivery.headers, BODY, other)
    assert not is_signed(delivery.headers, BODY + b" ", other)


@pytest.mark.parametrize(
    ("answer", "why", "final"),
    [(500, "status 500", False), (302, "status 302", False), (410, "410: the receiver is gone", True)],
)
async def test_the_meaning_of_each_answer_of_a_receiver(answer, why, final):
    async with Receiver(answer) as receiver:
        outcome = await send(receiver.url)
    assert not outcome.sent
    assert outcome.why.startswith(why)
    assert outcome.final == final


async def test_a_receiver_may_send_retry_after():
    async with Receiver(503, headers="retry-after: 120\r\n") as receiver:
        assert (await send(receiver.url)).wait == 120.0


async def test_a_receiver_that_hangs_or_is_not_there_costs_a_time_out(monkeypatch):
    monkeypatch.setattr(webhook, "SEND_SECONDS", 0.2)
    async with Receiver(None) as receiver:
        assert "no answer within" in (await send(receiver.url)).why
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    outcome = await send(f"http://127.0.0.1:{port}/hook")
    assert not outcome.sent
    assert outcome.why.startswith("no answer (")
