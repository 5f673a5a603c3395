"""What a provider itself has counted and billed, by UTC day and model: the reports of its administration API.

OpenAI: usage by model and costs by day, https://platform.openai.com/docs/api-reference/usage. A line item of the costs
is no model, so costs are of a whole day. Input includes cached input.
Anthropic: usage by model, and costs by model in cents as decimal text, without those of the Priority Tier,
https://platform.claude.com/docs/en/manage-claude/usage-cost-api. Input is in three parts.
OpenRouter: activity of the last 30 completed UTC days, whose usage is in dollars,
https://openrouter.ai/docs/api/api-reference/analytics/get-user-activity.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec import Struct

from chat_nest.core.errors import UpstreamError, failure_name
from chat_nest.core.usage import NANO
from chat_nest.providers.http import HTTPSession

EVERY_MODEL: Final = ""
"""The model of a figure that is of the whole day."""
NO_MODEL: Final = "(no model)"
"""What is billed apart from models, such as searches."""
KINDS: Final = ("openai", "anthropic", "openrouter")
_SECONDS: Final = 30.0
_MOST_BYTES: Final = 16_777_216
_MOST_PAGES: Final = 200


class ReportFailed(Exception):
    """Why a report can't be had. The text never holds the key."""


class VendorUsage(Struct, frozen=True, kw_only=True):
    """What was counted for a model on a day; None if the provider does not say. `cost` is in nano-dollars."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: int | None = None

    def __add__(self, other: VendorUsage) -> VendorUsage:
        return VendorUsage(
            input_tokens=_sum(self.input_tokens, other.input_tokens),
            output_tokens=_sum(self.output_tokens, other.output_tokens),
            cost=_sum(self.cost, other.cost),
        )


VendorReport = dict[tuple[str, str], VendorUsage]
"""By day, such as 2026-11-30, and model."""


async def reported_usage(kind: str, base_url: str, key: str, since: date, until: date) -> VendorReport:
    """Return the provider's own figures of the days since <= day < until. Raises ReportFailed."""
    url = urlsplit(base_url)
    http = HTTPSession(f"{url.scheme}://{url.netloc}")
    root = url.path.rstrip("/")
    try:
        if kind == "openai":
            return await _openai(_Api(http, root, {"authorization": f"Bearer {key}"}), since, until)
        if kind == "anthropic":
            headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
            return await _anthropic(_Api(http, root.removesuffix("/v1") + "/v1", headers), since, until)
        return await _openrouter(_Api(http, root, {"authorization": f"Bearer {key}"}), since, until)
    except (KeyError, TypeError, ValueError, AttributeError, InvalidOperation) as error:
        raise ReportFailed(f"its report has another form than expected ({type(error).__name__})") from None
    finally:
        await http.aclose()


class _Api:
    def __init__(self, http: HTTPSession, root: str, headers: Mapping[str, str]) -> None:
        self._http = http
        self._root = root
        self._headers = headers

    async def get(self, path: str, query: Sequence[tuple[str, str]]) -> Any:
        """Return the decoded answer. Raises ReportFailed."""
        place = f"{self._root}{path}?{urlencode(query)}"
        try:
            async with (
                asyncio.timeout(_SECONDS),
                self._http.request("GET", place, headers=self._headers, connect_timeout=_SECONDS) as answer,
            ):
                body = await answer.read_body(_MOST_BYTES)
        except TimeoutError:
            raise ReportFailed(f"{path} did not answer within {_SECONDS:.0f} seconds") from None
        except UpstreamError as error:
            raise ReportFailed(f"{path} did not answer: {failure_name(error)}") from None
        if answer.status in (401, 403):
            raise ReportFailed(f"{path} refuses the key ({answer.status}): it must be one for administration")
        if answer.status != 200:
            raise ReportFailed(f"{path} answers {answer.status}")
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError:
            raise ReportFailed(f"{path} does not answer with JSON") from None

    async def buckets(self, path: str, query: Sequence[tuple[str, str]]) -> list[Any]:
        """Return the buckets of all pages. Raises ReportFailed."""
        found: list[Any] = []
        page: list[tuple[str, str]] = []
        for _ in range(_MOST_PAGES):
            answer = await self.get(path, [*query, *page])
            found += answer["data"]
            if not answer["has_more"]:
                return found
            page = [("page", str(answer["next_page"]))]
        raise ReportFailed(f"{path} has no end")


async def _openai(api: _Api, since: date, until: date) -> VendorReport:
    span = [("start_time", str(_unix(since))), ("end_time", str(_unix(until))), ("bucket_width", "1d")]
    found: VendorReport = {}
    query = [*span, ("group_by", "model"), ("limit", "31")]
    for bucket in await api.buckets("/organization/usage/completions", query):
        for each in bucket["results"]:
            figures = VendorUsage(input_tokens=each["input_tokens"], output_tokens=each["output_tokens"])
            _add(found, _day(bucket["start_time"]), each["model"], figures)
    for bucket in await api.buckets("/organization/costs", [*span, ("limit", "180")]):
        for each in bucket["results"]:
            if (amount := each.get("amount")) is not None:
                cost = round(Decimal(str(amount["value"])) * NANO)
                _add(found, _day(bucket["start_time"]), EVERY_MODEL, VendorUsage(cost=cost))
    return found


async def _anthropic(api: _Api, since: date, until: date) -> VendorReport:
    span = [("starting_at", f"{since}T00:00:00Z"), ("ending_at", f"{until}T00:00:00Z"), ("bucket_width", "1d")]
    found: VendorReport = {}
    query = [*span, ("group_by[]", "model"), ("limit", "31")]
    for bucket in await api.buckets("/organizations/usage_report/messages", query):
        for each in bucket["results"]:
            written: Mapping[str, int] = each.get("cache_creation") or {}
            tokens = each["uncached_input_tokens"] + each["cache_read_input_tokens"] + sum(written.values())
            figures = VendorUsage(input_tokens=tokens, output_tokens=each["output_tokens"])
            _add(found, bucket["starting_at"][:10], each["model"], figures)
    query = [*span, ("group_by[]", "description"), ("limit", "31")]
    for bucket in await api.buckets("/organizations/cost_report", query):
        for each in bucket["results"]:
            cost = round(Decimal(each["amount"]) / 100 * NANO)
            _add(found, bucket["starting_at"][:10], each["model"] or NO_MODEL, VendorUsage(cost=cost))
    return found


async def _openrouter(api: _Api, since: date, until: date) -> VendorReport:
    found: VendorReport = {}
    day = since
    while day < until:
        for each in (await api.get("/activity", [("date", str(day))]))["data"]:
            dollars = Decimal(str(each["usage"])) + Decimal(str(each.get("byok_usage_inference") or 0))
            figures = VendorUsage(
                input_tokens=each["prompt_tokens"], output_tokens=each["completion_tokens"], cost=round(dollars * NANO)
            )
            _add(found, each["date"][:10], each["model"], figures)
        day += timedelta(days=1)
    return found


def _add(found: VendorReport, day: str, model: str | None, figures: VendorUsage) -> None:
    key = (day, model or EVERY_MODEL)
    found[key] = found[key] + figures if key in found else figures


def _sum(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else one + other


def _unix(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def _day(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()
