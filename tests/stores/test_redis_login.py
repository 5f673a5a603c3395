"""Who may talk to the Redis store's server: passwords, users with few rights, TLS."""

from __future__ import annotations

import asyncio
import re
import ssl
from pathlib import Path

import pytest
import trustme
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.deltas import TextDelta
from chat_nest.core.claims import Granted, Refused
from chat_nest.core.protocols import Finale
from chat_nest.stores.redis import RedisStore
from chat_nest.runs.redis import RedisRuns
from ports import free_ports
from redis_servers import RedisServer
from stores_under_test import LEASE, claim, gauge, rate, standing, window

FAR = 4_000_000_000.0
LINES = window(10**6, fixed=50, key="day", resets_at=FAR), rate(100, key="rpm"), gauge(2)
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "redis.md"
PASSWORD = "hunter2 @/:%"
ESCAPED = "hunter2%20%40%2F%3A%25"


@pytest.fixture
def server():
    one = RedisServer()
    yield one
    one.stop()


@pytest.fixture
async def opened():
    """Open stores that are closed at the end."""
    stores = []

    def open_one(url, **options):
        stores.append(RedisStore(url, **options))
        return stores[-1]

    yield open_one
    for store in stores:
        await store.aclose()


async def chat(store):
    """Every call, in every way that writes something else."""
    one, two, three, four = (claim(id, *LINES) for id in "abcd")
    assert isinstance(await store.reserve(one, LEASE), Granted)
    assert isinstance(await store.reserve(two, 0.001), Granted)
    await asyncio.sleep(0.002)
    await store.sweep()
    assert await store.settle(two, {"tokens": 10}, "reported")
    assert isinstance(await store.reserve(three, LEASE), Granted)
    assert isinstance(await store.reserve(four, LEASE), Refused)
    assert await store.extend([one, three], LEASE) == {"a", "c"}
    assert await store.settle(one, {"tokens": 60}, "reported")
    assert await store.release(three)
    assert not await store.release(claim("never", *LINES))
    await store.ping()
    assert await standing(store, LINES[0]) == (70, 0)


async def refused(store):
    """Why the store does not answer; it says so within its deadline."""
    with pytest.raises(LimiterUnavailable) as failure:
        async with asyncio.timeout(240):  # 0.7 s, on a busy machine
            await chat(store)
    return failure.value.__cause__


# passwords


async def test_the_right_password_opens_it_and_no_other(server, opened, caplog):
    server.ask("CONFIG", "SET", "requirepass", PASSWORD)
    await chat(opened(f"redis://:{ESCAPED}@127.0.0.1:{server.port}"))
    for login, code in (("", "NOAUTH"), (":hunter3@", "WRONGPASS"), (f"someone:{ESCAPED}@", "WRONGPASS")):
        why = await refused(opened(f"redis://{login}127.0.0.1:{server.port}"))
        assert why.code == code
        assert f"does not answer: {code}" in caplog.text
    assert "hunter" not in caplog.text


async def test_a_password_that_is_required_later_is_noticed_by_the_next_connection(server, opened):
    store = opened(server.url)
    await chat(store)
    server.ask("CONFIG", "SET", "requirepass", PASSWORD)
    with_password = RedisStore(f"redis://:{ESCAPED}@127.0.0.1:{server.port}")
    assert await standing(with_password, LINES[0]) == (70, 0)
    await with_password.aclose()


async def test_a_separate_database(server, opened):
    await chat(opened(f"{server.url}/3"))
    await chat(opened(f"{server.url}/4"))
    assert server.ask("DBSIZE") == 0
    assert re.findall(rb"db(\d):", server.ask("INFO", "keyspace")) == [b"3", b"4"]


# users


def rights():
    """What the document says that a user needs."""
    [block] = re.findall(r"```\n  (on >PASSWORD .*?)\n  ```", DOCUMENT.read_text(), re.DOTALL)
    return block.split()


def make_user(server, words):
    answer = server.ask("ACL", "SETUSER", "nest", *(word.replace("PASSWORD", PASSWORD) for word in words))
    assert answer == b"OK"
    return f"redis://nest:{ESCAPED}@127.0.0.1:{server.port}"


async def test_a_user_with_the_rights_of_the_document_can_do_everything(server, opened):
    url = make_user(server, rights())
    await chat(opened(url))
    assert (await refused(opened(f"{url}/1"))).code == "NOPERM"
    make_user(server, ["+select"])
    await chat(opened(f"{url}/1"))


async def test_runs_need_a_few_more_rights_of_the_document(server):
    more = re.search(r"also keeps \[runs\]\(runs.md\), `(.*?)`", DOCUMENT.read_text())[1].split()
    url = make_user(server, [*rights(), *more])
    one, two = RedisRuns(url), RedisRuns(url)
    try:
        for runs in (one, two):
            runs.listen(lambda _name, owner: owner == "ada")
            runs.attend()
        run = one.begin("r", "ada", "m", ["name"])
        run.append([TextDelta("a")])
        while (found := await two.find("name")) is None:
            pass
        reading = found.read(0)
        assert await anext(reading) == (1, [TextDelta("a")])
        while not run.readers:
            await asyncio.sleep(0.01)
        while not await two.stop("r", "ada"):
            pass
        run.end(Finale(code="stopped"))
        assert await anext(reading, None) is None
        assert found.finale.code == "stopped"
        one.ended("r", ["name"])
        while one._writing:
            await asyncio.sleep(0.01)
        denied = server.ask("INFO", "errorstats")
        assert b"NOPERM" not in denied, denied
    finally:
        await one.aclose()
        await two.aclose()


@pytest.mark.parametrize("missing", [word for word in rights() if word[0] in "~+"])
async def test_each_of_these_rights_is_needed(server, opened, missing):
    url = make_user(server, [word for word in rights() if word != missing])
    assert (await refused(opened(url))).code in {"NOPERM", "ERR"}


async def test_a_users_rights_end_at_its_keys(server, opened):
    url = make_user(server, rights())
    assert (await refused(opened(url, prefix="other"))).code in {"NOPERM", "ERR"}
    assert server.ask("DBSIZE") == 0


# TLS


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def files(authority, tmp_path):
    """The authority's certificate, and another's that knows nothing of the server."""
    names = {"ours": tmp_path / "ours.pem", "theirs": tmp_path / "theirs.pem", "client": tmp_path / "client.pem"}
    authority.cert_pem.write_to_path(str(names["ours"]))
    trustme.CA().cert_pem.write_to_path(str(names["theirs"]))
    authority.issue_cert("client@example.test").private_key_and_cert_chain_pem.write_to_path(str(names["client"]))
    return names


def start_tls(authority, directory, name, *options):
    """A server that speaks TLS, too. `tls_port` is where."""
    certificate = authority.issue_cert(name)
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    [port] = free_ports(1)
    one = RedisServer(
        "--tls-port", str(port), "--tls-cert-file", str(directory / "cert.pem"), "--tls-key-file",
        str(directory / "key.pem"), "--tls-ca-cert-file", str(directory / "ca.pem"), *options,
    )  # fmt: skip
    one.tls_port = port
    return one


@pytest.fixture
def secure(authority, tmp_path):
    one = start_tls(authority, tmp_path, "127.0.0.1", "--tls-auth-clients", "no")
    yield one
    one.stop()


async def test_tls_with_a_private_authority(secure, opened, files):
    secure.ask("CONFIG", "SET", "requirepass", PASSWORD)
    await chat(opened(f"rediss://:{ESCAPED}@127.0.0.1:{secure.tls_port}?ssl_ca_certs={files['ours']}"))


@pytest.mark.parametrize("authorities", ["theirs", None])
async def test_a_server_of_an_unknown_authority_is_refused_and_gets_no_data(secure, opened, files, authorities, caplog):
    query = f"?ssl_ca_certs={files[authorities]}" if authorities else ""
    why = await refused(opened(f"rediss://:{ESCAPED}@127.0.0.1:{secure.tls_port}{query}"))
    assert isinstance(why, ssl.SSLCertVerificationError)
    assert "does not answer: SSLCertVerificationError" in caplog.text
    assert secure.ask("DBSIZE") == 0
    assert b"cmdstat_auth" not in secure.ask("INFO", "commandstats")


async def test_a_certificate_of_another_name_is_refused(authority, tmp_path, opened, files):
    server = start_tls(authority, tmp_path, "other.example", "--tls-auth-clients", "no")
    try:
        why = await refused(opened(f"rediss://127.0.0.1:{server.tls_port}?ssl_ca_certs={files['ours']}"))
        assert isinstance(why, ssl.SSLCertVerificationError)
    finally:
        server.stop()


async def test_a_server_that_wants_a_certificate_gets_ours(authority, tmp_path, opened, files):
    server = start_tls(authority, tmp_path, "127.0.0.1", "--tls-auth-clients", "yes")
    try:
        url = f"rediss://127.0.0.1:{server.tls_port}?ssl_ca_certs={files['ours']}"
        assert await refused(opened(url)) is not None
        await chat(opened(f"{url}&ssl_certfile={files['client']}"))
    finally:
        server.stop()


async def test_plain_words_to_a_tls_port_and_tls_to_a_plain_one_are_refused(secure, opened, files):
    assert await refused(opened(f"redis://127.0.0.1:{secure.tls_port}")) is not None
    assert await refused(opened(f"rediss://127.0.0.1:{secure.port}?ssl_ca_certs={files['ours']}")) is not None


async def test_connections_over_tls_that_died_while_idle_are_replaced_unseen(secure, opened, files):
    store = opened(f"rediss://127.0.0.1:{secure.tls_port}?ssl_ca_certs={files['ours']}")
    await store.reserve(claim("a", *LINES), LEASE)
    secure.ask("CLIENT", "KILL", "TYPE", "normal")
    assert await store.settle(claim("a", *LINES), {"tokens": 60}, "reported")
    assert await standing(store, LINES[0]) == (60, 0)


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
def test_a_file_that_can_not_be_read_is_named_at_once(tmp_path, option):
    with pytest.raises(ValueError, match=r"store\.url: .*ssl_ca_certs, ssl_certfile") as failure:
        RedisStore(f"rediss://:hunter2@h?{option}={tmp_path}/none.pem")
    assert "hunter2" not in str(failure.value)
