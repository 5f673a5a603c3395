"""What operators see: limits, running answers, controls, the audit trail, providers."""

from __future__ import annotations

import os
import time
from typing import Any

from msgspec.structs import replace

from chat_nest.controls.gate import BLOCK, PAUSE, terms_of
from chat_nest.core.controls import GRANT, Control
from chat_nest.core.errors import BadRequest
from chat_nest.core.messages import hashed
from chat_nest.core.protocols import Budget
from chat_nest.core.usage import NANO
from chat_nest.server.admin.routes import AdminRequest, Reply, json
from chat_nest.server.admin.spend import MOST_CALLERS, MOST_DAYS
from chat_nest.server.operator import granted, listed
from chat_nest.server.running import running

MOST_ACTS = 10_000
ACTS = 50
RUNNING_FIELDS = ("run", "caller", "group", "profile", "model", "started_at")


async def healthz(_asked: AdminRequest) -> Reply:
    return Reply(b'{"status":"ok"}')


async def standing(asked: AdminRequest) -> Reply:
    """Return how the limits of all callers and of each group stand, in every server of the store."""
    return Reply(json({"limits": [_budget(each) for each in await asked.app.handler.figures.budgets()]}))


async def running_answers(asked: AdminRequest) -> Reply:
    """Return the answers that run in any server of the store, the newest first."""
    found = await running(asked.app.handler.store)
    return Reply(json({"running": [{name: getattr(each, name) for name in RUNNING_FIELDS} for each in found]}))


async def controls(asked: AdminRequest) -> Reply:
    """Return the pauses, blocks and grants in force."""
    found = await asked.operator.controls.watch(-1)
    rows, now = () if found is None else found.rows, time.time()
    return Reply(
        json(
            {
                "pauses": [shown(row) for row in listed(rows, PAUSE, now)],
                "blocks": [shown(row) for row in listed(rows, BLOCK, now)],
                "grants": [_named(asked, shown(row)) for row in listed(rows, GRANT, now)],
            }
        )
    )


async def spend(asked: AdminRequest) -> Reply:
    """Return what was spent on each day, by model, profile or group."""
    return Reply(json(await asked.spend.by_day(asked.text("by") or "model", _whole(asked, "days", 30, MOST_DAYS))))


async def callers(asked: AdminRequest) -> Reply:
    """Return the callers with the highest cost."""
    days = _whole(asked, "days", 1, MOST_DAYS)
    return Reply(json(await asked.spend.callers(days, _whole(asked, "most", 20, MOST_CALLERS))))


async def audit(asked: AdminRequest) -> Reply:
    """Return the newest acts of operators."""
    most = _whole(asked, "most", ACTS, MOST_ACTS)
    acts = await asked.operator.controls.acts(most)
    return Reply(json({"acts": [replace(act, target=_group_named(asked, act.target)) for act in acts]}))


async def providers(asked: AdminRequest) -> Reply:
    """Return each provider's readiness, resting keys and circuit breaker, in the process that answers."""
    found = await asked.app.readiness()
    breakers = asked.app.handler.figures.figures().breakers
    shown = {
        name: {
            "status": part.status,
            **({"advice": part.advice} if part.advice else {}),
            **({"keys": part.keys} if part.keys is not None else {}),
            "breaker": breakers.get(name, "closed"),
        }
        for name, part in found.providers.items()
    }
    return Reply(json({"process": os.getpid(), "providers": shown}))


def _named(asked: AdminRequest, grant: dict[str, Any]) -> dict[str, Any]:
    return grant | ({"owner": _group_named(asked, grant["owner"])} if "owner" in grant else {})


def _group_named(asked: AdminRequest, owner: str) -> str:
    """Return an owner; that of a configured group, whose counters have its hash, with the group's name."""
    names = {f"group:{hashed(name)}": f"group:{name}" for name in asked.app.config.groups}
    return names.get(owner, owner)


def _whole(asked: AdminRequest, name: str, default: int, most: int) -> int:
    """Return the number in a field of the query, from 1 to `most`. Raises BadRequest."""
    text = asked.text(name) or str(default)
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= most:
        raise BadRequest(f"must be a whole number from 1 to {most}", field=name)
    return int(text)


def shown(row: Control) -> dict[str, Any]:
    """Return a pause, a block or a grant as JSON's values."""
    both = {"name": row.name, "reason": row.reason, "until": row.expires}
    if row.kind == GRANT:
        return {**both, **granted(row)}
    terms = terms_of(row)
    return {**both, "by": terms.by, "since": terms.since, "stop_running": terms.stop_running}


def _budget(budget: Budget) -> dict[str, object]:
    line, state = budget.line, budget.standing
    amounts = {"limit": line.limit, "used": state.used, "held": state.held, "room": state.room}
    in_usd = line.unit == "nanousd"
    return {
        "name": line.name,
        "scope": line.scope,
        **({"group": budget.group} if budget.group else {}),
        "unit": "usd" if in_usd else line.unit,
        **({name: amount / NANO for name, amount in amounts.items()} if in_usd else amounts),
        "resets_at": int(state.resets_at) or None,
    }
