"""What operators do: the bodies have the names of the options of `chat-nest pause`, `block`, `reset` and so on."""

from __future__ import annotations

import logging
import time
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from chat_nest.controls.gate import ALL, SCOPES
from chat_nest.core.errors import ChatError, LimiterUnavailable, NotFound
from chat_nest.server.admin.routes import AdminRequest, Field, Reply, json
from chat_nest.server.admin.views import shown
from chat_nest.server.operator import (
    RUN,
    Rejected,
    amount_of,
    caller_key,
    line_of,
    network_name,
    owner_key,
    pause_name,
    seconds_of,
    window_lines,
)
from chat_nest.server.reload import UNNOTED, WRONG
from chat_nest.server.running import stop as stop_run

log = logging.getLogger("chat_nest.server")

REASON = Field("reason", "why, for the audit trail")
FOR = Field("for", "how long: 90s, 30m, 2h, 7d; without it until it is ended")
STOP = Field("stop_running", "also stop the running answers; each is charged for its tokens so far", "boolean")
CALLER = Field("caller", "an IP address, an id (key:ada), or the name in `chat-nest usage`")
GROUP = Field("group", "the callers of a group")
EVERYTHING = Field("all", "true: every request", "boolean")
SCOPE = (
    EVERYTHING,
    Field("provider", "a provider's models; profiles use their fallbacks elsewhere"),
    Field("model", "PROVIDER:MODEL"),
    GROUP,
    CALLER,
    Field("profile", "the requests under a profile"),
)
ADDRESS = Field("address", "an IP address, or a network such as 203.0.113.0/24")
OWNER = (Field("all", "true: the limits of all callers together", "boolean"), CALLER, GROUP)
UNITS = (
    Field("tokens", "how many tokens more", "integer"),
    Field("requests", "how many requests more", "integer"),
    Field("usd", "how many dollars more", "number"),
)
PER = Field("per", "hour, day or month; without it day")
LIMIT = Field("limit", "only this limit, such as tokens_per_day; without it every hour, day and month")


class ReloadRefused(ChatError):
    """The configuration is wrong: nothing has changed."""

    code, status, text = "config_wrong", 422, "The configuration is wrong"


class ReloadFailed(ChatError):
    """The server could not use the configuration: nothing has changed."""

    code, status, text = "reload_failed", 503, "The configuration could not be put in force"


async def pause(asked: AdminRequest) -> Reply:
    """Refuse new requests of a scope."""
    name, seconds = _scope(asked), _seconds(asked)
    row = await asked.operator.pause(
        name, reason=asked.text("reason"), seconds=seconds, stop_running=asked.fields.get("stop_running", False)
    )
    return Reply(json(shown(row)))


async def resume(asked: AdminRequest) -> Reply:
    """End a pause."""
    name = _scope(asked)
    await asked.operator.resume(name, reason=asked.text("reason"))
    return Reply(json({"name": name}))


async def block(asked: AdminRequest) -> Reply:
    """Refuse a caller or a network."""
    name, seconds = _blocked(asked), _seconds(asked)
    row = await asked.operator.block(
        name, reason=asked.text("reason"), seconds=seconds, stop_running=asked.fields.get("stop_running", False)
    )
    return Reply(json(shown(row)))


async def unblock(asked: AdminRequest) -> Reply:
    """End a block."""
    name = _blocked(asked)
    await asked.operator.unblock(name, reason=asked.text("reason"))
    return Reply(json({"name": name}))


async def reset(asked: AdminRequest) -> Reply:
    """Give an owner its present windows again."""
    owner = owner_key(*_one(asked, ("all", "caller", "group")))
    limit = asked.text("limit") or None
    lines = await asked.operator.reset(owner, limit=limit, reason=asked.text("reason"))
    names = [f"{line.key} reset" for line in lines]
    return Reply(json({"owner": owner, "reset": [line.name for line in lines], "names": names}))


async def grant(asked: AdminRequest) -> Reply:
    """Raise a limit once, until its window ends."""
    owner = owner_key(*_one(asked, ("all", "caller", "group")))
    unit, text = _one(asked, ("tokens", "requests", "usd"))
    amount, zone = amount_of(unit, text), ZoneInfo(asked.app.config.server.time_zone)
    line = line_of(window_lines(owner, zone, time.time()), f"{unit}_per_{asked.text('per') or 'day'}")
    row = await asked.operator.grant(line, amount, reason=asked.text("reason"))
    granted = asked.fields[unit]
    reply = {"owner": owner, "limit": line.name, "granted": granted, "unit": unit, "until": row.expires}
    return Reply(json({**reply, "name": row.name}))


async def withdraw(asked: AdminRequest) -> Reply:
    """End a grant or a reset."""
    name = asked.text("name")
    await asked.operator.withdraw(name, reason=asked.text("reason"))
    return Reply(json({"name": name}))


async def stop(asked: AdminRequest) -> Reply:
    """Stop a running answer; 202 if it still runs after some seconds."""
    if not RUN.fullmatch(asked.id):
        raise NotFound("No answer with this id runs")
    try:
        over = await stop_run(asked.operator, asked.app.handler.store, asked.id, asked.text("reason"))
    except Rejected:
        raise NotFound("No answer with this id runs") from None
    return Reply(json({"run": asked.id, "stopped": over}), 200 if over else 202)


async def reload(asked: AdminRequest) -> Reply:
    """Read the configuration again, in all workers."""
    if asked.app.reload is None:
        raise LimiterUnavailable("The server starts: try again")
    outcome = await asked.app.reload()
    if outcome.adopted:
        try:
            await asked.operator.reloaded(outcome.changed, reason=asked.text("reason"))
        except LimiterUnavailable:  # it is in force, whether the trail has it or not
            log.error("the reload by %s is %s", asked.by, UNNOTED)  # noqa: TRY400 - the store logs why
            outcome = replace(outcome, notes=(*outcome.notes, f"this reload is {UNNOTED}"))
        return Reply(outcome.body())
    error = (ReloadRefused if outcome.code == WRONG else ReloadFailed)("; ".join(outcome.problems))
    body = {"error": error.message, "code": error.code, "problems": outcome.problems}
    return Reply(json(body), error.status)


def _one(asked: AdminRequest, names: tuple[str, ...]) -> tuple[str, str]:
    """Return the one field of these that is given, and its text. Raises Rejected."""
    given = [name for name in names if name in asked.fields and asked.fields[name] is not False]
    if len(given) != 1:
        raise Rejected("body", f"must have exactly one of {', '.join(names)}")
    return given[0], str(asked.fields[given[0]])


def _scope(asked: AdminRequest) -> str:
    scope, name = _one(asked, (ALL, *SCOPES))
    _check_known(asked, scope, name)
    return pause_name(scope, name)


def _check_known(asked: AdminRequest, scope: str, name: str) -> None:
    """Raise Rejected for a provider or a profile that the configuration does not have: it would pause nothing."""
    config = asked.app.config
    known = {"provider": config.providers, "model": config.providers, "profile": config.profiles}.get(scope)
    wanted = name.partition(":")[0] if scope == "model" else name
    if known is not None and wanted.strip().lower() not in {each.lower() for each in known}:
        raise Rejected(scope, f"must be of the configuration: there are {', '.join(known)}")


def _blocked(asked: AdminRequest) -> str:
    kind, name = _one(asked, ("caller", "address"))
    return f"caller:{caller_key(name)}" if kind == "caller" else network_name(name)


def _seconds(asked: AdminRequest) -> float | None:
    return seconds_of(asked.text("for")) if "for" in asked.fields else None
