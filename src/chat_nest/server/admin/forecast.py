"""GET /admin/v1/forecast: when the shared limits will be used up."""

from __future__ import annotations

import time
from zoneinfo import ZoneInfo

from chat_nest.server.admin.routes import AdminRequest, Reply, json
from chat_nest.server.forecasts import forecasts


async def forecast(asked: AdminRequest) -> Reply:
    """Return the calendar windows of all callers and of each group, with their forecasts at the pace so far."""
    zone = ZoneInfo(asked.app.config.server.time_zone)
    budgets = await asked.app.handler.figures.budgets()
    return Reply(json({"time_zone": zone.key, "forecasts": forecasts(budgets, time.time(), zone)}))
