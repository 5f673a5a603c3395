from __future__ import annotations

import pytest

from chat_nest import Limits, Unauthorized
from chat_nest.core.limits import Share
from chat_nest.identity.visitors import (
    ANSWER_HEADERS,
    COOKIE_SECONDS,
    RENEW_SECONDS,
    REPEAT_SECONDS,
    Visitors,
    VisitorTokens,
    network_of,
)

SECRET = "s" * 32
DAY = Limits(tokens_per_day=100)
MONTH = Limits(tokens_per_month=1_000)


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def scope(peer="203.0.113.5", cookie="", **headers):
    found = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    if cookie:
        found.append((b"cookie", cookie.encode()))
    return {"type": "http", "scheme": "http", "client": (peer, 50_000), "headers": found, ANSWER_HEADERS: []}


def visitors(**more):
    return Visitors([SECRET], **{"addresses": DAY, "networks": MONTH, "limits": DAY, "now": Clock(), **more})


def cookie_of(asked) -> str:
    """The pair NAME=VALUE of the one cookie that the answer sets."""
    ((name, value),) = asked[ANSWER_HEADERS]
    assert name == b"set-cookie"
    return value.decode().partition(";")[0]


def test_a_first_request_gets_a_cookie_and_counts_as_its_address() -> None:
    asked = scope()
    caller = visitors()(asked)
    pair, *attributes = asked[ANSWER_HEADERS][0][1].decode().split("; ")
    assert pair.startswith("chat-nest=cnv1_")
    assert attributes == [f"Max-Age={COOKIE_SECONDS}", "Path=/", "HttpOnly", "SameSite=Lax"]
    assert caller.visit and caller.visit.counted_as == "203.0.113.5"
    assert caller.shares == (
        Share(scope="address", id="203.0.113.5", limits=DAY),
        Share(scope="network", id="203.0.113.0/24", limits=MONTH),
    )


def test_a_second_request_is_the_same_caller_with_separate_counters() -> None:
    identify, first = visitors(), scope()
    before = identify(first)
    second = scope("198.51.100.7", cookie_of(first))
    caller = identify(second)
    assert (caller.id, caller.key) == (before.id, before.key), "it may follow its first answer"
    assert caller.counter_key == caller.key != before.counter_key
    assert [(share.scope, share.limits) for share in caller.shares] == [
        ("visitor", DAY),
        ("address", DAY),
        ("network", MONTH),
    ]
    assert second[ANSWER_HEADERS] == []


def test_the_keys_of_a_first_request_are_known_by_its_address_for_an_hour() -> None:
    clock, first = Clock(), scope()
    identify = visitors(now=clock)
    by_address = identify(first).repeat_key
    again = scope("203.0.113.5", cookie_of(first))
    assert identify(again).repeat_key == by_address == identify(scope()).repeat_key
    assert identify(again).counter_key != by_address, "its budget is its own"
    clock.now += REPEAT_SECONDS
    assert identify(again).repeat_key == identify(again).key
    page = scope(cookie=identify.new_cookie(scope()).decode().partition(";")[0])
    assert identify(page).repeat_key == identify(page).key != by_address


@pytest.mark.parametrize("peer", ["203.0.113.5", "2001:db8:1:2::9"])
def test_a_dropped_cookie_gives_the_counters_of_the_address_again(peer) -> None:
    identify = visitors()
    keys = {identify(scope(peer)).counter_key for _ in range(9)}
    ids = {identify(scope(peer)).id for _ in range(9)}
    assert (len(keys), len(ids)) == (1, 9)


@pytest.mark.parametrize(
    "cookie", ["chat-nest=cnv1_AAAA", "chat-nest=", "other=1", "chat-nest", "=", ";;;", f"chat-nest=cnv1_{'A' * 60}"]
)
def test_a_cookie_that_is_not_valid_is_replaced(cookie) -> None:
    asked = scope(cookie=cookie)
    assert visitors()(asked).visit.counted_as
    assert cookie_of(asked)


def test_the_cookie_is_found_among_others() -> None:
    identify, first = visitors(), scope()
    id = identify(first).id
    assert identify(scope(cookie=f"a=b; {cookie_of(first)};c=d")).id == id


@pytest.mark.parametrize(
    ("peer", "proto", "is_https"),
    [
        ("10.0.0.1", "https", True),
        ("10.0.0.1", "http", False),
        ("10.0.0.1", "HTTPS, http", True),
        ("203.0.113.5", "https", False),
    ],
)
def test_over_https_the_cookie_is_secure_also_behind_a_trusted_proxy(peer, proto, is_https) -> None:
    identify = visitors(trusted_proxies=["10.0.0.0/8"])
    asked = scope(peer, x_forwarded_proto=proto)
    id = identify(asked).id
    value = asked[ANSWER_HEADERS][0][1].decode()
    assert (value.startswith("__Host-chat-nest="), value.endswith("; Secure")) == (is_https, is_https)
    assert identify(scope(peer, cookie_of(asked), x_forwarded_proto=proto)).id == id
    assert not identify(scope(peer, cookie_of(asked), x_forwarded_proto=proto)).visit.counted_as


def test_over_https_a_cookie_that_another_host_of_the_domain_can_set_does_not_count() -> None:
    identify, planted = visitors(), scope()
    identify(planted)
    asked = {**scope(cookie=cookie_of(planted)), "scheme": "https"}
    assert identify(asked).visit.counted_as


@pytest.mark.parametrize(
    "header", [{"authorization": "Bearer {}"}, {"authorization": "bearer  {}"}, {"x_api_key": "{}"}]
)
def test_a_token_is_a_visitor_too(header) -> None:
    identify = visitors()
    visit = identify.new(scope())
    token, _ = identify.token(visit)
    ((name, value),) = header.items()
    asked = scope(**{name: value.format(token)})
    assert identify(asked).id == f"visitor:{visit.id}"
    assert asked[ANSWER_HEADERS] == []


@pytest.mark.parametrize("token", ["cnv1_", "cnv1_AAAA", f"cnv1_{'A' * 60}"])
def test_a_wrong_token_is_refused_and_does_not_become_another_visitor(token) -> None:
    with pytest.raises(Unauthorized):
        visitors()(scope(authorization=f"Bearer {token}"))


def test_another_credential_is_ignored_as_it_is_with_ip_addresses() -> None:
    assert visitors()(scope(authorization="Bearer sk-anything")).visit.counted_as


def test_an_old_cookie_is_renewed_and_names_the_same_visitor() -> None:
    clock, first = Clock(), scope()
    identify = visitors(now=clock)
    id = identify(first).id
    clock.now += RENEW_SECONDS + 1
    second = scope(cookie=cookie_of(first))
    assert identify(second).id == id
    third = scope(cookie=cookie_of(second))
    assert identify(third).id == id
    assert third[ANSWER_HEADERS] == []


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.5", "203.0.113.0/24"),
        ("2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("unix", "unix"),
        ("testclient", "testclient"),
    ],
)
def test_a_network(address, network) -> None:
    assert network_of(address) == network


def test_an_ipv4_address_in_ipv6_form_is_the_ipv4_address() -> None:
    identify = visitors()
    assert identify(scope("::ffff:203.0.113.5")).shares == identify(scope("203.0.113.5")).shares


def test_a_made_up_forwarded_address_gains_nothing() -> None:
    identify = visitors(trusted_proxies=["10.0.0.0/8"])
    assert (
        identify(scope("203.0.113.5", x_forwarded_for="1.2.3.4")).counter_key
        == identify(scope("203.0.113.5")).counter_key
    )
    assert identify(scope("10.0.0.1", x_forwarded_for="1.2.3.4, 203.0.113.5")).shares[0].id == "203.0.113.5"


def test_visitors_need_a_limit_for_addresses_or_networks() -> None:
    with pytest.raises(ValueError, match="need a limit in addresses or networks"):
        Visitors([SECRET], addresses=Limits(), limits=DAY)
    assert Visitors([SECRET], addresses=Limits(), networks=DAY)(scope()).shares[0].scope == "network"


def test_the_tokens_alone_accept_nothing_else() -> None:
    identify = visitors()
    tokens = VisitorTokens(identify)
    assert tokens.claims("cnv1_x")
    assert not tokens.claims("cn_x")
    with pytest.raises(Unauthorized):
        tokens(scope())
