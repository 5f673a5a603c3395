"""Profiles and their limits, as an operator writes them."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import asdict, replace

from chat_nest.core.limits import Limits, read_no_limit
from chat_nest.limits import numbers
from chat_nest.limits.numbers import PRESETS, PresetName, answer_share

OnDisconnect = Literal["cancel", "grace", "finish"]
_COUNTERS = Limits.__struct_fields__


class Allowance(Struct, frozen=True, kw_only=True):
    """The amounts that one process may spend while its store is down, which it holds in the budgets for all callers.

    Units are as in Limits; `streams` are concurrent answers.
    """

    tokens: int | None = None
    usd: float | None = None
    requests: int | None = None
    streams: int | None = None


class Queue(Struct, frozen=True, kw_only=True):
    """How requests wait for a limit that all callers share: a provider's streams or the worker's.

    At most `length` requests of this process wait, each at most `seconds`.
    """

    seconds: float = 30.0
    length: int = 100


class Rung(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What answers instead once less than the share `below` of one of a request's limits is left.

    Example: `Rung(below=0.2, model="openai:gpt-4o-nano", max_output_tokens=200)`.
    """

    below: float
    """A share above 0 and at most 1. The lowest of those that are above what is left applies."""
    model: str | None = None
    """PROVIDER:MODEL, or None for the profile's."""
    fallbacks: tuple[str, ...] = ()
    """For `model`: the profile's own fallbacks are not used."""
    max_output_tokens: int | None = None
    """The profile's is the ceiling."""


class Profile(Struct, frozen=True, kw_only=True):
    """The rules for one kind of caller, and the counters of each such caller: see Limits. 0 in one closes it."""

    name: str = "balanced"
    open: bool | None = None
    """True if a caller to whom no profile is assigned may choose it. None: only if it is the default profile."""
    model: str = "openai:gpt-4o-mini"
    """PROVIDER:MODEL."""
    fallbacks: tuple[str, ...] = ()
    max_output_tokens: int = numbers.BALANCED.max_output_tokens
    min_output_tokens: int = 16
    """The smallest useful answer: a request is refused rather than cut below this."""
    max_messages: int = numbers.BALANCED.max_messages
    temperature: float = numbers.BALANCED.temperature
    tokens_per_request: int | None = numbers.BALANCED.tokens_per_request
    requests_per_minute: int | None = numbers.BALANCED.requests_per_minute
    requests_per_hour: int | None = None
    requests_per_day: int | None = None
    requests_per_month: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_hour: int | None = None
    tokens_per_day: int | None = numbers.BALANCED.tokens_per_day
    tokens_per_month: int | None = None
    usd_per_minute: float | None = None
    usd_per_hour: float | None = None
    usd_per_day: float | None = None
    usd_per_month: float | None = None
    concurrent_streams: int | None = None
    tokens_per_conversation: int | None = None
    """Of one conversation of a caller, from its first request on: see `pipeline.conversation`."""
    turns_per_conversation: int | None = None
    """Requests of one conversation."""
    allow_system_prompt: bool = False
    on_disconnect: OnDisconnect = "cancel"
    """What happens to an answer when its reader leaves: it is cancelled at once, or after `grace_seconds` without a
    reader, or it is finished. Unless this is `cancel`, the answer is kept for readers who reconnect."""
    grace_seconds: float = 30
    allow_tools: bool = False
    """True if a client may offer tools, and send the results of calling them."""
    allow_images: bool = False
    """True if a client may send images and PDF files."""
    allow_image_urls: bool = False
    """True if an image may be an https URL, which is passed on to providers that fetch it themselves."""
    max_images: int = numbers.MAX_IMAGES
    """The most images of one request, including the conversation: older ones are dropped."""
    max_image_bytes: int = numbers.MAX_IMAGE_BYTES
    """The size limit of each image, decoded."""
    signed_turns: bool = False
    """True if each answer in a request's history must have the signature with which this server sent it."""
    ladder: tuple[Rung, ...] = ()
    """Cheaper answers before a limit is reached: see Rung."""

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that may answer, PROVIDER:MODEL: the profile's, its fallbacks, and those of its ladder."""
        found = [self.model, *self.fallbacks]
        for rung in self.ladder:
            found += (*(() if rung.model is None else (rung.model,)), *rung.fallbacks)
        return tuple(dict.fromkeys(found))

    def __post_init__(self) -> None:
        own = ("tokens_per_request", "tokens_per_conversation", "turns_per_conversation")
        read_no_limit(self, (*own, *_COUNTERS))


def built_in_profiles(preset: PresetName = "default") -> dict[str, Profile]:
    """Return the built-in profiles by name, used if the operator names none: every caller may choose each."""
    found = PRESETS[preset].profiles
    return {name: Profile(name=name, open=True, **asdict(numbers)) for name, numbers in found.items()}


def fitted(profile: Profile, context: int) -> Profile:
    """Return the profile with its tokens per request and answer length limited to the model's context."""
    most = profile.tokens_per_request
    return replace(
        profile,
        tokens_per_request=context if most is None else min(most, context),
        max_output_tokens=min(profile.max_output_tokens, answer_share(context)),
    )


BUILT_IN_PROFILES = built_in_profiles()
CONSTRAINED, BALANCED, EXPANDED = (replace(profile, open=None) for profile in BUILT_IN_PROFILES.values())


class HardCaps(Struct, frozen=True, kw_only=True):
    """The ceiling above every profile. None or "none" is no ceiling. An operator sets one; a client never can."""

    max_output_tokens: int | None = None
    max_messages: int | None = None
    temperature: float = 2.0
    tokens_per_day: int | None = None
    tokens_per_request: int | None = None
    requests_per_minute: int | None = None

    def __post_init__(self) -> None:
        read_no_limit(self, self.__struct_fields__)


def built_in_caps(preset: PresetName = "default") -> HardCaps:
    """Return the ceiling that applies if the operator sets none."""
    caps = PRESETS[preset].hard_caps
    return HardCaps() if caps is None else HardCaps(**asdict(caps))


HARD_CAPS = HardCaps()
