"""The codec of OpenAI's chat completions: the request body, and the events of a stream.

The format is that of https://platform.openai.com/docs/api-reference/chat-streaming. It is read leniently, because
servers differ.
The file is long because it has all that is known of one wire format, so that a format is one file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from chat_nest.core.attachments import segments
from chat_nest.core.deltas import Delta, ReasoningDelta, TextDelta, UsageDelta
from chat_nest.core.messages import Attachment, Format, Message, Tool
from chat_nest.core.protocols import Prompt
from chat_nest.core.sse import Decoder
from chat_nest.core.usage import Usage
from chat_nest.counting.reported import newest, read_count, read_usage
from chat_nest.counting.tokens import base_name, is_reasoning_model
from chat_nest.providers.bodies import Finish, WholeBody
from chat_nest.providers.calls import Calls, as_arguments, as_index, as_name
from chat_nest.providers.codec import Codec, lines_of, number, parsed, texts
from chat_nest.providers.loose import field
from chat_nest.providers.media import data_url, moved_to_user, taken
from chat_nest.providers.presets import NO_SIGNATURE, OPENAI, Preset
from chat_nest.providers.refusals import event_failure
from chat_nest.providers.tools import filled

# The request.

NO_THOUGHT: Final = " "
"""DeepSeek and Moonshot accept this in place of the thought of an earlier call. They refuse an empty text."""

_VERBOSE = re.compile(r"gpt-(?:[5-9]|1\d)(?!\d)(?!.*-chat)")
_NEWER = re.compile(r"(?:o[1-9]\d?(?![a-z0-9])|gpt-(?:[5-9]|1\d)(?!\d))")  # gpt-35 is Azure's 3.5


@lru_cache(256)
def token_limit_field(model: str) -> str:
    """Return the field for the limit of output tokens. OpenAI's models since o1 refuse `max_tokens`; others need it."""
    return "max_completion_tokens" if _NEWER.match(base_name(model)) else "max_tokens"


@lru_cache(256)
def takes_temperature(model: str) -> bool:
    """Return whether a model takes a temperature.

    OpenAI's o1 and gpt-5 and later, and its search previews, refuse it.
    """
    name = base_name(model)
    return not (_NEWER.match(name) or (name.startswith("gpt-") and "-search-" in name))


def takes_verbosity(model: str) -> bool:
    """Return whether a model takes `verbosity`. Only OpenAI's models since GPT-5 do."""
    return _VERBOSE.match(base_name(model)) is not None


def request_body(prompt: Prompt, preset: Preset = OPENAI) -> bytes:
    """Return the JSON of one request for a stream with usage."""
    limit = token_limit_field(prompt.model) if preset.limit_field == "by model" else preset.limit_field
    body: dict[str, Any] = {
        "model": prompt.model,
        "messages": [_message(message, preset, prompt.model) for message in moved_to_user(prompt.messages)],
        "stream": True,
        limit: prompt.max_output_tokens,
    }
    if preset.stream_options:
        body["stream_options"] = {"include_usage": True}
        if preset.running_usage:
            body["stream_options"]["continuous_usage_stats"] = True
    if prompt.temperature is not None and takes_temperature(prompt.model):
        body["temperature"] = prompt.temperature
    body |= _options(prompt, preset)
    if prompt.tools:
        body["tools"] = [{"type": "function", "function": _function(tool)} for tool in prompt.tools]
        if prompt.options.parallel_calls is not None:
            body["parallel_tool_calls"] = prompt.options.parallel_calls
        if prompt.tool_choice.startswith("tool:"):
            named = prompt.tool_choice.removeprefix("tool:")
            body["tool_choice"] = {"type": "function", "function": {"name": named}}
        elif prompt.tool_choice != "auto":
            body["tool_choice"] = prompt.tool_choice
    return msgspec.json.encode(body)


def takes(model: str, preset: Preset = OPENAI) -> frozenset[str]:
    """See Provider."""
    if preset.images == "no":
        return frozenset()
    return taken(model, "images", "image_urls", *(["files"] if preset.files else []))


def lacks(prompt: Prompt, preset: Preset = OPENAI) -> list[str]:
    """See Provider. OpenAI's reasoning models refuse `stop`; its own API refuses more than four of them."""
    stop, format = prompt.options.stop, prompt.options.format
    own = preset.limit_field == "by model"
    lacking = ["stop"] if stop and own and (_NEWER.match(base_name(prompt.model)) or len(stop) > 4) else []
    if format is not None and format.schema is not None and preset.json_schema == "no":
        lacking.append("format")
    return lacking


def _options(prompt: Prompt, preset: Preset) -> dict[str, Any]:
    options = prompt.options
    said: dict[str, Any] = {}
    if options.format is not None:
        said["response_format"] = _format(options.format)
    if options.stop:
        said["stop"] = options.stop
    if options.seed is not None:
        said[preset.seed_field] = options.seed
    if takes_temperature(prompt.model):
        for name in ("top_p", "frequency_penalty", "presence_penalty", *(["top_k"] if preset.top_k else [])):
            if (value := getattr(options, name)) is not None:
                said[name] = value
    reasons = is_reasoning_model(prompt.model) or preset.reasoning_effort == "all models"
    if options.effort is not None and preset.reasoning_effort != "none" and reasons:
        said["reasoning_effort"] = options.effort
    if options.verbosity is not None and preset.limit_field == "by model" and takes_verbosity(prompt.model):
        said["verbosity"] = options.verbosity
    return said


def _format(format: Format) -> dict[str, Any]:
    if format.schema is None:
        return {"type": "json_object"}
    described: dict[str, Any] = {"name": format.name, "schema": format.schema}
    if format.description:
        described["description"] = format.description
    if format.strict is not None:
        described["strict"] = format.strict
    return {"type": "json_schema", "json_schema": described}


def _function(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return function if tool.strict is None else {**function, "strict": tool.strict}


def _message(message: Message, preset: Preset, model: str) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.attachments:
        said["content"] = [_part(each) for each in segments(message)]
    if message.tool_calls:
        said["content"] = message.content or None
        calls: list[dict[str, Any]] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": filled(call.arguments)}}
            for call in message.tool_calls
        ]
        said["tool_calls"] = calls
        if preset.calls_need == "thoughts":
            said["reasoning_content"] = "".join(thought.text for thought in message.thoughts) or NO_THOUGHT
        elif preset.calls_need == "signatures" and base_name(model).startswith("gemini"):
            calls[0]["extra_content"] = {"google": {"thought_signature": NO_SIGNATURE}}
    if message.tool_call_id:
        said["tool_call_id"] = message.tool_call_id
    return said


def _part(part: str | Attachment) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if part.is_file:
        return {"type": "file", "file": {"filename": part.name or "file.pdf", "file_data": data_url(part)}}
    image: dict[str, Any] = {"url": data_url(part)}
    return {"type": "image_url", "image_url": {**image, "detail": part.detail} if part.detail else image}


# The stream. A field that servers write in different types has type Any here.


class _Function(msgspec.Struct, gc=False):
    name: Any = None
    arguments: Any = None


class _Call(msgspec.Struct, gc=False):
    index: Any = None
    id: Any = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: Any = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_text: Any = None
    thinking: Any = None
    reasoning_details: Any = None
    thinking_blocks: Any = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct, gc=False):
    index: Any = 0
    delta: _Delta | str | None = None
    message: _Delta | str | None = None
    text: Any = None
    finish_reason: Any = None
    usage: Any = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    error: Any = None
    usage: Any = None
    x_groq: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


def openai_codec(calls: str = "call", taken: Collection[str] = (), *, whole: bool = False) -> Codec:
    """Return the codec of one answer, which is one JSON object if it is `whole`. See Calls for `calls` and `taken`."""
    return Codec(OpenAIReader(Calls(calls, taken)), WholeBody() if whole else Decoder())


class OpenAIReader:
    """See Reader. `over` is set by [DONE], which some servers leave out. A finish reason finishes the answer."""

    def __init__(self, calls: Calls) -> None:
        self.over = False
        self.loose = False
        self.finish = Finish(calls)
        self._usage: Usage | None = None
        self._calls = calls
        self._spoke = False
        self._several = False
        """Whether an event had several choices; else the index is not the choice's: some servers count the events."""

    def read(self, events: Sequence[bytes], deltas: list[Delta]) -> None:
        for event in events:
            try:
                chunk = _decode(event)
            except (msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: invalid UTF-8
                if event.strip() == b"[DONE]":
                    self.over = True
                    return
                known = parsed(event, _decode, _Chunk, self)
                if known is None:
                    self.read(lines_of(event), deltas)
                    if self.over:
                        return
                    continue
                chunk = known
            if chunk.error is not None and (chunk.error or not chunk.choices):
                raise event_failure(chunk.error)
            counts = chunk.usage
            if chunk.choices:
                if len(chunk.choices) > 1:
                    self._several = True
                for choice in chunk.choices:
                    if not (choice.index and self._several) or choice.index == "0":  # one answer was requested
                        self._read_choice(choice, deltas)
                        if choice.usage is not None:  # Moonshot's place for it
                            counts = counts or choice.usage
            if chunk.x_groq is not None:
                counts = counts or field(chunk.x_groq, "usage")
            if counts is not None:
                usage = _usage(counts, self._usage)
                if usage is not None and usage != self._usage:
                    self._usage = usage
                    deltas.append(UsageDelta(usage))

    def _read_choice(self, choice: _Choice, deltas: list[Delta]) -> None:
        found = choice.delta
        if found is None and not self._spoke:
            found = choice.message  # of a complete answer; in a stream some servers repeat the whole answer at the end
        delta = _Delta(content=found) if isinstance(found, str) else found
        if choice.text and (delta is None or not delta.content):  # completions; others repeat the delta's content there
            delta = delta or _Delta()
            delta.content = choice.text
        if delta is not None:
            thought = delta.reasoning_content or delta.reasoning or delta.reasoning_text or delta.thinking
            # Gateways repeat one thought under several names.
            if thought := thought or delta.reasoning_details or delta.thinking_blocks:
                deltas += [ReasoningDelta(text) for _, text in texts(thought)]
            content = delta.content
            if type(content) is str:
                if content:
                    deltas.append(TextDelta(content))
            elif content is not None:
                deltas += [ReasoningDelta(text) if thinks else TextDelta(text) for thinks, text in texts(content)]
            if delta.refusal:
                deltas += [TextDelta(text) for _, text in texts(delta.refusal)]
            if delta.tool_calls:
                self._read_calls(delta.tool_calls, deltas)
            if delta.function_call is not None:  # the predecessor of tool calls: one call, without an id
                name, arguments = as_name(delta.function_call.name), as_arguments(delta.function_call.arguments)
                self._calls.piece("function_call", "", name, arguments, deltas)
            if deltas:
                self._spoke = True
        if choice.finish_reason is not None:
            self.finish.say(choice.finish_reason, deltas)

    def _read_calls(self, calls: Sequence[_Call], deltas: list[Delta]) -> None:
        for call in calls:
            function = call.function or _Function()
            name, arguments = as_name(function.name), as_arguments(function.arguments)
            self._calls.piece(as_index(call.index), as_name(call.id), name, arguments, deltas)


_OPENAI_NAMES = frozenset(
    ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details")
)


def _usage(counts: object, known: Usage | None) -> Usage | None:
    """Return the provider's totals; None if the counts that matter are missing or impossible."""
    fields: Any = counts
    # Of OpenAI's own names only: then no other name needs a look.
    plain = type(fields) is dict and _OPENAI_NAMES.issuperset(fields)  # pyright: ignore[reportUnknownArgumentType]
    details = field(counts, "prompt_tokens_details")
    of_output = field(counts, "completion_tokens_details")
    if not plain:  # the names of OpenAI's Responses, which gateways carry over
        details = details or field(counts, "input_tokens_details")
        of_output = of_output or field(counts, "output_tokens_details")
    cached = number(details, "cached_tokens")
    if not (cached or plain):  # DeepSeek's and Moonshot's names, and Anthropic's, which gateways carry over
        cached = number(counts, "prompt_cache_hit_tokens") or number(counts, "cached_tokens")
        cached = cached or number(counts, "cache_read_input_tokens")
    written: object = None
    if not plain or details is not None:
        written = number(details, "cache_write_tokens")  # OpenRouter's name, LiteLLM's and Anthropic's
        written = written or number(details, "cache_creation_tokens") or number(counts, "cache_creation_input_tokens")
    prompt = _either(counts, "prompt_tokens", "input_tokens")
    answer = _either(counts, "completion_tokens", "output_tokens")
    thoughts = None if plain else number(counts, "reasoning_tokens")  # SGLang's and Perplexity's place
    usage = read_usage(
        prompt,
        answer,
        total=number(counts, "total_tokens"),
        reasoning=number(of_output, "reasoning_tokens") or thoughts,
        cached=cached,
        cache_write=written,
        known=known,
    )
    cited = None if plain else read_count(number(counts, "citation_tokens"))
    if usage is None or cited is None:
        return usage
    # Perplexity's deep research bills the pages it read, and its reasoning, in addition to the total:
    # https://docs.perplexity.ai/guides/pricing
    thought = read_count(thoughts) or 0
    beside = read_usage(
        (read_count(prompt) or 0) + cited, (read_count(answer) or 0) + thought, reasoning=thought, cached=cached
    )
    return usage if beside is None else newest(usage, beside)


def _either(counts: object, name: str, other: str) -> object:
    found = number(counts, name)
    return number(counts, other) if found is None else found
