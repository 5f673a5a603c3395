"""What operators do, where the end-to-end tests can't go."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from chat_nest.core.errors import LimiterUnavailable
from chat_nest.server.admin.acts import reload
from chat_nest.server.reload import ReloadOutcome


class Away:
    """An operator whose store does not answer."""

    async def reloaded(self, *_: Any, **__: Any) -> None:
        raise LimiterUnavailable


async def test_a_reload_that_is_not_in_the_trail_is_in_the_answer_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def read() -> ReloadOutcome:
        return ReloadOutcome(adopted=True, changed=("limits",), notes=("another one",))

    asked: Any = SimpleNamespace(
        app=SimpleNamespace(reload=read), operator=Away(), by="admin:b24a965e", text=lambda _: ""
    )
    reply = await reload(asked)
    assert (reply.status, json.loads(reply.body)["changed"]) == (200, ["limits"])
    missing = "not in the audit trail: the store does not answer"
    assert json.loads(reply.body)["notes"] == ["another one", f"this reload is {missing}"]
    assert [record.getMessage() for record in caplog.records] == [f"the reload by admin:b24a965e is {missing}"]
