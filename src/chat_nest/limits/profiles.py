"""Admission rules: which profile a caller's request gets, and which lines the profile's requests reserve.

The file is long because one class answers what a caller may, has and reserves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args
from zoneinfo import ZoneInfo

from msgspec.structs import astuple

from chat_nest.core.claims import Line, LineKind
from chat_nest.core.errors import BadRequest, Closed, Forbidden
from chat_nest.core.limits import Limits, LineScope, Share, Unit
from chat_nest.core.messages import Caller, ChatRequest, hashed
from chat_nest.core.usage import most_it_can_cost
from chat_nest.limits.counters import MONEY, check_numbers, configured, is_closed
from chat_nest.limits.ladder import check_ladder
from chat_nest.limits.lowering import asked, capped, lowered
from chat_nest.limits.prices import Prices, how_to_add, nano_limit
from chat_nest.limits.profile_names import default_name, find_name, plain_name
from chat_nest.limits.spec import HardCaps, Profile
from chat_nest.limits.windows import calendar_window

MINUTE = 60
"""Seconds."""
TOKEN = 1_000_000
"""Units per million output tokens of a line that counts tokens."""
_NOTHING: Mapping[Unit, tuple[int, int]] = dict.fromkeys(get_args(Unit), (0, 0))
OTHERS = "default"
"""The name of the limits for each group without its own limits."""

NO_PRICE = "You have a limit in dollars, and the price of this model is not known here"
CLOSED_TO_STRANGERS = "This chat is not open to you"
NO_SYSTEM = "not accepted from this caller: see allow_system_prompt of the profile"
NO_TOOLS = "not accepted from this caller: see allow_tools of the profile"
MAX_SHOWN = 10
"""The most models that a refusal lists."""


class Profiles:
    """The operator's profiles under the operator's caps. Days begin at midnight in `time_zone` (an IANA name). `groups`
    are the limits that the callers of one group share, by the group's name; those of the group `default` apply to each
    group that is not named. `visitors` are the limits of visitors, addresses and networks, by these names. `default`
    names the default profile: see `default_name`. Raises ValueError if it is closed while another profile is open, the
    time zone is unknown, a number breaks its rule (see `counters`), or there is a limit in dollars and a model without
    a price.
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
        visitors: Mapping[str, Limits] | None = None,
        prices: Prices | None = None,
    ) -> None:
        name = default_name(profiles, default)
        check_numbers("hard_caps", hard_caps)
        for key, profile in profiles.items():
            check_numbers(f"profile {key!r}", profile)
            check_ladder(f"profile {key!r}", profile)
        check_numbers("limits", limits)
        for group, shared in (groups or {}).items():
            check_numbers(f"group {group!r}", shared)
        for section, shared in (visitors or {}).items():
            check_numbers(section, shared)
        self._profiles = {plain_name(name): capped(profile, hard_caps) for name, profile in profiles.items()}
        self._default = self._profiles[name]
        self._open = {name: profile for name, profile in self._profiles.items() if self._is_open(profile)}
        self._limits = limits
        self._groups = dict(groups or {})
        self._visitors = tuple((visitors or {}).values())
        self._prices = prices or Prices()
        try:
            self._zone = ZoneInfo(time_zone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{time_zone!r} is not a known time zone") from None
        self._check_prices()

    @property
    def all(self) -> tuple[Profile, ...]:
        """Every profile, under the hard caps."""
        return tuple(self._profiles.values())

    @property
    def open(self) -> tuple[Profile, ...]:
        """The profiles that a caller to whom no profile is assigned may choose, under the hard caps."""
        return tuple(self._open.values())

    def named(self, name: str | None) -> Profile:
        """Return the profile of this name; the default one without a name. Raises ValueError for an unknown name."""
        found = None if name is None else find_name(self._profiles, name)
        if name is not None and found is None:
            raise ValueError(f"must name one of the profiles: {', '.join(self._profiles)}")
        return self._default if found is None else self._profiles[found]

    def offered(self, caller: Caller) -> tuple[Profile, ...]:
        """Return the profiles of the models that this caller may choose: its own, or the open ones.

        Raises Forbidden if one of the caller's own does not exist, or if it has none and no profile is open.
        """
        if caller.profile is not None:
            return (self._existing(caller.profile),)
        allowed = self._allowed(caller)
        if not allowed:
            raise Forbidden(CLOSED_TO_STRANGERS)
        return tuple(allowed.values())

    def model_names(self, caller: Caller) -> tuple[str, ...]:
        """Return what this caller may name as a model: the offered models, then the profiles."""
        return _model_names(self.offered(caller))

    def resolve(self, caller: Caller, request: ChatRequest) -> Profile:
        """Return the profile that this request runs under: nothing in the request can raise any of its numbers.

        Without a ceiling in `caller` the request chooses among the open profiles; any other name means the default.
        Under a ceiling it may name any profile, which can only lower the ceiling's numbers: the models are the
        ceiling's. Raises BadRequest for a model that is not offered, and for a role or tools that the profile does not
        allow; Forbidden as `offered` does; Closed if a limit that applies to the request is 0.
        """
        offered = self.offered(caller)
        chosen = None if request.profile is None else self._choice(request.profile, caller)
        if request.model is not None:
            chosen = self._named(request.model, caller, offered, chosen)
        if caller.profile is None:
            profile = chosen or self._default_of(caller)
        else:
            profile = offered[0] if chosen is None else lowered(offered[0], chosen)
        if is_closed(profile) or any(map(is_closed, self._shared(caller))) or _is_spent(caller):
            raise Closed
        _check_roles(request, profile)
        if request.system_prompt and request.system_field and not profile.allow_system_prompt:
            raise BadRequest(f"is {NO_SYSTEM}", field=request.system_field)
        if request.tools and not profile.allow_tools:
            raise BadRequest(f"are {NO_TOOLS}", field="tools")
        return asked(profile, request)

    def lines(self, caller: Caller, profile: Profile, prompt_tokens: int, now: float) -> tuple[Line, ...]:
        """Return the lines that the request draws on, in the order in which a refusal names them: the request's own
        size, the caller's, those of its shares, the caller's group's, those of all callers.

        The keys don't name the profile: a caller who switches profiles keeps the same counters. `now` is Unix time.
        Raises Forbidden for a caller whose group has no limits if groups have some, and for a share with a limit in
        dollars if the price of the model is not known.
        """
        lines: list[Line] = []
        key = f"caller:{caller.counter_key}"
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
        for share in caller.shares:
            if len(prices) < len(_models(profile)) and _share_in_money(share):
                raise Forbidden(NO_PRICE)
            owner = f"{share.scope}:{hashed(share.id)}"
            lines += self._counters(share.limits, share.scope, owner, draws, now)
            lines += _totals(share, owner, draws, now)
        group = self.group_of(caller)
        if group is not None and caller.group is not None:
            lines += self._counters(group, "group", f"group:{hashed(caller.group)}", draws, now)
        lines += self._counters(self._limits, "all", "all", draws, now)
        return tuple(lines)

    def unpriced(self, profiles: Sequence[Profile]) -> Sequence[str]:
        """Return the models of these profiles, PROVIDER:MODEL, whose price is not known."""
        models = dict.fromkeys(model for profile in profiles for model in _models(profile))
        return [model for model in models if self._prices.of(model) is None]

    def shared_lines(self, now: float) -> Sequence[Line]:
        """Return the lines for all callers, with nothing drawn on them. `now` is Unix time."""
        return self._counters(self._limits, "all", "all", _NOTHING, now)

    def group_lines(self, now: float) -> Mapping[str, Sequence[Line]]:
        """Return the lines of each configured group by its name, with nothing drawn on them. `now` is Unix time."""
        return {
            name: self._counters(limits, "group", f"group:{hashed(name)}", _NOTHING, now)
            for name, limits in self._groups.items()
            if name != OTHERS
        }

    def _counters(
        self,
        limits: Profile | Limits,
        scope: LineScope,
        owner: str,
        draws: Mapping[Unit, tuple[int, int]],
        now: float,
    ) -> list[Line]:
        lines: list[Line] = []
        for spec, limit in configured(limits):
            name, unit, span = spec.name, spec.unit, spec.window
            kind: LineKind = "gauge" if span is None else "rate" if spec.refills else "window"
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

    def group_of(self, caller: Caller) -> Limits | None:
        """Return the limits of the caller's group; None if it has no group, or groups have no limits.

        Raises Forbidden for a group without limits if groups have some.
        """
        if caller.group is None or not self._groups:
            return None
        shared = self._groups.get(caller.group) or self._groups.get(OTHERS)
        if shared is None:
            raise Forbidden("The group of this caller does not exist")
        return shared

    def _shared(self, caller: Caller) -> Sequence[Limits]:
        """Return the limits that the caller shares with others."""
        group = self.group_of(caller)
        shared = tuple(share.limits for share in caller.shares)
        return (*shared, self._limits) if group is None else (*shared, group, self._limits)

    def _check_prices(self) -> None:
        shared = any(_in_money(limits) for limits in (self._limits, *self._groups.values(), *self._visitors))
        for profile in self._profiles.values():
            for model in profile.models if shared or _in_money(profile) else ():
                if self._prices.of(model) is None:
                    said = f"there is a limit in dollars, and the price of {model!r} is not known"
                    raise ValueError(f"profile {profile.name!r}: {said}: {how_to_add(model)}")

    def _existing(self, name: str) -> Profile:
        found = find_name(self._profiles, name)
        if found is None:
            raise Forbidden("The profile of this caller does not exist")
        return self._profiles[found]

    def _named(self, model: str, caller: Caller, offered: tuple[Profile, ...], chosen: Profile | None) -> Profile:
        """Return the profile for a client's model name: a profile's name, PROVIDER:MODEL, or MODEL."""
        if caller.profile is None:
            offered = (self._default_of(caller), *offered) if chosen is None else (chosen,)
        for profile in offered:
            if model in (profile.model, profile.model.partition(":")[2]):
                return chosen or profile
        named = self._allowed(caller).get(model)
        if named is None or (chosen is not None and chosen is not named):
            names = self.model_names(caller) if chosen is None else _model_names((chosen,))
            some = ", ".join(names[:MAX_SHOWN]) + (", ..." if len(names) > MAX_SHOWN else "")
            raise BadRequest(f"must be a model that is offered here: {some}", field="model")
        return named

    def _choice(self, name: str, caller: Caller) -> Profile | None:
        """Return the profile that a request names; None if the caller may not choose one of that name."""
        found = find_name(self._profiles, name)
        return None if found is None else self._allowed(caller).get(found)

    def _allowed(self, caller: Caller) -> Mapping[str, Profile]:
        """Return the profiles that a request may name. Under a ceiling also closed ones, which can only lower it."""
        if caller.profile is not None:
            return self._profiles
        if caller.profiles is None:
            return self._open
        return {plain_name(profile.name): profile for profile in map(self._existing, caller.profiles)}

    def _default_of(self, caller: Caller) -> Profile:
        """Return the profile of a request that names none, for a caller without a ceiling."""
        return self._existing(caller.profiles[0]) if caller.profiles else self._default

    def _is_open(self, profile: Profile) -> bool:
        return profile is self._default if profile.open is None else profile.open


def _is_spent(caller: Caller) -> bool:
    """Return whether a total of the caller's is 0, so that no request can be admitted."""
    return any(0 in astuple(share.totals) for share in caller.shares)


def _share_in_money(share: Share) -> bool:
    return share.totals.usd is not None or _in_money(share.limits)


def _totals(share: Share, owner: str, draws: Mapping[Unit, tuple[int, int]], now: float) -> list[Line]:
    """Return the lines of what may be used until the share ends."""
    totals = share.totals
    nanousd = None if totals.usd is None else nano_limit(totals.usd)
    limits: tuple[tuple[str, Unit, int | None], ...] = (
        ("requests", "requests", totals.requests),
        ("tokens", "tokens", totals.tokens),
        ("usd", "nanousd", nanousd),
    )
    return [
        Line(
            name="turns_per_conversation"
            if (name, share.scope) == ("requests", "conversation")
            else f"{name}_per_{share.scope}",
            scope=share.scope,
            key=f"{owner}:{name}",
            unit=unit,
            kind="window",
            limit=limit,
            fixed=draws[unit][0],
            per_million=draws[unit][1],
            period=max(1, int(share.ends_at - now)),
            resets_at=share.ends_at,
        )
        for name, unit, limit in limits
        if limit is not None
    ]


def _in_money(limits: Profile | Limits) -> bool:
    """Return whether dollars are counted. A closed limit counts nothing."""
    return not is_closed(limits) and any(getattr(limits, name) is not None for name in MONEY)


def _models(profile: Profile) -> Sequence[str]:
    return (profile.model, *profile.fallbacks)


def _model_names(profiles: Sequence[Profile]) -> tuple[str, ...]:
    models = [profile.model.partition(":")[2] for profile in profiles]
    return tuple(dict.fromkeys([*models, *(plain_name(profile.name) for profile in profiles)]))


def _check_roles(request: ChatRequest, profile: Profile) -> None:
    for index, message in enumerate(request.messages):
        role = message.role
        if (role == "tool" or message.tool_calls) and not profile.allow_tools:
            raise BadRequest(f"tools are {NO_TOOLS}", field=f"{request.messages_field}[{index}].role")
        if role in ("system", "developer") and not profile.allow_system_prompt:
            said = f"must be user or assistant: a system prompt is {NO_SYSTEM}"
            raise BadRequest(said, field=f"{request.messages_field}[{index}].role")
