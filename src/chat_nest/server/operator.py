"""The acts of an operator, for the command line and for the operators' listener. Each is kept in the audit trail."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from datetime import datetime
from ipaddress import IPv6Network, ip_address, ip_network
from typing import Any, cast
from zoneinfo import ZoneInfo

import msgspec

from chat_nest.controls.gate import ALL, BLOCK, PAUSE, SCOPES, STOP, STOP_SECONDS, StopTerms
from chat_nest.controls.grants import BudgetGrant, grant_of, grant_row
from chat_nest.core.claims import MAX_AMOUNT, Line
from chat_nest.core.controls import GRANT, Act, Control
from chat_nest.core.limits import COUNTERS, LineScope
from chat_nest.core.messages import hashed
from chat_nest.core.protocols import Controls, HasControls, Now, Store
from chat_nest.core.usage import NANO
from chat_nest.limits.counters import RATES
from chat_nest.limits.windows import calendar_window
from chat_nest.server.config.caller_names import caller_of

USAGE_NAME = re.compile(r"[0-9a-f]{16}")
RUN = re.compile(r"[0-9a-f]{24}")
_ID = re.compile(r"[a-z]+:.+", re.DOTALL)
_LIMIT = re.compile(r":((requests|tokens|usd)_per_[a-z]+):")
_SPAN = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
MOST_SECONDS = 366 * 86_400

WHO = (
    "must be an IP address, 16 hex digits of `chat-nest usage`, or a name with its kind: user:ada for the name in "
    "caller_header, key:ada for the caller of an API key, jwt:ada for the subject of a token"
)
SPAN = "must be a number and s, m, h or d, at most a year: 90s, 30m, 2h, 7d"


class Rejected(ValueError):
    """An act that can't be done. `field` is the name of the wrong argument, and the message its rule."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(rule)
        self.field = field


def caller_key(who: str) -> str:
    """Return the key of a caller that is named by its key, its IP address or its id. Raises Rejected."""
    who = who.strip()
    if USAGE_NAME.fullmatch(who):
        return who
    try:
        ip_address(who)
    except ValueError:
        if not _ID.fullmatch(who) or not who.isprintable():
            raise Rejected("caller", WHO) from None
    return caller_of(who).key


def network_name(text: str) -> str:
    """Return the name of a block for an IP address or a network (CIDR). Raises Rejected."""
    try:
        network = ip_network(text.strip(), strict=False)
    except ValueError:
        raise Rejected("address", "must be an IP address, or a network such as 203.0.113.0/24") from None
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None:
        network = ip_network(f"{mapped}/{max(0, network.prefixlen - 96)}", strict=False)
    if not network.prefixlen:
        raise Rejected("address", "must not be every address: pause all instead")
    return f"network:{network}"


def pause_name(scope: str, name: str) -> str:
    """Return the name of a pause. Raises Rejected."""
    if scope == ALL:
        return ALL
    if scope not in SCOPES:
        raise Rejected("scope", f"must be {ALL}, {', '.join(SCOPES)}")
    if not name or len(name) > 256 or not name.isprintable():
        raise Rejected(scope, "must be 1 to 256 printable characters")
    if scope == "caller":
        return f"caller:{caller_key(name)}"
    if scope == "model" and ":" not in name:
        raise Rejected("model", "must be PROVIDER:MODEL")
    return f"{scope}:{name.strip().lower() if scope == 'profile' else name}"


def seconds_of(text: str) -> float:
    """Return the seconds of `2h`. Raises Rejected."""
    found = _SPAN.fullmatch(text.strip())
    seconds = 0 if found is None else int(found[1]) * _SECONDS[found[2]]
    if not 0 < seconds <= MOST_SECONDS:
        raise Rejected("for", SPAN)
    return float(seconds)


def owner_key(scope: str, name: str) -> str:
    """Return the first words of the keys of an owner's counters. Raises Rejected."""
    if scope == ALL:
        return ALL
    if scope == "caller":
        return f"caller:{caller_key(name)}"
    if scope == "group" and 0 < len(name) <= 256 and name.isprintable():
        return f"group:{hashed(name)}"
    raise Rejected(scope, "must be the name of a group")


def window_lines(owner: str, zone: ZoneInfo, now: float) -> list[Line]:
    """Return a line for each calendar window that an owner can have; its limit is the largest that there can be."""
    scope = cast("LineScope", owner.partition(":")[0])
    lines: list[Line] = []
    for spec in COUNTERS:
        name, unit, span = spec.name, spec.unit, spec.window
        if span is None or name in RATES:
            continue
        window = calendar_window(span, now, zone)
        lines.append(
            Line(
                name=name,
                scope=scope,
                key=f"{owner}:{name}:{window.id}",
                unit=unit,
                kind="window",
                limit=MAX_AMOUNT,
                fixed=0,
                period=int(window.end - window.start),
                resets_at=window.end,
            )
        )
    return lines


def line_of(lines: Sequence[Line], name: str) -> Line:
    """Return the line with this name. Raises Rejected."""
    for line in lines:
        if line.name == name:
            return line
    names = ", ".join(line.name for line in lines)
    raise Rejected("per", f"must give one of {names}")


def amount_of(unit: str, text: str) -> int:
    """Return the amount in the unit's smallest part. Raises Rejected."""
    try:
        amount = round(float(text) * NANO) if unit == "usd" else int(text.replace("_", "").replace(",", ""))
    except (ValueError, OverflowError):
        raise Rejected(unit, "must be a number") from None
    if not 0 < amount <= 2**50:
        raise Rejected(unit, "must be more than 0, and at most 2**50 tokens, requests or nano-dollars")
    return amount


class Operator:
    """Write an operator's acts to the store, which every process reads within a second. `by` names the operator.

    Raises ValueError for a text that is too long or can't be printed, and LimiterUnavailable if the store does not
    answer.
    """

    def __init__(
        self, store: Store, zone: ZoneInfo, *, by: str, controls: Controls | None = None, now: Now = time.time
    ) -> None:
        if controls is None:
            if not isinstance(store, HasControls):
                raise TypeError("the store keeps no controls")
            controls = store.controls
        self.controls = controls
        self._store = store
        self._zone = zone
        self._by = by
        self._now = now

    async def pause(
        self, name: str, *, reason: str = "", seconds: float | None = None, stop_running: bool = False
    ) -> Control:
        """Refuse new requests, until a time or until `resume`; with `stop_running` also end those that run."""
        return await self._put(PAUSE, name, "pause", reason, seconds, stop_running=stop_running)

    async def resume(self, name: str, *, reason: str = "") -> None:
        """End a pause; an empty name ends all of them."""
        await self.controls.change(remove=[(PAUSE, name)], act=self._act("resume", name or "every pause", reason))

    async def block(
        self, name: str, *, reason: str = "", seconds: float | None = None, stop_running: bool = False
    ) -> Control:
        """Refuse a caller, or a network."""
        return await self._put(BLOCK, name, "block", reason, seconds, stop_running=stop_running)

    async def unblock(self, name: str, *, reason: str = "") -> None:
        """End a block."""
        await self.controls.change(remove=[(BLOCK, name)], act=self._act("unblock", name, reason))

    async def stop(self, run: str, *, reason: str = "") -> None:
        """Stop a running answer, in whichever process it runs."""
        row = Control(kind=STOP, name=run, reason=reason, expires=self._now() + STOP_SECONDS)
        await self.controls.change([row], act=self._act("stop", run, reason))

    async def grant(self, line: Line, amount: int, *, reason: str = "") -> Control:
        """Raise the limit of one window once, until it ends. Raises Rejected for an amount that is not positive."""
        if not 0 < amount <= MAX_AMOUNT:
            raise Rejected("amount", "must be more than 0, and at most 2**50 of the limit's unit")
        row = grant_row(line, BudgetGrant(amount=amount, kind="grant", by=self._by), secrets.token_hex(4), reason)
        detail = f"{line.name} {amount} {line.unit} until {_moment(line.resets_at, self._zone)}"
        await self.controls.change(
            [row], act=self._act("grant", line.key.rpartition(f":{line.name}:")[0], reason, detail)
        )
        return row

    async def withdraw(self, name: str, *, reason: str = "") -> None:
        """End a grant or a reset, by the name of its row. Raises Rejected if there is none."""
        found = await self.controls.watch(-1)
        if found is None or name not in {row.name for row in listed(found.rows, GRANT, self._now())}:
            raise Rejected("name", "must be that of a grant in force: see the controls")
        act = self._act("withdraw", name.rpartition(" ")[0], reason)
        await self.controls.change(remove=[(GRANT, name)], act=act)

    async def reset(self, owner: str, *, limit: str | None = None, reason: str = "") -> list[Line]:
        """Give an owner the whole of its present windows again; return those that had been used.

        The counters go on, and what is running now counts for the new budget. Raises Rejected for an unknown limit.
        """
        lines = [line for line in window_lines(owner, self._zone, self._now()) if limit in (None, line.name)]
        if not lines:
            names = ", ".join(line.name for line in window_lines(owner, self._zone, self._now()))
            raise Rejected("limit", f"must be one of {names}")
        standings = await self._store.peek(lines)
        used = [(line, standing.used) for line, standing in zip(lines, standings, strict=True) if standing.used]
        rows = [grant_row(line, BudgetGrant(amount=n, kind="reset", by=self._by), "reset", reason) for line, n in used]
        detail = ", ".join(f"{line.name} {n}" for line, n in used)[:400]
        await self.controls.change(rows, act=self._act("reset", owner, reason, detail))
        return [line for line, _ in used]

    async def reloaded(self, changed: Sequence[str], *, reason: str = "") -> None:
        """Note in the trail that the configuration was read again."""
        await self.note("reload", "configuration", ", ".join(changed)[:400], reason=reason)

    async def note(self, act: str, target: str, detail: str = "", *, reason: str = "") -> None:
        """Note in the trail an act that was done elsewhere."""
        await self.controls.change(act=self._act(act, target, reason, detail))

    async def _put(
        self, kind: str, name: str, act: str, reason: str, seconds: float | None, *, stop_running: bool
    ) -> Control:
        now = self._now()
        terms = StopTerms(stop_running=stop_running, by=self._by, since=now)
        until = None if seconds is None else now + seconds
        row = Control(kind=kind, name=name, value=msgspec.json.encode(terms).decode(), reason=reason, expires=until)
        details = [f"until {_moment(until, self._zone)}"] if until else []
        details += ["stops what is running"] if stop_running else []
        await self.controls.change([row], act=self._act(act, name, reason, ", ".join(details)))
        return row

    def _act(self, act: str, target: str, reason: str, detail: str = "") -> Act:
        return Act(by=self._by, act=act, target=target, reason=reason, detail=detail)


def granted(row: Control) -> dict[str, Any]:
    """Return whose limit a grant raises, and by how much, as JSON's values; nothing if it can't be read.

    Its name is OWNER:LIMIT:WINDOW and a word of its own.
    """
    grant, found = grant_of(row), _LIMIT.search(row.name)
    if grant is None or found is None:
        return {}
    unit = found[2]
    amount = grant.amount / NANO if unit == "usd" else grant.amount
    shown = {"kind": grant.kind, "owner": row.name[: found.start()], "limit": found[1]}
    return {**shown, "amount": amount, "unit": unit, "by": grant.by}


def listed(rows: Sequence[Control], kind: str, now: float) -> list[Control]:
    """Return the rows of a kind that are in force, by name. `now` is Unix time."""
    found = (row for row in rows if row.kind == kind and (row.expires is None or row.expires > now))
    return sorted(found, key=lambda row: row.name)


def _moment(at: float, zone: ZoneInfo) -> str:
    return datetime.fromtimestamp(at, zone).isoformat(timespec="seconds")
