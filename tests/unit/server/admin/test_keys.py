"""The keys of operators, and the rate of refusals."""

from __future__ import annotations

import pytest

from chat_nest.core.errors import RateLimited, Unauthorized
from chat_nest.identity.api_key import Rights
from chat_nest.identity.api_keys import ApiKeys
from chat_nest.identity.key_file import create_key, revoke_keys
from chat_nest.server.admin.keys import REFUSED_PER_MINUTE, OperatorKeys
from chat_nest.server.config.provider import Secret

KEY = "k3y-0123456789abcdef0123456789abcdef"


def scope(key, client=("127.0.0.1", 1)):
    return {"client": client, "headers": [(b"authorization", b"Bearer " + key.encode())] if key else []}


async def test_wrong_keys_have_a_rate_and_a_right_one_is_never_refused(caplog):
    keys = OperatorKeys(lambda: [Secret("x" * 32), Secret(KEY)], clock=lambda: 0.0)
    for given in ["", "canary", KEY[:-1], KEY + "0", "é"] * (REFUSED_PER_MINUTE // 5):
        with pytest.raises(Unauthorized) as refused:
            await keys.check(scope(given))
        assert refused.value.challenge == "Bearer"
    with pytest.raises(RateLimited):
        await keys.check(scope("canary"))
    assert await keys.check(scope(KEY)) == await keys.check(scope(KEY, None))
    with pytest.raises(Unauthorized):
        await keys.check(scope("canary", ("::1", 1)))
    assert len(caplog.records) == 1
    assert "canary" not in caplog.text


async def test_the_audit_trail_distinguishes_keys_and_shows_none():
    keys = OperatorKeys(lambda: [Secret("x" * 32), Secret(KEY)])
    names = {await keys.check(scope(key)) for key in ("x" * 32, KEY)}
    assert len(names) == 2
    assert all(len(name) == len("admin:") + 8 for name in names)


async def test_without_a_valid_key_every_operator_is_refused():
    with pytest.raises(Unauthorized):
        await OperatorKeys(list).check(scope(""))


async def test_an_api_key_needs_the_scope_admin_and_is_named_by_its_id(tmp_path):
    file, secret = tmp_path / "keys.json", b"0123456789abcdef0123456789abcdef"
    made, text = create_key(file, secret, Rights(caller="ops", scopes=("admin",)))
    _, chats = create_key(file, secret, Rights(caller="ada"))
    keys = OperatorKeys(lambda: [Secret(KEY)], lambda: ApiKeys(file, secret, scope="admin"))
    assert await keys.check(scope(text)) == f"key:{made.id}"
    assert (await keys.check(scope(KEY))).startswith("admin:")
    for given in (chats, "cn_" + "a" * 32, text[:-1]):
        with pytest.raises(Unauthorized):
            await keys.check(scope(given))
    revoke_keys(file, [made.id])
    with pytest.raises(Unauthorized):
        await keys.check(scope(text))
