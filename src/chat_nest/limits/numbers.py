"""The built-in numbers: what the profiles allow if the operator sets nothing.

`default` suits today's models and chats. `npm` has chat-nest-server's own numbers and ceiling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

PresetName = Literal["default", "npm"]


class Numbers(Struct, frozen=True, kw_only=True):
    """The numbers of one profile, or of the ceiling. Tokens of a request and of a day are prompt and answer."""

    max_output_tokens: int
    max_messages: int
    temperature: float
    tokens_per_request: int
    requests_per_minute: int
    tokens_per_day: int


class LimitPreset(Struct, frozen=True, kw_only=True):
    """The three profiles, by name, and the ceiling above them, if there is one."""

    profiles: Mapping[str, Numbers]
    hard_caps: Numbers | None = None


BALANCED = Numbers(
    max_output_tokens=2_000,
    max_messages=40,
    temperature=0.7,
    tokens_per_request=32_000,
    requests_per_minute=30,
    tokens_per_day=200_000,
)
PRESETS: Mapping[PresetName, LimitPreset] = {
    "default": LimitPreset(
        profiles={
            "constrained": Numbers(
                max_output_tokens=1_000,
                max_messages=20,
                temperature=0.5,
                tokens_per_request=16_000,
                requests_per_minute=15,
                tokens_per_day=50_000,
            ),
            "balanced": BALANCED,
            "expanded": Numbers(
                max_output_tokens=8_000,
                max_messages=100,
                temperature=0.8,
                tokens_per_request=48_000,
                requests_per_minute=60,
                tokens_per_day=500_000,
            ),
        },
    ),
    "npm": LimitPreset(
        profiles={
            "constrained": Numbers(
                max_output_tokens=150,
                max_messages=4,
                temperature=0.5,
                tokens_per_request=2_048,
                requests_per_minute=15,
                tokens_per_day=30_000,
            ),
            "balanced": Numbers(
                max_output_tokens=400,
                max_messages=6,
                temperature=0.7,
                tokens_per_request=2_048,
                requests_per_minute=30,
                tokens_per_day=70_000,
            ),
            "expanded": Numbers(
                max_output_tokens=3_000,
                max_messages=12,
                temperature=0.8,
                tokens_per_request=12_000,
                requests_per_minute=60,
                tokens_per_day=200_000,
            ),
        },
        hard_caps=Numbers(
            max_output_tokens=4_096,
            max_messages=20,
            temperature=2.0,
            tokens_per_request=16_000,
            requests_per_minute=60,
            tokens_per_day=500_000,
        ),
    ),
}

DEMO_CONTEXT = 3_072
"""Tokens of one chat in the demo model's context: its prompt and its answer."""
MAX_BODY_BYTES = 262_144
"""256 KiB: about the longest prompt of `expanded`, 48,000 tokens of English, in JSON."""

MAX_IMAGES = 10
"""Of one request."""
MAX_IMAGE_BYTES = 3_750_000
"""Of one image, decoded: 5 MB in base64, Anthropic's maximum."""
MAX_UPLOAD_BYTES = 33_554_432
"""32 MiB: a body with its images, Anthropic's maximum."""


def answer_share(context: int) -> int:
    """Return the most tokens of an answer by a model with a context of `context` tokens."""
    return context // 6
