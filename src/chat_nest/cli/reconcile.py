"""The work of `chat-nest reconcile`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import cast
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from chat_nest.alerts.events import Crossing
from chat_nest.alerts.outbox import Outbox
from chat_nest.cli.reconciliation import Difference, compare
from chat_nest.core.errors import LimiterUnavailable
from chat_nest.core.protocols import HasControls, Store
from chat_nest.core.protocols import Reports as KeepsRecords
from chat_nest.core.usage import NANO
from chat_nest.providers.reported_usage import EVERY_MODEL, KINDS, ReportFailed, VendorUsage, reported_usage
from chat_nest.server.alerts import make_channels
from chat_nest.server.config.settings import Config
from chat_nest.server.logs import escape
from chat_nest.stores.places import place_of
from chat_nest.stores.urls import keeps_records, open_store

DRIFT = 3
"""The exit code for more drift than the bound."""
_UTC = ZoneInfo("UTC")
_KIND_OF: Mapping[str, str] = {"responses": "openai"}


class Impossible(Exception):
    """What is wrong, and what to do; `code` is the exit code."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class ReconcileQuestion(Struct, frozen=True, kw_only=True):
    """The options as given."""

    provider: str
    key_file: Path
    days: int
    bound: float
    alert: bool


def reconcile(config: Config, asked: ReconcileQuestion, *, as_json: bool) -> tuple[str, int]:
    """Return the comparison as text or JSON, and the exit code. Raises Impossible."""
    provider = config.providers.get(asked.provider)
    kind = "" if provider is None else _KIND_OF.get(provider.kind, provider.kind)
    if provider is None or kind not in KINDS:
        raise Impossible(f"{asked.provider} must be the name of a provider of the kind {', '.join(KINDS)} or responses")
    if not keeps_records(config.store) or not config.records_days:
        raise Impossible("the store keeps no records of requests, so there is nothing to compare")
    if asked.alert and not make_channels(config.alerts):
        raise Impossible("--alert needs a receiver: set alerts.webhook or alerts.email")
    try:
        key = asked.key_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Impossible(f"the key's file can't be read: {getattr(error, 'strerror', 'it is no text')}") from None
    if not key or not key.isascii() or not key.isprintable():
        raise Impossible("the key's file must hold one key")
    until = datetime.now(UTC).date()
    since = until - timedelta(days=asked.days)
    found = asyncio.run(_compare(config, asked, kind, provider.base_url, key, since, until))
    worst = max((each.percent for each in found), default=0.0)
    code = DRIFT if worst > asked.bound else 0
    return (_json if as_json else _text)(found, asked, since, until), code


async def _compare(
    config: Config, asked: ReconcileQuestion, kind: str, base_url: str, key: str, since: date, until: date
) -> list[Difference]:
    store = open_store(config.store, records_days=config.records_days, state=config.state)
    try:
        ours = await _ledger(store, asked.provider, since, until)
        found = compare(ours, await reported_usage(kind, base_url, key, since, until))
        drifting = [each for each in found if each.percent > asked.bound]
        if drifting and asked.alert:
            await _alert(store, config, asked, drifting)
        return found
    except ReportFailed as error:
        raise Impossible(f"{asked.provider}: {error}", 1) from None
    except LimiterUnavailable:
        raise Impossible(f"{place_of(store)} can't be read", 1) from None
    finally:
        await store.aclose()


async def _ledger(store: Store, provider: str, since: date, until: date) -> dict[tuple[str, str], VendorUsage]:
    """Return the records by UTC day and model. The cost of a model with any unknown price is not known."""
    span = [datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() for day in (since, until)]
    rows = await cast("KeepsRecords", store).usage(span[0], span[1], ("day", "model"), _UTC)
    found: dict[tuple[str, str], VendorUsage] = {}
    for row in rows:
        day, full = row.by
        name, _, model = full.partition(":")
        if name == provider:
            found[day, model] = VendorUsage(
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
                cost=None if row.unpriced else row.cost,
            )
    return found


async def _alert(store: Store, config: Config, asked: ReconcileQuestion, drifting: Sequence[Difference]) -> None:
    """Leave an alert in the store: a running server delivers it."""
    if not isinstance(store, HasControls) or config.alerts is None or "ledger.drift" not in config.alerts.events:
        return
    worst = max(drifting, key=lambda each: each.percent)
    which = worst.model or "all models"
    crossing = Crossing(
        key=f"alert:ledger.drift:{asked.provider}:{worst.day}",
        seconds=86_400.0,
        type="ledger.drift",
        text=f"the ledger and {asked.provider} differ by {worst.percent:.1f} % for {which} on {worst.day}",
        data={"provider": asked.provider, "days": [asdict(each) for each in drifting[:10]]},
    )
    kinds = [each.kind for each in make_channels(config.alerts)]
    await Outbox(store.controls).post(crossing, crossing.alert(time.time(), config.alerts.bounds.name), kinds)


def _json(found: Sequence[Difference], asked: ReconcileQuestion, since: date, until: date) -> str:
    report = {
        "provider": asked.provider,
        "since": since.isoformat(),
        "until": until.isoformat(),
        "bound_percent": asked.bound,
        "rows": [asdict(each) for each in found],
    }
    return msgspec.json.format(msgspec.json.encode(report)).decode()


def _text(found: Sequence[Difference], asked: ReconcileQuestion, since: date, until: date) -> str:
    last = until - timedelta(days=1)
    head = f"{asked.provider} from {since} to {last}, days of UTC; ours / the provider's"
    if not found:
        return f"{head}\n\nNeither has any request."
    table = [["day", "model", "input", "output", "cost", "drift"]]
    for each in found:
        pairs = (
            _pair(each.ours.input_tokens, each.theirs.input_tokens, _count),
            _pair(each.ours.output_tokens, each.theirs.output_tokens, _count),
            _pair(each.ours.cost, each.theirs.cost, _dollars),
        )
        mark = " !" if each.percent > asked.bound else ""
        name = "(all models)" if each.model == EVERY_MODEL else escape(each.model)
        table.append([each.day, name, *pairs, f"{each.percent:.1f} %{mark}"])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table)
    return "\n".join([head, "", *lines])


def _pair(ours: int | None, theirs: int | None, show: Callable[[int], str]) -> str:
    return f"{'?' if ours is None else show(ours)} / {'?' if theirs is None else show(theirs)}"


def _count(number: int) -> str:
    return f"{number:,}"


def _dollars(nano: int) -> str:
    return f"${nano / NANO:,.2f}"
