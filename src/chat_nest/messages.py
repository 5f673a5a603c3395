"""Who asks, and for what, in no provider's and no dialect's words."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

from msgspec import Struct

Role = Literal["system", "developer", "user", "assistant", "tool"]


class Message(Struct, frozen=True, kw_only=True):
    role: Role
    content: str

    def __repr__(self) -> str:
        """Say how long it is, never what it says: reprs end up in logs."""
        return f"Message(role={self.role!r}, <{len(self.content)} characters>)"


class ChatRequest(Struct, frozen=True, kw_only=True):
    """One chat, as parsed by a dialect.

    The optional numbers can only lower what the caller's profile allows; None leaves the profile's value.
    """

    messages: tuple[Message, ...]
    profile: str | None = None
    system_prompt: str | None = None
    tokens_per_day: int | None = None
    tokens_per_request: int | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None

    def __repr__(self) -> str:
        """See Message."""
        return f"ChatRequest(<{len(self.messages)} messages>, profile={self.profile!r})"


class Caller(Struct, frozen=True, kw_only=True):
    """Who pays. `profile`, when set, is the ceiling: the client's own choice of profile can then only lower it."""

    id: str
    profile: str | None = None

    def __repr__(self) -> str:
        """By its key: an id may be an address or a name."""
        return f"Caller(key={self.key!r}, profile={self.profile!r})"

    @property
    def key(self) -> str:
        """A hash of the id, 16 hex digits: what counters, logs and files may hold instead of an address."""
        return blake2b(self.id.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
