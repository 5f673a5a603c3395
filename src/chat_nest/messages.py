"""Who asks, and for what, in no provider's and no dialect's words."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

from msgspec import Raw, Struct

Role = Literal["system", "developer", "user", "assistant", "tool"]


class ToolCall(Struct, frozen=True, kw_only=True, gc=False):
    """The model asks the client to run a function. `arguments` is the text that it wrote: JSON, if it kept to it."""

    id: str
    name: str
    arguments: str

    def __repr__(self) -> str:
        """See Message."""
        return f"ToolCall(<{len(self.arguments)} characters>)"


class Message(Struct, frozen=True, kw_only=True, gc=False):
    """One turn. `tool_calls` are an assistant's; `tool_call_id` says which call a tool's message answers."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""

    def __repr__(self) -> str:
        """Say how long it is, never what it says: reprs end up in logs."""
        return f"Message(role={self.role!r}, <{len(self.content)} characters>)"


class Tool(Struct, frozen=True, kw_only=True):
    """A function that the client offers to the model; `parameters` is a JSON Schema, as the client wrote it."""

    name: str
    description: str = ""
    parameters: Raw = Raw(b'{"type":"object","properties":{}}')

    def __repr__(self) -> str:
        """See Message."""
        return f"Tool(name={self.name!r})"


class ChatRequest(Struct, frozen=True, kw_only=True, gc=False):
    """One chat, as parsed by a dialect.

    The optional numbers can only lower what the caller's profile allows; None leaves the profile's value.
    """

    messages: tuple[Message, ...]
    profile: str | None = None
    model: str | None = None
    """What the client calls the model that it wants: it only chooses among what is offered."""
    system_prompt: str | None = None
    system_field: str = ""
    """What the dialect calls `system_prompt`, where one that is not allowed is refused instead of ignored."""
    tokens_per_day: int | None = None
    tokens_per_request: int | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or `tool:NAME`."""
    chat_id: str = ""
    """The client's own id of the conversation, where its format has one."""
    stream: bool = True
    include_usage: bool = False
    """A dialect's own wish to see the usage at the end of its stream."""
    echo: tuple[str, ...] = ()
    """The client's own ids that its dialect repeats in the answer."""

    def __repr__(self) -> str:
        """See Message."""
        return f"ChatRequest(<{len(self.messages)} messages>, profile={self.profile!r})"


class Caller(Struct, frozen=True, kw_only=True, gc=False):
    """Who pays. `profile`, when set, is the ceiling: the client's own choice of profile can then only lower it.

    `group` is whom the caller belongs to (a tenant, a team): its members share the group's limits.
    """

    id: str
    profile: str | None = None
    group: str | None = None

    def __repr__(self) -> str:
        """By its key: an id may be an address or a name."""
        return f"Caller(key={self.key!r}, profile={self.profile!r})"

    @property
    def key(self) -> str:
        """A hash of the id, 16 hex digits: what counters, logs and files may hold instead of an address."""
        return hashed(self.id)


def hashed(name: str) -> str:
    """What counters, logs and files may hold of a caller's or group's name: 16 hex digits."""
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
