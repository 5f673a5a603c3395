"""GET usage: what the caller's own limits have left."""

from __future__ import annotations

import msgspec

from chat_nest.asgi.quota_headers import quota_headers
from chat_nest.asgi.request import query_fields
from chat_nest.core.protocols import Scope
from chat_nest.core.usage import NANO
from chat_nest.pipeline.callers import Callers

USAGE_METHODS = "GET, OPTIONS"
USAGE_PATHS = ("/api/usage", "/usage")

_json = msgspec.json.Encoder().encode


async def usage(callers: Callers, scope: Scope) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return what the caller's own limits have left, as JSON and as headers. Amounts of money are in dollars."""
    standings = await callers.standing(scope, query_fields(scope).get("profile"))
    limits: list[dict[str, object]] = []
    for line, standing in standings:
        amounts = {"limit": line.limit, "used": standing.used, "held": standing.held, "remaining": standing.room}
        in_usd = line.unit == "nanousd"
        limits.append(
            {
                "name": line.name,
                **({} if line.scope == "caller" else {"scope": line.scope}),
                "unit": "usd" if in_usd else line.unit,
                **({name: amount / NANO for name, amount in amounts.items()} if in_usd else amounts),
                "resets_at": int(standing.resets_at) or None,
            }
        )
    return _json({"limits": limits}), quota_headers([line for line, _ in standings], callers.quotas(standings))
