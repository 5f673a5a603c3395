"""What strangers try against two `chat-nest serve` that share a store: none of it gives more than one visitor's budget."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections import Counter
from pathlib import Path
from time import time

import altcha
import pytest
import pytest_asyncio
from postgres_server import new_database, shared_url
from raw_client import HELLO, JSON, ask, connect
from redis_servers import shared_redis_url
from scripted_provider import ScriptedProvider, answer
from served_workers import start

from chat_nest.identity.signed_ids import SignedIds

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "the secret of all these visitors"
CONFIG = """
default_profile = "taste"
[server]
trusted_proxies = ["127.0.0.1"]
[visitors]
secret = "{secret}"
previous_secret = "the secret before the present one"
[addresses]
requests_per_day = 6
[networks]
requests_per_day = 10
[challenge]
kind = "proof_of_work"
before = "taste"
after = "meal"
milliseconds = 20
[profiles.taste]
open = true
requests_per_day = 4
requests_per_minute = "none"
on_disconnect = "finish"
[profiles.meal]
requests_per_day = 5
requests_per_minute = "none"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "redis", "postgresql"])
async def ports(request, tmp_path_factory):
    """The ports of two servers on one store."""
    folder = tmp_path_factory.mktemp("strangers")
    (folder / "runs").mkdir(mode=0o700)
    (folder / "chat-nest.toml").write_text(CONFIG.replace("{secret}", SECRET))
    places = {"CHAT_NEST_STORE_URL": shared_redis_url()}
    if request.param != "redis":
        url, remove = (f"sqlite:///{folder / 'shared.db'}", None)
        if request.param == "postgresql":
            url, remove = new_database(shared_url())
            request.addfinalizer(remove)
        places = {"CHAT_NEST_STORE_URL": url, "CHAT_NEST_RUNS_URL": f"local://{folder / 'runs'}"}
    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9)) as provider:
        environ = {
            "OPENAI_BASE_URL": provider.url,
            "OPENAI_API_KEY": "sk-test",
            "CHAT_NEST_MODEL": "scripted",
            **places,
        }
        workers = [await start(folder, "--config", "chat-nest.toml", **environ) for _ in range(2)]
        try:
            await asyncio.gather(*(worker.started() for worker in workers))
            yield [worker.port for worker in workers]
        finally:
            await asyncio.gather(*(worker.kill() for worker in workers))


def a_network():
    """An IPv4 /24 that no other test uses, also in a store that others have used."""
    return f"{random.randrange(11, 120)}.{random.randrange(256)}.{random.randrange(256)}"


def at(address, **headers):
    return {**JSON, "x-forwarded-for": address, **headers}


def cookie_of(reply):
    return {"cookie": reply.headers["set-cookie"].partition(";")[0]}


async def statuses(ports, each):
    """Send requests with these headers at once, to the two servers in turn, and count the statuses."""
    asked = [ask(ports[index % 2], HELLO, headers=headers) for index, headers in enumerate(each)]
    return Counter(reply.status for reply in await asyncio.gather(*asked))


async def test_a_cookie_that_is_dropped_on_every_request(ports):
    address = f"{a_network()}.7"
    assert await statuses(ports, [at(address)] * 40) == {200: 4, 403: 36}


async def test_a_cookie_that_is_copied_to_many_clients(ports):
    one = cookie_of(await ask(ports[0], HELLO, headers=at(f"{a_network()}.7")))
    assert await statuses(ports, [at(f"{a_network()}.7", **one) for _ in range(60)]) == {200: 4, 403: 56}


async def test_a_network_full_of_addresses(ports):
    network = a_network()
    assert (await statuses(ports, [at(f"{network}.{host}") for host in range(1, 61)]))[200] == 10


async def test_a_v6_network_full_of_networks(ports):
    begin = f"2a0{random.randrange(1, 9)}:{secrets.token_hex(2)}:{secrets.token_hex(2)}"
    addresses = [f"{begin}:{subnet:x}::{secrets.token_hex(2)}" for subnet in range(30)]
    assert (await statuses(ports, map(at, addresses)))[200] == 10
    begin = f"2a0{random.randrange(1, 9)}:{secrets.token_hex(2)}:{secrets.token_hex(2)}"
    addresses = [f"{begin}:1:{secrets.token_hex(2)}::1" for _ in range(30)]
    assert (await statuses(ports, map(at, addresses)))[200] == 4, "one /64 is one address"


async def test_many_visitors_at_one_address(ports):
    address = f"{a_network()}.7"
    tokens = [
        json.loads((await ask(ports[0], b"", path="/api/visit", headers=at(address))).raw)["token"] for _ in range(20)
    ]
    each = [at(address, authorization=f"Bearer {token}") for token in tokens]
    assert await statuses(ports, each) == {200: 6, 429: 14}


async def test_a_forwarded_address_that_is_made_up(ports):
    address = f"{a_network()}.7"
    assert (await statuses(ports, [at(f"{a_network()}.9, {address}") for _ in range(20)]))[200] == 4


async def test_ids_that_are_not_of_this_server(ports):
    address = f"{a_network()}.7"
    ours, theirs = SignedIds([SECRET]), SignedIds(["the secret of another server 123"])
    now = time()
    valid = ours.sign(ours.new(now))
    expired = ours.sign(ours.new(now - 400 * 86_400))
    foreign = theirs.sign(theirs.new(now))
    for wrong in (valid[:-1], expired, foreign, valid[:-2] + ("AA" if valid[-2:] != "AA" else "BB")):
        reply = await ask(ports[0], HELLO, headers=at(address, authorization=f"Bearer {wrong}"))
        assert reply.status == 401
    old = SignedIds(["the secret before the present one"])
    accepted = at(address, authorization=f"Bearer {old.sign(old.new(now))}")
    assert (await ask(ports[1], HELLO, headers=accepted)).status == 200


async def test_a_solution_that_is_used_a_hundred_times(ports):
    network = a_network()
    one = cookie_of(await ask(ports[0], HELLO, headers=at(f"{network}.7")))
    refused = await statuses(ports, [at(f"{network}.7", **one)] * 6)
    assert refused[403] == 2
    reply = await ask(ports[1], HELLO, headers=at(f"{network}.7", **one))
    made = altcha.Challenge.from_dict(json.loads(reply.raw)["challenge"]["challenge"])
    body = {"solution": altcha.Payload(made, altcha.solve_challenge(made)).to_base64()}
    elsewhere = [ask(port, body, path="/api/challenge", headers=at(f"{a_network()}.7", **one)) for port in ports]
    assert [each.status for each in await asyncio.gather(*elsewhere)] == [403, 403], "a copied solution"
    sent = [
        ask(ports[index % 2], body, path="/api/challenge", headers=at(f"{network}.{index}", **one))
        for index in range(100)
    ]
    replies = await asyncio.gather(*sent)
    assert Counter(each.status for each in replies) == {200: 1, 403: 99}
    (passed,) = (each for each in replies if each.status == 200)
    elsewhere = at(f"{a_network()}.7", **cookie_of(passed))
    assert await statuses(ports, [elsewhere] * 4) == {200: 1, 429: 3}, "the counters stay: 4 of 5 were used before"


async def test_a_first_answer_is_followed_on_the_other_server_by_its_visitor_only(ports):
    address = f"{a_network()}.7"
    first = await ask(ports[0], HELLO, headers=at(address))
    run = json.loads(first.raw.partition(b"data: ")[2].partition(b"\n")[0])["id"]
    other = cookie_of(await ask(ports[0], HELLO, headers=at(address)))
    for visitor, status in ((cookie_of(first), 200), (other, 404), ({}, 404)):
        async with connect(ports[1]) as client:
            reply = await client.request("GET", f"/api/chat/{run}/stream", headers=at(address, **visitor))
            assert reply.status == status


def resident(pid):
    """Kilobytes of memory."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


async def test_a_thousand_first_visits_leave_nothing_and_an_honest_visitor_is_served(tmp_path):
    (tmp_path / "chat-nest.toml").write_text(
        CONFIG.replace("{secret}", SECRET).replace('"taste"\nafter', '"taste"\nwhen = "always"\nafter')
    )

    async def flood(port, number):
        """First visits, each with an address and a made-up cookie of its own, over a few connections."""

        async def some(count):
            async with connect(port) as client:
                for _ in range(count):
                    headers = at(
                        f"{a_network()}.{random.randrange(256)}", cookie=f"chat-nest=cnv1_{secrets.token_urlsafe(45)}"
                    )
                    reply = await client.post(headers=headers)
                    await reply.body()
                    assert reply.status == 403

        await asyncio.gather(*(some(number // 20) for _ in range(20)))

    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9)) as provider:
        environ = {"OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "sk-test", "CHAT_NEST_MODEL": "scripted"}
        worker = await start(tmp_path, "--config", "chat-nest.toml", **environ)
        try:
            await worker.started()
            address = f"{a_network()}.7"
            asked = await ask(worker.port, HELLO, headers=at(address))
            made = altcha.Challenge.from_dict(json.loads(asked.raw)["challenge"]["challenge"])
            body = {"solution": altcha.Payload(made, altcha.solve_challenge(made)).to_base64()}
            passed = await ask(worker.port, body, path="/api/challenge", headers=at(address, **cookie_of(asked)))
            honest = at(address, **cookie_of(passed))
            await flood(worker.port, 1_000)
            before = resident(worker.process.pid)
            flooding = asyncio.create_task(flood(worker.port, 1_000))
            replies = [await ask(worker.port, HELLO, headers=honest) for _ in range(3)]
            await flooding
            assert [reply.status for reply in replies] == [200] * 3
            assert resident(worker.process.pid) - before < 8_192
            assert len(provider.requests) == 3
        finally:
            await worker.kill()
