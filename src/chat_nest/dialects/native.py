"""The dialect of chat-nest's own clients: `start`, `token`, `ping`, then one `done` or `error`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, get_args

from chat_nest.core.deltas import Batch, TextDelta
from chat_nest.core.errors import BadRequest, BudgetExceeded, ChallengeRequired, ChatError, LimitExceeded
from chat_nest.core.limits import LineScope
from chat_nest.core.messages import ChatRequest, Message
from chat_nest.core.protocols import Answer, Ending, Route
from chat_nest.core.usage import NANO
from chat_nest.dialects import fields as read
from chat_nest.dialects.facts import Facts
from chat_nest.dialects.frames import EVENT_STREAM, as_json, in_dollars, texts
from chat_nest.dialects.media_parts import openai_part, read_parts
from chat_nest.dialects.schemas import (
    ANY,
    COUNT,
    LEFT,
    NAME,
    PARTS,
    PROFILE,
    REQUEST_ID,
    REQUIRED_CHALLENGE,
    STRING,
    TEMPERATURE,
    TEXT,
    WRITTEN,
    described,
    event_schema,
    messages,
    nullable,
    refusing,
    table,
    whole,
)
from chat_nest.dialects.strict_json import is_object, parse_object
from chat_nest.dialects.turns import ROLES, entries

REFUSED_FIELDS = read.OWN_CONNECTION | {
    *("model", "models", "tools", "tool_choice", "functions", "function_call"),
    *("n", "best_of", "logprobs", "top_logprobs", "logit_bias"),
}
"""Fields that would choose a provider or a model, open a connection, or cost what no limit counts."""

OUTPUT_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")

MISSING = object()

_TOKEN = b"event: token\ndata: %b\n\n"


REQUEST = refusing(
    REFUSED_FIELDS,
    table(
        {
            "messages": messages(
                table(
                    {"role": {"enum": [*ROLES]}, **nullable({"content": PARTS, "signature": NAME})}, "role", "content"
                ),
                "the user's, and not blank",
            ),
            "profile": described(ANY, PROFILE["description"]),
            **nullable(
                {
                    "dailyTokenLimit": {**WRITTEN, "examples": [50_000]},
                    "maxTokensPerRequest": {**WRITTEN, "examples": [2_000]},
                    **dict.fromkeys(OUTPUT_FIELDS, WRITTEN),
                    "temperature": TEMPERATURE,
                    "systemPrompt": described(TEXT, "Ignored unless the profile allows it"),
                    "conversation": described(NAME, "The client's id of the conversation"),
                }
            ),
        },
        "messages",
    ),
    but=False,
)

FACTS = Facts(
    path="/api/chat",
    request=REQUEST,
    example={"messages": [{"role": "user", "content": "Hello"}], "profile": "balanced"},
    event=event_schema(
        "queued", "start", "token", "ping", "done", "error", id=described(STRING, "Where the run can be resumed")
    ),
    stream="`start`, then `token` and `ping`, then one `done` or `error`",
    error=whole(
        {"error": described(STRING, "The text to show"), "code": STRING, "request_id": REQUEST_ID},
        field=described(STRING, "What broke the rule"),
        detail=described(STRING, "The rule"),
        limit=described(STRING, "The limit that refused, by its name in the configuration"),
        scope={"enum": [*get_args(LineScope)], "description": "Whose limit it is"},
        remaining=described(LEFT, "What is left of a budget, in tokens or dollars, if it is not all spent"),
        needed=described(LEFT, "What this request needs of it, at least, if a shorter one may fit"),
        retry_after=described(COUNT, "Seconds"),
        challenge=REQUIRED_CHALLENGE,
    ),
)


class Native:
    """The native dialect, byte-compatible with the clients of the npm package chat-nest-server 1.x.

    `content` may also be an array of parts, as in OpenAI's chat completions.
    """

    facts: ClassVar[Facts] = FACTS

    takes_images = True

    def __init__(self, path: str = "/api/chat") -> None:
        self.routes: Sequence[Route] = (Route(path=path, any_case=True),)

    def parse(self, body: bytes) -> ChatRequest:
        """Parse a body.

        Raises BadRequest, which names the field and the rule, never the value. Ignores unknown fields.
        """
        given = parse_object(body)
        read.refuse(given, REFUSED_FIELDS)  # null too: none of them is ever valid here
        fields = {name: value for name, value in given.items() if value is not None}
        return ChatRequest(
            messages=_messages(fields),
            profile=_profile(fields),
            system_prompt=read.text(fields.get("systemPrompt", ""), "systemPrompt") or None,
            tokens_per_day=read.positive(fields, "dailyTokenLimit", written=True),
            tokens_per_request=read.positive(fields, "maxTokensPerRequest", written=True),
            max_output_tokens=read.least(fields, OUTPUT_FIELDS, written=True),
            temperature=read.temperature(fields),
            chat_id=read.name(fields["conversation"], "conversation") if "conversation" in fields else "",
        )

    def encoder(self, request: ChatRequest, run_id: str) -> NativeEncoder:
        return NativeEncoder(run_id, request.ladder_below)

    def refuse(self, error: ChatError, request_id: str) -> Answer:
        """Return the refusal. Pages show the text in `error`; the fields after it are for programs."""
        text = error.message
        details: dict[str, Any] = {}
        if isinstance(error, BadRequest):
            about_messages = error.field == "body" or error.field.startswith("messages")
            text = "Invalid messages payload" if about_messages else error.text
            details = {"field": error.field, "detail": error.message} if error.field else {"detail": error.message}
        elif isinstance(error, LimitExceeded):
            details = {"limit": error.limit, "scope": error.scope, **_left(error)}
        elif isinstance(error, ChallengeRequired):
            details = {"challenge": error.challenge}
        body = {"error": text, "code": error.code, "request_id": request_id, **details, **_wait(error)}
        return Answer(status=error.status, body=as_json(body))


class NativeEncoder:
    """Encodes one answer as native events. Reasoning and tools are not sent."""

    streams = True
    headers: Sequence[tuple[bytes, bytes]] = EVENT_STREAM

    def __init__(self, run_id: str, ladder_below: float | None = None) -> None:
        self._run_id = run_id
        self._ladder_below = ladder_below

    def start(self, model: str) -> bytes:
        rung = {} if self._ladder_below is None else {"ladder_below": self._ladder_below}
        return _event(b"start", {"id": self._run_id, "model": model, **rung})

    def encode(self, batch: Batch) -> bytes:
        return texts(batch, _TOKEN) or b"".join(
            [_TOKEN % as_json(delta.text) for delta in batch if type(delta) is TextDelta]
        )

    def number(self, data: bytes, number: int) -> bytes:
        """Put the number into the last event: a reader that has it has all of the batch."""
        return data and b"%bid: %b-%d\n\n" % (data[:-1], self._run_id.encode(), number)

    def queued(self, position: int, estimate: int | None) -> bytes:
        return _event(b"queued", {"position": position, "estimate_seconds": estimate})

    def heartbeat(self) -> bytes:
        return b"event: ping\ndata: \n\n"

    def fail(self, error: ChatError) -> bytes:
        answer = {"message": error.message, "code": error.code, "retryable": error.retryable, **_wait(error)}
        return _event(b"error", answer)

    def finish(self, ending: Ending) -> bytes:
        usage = ending.usage
        answer: dict[str, Any] = {
            "finish_reason": ending.reason,
            "model": ending.model.partition(":")[2],
            "usage": {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "total_tokens": usage.total_tokens,
            },
            "cost_usd": None if ending.cost is None else ending.cost / NANO,
            "source": ending.source,
            "remaining": in_dollars(ending.remaining),
        }
        if ending.signature:
            answer["signature"] = ending.signature
        if ending.dropped_messages:
            answer["dropped_messages"] = ending.dropped_messages
        if ending.dropped_images:
            answer["dropped_images"] = ending.dropped_images
        return _event(b"done", answer)


def _event(name: bytes, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, as_json(data))


def _left(error: LimitExceeded) -> dict[str, float]:
    """Return what is left of a budget and, if a shorter request may fit, what is needed; in tokens or dollars."""
    if not isinstance(error, BudgetExceeded):
        return {}
    amounts = {"remaining": error.room, "needed": error.needed}
    one = NANO if error.unit == "nanousd" else 1
    return {name: amount if one == 1 else amount / one for name, amount in amounts.items() if amount > 0}


def _wait(error: ChatError) -> dict[str, int]:
    wait = error.retry_after
    return {"retry_after": math.ceil(wait)} if wait is not None and math.isfinite(wait) else {}


def _messages(fields: dict[str, Any]) -> tuple[Message, ...]:
    messages = [_message(entry, index) for index, entry in enumerate(entries(fields))]
    last = len(messages) - 1
    if messages[last].role != "user":
        raise BadRequest("the last message must be from the user", field=f"messages[{last}].role")
    if not (messages[last].content.strip() or messages[last].attachments):
        raise BadRequest("the last message must not be blank", field=f"messages[{last}].content")
    # An answer that was cancelled before its first token. Providers refuse empty messages.
    return tuple(message for message in messages if message.role != "assistant" or message.content.strip())


def _message(entry: Any, index: int) -> Message:
    if not is_object(entry):
        raise BadRequest("must be an object", field=f"messages[{index}]")
    named = entry.get("role")
    role = ROLES.get(named) if type(named) is str else None
    if role is None:
        raise BadRequest("must be user or assistant", field=f"messages[{index}].role")
    said = entry.get("content", MISSING)
    if said is MISSING:
        raise BadRequest("must be a string", field=f"messages[{index}].content")
    at, field = _names(index)
    if type(said) is str:
        return Message(role=role, content=read.text(said, field), signature=read.signature(entry, at))
    parts = read_parts("" if said is None else said, field, openai_part)
    return parts.message(role, field, signature=read.signature(entry, at))


@lru_cache(maxsize=256)
def _names(index: int) -> tuple[str, str]:
    """Return the names of a message and of its content."""
    return f"messages[{index}]", f"messages[{index}].content"


def _profile(fields: dict[str, Any]) -> str | None:
    """Return `profile`, else `aiUsageProfile`. A value that is not a string is ignored."""
    name = fields.get("profile", fields.get("aiUsageProfile"))
    return name if isinstance(name, str) else None
