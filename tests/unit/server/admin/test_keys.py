"""The keys of operators, and the rate of refusals."""

from __future__ import annotations

import pytest

from chat_nest.core.errors import RateLimited, Unauthorized
from chat_nest.server.admin.keys import REFUSED_PER_MINUTE, OperatorKeys
from chat_nest.server.config.providers import Secret

KEY = "k3y-0123456789abcdef0123456789abcdef"


def scope(key, client=("127.0.0.1", 1)):
    return {"client": client, "headers": [(b"authorization", b"Bearer " + key.encode())] if key else []}


def test_wrong_keys_have_a_rate_and_a_right_one_is_never_refused(caplog):
    keys = OperatorKeys(lambda: [Secret("x" * 32), Secret(KEY)], clock=lambda: 0.0)
    for given in ["", "canary", KEY[:-1], KEY + "0", "é"] * (REFUSED_PER_MINUTE // 5):
        with pytest.raises(Unauthorized) as refused:
            keys.check(scope(given))
        assert refused.value.challenge == "Bearer"
    with pytest.raises(RateLimited):
        keys.check(scope("canary"))
    assert keys.check(scope(KEY)) == keys.check(scope(KEY, None))
    with pytest.raises(Unauthorized):
        keys.check(scope("canary", ("::1", 1)))
    assert len(caplog.records) == 1
    assert "canary" not in caplog.text


def test_the_trail_tells_keys_apart_and_shows_none():
    keys = OperatorKeys(lambda: [Secret("x" * 32), Secret(KEY)])
    names = {keys.check(scope(key)) for key in ("x" * 32, KEY)}
    assert len(names) == 2
    assert all(len(name) == len("admin:") + 8 for name in names)


def test_no_key_in_force_lets_nobody_in():
    with pytest.raises(Unauthorized):
        OperatorKeys(list).check(scope(""))
