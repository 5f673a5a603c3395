"""Every metric, as a table: name, kind, labels, and what it counts. docs/metrics.md is printed from here."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from chat_nest.observers.gen_ai import (
    DURATION,
    ERROR_TYPE,
    FIRST_CHUNK,
    FIRST_CHUNK_SECONDS,
    OPERATION,
    PER_CHUNK,
    PER_CHUNK_SECONDS,
    PROVIDER,
    REQUEST_MODEL,
    SECONDS,
    TOKEN_COUNTS,
    TOKEN_TYPE,
    TOKENS,
    prometheus_name,
)

Mode = Literal["livesum", "livemax"]


class Family(Struct, frozen=True, kw_only=True, eq=False):
    """One metric. `mode`: how a gauge's values of several workers become one; those of ended workers never count.

    It is hashed by identity, which every event does, and not by its texts: each metric is made once.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, without +Inf."""
    mode: Mode = "livesum"


_FIRST_TOKEN = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0)
_QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_MODEL = (prometheus_name(OPERATION), prometheus_name(PROVIDER), prometheus_name(REQUEST_MODEL))

REQUESTS = Family(
    name="chat_nest_requests_total",
    kind="counter",
    labels=("dialect", "profile", "code"),
    help="Requests of chats that are over, by their end: ok, an error's code, replayed or followed. The profile is "
    "empty if the request was refused before it was known",
)
REFUSED = Family(
    name="chat_nest_refused_total",
    kind="counter",
    labels=("code", "limit", "scope"),
    help="Requests that were not admitted; nothing was spent on them. Limit and scope are empty unless a limit refused",
)
STREAMS = Family(name="chat_nest_streams", kind="gauge", help="Answers that run now, with or without a reader")
FIRST_TOKEN = Family(
    name="chat_nest_first_token_seconds",
    kind="histogram",
    labels=("provider", "model"),
    buckets=_FIRST_TOKEN,
    help="From the end of a request's body to its first output, in seconds",
)
OVERHEAD = Family(
    name="chat_nest_overhead_seconds",
    kind="histogram",
    labels=("profile",),
    buckets=_QUICK,
    help="From the end of a request's body to the call of the provider, in seconds: identification, parsing, counting, "
    "a wait in the queue, and the reservation",
)
COST = Family(
    name="chat_nest_cost_usd_total",
    kind="counter",
    labels=("provider", "model", "source"),
    help="Charged dollars of models with a known price. Source: reported by the provider, estimated here, or assumed",
)
CLOSE = Family(
    name="chat_nest_disconnect_close_seconds",
    kind="histogram",
    labels=("provider",),
    buckets=_QUICK,
    help="From the disconnect of a reader to the close of its provider's connection, in seconds",
)
RESERVE = Family(
    name="chat_nest_reserve_seconds",
    kind="histogram",
    labels=("store",),
    buckets=_QUICK,
    help="From the call of the store to its answer to a reservation, also a refusal or a failure, in seconds",
)
PENDING = Family(
    name="chat_nest_settlements_pending",
    kind="gauge",
    help="Settlements and releases that the store has not confirmed",
)
EXPIRED = Family(
    name="chat_nest_leases_expired_total",
    kind="counter",
    help="Expired leases that a worker's own check found and charged in full: their process died, or lost the store "
    "for longer than a lease. A request that comes before the check may charge one first, which is not counted here",
)
BREAKER = Family(
    name="chat_nest_breaker_state",
    kind="gauge",
    labels=("provider",),
    mode="livemax",
    help="The circuit breaker of a provider: 0 closed, 1 probing, 2 open; of several workers the worst",
)
QUEUE = Family(
    name="chat_nest_queue_depth",
    kind="gauge",
    help="Requests that wait for a free stream of a provider, or for their turn at the store",
)
ALERTS = Family(
    name="chat_nest_alerts_total",
    kind="counter",
    labels=("type", "channel", "outcome"),
    help="Attempts to deliver an alert: sent, failed (tried again later), or lost (given up, or kept nowhere)",
)
WORKERS = Family(name="chat_nest_workers", kind="gauge", help="Processes that serve")
BUDGET_LIMIT = Family(
    name="chat_nest_budget_limit",
    kind="gauge",
    labels=("limit", "scope", "group"),
    help="A limit of all callers, or of a configured group, in dollars if its name begins with usd, else in its unit",
)
BUDGET_SETTLED = Family(
    name="chat_nest_budget_settled",
    kind="gauge",
    labels=("limit", "scope", "group"),
    help="What ended requests have used of that limit in its present window",
)
BUDGET_HELD = Family(
    name="chat_nest_budget_held",
    kind="gauge",
    labels=("limit", "scope", "group"),
    help="What running requests hold of that limit",
)
CALL = Family(
    name=prometheus_name(DURATION, "seconds"),
    kind="histogram",
    labels=(*_MODEL, prometheus_name(ERROR_TYPE)),
    buckets=SECONDS,
    help="From the call of the provider to the end of its answer, in seconds, with retries. The error is empty if "
    "there was none",
)
CALL_FIRST = Family(
    name=prometheus_name(FIRST_CHUNK, "seconds"),
    kind="histogram",
    labels=_MODEL,
    buckets=FIRST_CHUNK_SECONDS,
    help="From the call of the provider to its first output, in seconds",
)
CALL_CHUNK = Family(
    name=prometheus_name(PER_CHUNK, "seconds"),
    kind="histogram",
    labels=_MODEL,
    buckets=PER_CHUNK_SECONDS,
    help="Seconds for each output token after the first: the mean of an answer, once an answer",
)
CALL_TOKENS = Family(
    name=prometheus_name(TOKENS),
    kind="histogram",
    labels=(*_MODEL, prometheus_name(TOKEN_TYPE)),
    buckets=TOKEN_COUNTS,
    help="Charged tokens of an answer, of the type input or output",
)

FAMILIES: Final = (
    *(REQUESTS, REFUSED, STREAMS, FIRST_TOKEN, OVERHEAD, COST, CLOSE, RESERVE, PENDING, EXPIRED, BREAKER, QUEUE),
    *(ALERTS, WORKERS, BUDGET_LIMIT, BUDGET_SETTLED, BUDGET_HELD, CALL, CALL_FIRST, CALL_CHUNK, CALL_TOKENS),
)
BUDGETS: Final = (BUDGET_LIMIT, BUDGET_SETTLED, BUDGET_HELD)
