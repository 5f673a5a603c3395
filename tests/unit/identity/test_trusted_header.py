"""The caller that a proxy names: believed from trusted proxies, and from nobody else."""

from __future__ import annotations

import pytest

from chat_nest.core.errors import Unauthorized
from chat_nest.identity.trusted_header import TrustedHeader
from chat_nest.core.messages import Caller

WHO = TrustedHeader(["10.0.0.0/8"], "X-User", "x-tenant")


def scope(*headers: tuple[bytes, bytes], peer: str = "10.0.0.7"):
    return {"type": "http", "client": (peer, 4711), "headers": list(headers)}


def test_a_trusted_proxy_names_the_user_and_the_group():
    assert WHO(scope((b"x-user", b" ada "), (b"x-tenant", b"acme"))) == Caller(id="user:ada", group="acme")
    assert WHO(scope((b"x-user", b"ada"))) == Caller(id="user:ada")


def test_row21_no_other_peer_may_name_a_caller():
    with pytest.raises(Unauthorized):
        WHO(scope((b"x-user", b"ada"), peer="203.0.113.9"))
    with pytest.raises(Unauthorized):
        WHO({"type": "http", "client": None, "headers": [(b"x-user", b"ada")]})


@pytest.mark.parametrize("end", [b"\x85", b"\xa0", b"\x1c", b"\x0b"])
def test_every_byte_of_a_name_counts_but_spaces_and_tabs_around_it(end):
    seen = WHO(scope((b"x-user", b"\t " + end + b"Nicol\xc3" + end + b" \t"), (b"x-tenant", b"M\xc3" + end)))
    assert seen.id == "user:" + (end + b"Nicol\xc3" + end).decode("latin-1")
    assert seen.group == (b"M\xc3" + end).decode("latin-1")


@pytest.mark.parametrize(
    "headers", [(), ((b"x-user", b"  "),), ((b"x-user", b"ada"), (b"x-user", b"eve")), ((b"x-user", b"a" * 257),)]
)
def test_an_empty_header_identifies_no_caller(headers):
    with pytest.raises(Unauthorized):
        WHO(scope(*headers))


@pytest.mark.parametrize("groups", [((b"x-tenant", b"a"), (b"x-tenant", b"b")), ((b"x-tenant", b"a" * 257),)])
def test_a_caller_with_an_uncertain_group_is_refused_and_draws_on_no_budget(groups):
    with pytest.raises(Unauthorized):
        WHO(scope((b"x-user", b"ada"), *groups))


def test_a_user_is_never_taken_for_an_address():
    assert WHO(scope((b"x-user", b"203.0.113.9"))).id == "user:203.0.113.9"


@pytest.mark.parametrize(
    ("proxies", "name", "said"),
    [
        ((), "x-user", "trusted_proxies"),
        (("10.0.0.7",), "x user", "names of headers"),
        (("10.0.0.7",), "", "names of headers"),
    ],
)
def test_what_can_not_be_is_refused(proxies, name, said):
    with pytest.raises(ValueError, match=said):
        TrustedHeader(proxies, name)
