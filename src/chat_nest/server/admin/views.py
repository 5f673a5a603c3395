"""What operators see: limits, running answers, controls, the audit trail, providers."""

from __future__ import annotations

import os
from typing import Any

from chat_nest.controls.gate import BLOCK, PAUSE, terms_of
from chat_nest.core.controls import GRANT, Control
from chat_nest.core.errors import BadRequest
from chat_nest.core.protocols import Budget
from chat_nest.core.usage import NANO
from chat_nest.server.admin.routes import Asked, Reply, json
from chat_nest.server.operator import listed
from chat_nest.server.running import running

MOST_ACTS = 10_000
ACTS = 50
RUNNING_FIELDS = ("run", "caller", "group", "profile", "model", "started_at")


async def healthz(_asked: Asked) -> Reply:
    return Reply(b'{"status":"ok"}')


async def standing(asked: Asked) -> Reply:
    """Return how the limits of all callers and of each group stand, in every server of the store."""
    return Reply(json({"limits": [_budget(each) for each in await asked.app.handler.figures.budgets()]}))


async def running_answers(asked: Asked) -> Reply:
    """Return the answers that run in any server of the store, the newest first."""
    found = await running(asked.app.handler.store)
    return Reply(json({"running": [{name: getattr(each, name) for name in RUNNING_FIELDS} for each in found]}))


async def controls(asked: Asked) -> Reply:
    """Return the pauses, blocks and grants in force."""
    found = await asked.operator.controls.watch(-1)
    rows = () if found is None else found.rows
    return Reply(
        json(
            {
                "pauses": [shown(row) for row in listed(rows, PAUSE)],
                "blocks": [shown(row) for row in listed(rows, BLOCK)],
                "grants": [shown(row) for row in listed(rows, GRANT)],
            }
        )
    )


async def audit(asked: Asked) -> Reply:
    """Return the newest acts of operators."""
    text = asked.text("most") or str(ACTS)
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= MOST_ACTS:
        raise BadRequest(f"must be a whole number from 1 to {MOST_ACTS}", field="most")
    return Reply(json({"acts": await asked.operator.controls.acts(int(text))}))


async def providers(asked: Asked) -> Reply:
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


def shown(row: Control) -> dict[str, Any]:
    """Return a pause, a block or a grant as JSON's values."""
    terms = terms_of(row) if row.kind != GRANT else None
    return {
        "name": row.name,
        "reason": row.reason,
        "until": row.expires,
        **({} if terms is None else {"by": terms.by, "since": terms.since, "stop_running": terms.stop_running}),
    }


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
