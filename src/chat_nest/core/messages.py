"""Callers, chats, messages, tools and options, in a form that no provider or dialect owns."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Literal, get_args

from msgspec import Raw, Struct

from chat_nest.core.limits import Share

Role = Literal["system", "developer", "user", "assistant", "tool"]
Detail = Literal["auto", "low", "high", "original"]
"""How closely a model looks at an image, if the provider offers the choice."""
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ToolCall(Struct, frozen=True, kw_only=True, gc=False):
    """A call by the model of one of the client's functions. `arguments` is the model's text: normally JSON."""

    id: str
    name: str
    arguments: str

    def __repr__(self) -> str:
        """See Message."""
        return f"ToolCall(<{len(self.arguments)} characters>)"


class Thought(Struct, frozen=True, kw_only=True, gc=False):
    """A thought of an earlier answer, with what its provider needs to accept it again; see SignatureDelta."""

    text: str = ""
    signature: str = ""
    redacted: str = ""
    encrypted: str = ""

    def __repr__(self) -> str:
        """See Message."""
        return f"Thought(<{len(self.text)} characters>)"


class Attachment(Struct, frozen=True, kw_only=True, gc=False):
    """An image or a PDF in a message: base64 (RFC 4648, section 4), or an https URL that this server never fetches."""

    at: int
    """The index of the character in the message's content that it precedes."""
    media_type: str
    """The type found in its first bytes. For a URL, the client's claim: `image/*` or `application/pdf`."""
    data: bytes = b""
    """Empty for a URL, and for data too large to keep."""
    url: str = ""
    size: int = 0
    """Bytes, decoded."""
    width: int = 0
    """Pixels, as is `height`; 0 if unknown."""
    height: int = 0
    pages: int = 0
    """An upper bound; for a PDF only."""
    detail: Detail | None = None
    name: str = ""
    field: str = ""
    """Its place in the request."""
    flaw: str = ""
    """The rule that it breaks. Only the newest turn is refused for it."""

    def __repr__(self) -> str:
        """See Message."""
        return f"Attachment({self.media_type!r}, <{self.size} bytes>)"

    @property
    def is_file(self) -> bool:
        """Return whether it is a file, not an image."""
        return not self.media_type.startswith("image/")


class Message(Struct, frozen=True, kw_only=True, gc=False):
    """One turn. `tool_calls` belong to an assistant message; `tool_call_id` is the call that a tool message answers."""

    role: Role
    content: str
    attachments: tuple[Attachment, ...] = ()
    """In their order in the content. For messages of a user or a tool."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    thoughts: tuple[Thought, ...] = ()
    """Of an assistant message that the provider will read again; other providers leave them out."""
    signature: str = ""
    """Of an assistant message: the signature with which the client received it, if its format can carry one."""
    ours: bool = False
    """True for an answer that this server kept itself. No client can set it."""

    def __repr__(self) -> str:
        """Return its length, never its text: reprs end up in logs."""
        return f"Message(role={self.role!r}, <{len(self.content)} characters>)"


class Tool(Struct, frozen=True, kw_only=True):
    """A function that the client offers to the model; `parameters` is the client's JSON Schema."""

    name: str
    description: str = ""
    parameters: Raw = Raw(b'{"type":"object","properties":{}}')
    strict: bool | None = None
    """True if the model's arguments must match the schema, for providers that can guarantee it."""
    namespace: str = ""
    """The tool group, as the beginning of `name`, for client formats with groups."""

    def __repr__(self) -> str:
        """See Message."""
        return f"Tool(name={self.name!r})"


class Format(Struct, frozen=True, kw_only=True):
    """The required form of the answer's text: a JSON value that matches `schema` (JSON Schema), or any JSON object."""

    schema: Raw | None = None
    name: str = "answer"
    description: str = ""
    strict: bool | None = None

    def __repr__(self) -> str:
        """See Message."""
        return f"Format(name={self.name!r})"


class Options(Struct, frozen=True, kw_only=True):
    """The client's further settings for the model. None or an empty value leaves the choice to the provider.

    `format`, `stop` and `parallel_calls` are kept or refused; the others go to models that accept them and are ignored
    otherwise. docs/clients.md has the table.
    """

    format: Format | None = None
    stop: tuple[str, ...] = ()
    """The model stops before it writes one of these."""
    parallel_calls: bool | None = None
    """True if one answer may call several tools."""
    seed: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    effort: Effort | None = None
    """How much the model reasons."""
    summary: Literal["auto", "concise", "detailed"] | None = None
    """The length of the summary of its reasoning that the client wants to see."""
    verbosity: Literal["low", "medium", "high"] | None = None
    encrypted_reasoning: bool = False
    """True if the client wants the model's encrypted reasoning, to send it back with its next request."""

    def __repr__(self) -> str:
        """See Message."""
        return f"Options(format={self.format!r})"


NO_OPTIONS = Options()


class ChatRequest(Struct, frozen=True, kw_only=True, gc=False):
    """One chat, as parsed by a dialect.

    The optional numbers can only lower what the caller's profile allows; None keeps the profile's value.
    """

    messages: tuple[Message, ...]
    profile: str | None = None
    model: str | None = None
    """The client's name for the model that it wants: it only chooses among the offered models."""
    system_prompt: str | None = None
    system_field: str = ""
    """The dialect's name for `system_prompt`, if a forbidden one is refused instead of ignored."""
    tokens_per_day: int | None = None
    tokens_per_request: int | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or `tool:NAME`."""
    options: Options = NO_OPTIONS
    messages_field: str = "messages"
    """The dialect's name for `messages`."""
    may_trim: bool = True
    """True if the oldest messages may be dropped; else a request that is too long is refused."""
    keep: bool = True
    """True if the answer may be kept for later requests."""
    chat_id: str = ""
    """The client's id of the conversation, if its format has one."""
    stream: bool = True
    include_usage: bool = False
    """True if the client requested usage at the end of the stream."""
    ladder_below: float | None = None
    """The rung of the profile's ladder that was granted, by its `below`."""
    echo: tuple[str, ...] = ()
    """The client's ids that its dialect repeats in the answer."""

    def __repr__(self) -> str:
        """See Message."""
        return f"ChatRequest(<{len(self.messages)} messages>, profile={self.profile!r})"


Pass = Literal["", "before", "after"]
"""What a visitor has passed: nothing, a challenge that could not be checked, or a challenge."""
PASSES: tuple[Pass, ...] = get_args(Pass)


class Visit(Struct, frozen=True, kw_only=True, gc=False):
    """A visitor without an account, as its cookie or its token names it. Times are in Unix seconds."""

    id: str
    """32 hex digits."""
    issued: int
    passed: Pass = ""
    passed_until: int = 0
    counted_as: str = ""
    """The IP address that the request counts as, if it had no valid id. Its runs belong to the new id."""
    first: bool = False
    """Whether the id was issued to a request without one. That request's Idempotency-Key is known by its address."""
    repeats_as: str = ""
    """The IP address by which the Idempotency-Keys of a visitor whose first request may come again are known."""
    address: str = ""
    """The IP address of this request, as PeerAddress finds it; it is not part of the id."""

    def __repr__(self) -> str:
        """Return it without its id, which is a credential's part."""
        return f"Visit(passed={self.passed!r})"


class Caller(Struct, frozen=True, kw_only=True, gc=False):
    """The payer of a request. If `profile` is set, it is the ceiling: the client's choice of profile can only lower it.

    `group` is the caller's tenant or team; its members share the group's limits. `profiles` are the names of the
    profiles that it may choose, if they are others than those that are open to all; the first is its default.
    `shares` are further limits that each of its requests draws on.
    """

    id: str
    profile: str | None = None
    group: str | None = None
    profiles: tuple[str, ...] | None = None
    shares: tuple[Share, ...] = ()
    visit: Visit | None = None
    """Set by Visitors."""
    api_key: str | None = None
    """The id of the API key that identified it, or that made its session. Set by ApiKeys and Sessions."""

    def __repr__(self) -> str:
        """Return it by its key: an id may be an IP address or a name."""
        return f"Caller(key={self.key!r}, profile={self.profile!r})"

    @property
    def key(self) -> str:
        """Return a hash of the id, 16 hex digits: counters, logs and files may hold it instead of an IP address."""
        return hashed(self.id)

    @property
    def counter_key(self) -> str:
        """Return the key of its counters: of the IP address for a visitor's first request, else `key`."""
        visit = self.visit
        return hashed(visit.counted_as) if visit is not None and visit.counted_as else self.key

    @property
    def repeat_key(self) -> str:
        """Return the key by which its Idempotency-Keys are known: `counter_key`, but of the IP address for a visitor
        whose first request may come again, now with the cookie that it got.
        """
        visit = self.visit
        return hashed(visit.repeats_as) if visit is not None and visit.repeats_as else self.counter_key


@lru_cache(4_096)  # a request needs its caller's eight times
def hashed(name: str) -> str:
    """Return what counters, logs and files may hold of a caller's or group's name: 16 hex digits."""
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
