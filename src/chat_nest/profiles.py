"""Who may ask for what: caller and request to a profile, and a profile to the lines that a request reserves."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from msgspec.structs import fields, replace

from chat_nest.errors import (
    BadRequest,
    BudgetExceeded,
    ChatError,
    Forbidden,
    LimitExceeded,
    RateLimited,
    RequestTooLarge,
    TooManyStreams,
)
from chat_nest.limits import MAX_AMOUNT, HardCaps, Limits, Line, LineKind, OnDisconnect, Profile, Refused, Scope, Unit
from chat_nest.messages import Caller, ChatRequest, Message, hashed
from chat_nest.prices import Prices, how_to_add, nano_limit
from chat_nest.usage import most_it_can_cost
from chat_nest.windows import WindowKind, calendar_window, check_rate

OLD_NAMES = {"budget": "constrained", "moderate": "balanced", "free": "expanded"}
"""What chat-nest-server called the built-in profiles before version 1."""

MINUTE = 60
"""Seconds."""
TOKEN = 1_000_000
"""Units per million output tokens of a line that counts tokens."""
OTHERS = "default"
"""The group whose limits hold for each group that has none of its own."""

COUNTERS: tuple[tuple[str, Unit, WindowKind | None], ...] = (
    ("requests_per_minute", "requests", "minute"),
    ("requests_per_hour", "requests", "hour"),
    ("requests_per_day", "requests", "day"),
    ("requests_per_month", "requests", "month"),
    ("concurrent_streams", "streams", None),
    ("tokens_per_minute", "tokens", "minute"),
    ("tokens_per_hour", "tokens", "hour"),
    ("tokens_per_day", "tokens", "day"),
    ("tokens_per_month", "tokens", "month"),
    ("usd_per_minute", "nanousd", "minute"),
    ("usd_per_hour", "nanousd", "hour"),
    ("usd_per_day", "nanousd", "day"),
    ("usd_per_month", "nanousd", "month"),
)
"""Each limit that a Profile or Limits can have: what it counts, and in which window. Told in this order."""
RATES = ("requests_per_minute", "tokens_per_minute")
"""They refill evenly; all other windows are calendar windows."""
CLOSED_TO_STRANGERS = "This chat is not open to you"
MONEY = tuple(name for name, unit, _ in COUNTERS if unit == "nanousd")
BUDGET_TEXTS = {
    "minute": "AI budget exceeded. Try again in a minute.",
    "hour": "Hourly AI budget exceeded. Try again later.",
    "day": "Daily AI budget exceeded. Try again tomorrow.",
    "month": "Monthly AI budget exceeded. Try again next month.",
}

_PATIENCE: tuple[OnDisconnect, ...] = ("cancel", "grace", "finish")
"""What an answer without a reader may cost, from little to much."""

Number = TypeVar("Number", int, float)


class Profiles:
    """The operator's profiles under the operator's caps. Days begin at midnight in `time_zone` (an IANA name).

    `groups` are the limits that the callers of one group share, by the group's name; those of the group `default` hold
    for each group that is not named. `default` names the default profile: see `default_name`. Raises ValueError if it
    is closed while another profile is open, the time zone is unknown, a rate is too high to be computed exactly, or
    there is a limit in dollars and a model without a price.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        limits: Limits,
        hard_caps: HardCaps,
        time_zone: str,
        default: str | None = None,
        *,
        groups: Mapping[str, Limits] | None = None,
        prices: Prices | None = None,
    ) -> None:
        name = default_name(profiles, default)
        self._profiles = {_name(name): _capped(profile, hard_caps) for name, profile in profiles.items()}
        self._default = self._profiles[name]
        self._open = {name: profile for name, profile in self._profiles.items() if self._is_open(profile)}
        self._limits = limits
        self._groups = dict(groups or {})
        self._prices = prices or Prices()
        try:
            self._zone = ZoneInfo(time_zone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{time_zone!r} is not a known time zone") from None
        for profile in self._profiles.values():
            _check(f"profile {profile.name!r}", profile)
        for name, shared in self._groups.items():
            _check(f"group {name!r}", shared)
        _check("limits", limits)
        self._check_prices()

    @property
    def open(self) -> tuple[Profile, ...]:
        """The profiles that a caller without a profile of its own may choose, under the hard caps."""
        return tuple(self._open.values())

    def offered(self, caller: Caller) -> tuple[Profile, ...]:
        """The profiles whose models this caller may choose: its own, or the open ones.

        Raises Forbidden if the caller's own does not exist, or if it has none and no profile is open.
        """
        if caller.profile is not None:
            return (self._ceiling(caller.profile),)
        if not self._open:
            raise Forbidden(CLOSED_TO_STRANGERS)
        return self.open

    def model_names(self, caller: Caller) -> tuple[str, ...]:
        """What this caller may name as a model: the models that are offered, then the profiles."""
        offered = self.offered(caller)
        models = [profile.model.partition(":")[2] for profile in offered]
        return tuple(dict.fromkeys([*models, *(_name(profile.name) for profile in offered)]))

    def resolve(self, caller: Caller, request: ChatRequest) -> Profile:
        """The profile that this request runs under: nothing in the request can raise any of its numbers.

        Without a ceiling in `caller` the request chooses among the open profiles; any other name means the default.
        Under a ceiling it may name any profile, which can only lower the ceiling's numbers: the models are the
        ceiling's. Raises BadRequest for a model that is not offered, and for a role or tools that the profile does not
        allow; Forbidden as `offered` does.
        """
        offered = self.offered(caller)
        chosen = None if request.profile is None else self._choice(request.profile, caller)
        if request.model is not None:
            chosen = self._named(request.model, caller, offered, chosen)
        if caller.profile is None:
            profile = chosen or self._default
        else:
            profile = offered[0] if chosen is None else _lowered(offered[0], chosen)
        _check_roles(request.messages, profile)
        if request.system_prompt and request.system_field and not profile.allow_system_prompt:
            raise BadRequest("is not accepted from this caller", field=request.system_field)
        if request.tools and not profile.allow_tools:
            raise BadRequest("are not accepted from this caller", field="tools")
        return _asked(profile, request)

    def lines(self, caller: Caller, profile: Profile, prompt_tokens: int, now: float) -> tuple[Line, ...]:
        """What the request draws on, in the order in which a refusal is told: its own size, the caller's, the
        caller's group's, all's.

        The keys don't name the profile: a caller who switches profiles keeps the same counters. `now` is Unix time.
        Raises Forbidden for a caller whose group has no limits where groups have some.
        """
        lines: list[Line] = []
        key = f"caller:{caller.key}"
        if profile.tokens_per_request is not None:
            lines.append(
                Line(
                    name="tokens_per_request",
                    scope="caller",
                    key=f"{key}:tokens_per_request",
                    unit="tokens",
                    kind="request",
                    limit=profile.tokens_per_request,
                    fixed=prompt_tokens,
                    per_million=TOKEN,
                )
            )
        draws: dict[Unit, tuple[int, int]] = {"requests": (1, 0), "streams": (1, 0), "tokens": (prompt_tokens, TOKEN)}
        prices = [price for model in _models(profile) if (price := self._prices.of(model)) is not None]
        draws["nanousd"] = most_it_can_cost(prices, prompt_tokens)
        lines += self._counters(profile, "caller", key, draws, now)
        if caller.group is not None and self._groups:
            shared = self._groups.get(caller.group) or self._groups.get(OTHERS)
            if shared is None:
                raise Forbidden("The group of this caller does not exist")
            lines += self._counters(shared, "group", f"group:{hashed(caller.group)}", draws, now)
        lines += self._counters(self._limits, "all", "all", draws, now)
        return tuple(lines)

    def shared_lines(self, now: float) -> Sequence[Line]:
        """The lines for all callers, with nothing drawn on them. `now` is Unix time."""
        draws: dict[Unit, tuple[int, int]] = {
            "requests": (0, 0),
            "streams": (0, 0),
            "tokens": (0, 0),
            "nanousd": (0, 0),
        }
        return self._counters(self._limits, "all", "all", draws, now)

    def refusal(self, line: Line, refused: Refused) -> ChatError:
        """What the user is told when `line` had no room. `retry_after` is left out where no wait is known to help."""
        wait = refused.retry_after if 0 < refused.retry_after < math.inf else None
        error: LimitExceeded
        if line.kind == "request" or (line.kind == "rate" and line.amount(1) > line.limit):
            error = RequestTooLarge(limit=line.name)
        elif line.kind == "gauge":
            error = TooManyStreams(limit=line.name, retry_after=wait)
        elif line.unit == "requests" or line.kind == "rate":
            error = RateLimited(limit=line.name, retry_after=wait)
        else:
            error = BudgetExceeded(BUDGET_TEXTS[line.name.rpartition("_")[2]], limit=line.name, retry_after=wait)
        error.scope, error.room = line.scope, refused.room
        return error

    def _counters(
        self,
        limits: Profile | Limits,
        scope: Scope,
        owner: str,
        draws: Mapping[Unit, tuple[int, int]],
        now: float,
    ) -> list[Line]:
        lines: list[Line] = []
        for name, unit, span in COUNTERS:
            limit = getattr(limits, name)
            if limit is None:
                continue
            kind: LineKind = "gauge" if span is None else "rate" if name in RATES else "window"
            key, period, resets_at = f"{owner}:{name}", MINUTE if kind == "rate" else 0, 0.0
            if kind == "window" and span is not None:
                window = calendar_window(span, now, self._zone)
                key, period, resets_at = f"{key}:{window.id}", int(window.end - window.start), window.end
            fixed, per_million = draws[unit]
            lines.append(
                Line(
                    name=name,
                    scope=scope,
                    key=key,
                    unit=unit,
                    kind=kind,
                    limit=nano_limit(limit) if unit == "nanousd" else limit,
                    fixed=fixed,
                    per_million=per_million,
                    period=period,
                    resets_at=resets_at,
                )
            )
        return lines

    def _check_prices(self) -> None:
        shared = any(_in_money(limits) for limits in (self._limits, *self._groups.values()))
        for profile in self._profiles.values():
            for model in _models(profile) if shared or _in_money(profile) else ():
                if self._prices.of(model) is None:
                    said = f"there is a limit in dollars, and the price of {model!r} is not known"
                    raise ValueError(f"profile {profile.name!r}: {said}: {how_to_add(model)}")

    def _ceiling(self, name: str) -> Profile:
        found = find_name(self._profiles, name)
        if found is None:
            raise Forbidden("The profile of this caller does not exist")
        return self._profiles[found]

    def _named(self, model: str, caller: Caller, offered: tuple[Profile, ...], chosen: Profile | None) -> Profile:
        """The profile that offers what a client calls a model: a profile's name, PROVIDER:MODEL, or MODEL."""
        if caller.profile is None:
            offered = (self._default, *offered) if chosen is None else (chosen,)
        for profile in offered:
            if model in (profile.model, profile.model.partition(":")[2]):
                return chosen or profile
        named = self._allowed(caller).get(model)
        if named is None or (chosen is not None and chosen is not named):
            raise BadRequest("must be a model that is offered here", field="model")
        return named

    def _choice(self, name: str, caller: Caller) -> Profile | None:
        """The profile that a request names; None where the caller may not choose one of that name."""
        found = find_name(self._profiles, name)
        return None if found is None else self._allowed(caller).get(found)

    def _allowed(self, caller: Caller) -> Mapping[str, Profile]:
        """The profiles that a request may name. Under a ceiling each of them can only lower it, so closed ones too."""
        return self._open if caller.profile is None else self._profiles

    def _is_open(self, profile: Profile) -> bool:
        return profile is self._default if profile.open is None else profile.open


def default_name(profiles: Mapping[str, Profile], named: str | None = None) -> str:
    """Return the lower-case name of the default profile, which a caller without a profile of its own gets.

    It is `named`, else `balanced`, else the only profile, else the only one with `open=True`. Raises ValueError, which
    names `default_profile`, if that is no profile, or is closed while another profile is open.
    """
    names = [_name(name) for name in profiles]
    open_names = [_name(name) for name, profile in profiles.items() if profile.open]
    if named is not None:
        name = find_name(names, named)
        if name is None:
            raise ValueError(f"default_profile must name one of the profiles: {', '.join(names)}")
    else:
        only = next((each[0] for each in (names, open_names) if len(each) == 1), None)
        name = "balanced" if "balanced" in names else only
        if name is None:
            raise ValueError(f"default_profile must name the profile of a caller without its own: {', '.join(names)}")
    if open_names and any(_name(each) == name and profile.open is False for each, profile in profiles.items()):
        msg = f"default_profile is {name}, which is closed, while {open_names[0]} is open: name an open one"
        raise ValueError(f"{msg}, or close every profile")
    return name


def find_name(names: Collection[str], asked: str) -> str | None:
    """Return the name of the profile that `asked` means, in any case and by chat-nest-server's old names."""
    name = _name(asked)
    return next((each for each in (name, OLD_NAMES.get(name, name)) if each in names), None)


def _check(where: str, numbers: Profile | Limits) -> None:
    """Raise ValueError, which names the field, for a limit that could never admit a request or be counted exactly."""
    for field in fields(numbers):
        value = getattr(numbers, field.name)
        if isinstance(value, int) and not isinstance(value, bool) and not 1 <= value <= MAX_AMOUNT:
            raise ValueError(f"{where}: {field.name} must be from 1 to 2**50")
        if value is None or field.name not in (*RATES, *MONEY):
            continue
        try:
            check_rate(value, MINUTE) if field.name in RATES else nano_limit(value)
        except ValueError as error:
            raise ValueError(f"{where}: {field.name}: {error}") from None


def _in_money(limits: Profile | Limits) -> bool:
    return any(getattr(limits, name) is not None for name in MONEY)


def _models(profile: Profile) -> Sequence[str]:
    return (profile.model, *profile.fallbacks)


def _name(name: str) -> str:
    return name.strip().lower()


def _least(*values: Number | None) -> Number | None:
    return min((value for value in values if value is not None), default=None)


def _capped(profile: Profile, caps: HardCaps) -> Profile:
    max_output_tokens = min(profile.max_output_tokens, caps.max_output_tokens)
    return replace(
        profile,
        max_output_tokens=max_output_tokens,
        min_output_tokens=min(profile.min_output_tokens, max_output_tokens),
        max_messages=min(profile.max_messages, caps.max_messages),
        temperature=min(profile.temperature, caps.temperature),
        tokens_per_request=_least(profile.tokens_per_request, caps.tokens_per_request),
        tokens_per_day=_least(profile.tokens_per_day, caps.tokens_per_day),
        requests_per_minute=_least(profile.requests_per_minute, caps.requests_per_minute),
    )


def _lowered(ceiling: Profile, chosen: Profile) -> Profile:
    """The ceiling, with each number no higher than in `chosen`."""
    numbers: dict[str, Any] = {
        name: _least(getattr(ceiling, name), getattr(chosen, name))
        for name in ("tokens_per_request", *(name for name, _, _ in COUNTERS))
    }
    return replace(
        ceiling,
        **numbers,
        on_disconnect=min(ceiling.on_disconnect, chosen.on_disconnect, key=_PATIENCE.index),
        grace_seconds=min(ceiling.grace_seconds, chosen.grace_seconds),
        max_output_tokens=min(ceiling.max_output_tokens, chosen.max_output_tokens),
        min_output_tokens=min(ceiling.min_output_tokens, chosen.min_output_tokens),
        max_messages=min(ceiling.max_messages, chosen.max_messages),
        temperature=min(ceiling.temperature, chosen.temperature),
        allow_system_prompt=ceiling.allow_system_prompt and chosen.allow_system_prompt,
        allow_tools=ceiling.allow_tools and chosen.allow_tools,
    )


def _asked(profile: Profile, request: ChatRequest) -> Profile:
    """The profile, with the request's own numbers where they are lower."""
    asked = (request.max_output_tokens, request.temperature, request.tokens_per_request, request.tokens_per_day)
    if asked == (None, None, None, None):
        return profile
    max_output_tokens = profile.max_output_tokens
    if request.max_output_tokens is not None:
        max_output_tokens = min(max_output_tokens, request.max_output_tokens)
    temperature = profile.temperature
    if request.temperature is not None:
        temperature = min(temperature, request.temperature)
    return replace(
        profile,
        max_output_tokens=max_output_tokens,
        min_output_tokens=min(profile.min_output_tokens, max_output_tokens),
        temperature=temperature,
        tokens_per_request=_least(profile.tokens_per_request, request.tokens_per_request),
        tokens_per_day=_least(profile.tokens_per_day, request.tokens_per_day),
    )


def _check_roles(messages: tuple[Message, ...], profile: Profile) -> None:
    for index, message in enumerate(messages):
        role = message.role
        if (role == "tool" or message.tool_calls) and not profile.allow_tools:
            raise BadRequest("tools are not accepted from this caller", field=f"messages[{index}].role")
        if role in ("system", "developer") and not profile.allow_system_prompt:
            raise BadRequest("must be user or assistant", field=f"messages[{index}].role")
