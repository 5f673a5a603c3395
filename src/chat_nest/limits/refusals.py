"""Errors for requests that a limit refused: the room left, the owner of the limit, and the user's options."""

from __future__ import annotations

import math
from collections.abc import Mapping

from chat_nest.core.claims import Claim, Line, Refused
from chat_nest.core.errors import BudgetExceeded, LimitExceeded, RateLimited, RequestTooLarge, TooManyStreams
from chat_nest.core.limits import UNITS, LineScope, Unit
from chat_nest.core.messages import Message
from chat_nest.core.usage import NANO
from chat_nest.counting.bounds import prompt_bound
from chat_nest.counting.tokens import counter_for

NAMES: Mapping[str, str] = {
    "minute": "",
    "hour": "Hourly ",
    "day": "Daily ",
    "month": "Monthly ",
    "session": "This session's ",
    "conversation": "This conversation's ",
}
LATER: Mapping[str, str] = {
    "minute": "Try again in a minute.",
    "hour": "Try again when the hour is over.",  # opencode repeats any refusal with "try again later" in it
    "day": "Try again tomorrow.",
    "month": "Try again next month.",
    "session": "Begin a new session.",
    "conversation": "Begin a new chat.",
}
WHOSE: Mapping[LineScope, str] = {
    "caller": "",
    "key": " It is the limit of your API key.",
    "session": "",
    "conversation": "",
    "visitor": "",
    "address": " All users of your internet address share it.",
    "network": " All users of your network share it.",
    "group": " Your whole group shares it.",
    "all": " All users share it.",
}
BUSY: Mapping[LineScope, str] = {
    "caller": RateLimited.text,
    "key": RateLimited.text,
    "session": RateLimited.text,
    "conversation": RateLimited.text,
    "visitor": RateLimited.text,
    "address": "Too many requests from your internet address right now. Please try again shortly.",
    "network": "Too many requests from your network right now. Please try again shortly.",
    "group": "Too many requests from your group right now. Please try again shortly.",
    "all": "Too many requests from all users together right now. Please try again shortly.",
}
STREAMS: Mapping[LineScope, str] = {
    "caller": TooManyStreams.text,
    "key": TooManyStreams.text,
    "session": TooManyStreams.text,
    "conversation": TooManyStreams.text,
    "visitor": TooManyStreams.text,
    "address": "Too many answers at once at your internet address. Please try again when one has ended.",
    "network": "Too many answers at once in your network. Please try again when one has ended.",
    "group": "Too many answers at once in your group. Please try again when one has ended.",
    "all": "Too many answers at once for all users together. Please try again shortly.",
}
NOTHING_FITS = "Request too large: not even a short message fits into this limit."


def limit_error(claim: Claim, refused: Refused) -> LimitExceeded:
    """Return the error for the line that refused the claim.

    A request that would not fit even into the unused line is too large, and has no Retry-After. Nor has a refused
    stream: the end of another answer can't be predicted.
    """
    line = claim.lines[refused.line]
    needed = line.amount(claim.min_output_tokens)
    wait = refused.retry_after if 0 < refused.retry_after < math.inf else None
    if _span(line) == "conversation":
        wait = None  # time does not reset it
    error: LimitExceeded
    if line.kind == "gauge":
        error = TooManyStreams(STREAMS[line.scope], limit=line.name)
    elif needed > line.limit:
        error = RequestTooLarge("" if _fits(claim, line, line.limit) else NOTHING_FITS, limit=line.name)
        if line.unit == "tokens":
            error.tokens, error.most = line.fixed, max(0, line.limit - (needed - line.fixed))
    elif line.unit == "requests" or line.kind == "rate":
        error = RateLimited(_rate_text(line), limit=line.name, retry_after=wait)
    else:
        shorter = _fits(claim, line, refused.room)
        error = BudgetExceeded(_budget_text(line, refused.room, needed, shorter), limit=line.name, retry_after=wait)
        error.needed = needed if shorter else 0
    error.scope, error.room, error.unit, error.resets_at = line.scope, refused.room, line.unit, line.resets_at
    return error


def _fits(claim: Claim, line: Line, room: int) -> bool:
    """Return whether a request with a message of one word might fit into `room`: without history and tools."""
    record = claim.record
    if record is None or not record.usage.input_tokens:
        return room > line.amount(claim.min_output_tokens) - line.fixed
    smallest = prompt_bound([Message(role="user", content="Hi")], counter_for(record.model.partition(":")[2]))
    fixed = -(-line.fixed * smallest // record.usage.input_tokens)
    return room >= line.amount(claim.min_output_tokens) - line.fixed + min(fixed, line.fixed)


def _rate_text(line: Line) -> str:
    span = _span(line)
    if span == "minute":
        return BUSY[line.scope]
    return f"{NAMES[span]}limit of requests reached. {LATER[span]}{WHOSE[line.scope]}"


def _budget_text(line: Line, room: int, needed: int, shorter: bool) -> str:
    span = _span(line)
    name, whose = f"{NAMES[span]}AI budget", WHOSE[line.scope]
    if not room:
        return f"{name} exceeded. {LATER[span]}{whose}"
    left = f"{_amount(line.unit, room)} left"
    if not shorter:
        return f"{name} nearly used up: {left}, too little for an answer. {LATER[span]}{whose}"
    least = _amount(line.unit, needed, up=True)
    return f"{name} too low for this request: {left}, {least} needed. A shorter message or a new chat may fit.{whose}"


def _span(line: Line) -> str:
    return line.name.rpartition("_")[2]


def _amount(unit: Unit, amount: int, *, up: bool = False) -> str:
    """Return the amount in tokens, or in dollars with two significant digits: rounded down unless `up`."""
    if unit != "nanousd":
        name = UNITS[unit].name
        return f"{amount:,} {name.removesuffix('s') if amount == 1 else name}"
    digits = next((digits for digits in range(2, 9) if amount >= NANO // 10 ** (digits - 1)), 9)
    step = NANO // 10**digits
    return f"${(-(-amount // step) if up else amount // step) / 10**digits:,.{digits}f}"
