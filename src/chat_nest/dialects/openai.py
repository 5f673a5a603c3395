"""OpenAI's chat completions, for clients of OpenAI-compatible servers.

https://platform.openai.com/docs/api-reference/chat. The stream has no `event:`, `id:` or `retry:` lines and no empty
`data:`, because the official clients parse the data of every event that a blank line ends.
The file is long because it has all that is known of the format: parser, encoder and schemas.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

from chat_nest.core.claims import Quota
from chat_nest.core.deltas import Batch, FinishReason, ReasoningDelta, TextDelta, ToolCallDelta
from chat_nest.core.errors import BadRequest, ChatError, NotFound
from chat_nest.core.messages import ChatRequest, Options, Tool
from chat_nest.core.protocols import Answer, Encoder, Ending, Now, Route
from chat_nest.core.usage import Usage
from chat_nest.dialects import fields as read
from chat_nest.dialects import options
from chat_nest.dialects import options as asked
from chat_nest.dialects.collected import NO_ARGUMENTS, Collected
from chat_nest.dialects.facts import Facts
from chat_nest.dialects.fields import MAX_TOOLS
from chat_nest.dialects.frames import (
    EVENT_STREAM,
    JSON,
    LONGEST_WAIT,
    PING,
    BudgetStatus,
    as_json,
    data,
    template,
    texts,
)
from chat_nest.dialects.openai_refusals import error_body, quota_headers, refusal
from chat_nest.dialects.schemas import (
    COUNT,
    DESCRIBED,
    EFFORT,
    FUNCTION,
    LOWERED,
    MODEL,
    NAME,
    NULL,
    OPENAI_ERROR,
    PENALTY,
    SEED,
    STOP,
    STOPS,
    STRING,
    SWITCH,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    array,
    block,
    described,
    either,
    event_schema,
    formats,
    listed,
    messages,
    nullable,
    refusing,
    table,
    turns,
    whole,
)
from chat_nest.dialects.strict_json import is_object
from chat_nest.dialects.turns import conversation, entries, turn

REFUSED_FIELDS = read.OWN_CONNECTION | {
    *("models", "functions", "function_call", "logit_bias", "top_logprobs", "audio", "moderation"),
}
"""Fields that would choose a provider, open a connection, or cost what no limit counts. Others are ignored."""
ONLY = {"n": 1, "best_of": 1, "logprobs": False, "modalities": ["text"]}
"""The only accepted value of these fields, which is also their default."""
OUTPUT_FIELDS = ("max_tokens", "max_completion_tokens")
OPTION_NAMES = {"format": "response_format", "parallel_calls": "parallel_tool_calls"}
SAMPLING = {name: name for name in ("seed", "top_p", "top_k", "frequency_penalty", "presence_penalty")}

_DONE = b"data: [DONE]\n\n"
_FINISH_REASONS: dict[FinishReason | None, str] = {
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}

CHOSEN = block("function", {"function": table({"name": NAME}, "name")}, "function")
ALLOWED = block(
    "allowed_tools",
    {
        "allowed_tools": table(
            {"mode": {"enum": ["auto", "required", None]}, "tools": array(CHOSEN, MAX_TOOLS)},
            "tools",
        )
    },
    "allowed_tools",
)
TOOL_CALL = whole(
    {"id": STRING, "type": {"const": "function"}, "function": whole({"name": STRING, "arguments": STRING})},
)
CHAT_COMPLETION = whole(
    {
        "id": STRING,
        "object": {"const": "chat.completion"},
        "created": described(COUNT, "Unix time in seconds"),
        "model": STRING,
        "choices": listed(
            whole(
                {
                    "index": COUNT,
                    "message": whole(
                        {"role": {"const": "assistant"}, "content": either(STRING, NULL), "refusal": NULL},
                        reasoning_content=STRING,
                        tool_calls=listed(TOOL_CALL),
                    ),
                    "logprobs": NULL,
                    "finish_reason": {"enum": ["stop", "length", "tool_calls", "content_filter"]},
                }
            )
        ),
        "usage": whole(
            {
                "prompt_tokens": COUNT,
                "completion_tokens": COUNT,
                "total_tokens": COUNT,
                "prompt_tokens_details": whole({"cached_tokens": COUNT}),
                "completion_tokens_details": whole({"reasoning_tokens": COUNT}),
            }
        ),
    }
)

REQUEST = refusing(
    REFUSED_FIELDS,
    table(
        {
            "messages": messages(either(*turns("tool_calls", "tool_call_id"))),
            "web_search_options": NULL,
            **nullable(
                {
                    "model": MODEL,
                    "stream": SWITCH,
                    "stream_options": described(table({}), "`include_usage` is read"),
                    **dict.fromkeys(OUTPUT_FIELDS, LOWERED),
                    "temperature": TEMPERATURE,
                    "tools": array(block("function", {"function": FUNCTION}, "function"), MAX_TOOLS),
                    "tool_choice": {
                        **either({"enum": ["auto", "none", "required", "any"]}, CHOSEN, ALLOWED),
                        "examples": ["auto"],
                    },
                    "response_format": formats(
                        block("json_schema", {"json_schema": DESCRIBED}, "json_schema"), "json_object"
                    ),
                    "stop": either(STOP, STOPS),
                    "parallel_tool_calls": SWITCH,
                    "reasoning_effort": EFFORT,
                    "verbosity": {"enum": [*options.VERBOSITIES]},
                    "seed": SEED,
                    "top_p": TOP_P,
                    "top_k": TOP_K,
                    **dict.fromkeys(("frequency_penalty", "presence_penalty"), PENALTY),
                    **{name: {"const": only} for name, only in ONLY.items()},
                }
            ),
        },
        "messages",
    ),
)

FACTS = Facts(
    path="/v1",
    request=REQUEST,
    example={"messages": [{"role": "user", "content": "Hello"}], "stream": True},
    event=event_schema("message"),
    stream="`chat.completion.chunk` objects, then `[DONE]`; an object with `error` if it fails",
    answer=CHAT_COMPLETION,
    error=OPENAI_ERROR,
)


class OpenAI:
    """The dialect of chat completions.

    The `base_url` of a client ends with `path`; `now` is the clock of `created`. `budget_status` is the status of a
    refusal by a budget, or by a limit that resets later than in a minute: many clients repeat a 429, but no 402.
    """

    facts: ClassVar[Facts] = FACTS

    option_names = OPTION_NAMES
    takes_images = True
    longest_wait = LONGEST_WAIT

    def __init__(self, path: str = "/v1", *, budget_status: BudgetStatus = 429, now: Now = time.time) -> None:
        path = path.rstrip("/")
        self.routes: Sequence[Route] = (
            Route(path=f"{path}/chat/completions"),
            Route(path=f"{path}/models", method="GET", models=self._models),
        )
        self._budget_status: BudgetStatus = budget_status
        self._now = now

    def parse(self, body: bytes) -> ChatRequest:
        """Parse a body.

        Raises BadRequest, which names the field and the rule, never the value. Ignores unknown fields.
        """
        fields = read.parse_fields(body, REFUSED_FIELDS)
        read.refuse(fields, ("web_search_options",))  # an empty one asks for a search
        for name, only in ONLY.items():
            if name in fields and (fields[name] != only or type(fields[name]) is not type(only)):
                raise BadRequest("is not offered here: leave it out", field=name)
        turns = [turn(entry, f"messages[{index}]") for index, entry in enumerate(entries(fields))]
        choice, tools = _tool_choice(fields.get("tool_choice", "auto"), _tools(fields))
        options = read.table(fields.get("stream_options", {}), "stream_options")
        return ChatRequest(
            messages=conversation(turns),
            model=read.model(fields),
            max_output_tokens=read.least(fields, OUTPUT_FIELDS),
            temperature=read.temperature(fields),
            tools=tools,
            tool_choice=choice,
            options=_options(fields),
            stream=read.switch(fields, "stream"),
            include_usage=options.get("include_usage") is True,
        )

    def encoder(self, request: ChatRequest, run_id: str) -> Encoder:
        created = int(self._now())
        if request.stream:
            return OpenAIEncoder(run_id, created, include_usage=request.include_usage)
        return OpenAIWhole(run_id, created)

    def refuse(self, error: ChatError, request_id: str) -> Answer:  # noqa: ARG002 - OpenAI sends it in a header
        return refusal(error, self._budget_status)

    def quota_headers(self, quotas: Sequence[Quota]) -> list[tuple[bytes, bytes]]:
        return quota_headers(quotas)

    def _models(self, names: Sequence[str], below: str) -> Answer:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "chat-nest"} for name in names]
        if not below:
            return Answer(status=200, body=as_json({"object": "list", "data": models}))
        for model in models:
            if model["id"] == below:
                return Answer(status=200, body=as_json(model))
        raise NotFound("There is no such model here")


class OpenAIEncoder:
    """Encodes one answer as chunks. Reasoning is in `reasoning_content`, as most servers have it."""

    streams = True
    headers: Sequence[tuple[bytes, bytes]] = EVENT_STREAM

    def __init__(self, run_id: str, created: int, *, include_usage: bool) -> None:
        self._id = f"chatcmpl-{run_id}"
        self._created = created
        self._include_usage = include_usage
        self._head = b""
        self._text = b""
        self._calls: dict[int, bool] = {}
        """Whether each call has arguments."""

    def start(self, model: str) -> bytes:
        known = {"id": self._id, "object": "chat.completion.chunk", "created": self._created, "model": model}
        self._head = b"data: %b," % as_json(known)[:-1]
        text = self._head + b'"choices":[{"index":0,"delta":{"content":'
        self._text = template(text, b'},"finish_reason":null}]}\n\n')
        return self._chunk({"role": "assistant", "content": ""})

    def encode(self, batch: Batch) -> bytes:
        if quick := texts(batch, self._text):
            return quick
        pieces: list[bytes] = []
        for delta in batch:
            if type(delta) is TextDelta:
                pieces.append(self._text % as_json(delta.text))
            elif type(delta) is ReasoningDelta:
                pieces.append(self._chunk({"reasoning_content": delta.text}))
            elif type(delta) is ToolCallDelta:
                self._calls[delta.index] = bool(delta.arguments) or self._calls.get(delta.index, False)
                pieces.append(self._chunk({"tool_calls": [_call_piece(delta)]}))
        return b"".join(pieces)

    def number(self, data: bytes, number: int) -> bytes:  # noqa: ARG002 - the format has no numbers
        return data

    def heartbeat(self) -> bytes:
        return PING

    def fail(self, error: ChatError) -> bytes:
        return data(error_body(error))

    def finish(self, ending: Ending) -> bytes:
        empty = [ToolCallDelta(index, NO_ARGUMENTS) for index, has_some in self._calls.items() if not has_some]
        last = b"".join([self._chunk({"tool_calls": [_call_piece(delta)]}) for delta in empty])
        last += self._chunk({}, _FINISH_REASONS.get(ending.reason, "stop"))
        if not self._include_usage:
            return last + _DONE
        return b'%b%b"choices":[],"usage":%b}\n\n%b' % (last, self._head, as_json(_usage(ending.usage)), _DONE)

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return b'%b"choices":[%b]}\n\n' % (self._head, as_json(choice))


class OpenAIWhole:
    """Encodes one answer as one JSON object."""

    streams = False
    headers: Sequence[tuple[bytes, bytes]] = JSON

    def __init__(self, run_id: str, created: int) -> None:
        self._id = f"chatcmpl-{run_id}"
        self._created = created
        self._model = ""
        self._answer = Collected()

    def start(self, model: str) -> bytes:
        self._model = model
        return b""

    def encode(self, batch: Batch) -> bytes:
        self._answer.add(batch)
        return b""

    def number(self, data: bytes, number: int) -> bytes:  # noqa: ARG002 - the format has no numbers
        return data

    def heartbeat(self) -> bytes:
        return b""

    def fail(self, error: ChatError) -> bytes:
        return as_json(error_body(error))

    def finish(self, ending: Ending) -> bytes:
        answer = self._answer
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if calls := answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in calls
            ]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": _FINISH_REASONS.get(ending.reason, "stop"),
        }
        return as_json(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": self._created,
                "model": self._model,
                "choices": [choice],
                "usage": _usage(ending.usage),
            }
        )


def _call_piece(delta: ToolCallDelta) -> dict[str, Any]:
    if not delta.id:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    called = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": called}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _tools(fields: dict[str, Any]) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for index, entry in enumerate(read.array(fields.get("tools", []), "tools", read.MAX_TOOLS)):
        at = f"tools[{index}]"
        offered = read.table(entry, at)
        if offered.get("type") != "function":
            raise BadRequest("must be function", field=f"{at}.type")
        at = f"{at}.function"
        function = read.table(offered.get("function"), at)
        named, description, parameters = (function.get(name) for name in ("name", "description", "parameters"))
        strict = asked.strictness(function, at)
        tools.append(read.tool(named, description, parameters, at, "parameters", strict=strict))
    return tuple(tools)


def _options(fields: dict[str, Any]) -> Options:
    chosen = fields.get("response_format")
    return Options(
        format=None if chosen is None else asked.json_format(chosen, "response_format", described="json_schema"),
        stop=asked.stops(fields, "stop", alone=True),
        parallel_calls=asked.switch(fields, "parallel_tool_calls"),
        effort=asked.word(fields.get("reasoning_effort"), asked.EFFORTS, "reasoning_effort"),
        verbosity=asked.word(fields.get("verbosity"), asked.VERBOSITIES, "verbosity"),
        **asked.sampling(fields, **SAMPLING),
    )


def _tool_choice(value: Any, tools: tuple[Tool, ...]) -> tuple[str, tuple[Tool, ...]]:
    """Return the choice, and the tools that it leaves."""
    if value in ("auto", "none", "required", "any"):  # Mistral's clients have `any`
        return read.choice("required" if value == "any" else str(value), tools, "tool_choice"), tools
    if is_object(value) and value.get("type") == "function":
        function = read.table(value.get("function"), "tool_choice.function")
        named = read.name(function.get("name"), "tool_choice.function.name")
        return read.choice(f"tool:{named}", tools, "tool_choice.function.name"), tools
    if is_object(value) and value.get("type") == "allowed_tools":
        allowed = read.table(value.get("allowed_tools"), "tool_choice.allowed_tools")
        return asked.allowed_tools(allowed, tools, "tool_choice.allowed_tools", described="function")
    raise BadRequest("must be auto, none, required, a function or allowed_tools", field="tool_choice")
