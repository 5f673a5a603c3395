"""Lower the numbers of a profile: by the operator's caps, by a rung of a ladder, by a request."""

from __future__ import annotations

from typing import Any, TypeVar

from msgspec.structs import replace

from chat_nest.core.claims import MAX_AMOUNT
from chat_nest.core.messages import ChatRequest
from chat_nest.limits.counters import LIMITS
from chat_nest.limits.spec import HardCaps, OnDisconnect, Profile

_PATIENCE: tuple[OnDisconnect, ...] = ("cancel", "grace", "finish")
"""The ways to treat an answer without a reader, from the cheapest to the most expensive."""

Number = TypeVar("Number", int, float)


def least(*values: Number | None) -> Number | None:
    return min((value for value in values if value is not None), default=None)


def capped(profile: Profile, caps: HardCaps) -> Profile:
    max_output_tokens = _lower(profile.max_output_tokens, caps.max_output_tokens)
    return replace(
        profile,
        max_output_tokens=max_output_tokens,
        min_output_tokens=min(profile.min_output_tokens, max_output_tokens),
        max_messages=_lower(profile.max_messages, caps.max_messages),
        temperature=min(profile.temperature, caps.temperature),
        tokens_per_request=least(profile.tokens_per_request, caps.tokens_per_request),
        tokens_per_day=least(profile.tokens_per_day, caps.tokens_per_day),
        requests_per_minute=least(profile.requests_per_minute, caps.requests_per_minute),
    )


def _lower(number: int, cap: int | None) -> int:
    return number if cap is None else min(number, cap)


def lowered(ceiling: Profile, chosen: Profile) -> Profile:
    """Return the ceiling, with each number no higher than in `chosen`."""
    numbers: dict[str, Any] = {name: least(getattr(ceiling, name), getattr(chosen, name)) for name in LIMITS}
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
        signed_turns=ceiling.signed_turns or chosen.signed_turns,
        allow_images=ceiling.allow_images and chosen.allow_images,
        allow_image_urls=ceiling.allow_image_urls and chosen.allow_image_urls,
        max_images=min(ceiling.max_images, chosen.max_images),
        max_image_bytes=min(ceiling.max_image_bytes, chosen.max_image_bytes),
    )


def asked(profile: Profile, request: ChatRequest) -> Profile:
    """Return the profile, with the request's own numbers if they are lower."""
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
        tokens_per_request=least(profile.tokens_per_request, _countable(request.tokens_per_request)),
        tokens_per_day=least(profile.tokens_per_day, _countable(request.tokens_per_day)),
    )


def _countable(limit: int | None) -> int | None:
    """Return the limit, or the highest that a store can count."""
    return None if limit is None else min(limit, MAX_AMOUNT)
