from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.identity.peer import KNOWN_ADDRESSES, PeerAddress, is_local
from chat_nest.core.messages import Caller

PROXIES = ("10.0.0.0/8", "192.0.2.7", "2001:db8:ffff::/48", "unix")


def scope(peer: str | None, *forwarded: str) -> dict[str, object]:
    headers = [(b"host", b"x"), *((b"x-forwarded-for", value.encode("latin-1")) for value in forwarded)]
    return {"type": "http", "client": None if peer is None else (peer, 50_000), "headers": headers}


def who(identify: PeerAddress, peer: str | None, *forwarded: str) -> str:
    caller = identify(scope(peer, *forwarded))
    assert caller == Caller(id=caller.id), "no profile is given"
    return caller.id


@pytest.mark.parametrize(
    ("peer", "id"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("::ffff:203.0.113.5", "203.0.113.5"),
        ("::ffff:cb00:7105", "203.0.113.5"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("testclient", "testclient"),
        (None, "unix"),
        ("", "unix"),
    ],
)
def test_a_caller_is_its_address(peer: str | None, id: str) -> None:
    assert who(PeerAddress(), peer) == id


def test_a_scope_without_a_client_is_a_unix_peer() -> None:
    assert PeerAddress()({"type": "http", "headers": []}).id == "unix"


@pytest.mark.parametrize("peer", ["203.0.113.5", "2001:db8:1::9", "testclient", None])
def test_row_21_a_header_from_a_peer_that_is_not_a_trusted_proxy_is_ignored(peer: str | None) -> None:
    for identify in (PeerAddress(), PeerAddress(["10.0.0.0/8"])):
        assert who(identify, peer, "198.51.100.1") == who(identify, peer)


@pytest.mark.parametrize(
    ("peer", "forwarded", "id"),
    [
        ("10.1.2.3", ["198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.1.2.3", ["198.51.100.1"], "198.51.100.1"),
        ("2001:db8:ffff::1", ["198.51.100.1"], "198.51.100.1"),
        ("192.0.2.7", ["198.51.100.1"], "198.51.100.1"),
        ("192.0.2.8", ["198.51.100.1"], "192.0.2.8"),
        (None, ["198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", [], "10.1.2.3"),
        # The client wrote the left part: only what trusted proxies appended counts.
        ("10.1.2.3", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", ["1.1.1.1,198.51.100.1,10.9.9.9"], "198.51.100.1"),
        ("10.1.2.3", ["1.1.1.1", "198.51.100.1", "10.9.9.9"], "198.51.100.1"),
        ("10.1.2.3", ["10.0.0.1, 10.0.0.2"], "10.0.0.1"),
        ("10.1.2.3", ["10.0.0.1, 198.51.100.1"], "198.51.100.1"),
        # Ports, brackets, zones, mapped addresses.
        ("10.1.2.3", ["198.51.100.1:443"], "198.51.100.1"),
        ("10.1.2.3", ["[2001:db8:5::1]"], "2001:db8:5::/64"),
        ("10.1.2.3", ["[2001:db8:5::1]:443"], "2001:db8:5::/64"),
        ("10.1.2.3", ["2001:db8:5::1"], "2001:db8:5::/64"),
        ("10.1.2.3", ["fe80::5%eth0"], "fe80::/64"),
        ("10.1.2.3", ["[fe80::5%25eth0]:1"], "fe80::/64"),
        ("10.1.2.3", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", ["[::ffff:198.51.100.1]:80"], "198.51.100.1"),
        ("10.1.2.3", ["\t198.51.100.1 "], "198.51.100.1"),
        ("10.1.2.3", ["198.51.100.1, ::ffff:10.0.0.1"], "198.51.100.1"),
        # A malformed hop: the last good address.
        ("10.1.2.3", ["unknown"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1, unknown, 10.9.9.9"], "10.9.9.9"),
        ("10.1.2.3", ["198.51.100.1, , 10.9.9.9"], "10.9.9.9"),
        ("10.1.2.3", ["198.51.100.1,"], "10.1.2.3"),
        ("10.1.2.3", [""], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.256"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1:"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1:x"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1:²"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100"], "10.1.2.3"),
        ("10.1.2.3", ["198.051.100.001"], "10.1.2.3"),
        ("10.1.2.3", ["3325256709"], "10.1.2.3"),
        ("10.1.2.3", ["[2001:db8::1"], "10.1.2.3"),
        ("10.1.2.3", ["[2001:db8::1]443"], "10.1.2.3"),
        ("10.1.2.3", ["[2001:db8::1]:"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1%eth0"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1 198.51.100.2"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1\x00"], "10.1.2.3"),
        ("10.1.2.3", ["<script>"], "10.1.2.3"),
        ("10.1.2.3", ["1" * 10_000], "10.1.2.3"),
        ("10.1.2.3", ["fe80::1%" + "x" * 10_000], "10.1.2.3"),
        (None, ["unknown"], "unix"),
    ],
)
def test_row_21_a_trusted_proxy_is_believed_as_far_as_it_can_know(
    peer: str | None, forwarded: list[str], id: str
) -> None:
    assert who(PeerAddress(PROXIES), peer, *forwarded) == id


def test_a_peer_without_an_address_is_trusted_only_by_the_word_unix() -> None:
    assert who(PeerAddress(["0.0.0.0/0", "::/0"]), None, "198.51.100.1") == "unix"
    assert who(PeerAddress(["unix"]), None, "198.51.100.1") == "198.51.100.1"
    assert who(PeerAddress(["unix"]), "testclient", "198.51.100.1") == "testclient"


def test_a_mapped_network_is_an_ipv4_network() -> None:
    assert who(PeerAddress(["::ffff:10.0.0.0/104"]), "10.1.2.3", "198.51.100.1") == "198.51.100.1"
    assert who(PeerAddress(["::ffff:10.0.0.0/104"]), "11.1.2.3", "198.51.100.1") == "11.1.2.3"


@pytest.mark.parametrize(
    "entry", ["10.0.0.1/8", "10.0.0.0/33", "10.0.0", "proxy.local", "", "*", "unix:", "10.0.0.0-9"]
)
def test_a_wrong_network_in_the_configuration_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match="trusted proxy") as caught:
        PeerAddress(["127.0.0.1", entry])
    assert repr(entry) in str(caught.value)


addresses = st.one_of(st.ip_addresses(), st.integers(0, 2**24 - 1).map(lambda n: IPv4Address(10 * 2**24 + n)))


@given(st.lists(st.one_of(addresses.map(str), st.text(st.characters(max_codepoint=255), max_size=20)), max_size=5))
def test_what_a_client_writes_itself_changes_nothing(forged: list[str]) -> None:
    identify = PeerAddress(PROXIES)
    honest = who(identify, "10.1.2.3", "198.51.100.1")
    assert who(identify, "10.1.2.3", *forged, "198.51.100.1") == honest
    assert who(identify, "10.1.2.3", ",".join([*forged, "198.51.100.1"])) == honest
    assert who(identify, "203.0.113.5", *forged) == "203.0.113.5"


@given(addresses)
def test_the_same_host_is_one_caller_however_it_is_written(address: IPv4Address | IPv6Address) -> None:
    identify = PeerAddress()
    id = who(identify, str(address))
    assert who(identify, address.exploded.upper()) == id
    if isinstance(address, IPv4Address):
        assert who(identify, f"::ffff:{address}") == id == str(address)
    elif address.ipv4_mapped is None:
        neighbour = IPv6Address(int(address) ^ 0xFFFF)
        stranger = IPv6Address(int(address) ^ (1 << 64))
        if neighbour.ipv4_mapped is None and stranger.ipv4_mapped is None:
            assert who(identify, str(neighbour)) == id != who(identify, str(stranger))


def test_row_22_made_up_callers_fill_no_memory() -> None:
    identify = PeerAddress(["unix"])
    for number in range(KNOWN_ADDRESSES + 500):
        who(identify, str(IPv4Address(number)))
        who(identify, None, "x" * 60 + str(number))
    assert identify._read.cache_info().currsize == KNOWN_ADDRESSES


@pytest.mark.parametrize(
    ("client", "local"),
    [
        (("127.0.0.1", 1), True),
        (("127.9.9.9", 1), True),
        (("::1", 1), True),
        (("::ffff:127.0.0.1", 1), True),
        (None, True),  # a Unix socket
        (("10.0.0.7", 1), False),
        (("203.0.113.9", 1), False),
        (("2001:db8::1", 1), False),
        (("testclient", 1), False),
    ],
)
def test_what_is_on_this_machine(client, local):
    assert is_local({"client": client, "headers": [(b"x-other", b"1")]}) is local
    assert not is_local({"client": client, "headers": [(b"X-Forwarded-For", b"127.0.0.1")]})
