"""The table `requests`: a row of it, and the report that sums its rows, in the SQL of SQLite and of PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, get_args
from zoneinfo import ZoneInfo

from msgspec import Struct

from chat_nest.core.deltas import FinishReason
from chat_nest.core.errors import ClientGone, Stopped
from chat_nest.core.records import By, Record, UsageRow
from chat_nest.limits.windows import US, calendar_window

COLUMNS: Final = (
    "started_at, id, run, caller, group_name, profile, provider, model, seconds, first_token_seconds, input_tokens, "
    "output_tokens, cached_input_tokens, cache_write_tokens, reasoning_tokens, cost_nanousd, price, source, ending"
)
NO_ERRORS = (*get_args(FinishReason), ClientGone.code, Stopped.code)
"""The endings that are not errors."""
BY: tuple[By, ...] = get_args(By)
_LATEST = 2**33
_LONGEST_DAYS = 36_500
_MOST_ROWS = 1_000_000


def started_us(record: Record) -> int:
    """Return when the request began, in microseconds: its row is found by that."""
    return round(record.started_at * US)


def request_row(id: str, record: Record) -> tuple[Any, ...]:
    """Return the COLUMNS of one request."""
    provider, _, model = record.model.partition(":")
    usage = record.usage
    return (
        started_us(record),
        id,
        record.run,
        record.caller,
        record.group,
        record.profile,
        provider,
        model,
        record.seconds,
        record.first_token_seconds,
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
        record.cost,
        record.price,
        record.source,
        record.ending,
    )


def records_us(days: float) -> int:
    """Return how long records are kept, in microseconds. Raises ValueError unless it is from 0 to 36500 days."""
    if not 0 <= days <= _LONGEST_DAYS:
        raise ValueError(f"records_days must be from 0 to {_LONGEST_DAYS}")
    return int(days * 86_400 * US)


class Question(Struct, frozen=True):
    """The checked parameters of a report. A span is a day's name, or "", and its start and end."""

    by: tuple[By, ...]
    spans: list[tuple[str, int, int]]
    caller: str | None
    most: int | None


def question(
    since: float, until: float, by: Sequence[By], zone: ZoneInfo, caller: str | None, most: int | None = None
) -> Question:
    """Check the parameters. Raises ValueError for impossible times, groupings or numbers of rows."""
    if not 0 <= since < until <= _LATEST:
        raise ValueError("since and until must be times in Unix seconds, since before until")
    if len(set(by)) != len(by) or not set(by) <= set(BY):
        raise ValueError(f"by must name some of {', '.join(BY)}, each once")
    if most is not None and not 1 <= most <= _MOST_ROWS:
        raise ValueError(f"most must be from 1 to {_MOST_ROWS}")
    spans = _days(since, until, zone) if "day" in by else [("", round(since * US), round(until * US))]
    return Question(tuple(by), spans, caller, most)


def _days(since: float, until: float, zone: ZoneInfo) -> list[tuple[str, int, int]]:
    """Return the days of that time; its start and end cut off the first and the last."""
    days: list[tuple[str, int, int]] = []
    at = since
    while at < until:
        day = calendar_window("day", at, zone)
        days.append((day.id, round(at * US), round(min(day.end, until) * US)))
        at = day.end
    return days


# Both queries return BY, each "" without that grouping, then the other fields of a UsageRow.

SQLITE: Final = """
SELECT
  json_extract(span.value, '$[0]') AS day,
  CASE WHEN :by_caller THEN r.caller ELSE '' END,
  CASE WHEN :by_group THEN r.group_name ELSE '' END,
  CASE WHEN :by_profile THEN r.profile ELSE '' END,
  CASE WHEN :by_model THEN ltrim(r.provider || ':' || r.model, ':') ELSE '' END,
  count(*), sum(r.ending NOT IN (SELECT value FROM json_each(:no_errors))), sum(r.source = 'assumed'),
  sum(r.input_tokens), sum(r.output_tokens), sum(r.cached_input_tokens), sum(r.cache_write_tokens),
  sum(r.reasoning_tokens), coalesce(sum(r.cost_nanousd), 0), sum(r.cost_nanousd IS NULL)
FROM json_each(:spans) AS span CROSS JOIN requests AS r
WHERE r.started_at >= json_extract(span.value, '$[1]') AND r.started_at < json_extract(span.value, '$[2]')
  AND (:caller IS NULL OR r.caller = :caller)
GROUP BY 1, 2, 3, 4, 5
ORDER BY 14 DESC, sum(r.input_tokens + r.output_tokens) DESC
LIMIT coalesce(:most, -1)
"""
POSTGRES: Final = """
SELECT coalesce(json_agg(json_build_array(
  day, caller, group_name, profile, model, requests, errors, assumed, input, output, cached, written, reasoning,
  cost, unpriced
)), '[]')::text
FROM (
  SELECT
    span.day,
    CASE WHEN asked.by @> '{caller}' THEN r.caller ELSE '' END AS caller,
    CASE WHEN asked.by @> '{group}' THEN r.group_name ELSE '' END AS group_name,
    CASE WHEN asked.by @> '{profile}' THEN r.profile ELSE '' END AS profile,
    CASE WHEN asked.by @> '{model}' THEN ltrim(r.provider || ':' || r.model, ':') ELSE '' END AS model,
    count(*) AS requests,
    count(*) FILTER (WHERE r.ending <> ALL (asked.no_errors)) AS errors,
    count(*) FILTER (WHERE r.source = 'assumed') AS assumed,
    sum(r.input_tokens) AS input, sum(r.output_tokens) AS output, sum(r.cached_input_tokens) AS cached,
    sum(r.cache_write_tokens) AS written, sum(r.reasoning_tokens) AS reasoning,
    coalesce(sum(r.cost_nanousd), 0) AS cost,
    count(*) FILTER (WHERE r.cost_nanousd IS NULL) AS unpriced
  FROM
    (SELECT %s::text[] AS by, %s::text[] AS no_errors, %s::text AS caller) AS asked,
    unnest(%s::text[], %s::bigint[], %s::bigint[]) AS span (day, since, until)
    JOIN chat_nest.requests AS r ON r.started_at >= span.since AND r.started_at < span.until
  WHERE asked.caller IS NULL OR r.caller = asked.caller
  GROUP BY 1, 2, 3, 4, 5
  ORDER BY cost DESC, sum(r.input_tokens + r.output_tokens) DESC
  LIMIT (%s::text)::bigint
) AS found
"""


def usage_rows(asked: Question, found: Iterable[Sequence[Any]]) -> list[UsageRow]:
    """Return the report from the query's rows."""
    columns = [BY.index(name) for name in asked.by]
    totals = UsageRow.__struct_fields__[1:]
    ordered = sorted(found, key=lambda row: (row[0], -row[13], -row[8] - row[9], *row[1:5]))
    return [
        UsageRow(by=tuple(row[column] for column in columns), **dict(zip(totals, row[len(BY) :], strict=True)))
        for row in ordered
    ]
