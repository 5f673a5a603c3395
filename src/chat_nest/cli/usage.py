"""The output of `chat-nest usage`: requests, tokens and dollars, from the records in the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, cast
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from chat_nest.core.errors import LimiterUnavailable, failure_name
from chat_nest.core.limits import Limits
from chat_nest.core.protocols import Budget, Reports
from chat_nest.core.records import By, UsageRow
from chat_nest.core.usage import NANO
from chat_nest.limits.windows import calendar_window
from chat_nest.server.config.schema import StoreSection
from chat_nest.server.forecasts import forecasts, shared_budgets
from chat_nest.server.logs import escape
from chat_nest.stores.places import place_of, remedy_of
from chat_nest.stores.reports import BY
from chat_nest.stores.urls import keeps_records, open_store

NO_LIMITS = Limits()
WHEN = "must be days or hours (7d, 24h), a date (2026-11-30) or a date and time (2026-11-30T18:00)"
COLUMNS = ("requests", "input", "output", "cost", "unpriced", "errors", "assumed")


class Unanswerable(Exception):
    """What is wrong, and what to do; `code` is the exit code."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class UsageQuestion(Struct, frozen=True, kw_only=True):
    """The options as given."""

    since: str
    until: str | None
    by: str
    caller: str | None
    limits: Limits = NO_LIMITS
    groups: Mapping[str, Limits] = {}
    """The limits whose forecasts are shown, unless `caller` is given."""


def answer(store: StoreSection, zone: ZoneInfo, asked: UsageQuestion, *, as_json: bool) -> str:
    """Return the report as text or as JSON. Raises Unanswerable."""
    logging.getLogger("chat_nest").addHandler(logging.NullHandler())  # the exception has it all
    now = time.time()
    since = moment("since", asked.since, now, zone)
    until = now if asked.until is None else moment("until", asked.until, now, zone)
    if since >= until:
        raise Unanswerable("--since must be before --until, and before now")
    by = _names(asked.by)
    if asked.caller is not None and not re.fullmatch("[0-9a-f]{16}", asked.caller):
        raise Unanswerable("--caller must be the 16 hex digits that `chat-nest caller WHO` prints for usage")
    if not keeps_records(store.url):
        scheme = store.url.partition(":")[0]
        raise Unanswerable(
            f"a store of {scheme}:// keeps no records of requests, so there is nothing to report: "
            "let [store] url name a sqlite:// or postgresql:// store"
        )
    if not store.records_days:
        raise Unanswerable("[store] records_days is 0, so nothing is kept to report: set how many days to keep")
    rows, budgets = asyncio.run(_read(store, since, until, by, zone, asked))
    span = (datetime.fromtimestamp(since, zone), datetime.fromtimestamp(until, zone))
    found = forecasts(budgets, now, zone)
    if as_json:
        return _json(rows, by, span, zone, found)
    return "\n".join([_text(rows, by, span, zone), *([""] if found else []), *map(_forecast_line, found)])


def moment(option: str, text: str, now: float, zone: ZoneInfo) -> float:
    """Return Unix seconds. `7d` is the midnight six days ago; a date is its first midnight, for `until` its last one.

    Raises Unanswerable.
    """
    short = re.fullmatch(r"([1-9][0-9]{0,5})([dh])", text)
    try:
        if short is not None and short[2] == "h":
            return now - 3_600 * int(short[1])
        if short is not None:
            today = date.fromisoformat(calendar_window("day", now, zone).id)
            return _day(today - timedelta(days=int(short[1]) - 1), zone)[0]
        if len(text) == len("2026-11-30"):
            return _day(date.fromisoformat(text), zone)[option == "until"]
        given = datetime.fromisoformat(text)
        return (given if given.tzinfo else given.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError, OSError):
        raise Unanswerable(f"--{option} {WHEN}") from None


def _day(day: date, zone: ZoneInfo) -> tuple[float, float]:
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=zone).timestamp()
    window = calendar_window("day", noon, zone)
    return window.start, window.end


def _names(text: str) -> tuple[By, ...]:
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(BY) or len(set(names)) < len(names):
        raise Unanswerable(f"--by must be one or more of {', '.join(BY)}, separated by commas, each once")
    return tuple(cast("list[By]", names))


async def _read(
    section: StoreSection, since: float, until: float, by: tuple[By, ...], zone: ZoneInfo, asked: UsageQuestion
) -> tuple[list[UsageRow], list[Budget]]:
    store = open_store(section.url, records_days=section.records_days)
    try:
        rows = await cast("Reports", store).usage(since, until, by, zone, asked.caller)
        if asked.caller is not None:
            return rows, []
        with contextlib.suppress(LimiterUnavailable):  # who may only read the records sees these
            return rows, await shared_budgets(store, asked.limits, asked.groups, time.time(), zone)
        return rows, []
    except ValueError as error:
        raise Unanswerable(f"--since and --until: {error}") from None
    except LimiterUnavailable as error:
        place, why = place_of(store), failure_name(error.__cause__ or error)
        if isinstance(error.__cause__, FileNotFoundError):
            raise Unanswerable(f"{place} is not there: has a server run with this configuration?", 1) from None
        raise Unanswerable(f"{place} can't be read: {why}: {remedy_of(store)}", 1) from None
    finally:
        await store.aclose()


def _total(rows: Sequence[UsageRow]) -> UsageRow:
    names = UsageRow.__struct_fields__[1:]
    return UsageRow(by=(), **{name: sum(getattr(row, name) for row in rows) for name in names})


def _forecast_line(found: Mapping[str, Any]) -> str:
    """Return a limit, what is used of it, and the forecast."""
    owner = f"group {_plain(found['group'])}" if "group" in found else "all callers"
    amounts = (found["used"], found["limit"])
    used, limit = (f"${each:,.2f}" for each in amounts) if found["unit"] == "usd" else (f"{each:,}" for each in amounts)
    pace = f"; {found['text']}" if found["text"] else ""
    return f"{owner}, {found['name']}: {used} of {limit}{pace}"


def _json(
    rows: Sequence[UsageRow],
    by: tuple[By, ...],
    span: tuple[datetime, datetime],
    zone: ZoneInfo,
    found: Sequence[Mapping[str, Any]],
) -> str:
    def shown(row: UsageRow) -> dict[str, Any]:
        numbers = asdict(row)
        del numbers["by"]
        numbers["cost_nanousd"] = numbers.pop("cost")
        return {**dict(zip(by, row.by, strict=False)), **numbers}

    report = {
        "since": span[0].isoformat(timespec="seconds"),
        "until": span[1].isoformat(timespec="seconds"),
        "time_zone": zone.key,
        "rows": [shown(row) for row in rows],
        "total": shown(_total(rows)),
        **({"forecasts": found} if found else {}),
    }
    return msgspec.json.format(msgspec.json.encode(report)).decode()


def _text(rows: Sequence[UsageRow], by: tuple[By, ...], span: tuple[datetime, datetime], zone: ZoneInfo) -> str:
    since, until = (each.strftime("%Y-%m-%d %H:%M") for each in span)
    during = f"from {since} to {until}, {zone.key}"
    if not rows:
        return f"No requests {during}."
    total = _total(rows)
    table = [[*by, *COLUMNS]]
    table += [[*(_plain(value) or "-" for value in row.by), *_cells(row)] for row in rows]
    if len(rows) > 1:
        table.append(["total", *[""] * (len(by) - 1), *_cells(total)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"Usage {during}", ""]
    for row in table:
        cells = (
            cell.ljust(width) if index < len(by) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    if total.unpriced:
        lines += [
            "",
            f"The price of {total.unpriced:,} of {total.requests:,} requests is not known: add theirs to these costs.",
        ]
    return "\n".join(lines)


def _cells(row: UsageRow) -> list[str]:
    return [
        f"{row.requests:,}",
        f"{row.input_tokens:,}",
        f"{row.output_tokens:,}",
        "unknown" if row.unpriced == row.requests else dollars(row.cost),
        f"{row.unpriced:,}",
        f"{row.errors:,}",
        f"{row.assumed:,}",
    ]


def dollars(nano: int) -> str:
    """Format nano-dollars as dollars, rounded up to a millionth."""
    millionths = -(-nano // (NANO // 1_000_000))
    return f"${millionths // 1_000_000:,}.{millionths % 1_000_000:06}"


def _plain(text: str) -> str:
    return escape(text).replace("\n", "\\n").replace("\t", "\\t")
