"""RateLimit and RateLimit-Policy, byte for byte."""

from __future__ import annotations

import math

from chat_nest.asgi.quota_headers import quota_headers
from chat_nest.core.limits import Limits
from chat_nest.limits.spec import Profile
from chat_nest.core.claims import Quota
from chat_nest.core.messages import Caller
from chat_nest.limits.prices import FREE, Prices
from chat_nest.limits.profiles import Profiles
from chat_nest.limits.spec import HARD_CAPS

NOON = 1_772_366_400.0  # 2026-03-01 12:00 UTC


def lines():
    profile = Profile(model="p:m", usd_per_month=5.0, concurrent_streams=2)
    rules = Profiles({"balanced": profile}, Limits(tokens_per_day=9), HARD_CAPS, "UTC", prices=Prices({"p:*": FREE}))
    return rules.lines(Caller(id="a"), profile, 100, NOON)


def test_each_of_the_callers_limits_is_a_policy():
    found = dict(quota_headers(lines(), [Quota(line, 7, 3.2) for line in lines()]))
    assert found == {
        b"ratelimit-policy": b'"requests_per_minute";q=30;w=60, "concurrent_streams";q=2;qu="concurrent-requests", '
        b'"tokens_per_day";q=200000;w=86400;qu="tokens", "usd_per_month";q=5000000000;w=2678400;qu="nanousd"',
        b"ratelimit": b'"requests_per_minute";r=7;t=4, "concurrent_streams";r=7;t=4, "tokens_per_day";r=7;t=4, '
        b'"usd_per_month";r=7;t=4',
    }


def test_shared_limits_are_in_the_headers_only_after_they_refuse():
    own = lines()
    shared = own[-1]
    assert shared.scope == "all"
    found = dict(quota_headers(own, [Quota(shared, 0, 60.0)]))
    assert found[b"ratelimit"] == b'"all/tokens_per_day";r=0;t=60'
    assert b'"all/tokens_per_day";q=9;w=86400;qu="tokens"' in found[b"ratelimit-policy"]


def test_a_wait_that_is_not_known_is_left_out_and_numbers_fit_the_header():
    line = lines()[-1]
    for wait in (0.0, math.inf):
        assert (
            dict(quota_headers([line], [Quota(line, 2**50, wait)]))[b"ratelimit"]
            == b'"all/tokens_per_day";r=999999999999999'
        )


def test_nothing_known_is_no_header():
    assert quota_headers([], []) == []
