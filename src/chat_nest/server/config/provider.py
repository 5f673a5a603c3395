"""A provider as configured: its URL, its keys, and what is set for it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from chat_nest.counting.tokens import Counting
from chat_nest.providers.credentials import Cloud
from chat_nest.providers.keys import KeyPool
from chat_nest.providers.think_tags import ThinkTags


class Secret:
    """A value that is hidden in reprs, log lines and tracebacks: only `reveal` returns it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


class ProviderConfig(Struct, frozen=True, kw_only=True):
    kind: str
    """A name in PRESETS, or `demo`."""
    base_url: str = ""
    """Empty for a demo model that this server starts itself."""
    api_key: Secret | None = None
    api_keys: tuple[Secret, ...] = ()
    """Several keys, instead of one."""
    api_keys_file: str = ""
    """The file of several keys, which may change."""
    credentials: Cloud | None = None
    """The cloud that gives the credentials, instead of a key."""
    key_from: str = "api_key"
    """The place of the key, for messages."""
    abort_bills: Literal["stops", "full", "unknown"] | None = None
    """The cost of an answer after its reader has left; None is the provider's default."""
    counting: Counting = "auto"
    """How prompts are counted before the model answers."""
    think_tags: ThinkTags | None = None
    """Whether thoughts between tags in the text are reasoning; None is the kind's default."""
    concurrent_streams: int | None = None
    """The most streams at once, of all processes on the store together."""
    api_version: str | None = None
    """Azure's; None is the default."""
    model: str = ""
    """The model of profiles without a model; empty if the operator must name one."""

    @property
    def key_count(self) -> int:
        """Return the current number of keys. Raises ValueError if the file can't be read."""
        if self.api_keys_file:
            return len(KeyPool(file=self.api_keys_file))
        return len(self.api_keys) or int(self.api_key is not None)
