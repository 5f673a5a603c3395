"""What all processes of the store do now and did in the last hour, as one picture."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from chat_nest import __version__
from chat_nest.core.protocols import Store
from chat_nest.server.admin.routes import AdminRequest, Reply, json
from chat_nest.server.app import ServerApp
from chat_nest.server.fleet import Doing
from chat_nest.server.health import HealthPart
from chat_nest.server.tally import MINUTES, CallCounts, Refusals, quantile
from chat_nest.stores.places import kind_of_store, place_of, remedy_of, sentence

STORE_SECONDS: Final = 2.0
READINESS_SECONDS: Final = 15.0
"""The providers are asked at most this often."""
_WORST: Final = ("closed", "probing", "open")


async def activity(asked: AdminRequest) -> Reply:
    """Return what all processes of the store do now and did in the last hour."""
    return Reply(json(await picture(asked.app)))


async def picture(app: ServerApp) -> dict[str, Any]:
    """Return what `GET /admin/v1/activity` shows. Without the store it is of this process alone."""
    try:
        async with asyncio.timeout(STORE_SECONDS):
            doing, alone = await app.fleet.doing(), False
    except Exception:
        doing, alone = [app.fleet.own()], True
    ready = await app.recent_readiness(READINESS_SECONDS)
    return {
        "version": __version__,
        "time_zone": app.config.server.time_zone,
        "status": "draining" if app.draining else ready.status,
        "store": _store(app.handler.store, ready.store, alone=alone),
        "streams": sum(each.streams for each in doing),
        "queued": sum(each.queued for each in doing),
        "unsettled": sum(each.unsettled for each in doing),
        "expired": sum(each.expired for each in doing),
        "minutes": _minutes(doing),
        "refused": _refused(doing),
        "failed": _failed(doing),
        "providers": {
            name: {"status": part.status, **({"advice": part.advice} if part.advice else {}), **_provider(name, doing)}
            for name, part in ready.providers.items()
        },
        "processes": [
            {name: getattr(each, name) for name in ("process", "version", "started_at", "streams", "unsettled")}
            for each in doing
        ],
    }


def _store(store: Store, part: HealthPart, *, alone: bool) -> dict[str, Any]:
    """Return the store's kind, place and state, which may be newer than `part`: `alone` if it has just failed."""
    if alone and part.status == "ok":
        part = HealthPart("limiter_unavailable", f"{sentence(place_of(store))} does not answer: {remedy_of(store)}")
    advice = {"advice": part.advice} if part.advice else {}
    return {"kind": kind_of_store(store), "place": place_of(store), "status": part.status, **advice}


def _minutes(doing: Sequence[Doing]) -> dict[str, Any]:
    """Return the last hour: the Unix time of its first minute, and each minute's requests."""
    last = int(max(each.at for each in doing) // 60)
    first = last - MINUTES + 1
    counts = {name: [0] * MINUTES for name in ("answered", "refused", "failed")}
    for each in doing:
        for minute, *numbers in each.minutes:
            if first <= minute <= last:
                for name, number in zip(counts, numbers, strict=True):
                    counts[name][minute - first] += number
    return {"since": first * 60, **counts}


def _refused(doing: Sequence[Doing]) -> list[dict[str, Any]]:
    total = Counter[Refusals]()
    for each in doing:
        total.update(dict(each.refused))
    return [
        {"code": why.code, **({"limit": why.limit, "scope": why.scope} if why.limit else {}), "requests": number}
        for why, number in total.most_common()
    ]


def _failed(doing: Sequence[Doing]) -> list[dict[str, Any]]:
    total = Counter[str]()
    for each in doing:
        total.update(each.failed)
    return [{"code": code, "requests": number} for code, number in total.most_common()]


def _provider(name: str, doing: Sequence[Doing]) -> dict[str, Any]:
    """Return a provider's last hour, its worst circuit breaker, and the process with the most resting keys."""
    calls = CallCounts()
    for each in doing:
        calls.add(each.calls.get(name, CallCounts()))
    pools = [each.keys[name] for each in doing if name in each.keys]
    keys = {} if not pools else {"keys": {"count": pools[0][0], "resting": max(resting for _, resting in pools)}}
    return {
        "breaker": max((each.breakers.get(name, "closed") for each in doing), key=_WORST.index),
        "calls": calls.count,
        "failed": calls.failed,
        "first_token_seconds": {"median": quantile(calls.first, 0.5), "p95": quantile(calls.first, 0.95)},
        **keys,
    }
