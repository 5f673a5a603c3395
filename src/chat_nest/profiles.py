"""Who may ask for what: caller and request to a profile, and a profile to the lines that a request reserves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal
from zoneinfo import ZoneInfo

from msgspec.structs import fields, replace

from chat_nest.errors import (
    BadRequest,
    BudgetExceeded,
    ChatError,
    Forbidden,
    RateLimited,
    RequestTooLarge,
    TooManyStreams,
)
from chat_nest.limits import MAX_AMOUNT, HardCaps, Limits, Line, Profile, Refused
from chat_nest.messages import Caller, ChatRequest, Message
from chat_nest.windows import Window, calendar_window, check_rate

OLD_NAMES = {"budget": "constrained", "moderate": "balanced", "free": "expanded"}
"""What chat-nest-server called the built-in profiles before version 1."""

MINUTE = 60
"""Seconds."""
TOKEN = 1_000_000
"""Units per million output tokens of a line that counts tokens."""


class Profiles:
    """The operator's profiles under the operator's caps. Days begin at midnight in `time_zone` (an IANA name).

    Raises ValueError if `default` is not one of the profiles, the time zone is unknown, or a rate is too high to be
    computed exactly.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        limits: Limits,
        hard_caps: HardCaps,
        time_zone: str,
        default: str = "balanced",
    ) -> None:
        self._profiles = {_name(name): _capped(profile, hard_caps) for name, profile in profiles.items()}
        self._limits = limits
        try:
            self._zone = ZoneInfo(time_zone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{time_zone!r} is not a known time zone") from None
        for profile in self._profiles.values():
            _check(f"profile {profile.name!r}", profile)
        _check("limits", limits)
        chosen = self._find(default)
        if chosen is None:
            raise ValueError(f"the default profile {default!r} is not one of the profiles")
        self._default = chosen

    def resolve(self, caller: Caller, request: ChatRequest) -> Profile:
        """The profile that this request runs under: nothing in the request can raise any of its numbers.

        Without a ceiling in `caller` the request chooses among the operator's profiles. Under a ceiling the chosen
        profile can only lower the ceiling's numbers, and the models are the ceiling's. Raises BadRequest for a role
        that the profile does not allow; Forbidden if the caller's profile does not exist.
        """
        chosen = None if request.profile is None else self._find(request.profile)
        if caller.profile is None:
            profile = chosen or self._default
        else:
            ceiling = self._find(caller.profile)
            if ceiling is None:
                raise Forbidden("The profile of this caller does not exist")
            profile = ceiling if chosen is None else _lowered(ceiling, chosen)
        _check_roles(request.messages, profile)
        return _asked(profile, request)

    def lines(self, caller: Caller, profile: Profile, prompt_tokens: int, now: float) -> tuple[Line, ...]:
        """What the request draws on, in the order in which a refusal is told: its own size, the caller's, all's.

        The keys don't name the profile: a caller who switches profiles keeps the same counters. `now` is Unix time.
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
        day = calendar_window("day", now, self._zone)
        lines += _counters(profile, "caller", key, prompt_tokens, day)
        lines += _counters(self._limits, "all", "all", prompt_tokens, day)
        return tuple(lines)

    def refusal(self, line: Line, refused: Refused) -> ChatError:
        """What the user is told when `line` had no room. `retry_after` is left out where no wait is known to help."""
        wait = refused.retry_after if 0 < refused.retry_after < math.inf else None
        if line.kind == "request" or (line.kind == "rate" and line.amount(1) > line.limit):
            return RequestTooLarge(limit=line.name)
        if line.kind == "gauge":
            return TooManyStreams(limit=line.name, retry_after=wait)
        if line.kind == "rate":
            return RateLimited(limit=line.name, retry_after=wait)
        return BudgetExceeded(limit=line.name, retry_after=wait)

    def _find(self, name: str) -> Profile | None:
        name = _name(name)
        return self._profiles.get(name) or self._profiles.get(OLD_NAMES.get(name, name))


def _check(where: str, numbers: Profile | Limits) -> None:
    """Raise ValueError, which names the field, for a limit that could never admit a request or be counted exactly."""
    for field in fields(numbers):
        value = getattr(numbers, field.name)
        if isinstance(value, int) and not isinstance(value, bool) and not 1 <= value <= MAX_AMOUNT:
            raise ValueError(f"{where}: {field.name} must be from 1 to 2**50")
        if field.name in ("requests_per_minute", "tokens_per_minute") and value is not None:
            try:
                check_rate(value, MINUTE)
            except ValueError as error:
                raise ValueError(f"{where}: {field.name}: {error}") from None


def _name(name: str) -> str:
    return name.strip().lower()


def _least(*values: int | None) -> int | None:
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
    return replace(
        ceiling,
        max_output_tokens=min(ceiling.max_output_tokens, chosen.max_output_tokens),
        min_output_tokens=min(ceiling.min_output_tokens, chosen.min_output_tokens),
        max_messages=min(ceiling.max_messages, chosen.max_messages),
        temperature=min(ceiling.temperature, chosen.temperature),
        tokens_per_request=_least(ceiling.tokens_per_request, chosen.tokens_per_request),
        tokens_per_day=_least(ceiling.tokens_per_day, chosen.tokens_per_day),
        tokens_per_minute=_least(ceiling.tokens_per_minute, chosen.tokens_per_minute),
        requests_per_minute=_least(ceiling.requests_per_minute, chosen.requests_per_minute),
        concurrent_streams=_least(ceiling.concurrent_streams, chosen.concurrent_streams),
        allow_system_prompt=ceiling.allow_system_prompt and chosen.allow_system_prompt,
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
        if role == "tool":
            raise BadRequest("the role tool is not accepted", field=f"messages[{index}].role")
        if role in ("system", "developer") and not profile.allow_system_prompt:
            raise BadRequest("must be user or assistant", field=f"messages[{index}].role")


def _counters(
    limits: Profile | Limits, scope: Literal["caller", "all"], key: str, prompt_tokens: int, day: Window
) -> list[Line]:
    lines: list[Line] = []
    if limits.requests_per_minute is not None:
        lines.append(
            Line(
                name="requests_per_minute",
                scope=scope,
                key=f"{key}:requests_per_minute",
                unit="requests",
                kind="rate",
                limit=limits.requests_per_minute,
                fixed=1,
                period=MINUTE,
            )
        )
    if limits.concurrent_streams is not None:
        lines.append(
            Line(
                name="concurrent_streams",
                scope=scope,
                key=f"{key}:concurrent_streams",
                unit="streams",
                kind="gauge",
                limit=limits.concurrent_streams,
                fixed=1,
            )
        )
    if limits.tokens_per_minute is not None:
        lines.append(
            Line(
                name="tokens_per_minute",
                scope=scope,
                key=f"{key}:tokens_per_minute",
                unit="tokens",
                kind="rate",
                limit=limits.tokens_per_minute,
                fixed=prompt_tokens,
                per_million=TOKEN,
                period=MINUTE,
            )
        )
    if limits.tokens_per_day is not None:
        lines.append(
            Line(
                name="tokens_per_day",
                scope=scope,
                key=f"{key}:tokens_per_day:{day.id}",
                unit="tokens",
                kind="window",
                limit=limits.tokens_per_day,
                fixed=prompt_tokens,
                per_million=TOKEN,
                resets_at=day.end,
            )
        )
    return lines
