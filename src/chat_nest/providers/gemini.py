"""Google's Gemini API: the request body, the events of a stream, and the provider.

The format is that of https://ai.google.dev/api/generate-content (streamGenerateContent with alt=sse).
The file is long because it has all that is known of one wire format, so that a format is one file.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final
from urllib.parse import quote

import msgspec

from chat_nest.core.attachments import segments
from chat_nest.core.deltas import Batch, Delta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.core.errors import UpstreamTruncated
from chat_nest.core.messages import Attachment, Message
from chat_nest.core.protocols import Prompt
from chat_nest.core.sse import Decoder
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.usage import Usage
from chat_nest.counting.reported import read_count, read_usage
from chat_nest.counting.tokens import base_name, is_reasoning_model
from chat_nest.providers.argument_pieces import ArgumentPieces
from chat_nest.providers.bodies import Finish, WholeBody
from chat_nest.providers.calls import Calls, as_name, raw_arguments
from chat_nest.providers.codec import Codec, lines_of, number, parsed, texts
from chat_nest.providers.loose import field
from chat_nest.providers.media import base64, taken
from chat_nest.providers.model_server import ModelServer
from chat_nest.providers.presets import NO_SIGNATURE, Preset
from chat_nest.providers.refusals import event_failure
from chat_nest.providers.tools import as_object, names_by_id

# The request.

MAX_STOPS: Final = 5
_GEMINI_3 = re.compile(r"gemini-(?:[3-9]|\d\d)")
_LITTLE: Final = ("none", "minimal", "low")
_BUDGETS: Final[dict[str, int]] = {**dict.fromkeys(_LITTLE, 1_024), "medium": 8_192}
"""Tokens of thought, for models that take a number."""


def request_path(model: str) -> str:
    """Return the path.

    `model` is a name such as gemini-2.5-flash, or a resource with its collection (tunedModels/mine).
    """
    resource = model if "/" in model else f"models/{model}"
    return f"/{quote(resource)}:streamGenerateContent?alt=sse"


def request_body(prompt: Prompt) -> bytes:
    """Return the JSON of one request. The model is in the path."""
    config: dict[str, Any] = {"maxOutputTokens": prompt.max_output_tokens}
    if prompt.temperature is not None:
        config["temperature"] = prompt.temperature
    config |= _options(prompt)
    body: dict[str, Any] = {"contents": _contents(prompt.messages), "generationConfig": config}
    system = [message.content for message in prompt.messages if message.role in ("system", "developer")]
    if parts := [{"text": text} for text in system if text]:
        body["systemInstruction"] = {"parts": parts}
    if prompt.tools:
        declared = [
            {"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.parameters}
            for tool in prompt.tools
        ]
        body["tools"] = [{"functionDeclarations": declared}]
        if prompt.tool_choice != "auto":
            calling: dict[str, Any] = {"mode": "NONE" if prompt.tool_choice == "none" else "ANY"}
            if prompt.tool_choice.startswith("tool:"):
                calling["allowedFunctionNames"] = [prompt.tool_choice.removeprefix("tool:")]
            body["toolConfig"] = {"functionCallingConfig": calling}
    return msgspec.json.encode(body)


def lacks(prompt: Prompt) -> list[str]:
    """See Provider. Models before Gemini 3 take no format beside tools; the API can't forbid parallel calls."""
    options = prompt.options
    no_format = options.format is not None and bool(prompt.tools) and not is_gemini_3(prompt.model)
    no_stop = len(options.stop) > MAX_STOPS
    no_limit = options.parallel_calls is False and bool(prompt.tools)
    asked = {"format": no_format, "stop": no_stop, "parallel_calls": no_limit}
    return [name for name, lacking in asked.items() if lacking]


def is_gemini_3(model: str) -> bool:
    return _GEMINI_3.match(base_name(model)) is not None


def _options(prompt: Prompt) -> dict[str, Any]:
    options = prompt.options
    said: dict[str, Any] = {}
    if options.format is not None:
        said["responseMimeType"] = "application/json"
        if options.format.schema is not None:
            said["responseJsonSchema"] = options.format.schema
    if options.stop:
        said["stopSequences"] = options.stop
    sampled = {"seed": options.seed, "topP": options.top_p, "topK": options.top_k}
    said |= {name: value for name, value in sampled.items() if value is not None}
    if options.effort is not None and is_gemini_3(prompt.model):
        said["thinkingConfig"] = {"thinkingLevel": "low" if options.effort in _LITTLE else "high"}
    elif options.effort is not None and is_reasoning_model(prompt.model):
        said["thinkingConfig"] = {"thinkingBudget": _BUDGETS.get(options.effort, 24_576)}
    if options.summary is not None and (is_gemini_3(prompt.model) or is_reasoning_model(prompt.model)):
        said["thinkingConfig"] = {**said.get("thinkingConfig", {}), "includeThoughts": True}
    return said


def _contents(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return user and model messages in alternation.

    Those in a row from one side are merged; tool results are the user's.
    """
    names = names_by_id(messages)
    contents: list[dict[str, Any]] = []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        role = "model" if message.role == "assistant" else "user"
        parts = _parts(message, names)
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": role, "parts": parts})
    return contents


def _parts(message: Message, names: Mapping[str, str]) -> list[dict[str, Any]]:
    if message.role == "tool":
        # The API matches results to calls by name and order.
        name = names.get(message.tool_call_id) or message.tool_call_id
        given: dict[str, Any] = {"name": name, "response": {"result": message.content}}
        return [{"functionResponse": given}, *map(_part, message.attachments)]
    parts: list[dict[str, Any]] = [{"text": message.content}] if message.content else []
    if message.attachments:
        parts = [_part(each) for each in segments(message)]
    for at, call in enumerate(message.tool_calls):
        part: dict[str, Any] = {"functionCall": {"name": call.name, "args": as_object(call.arguments)}}
        if at == 0:
            part["thoughtSignature"] = NO_SIGNATURE
        parts.append(part)
    return parts


def _part(part: str | Attachment) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    return {"inlineData": {"mimeType": part.media_type, "data": base64(part)}}


def takes(model: str) -> frozenset[str]:
    """See Provider. The API takes only URLs of Google's own files."""
    return taken(model, "images", "files")


# The stream. A field that servers write in different types has type Any here.


class _FunctionCall(msgspec.Struct, gc=False, rename="camel"):
    name: Any = None
    id: Any = None
    args: msgspec.Raw = msgspec.Raw(b"{}")
    partial_args: Any = None
    will_continue: Any = None


class _Part(msgspec.Struct, gc=False, rename="camel"):
    text: Any = None
    thought: Any = None
    function_call: _FunctionCall | None = None


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, gc=False, rename="camel"):
    index: Any = 0
    content: _Content | None = None
    finish_reason: Any = None


class _Feedback(msgspec.Struct, gc=False, rename="camel"):
    block_reason: Any = None


class _Chunk(msgspec.Struct, gc=False, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode
_SAID: Final = (TextDelta, ReasoningDelta, ToolCallDelta)


def gemini_codec(calls: str = "call", taken: Collection[str] = (), *, whole: bool = False) -> Codec:
    """Return the codec of one answer, which is one JSON value if it is `whole`. See Calls for `calls` and `taken`."""
    return Codec(GeminiReader(Calls(calls, taken)), WholeBody() if whole else Decoder())


class GeminiReader:
    """See Reader. A finish reason, or a blocked prompt, finishes an answer; it is over at the end of its body.

    Every event has counts, but only those of the last one are reliable. They are reported from the finish on, so a
    stream that is cut before has none. If text without counts follows, they are reported before it.
    """

    def __init__(self, calls: Calls) -> None:
        self.over = False
        self.loose = False
        self.finish = Finish(calls)
        self._calls = calls
        self._counts: deque[object] = deque(maxlen=4)
        """The newest counts, not yet read: most are replaced before they matter."""
        self._reported: Usage | None = None
        self._pieces: ArgumentPieces | None = None
        """The call that is not yet whole."""

    def read(self, events: Sequence[bytes], deltas: list[Delta]) -> None:
        for event in events:
            chunk = parsed(event, _decode, _Chunk, self)
            if chunk is None:
                self.read(lines_of(event), deltas)
                continue
            if chunk.error is not None and (chunk.error or not chunk.candidates):
                raise event_failure(chunk.error)
            before = len(deltas)
            for candidate in chunk.candidates or ():
                if not candidate.index or candidate.index == "0":  # one answer was requested
                    self._read_candidate(candidate, deltas)
            blocked = chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason
            if blocked and blocked != "BLOCK_REASON_UNSPECIFIED":
                self.finish.say("content_filter", deltas)
            if chunk.usage_metadata is not None:
                self._counts.append(chunk.usage_metadata)
            elif self._counts and any(isinstance(delta, _SAID) for delta in deltas[before:]):
                self._report(deltas, before)
            if self.finish.said and self._counts:
                self._report(deltas)

    def _report(self, deltas: list[Delta], at: int | None = None) -> None:
        """Report the newest possible counts, as the last delta or before what came after them.

        Those with the input come first.
        """
        latest = [*self._counts][::-1]
        latest.sort(key=lambda counts: field(counts, "promptTokenCount") is None)
        usage = next((usage for counts in latest if (usage := _usage(counts)) is not None), None)
        self._counts.clear()
        if usage is not None and usage != self._reported:
            self._reported = usage
            deltas.insert(len(deltas) if at is None else at, UsageDelta(usage))

    def _read_candidate(self, candidate: _Candidate, deltas: list[Delta]) -> None:
        for part in (candidate.content.parts if candidate.content is not None else None) or ():
            thinks = part.thought is True
            if type(part.thought) is str and part.thought:
                deltas.append(ReasoningDelta(part.thought))
            if type(part.text) is str:
                if part.text:
                    deltas.append(ReasoningDelta(part.text) if thinks else TextDelta(part.text))
            elif part.text is not None:
                deltas += [ReasoningDelta(text) if thinks else TextDelta(text) for _, text in texts(part.text)]
            if part.function_call is not None:
                self._read_call(part.function_call, deltas)
        if candidate.finish_reason is not None:
            self.finish.say(candidate.finish_reason, deltas)

    def _read_call(self, call: _FunctionCall, deltas: list[Delta]) -> None:
        """Read a call, or a piece of one. A call is told when it is whole: at the piece that announces no other."""
        id, name, arguments = as_name(call.id), as_name(call.name), raw_arguments(call.args)
        pieces, goes_on = self._pieces, call.will_continue is True
        if pieces is None:
            if not goes_on and call.partial_args is None:
                if id or name or arguments != "{}":  # else it ends a call that has ended
                    self._calls.whole(id, name, arguments, deltas)
                return
            pieces = self._pieces = ArgumentPieces(id, name)
        elif (name and name != pieces.name) or (id and pieces.id and id != pieces.id):
            raise UpstreamTruncated  # another call, and this one never became whole
        pieces.id = pieces.id or id
        if arguments != "{}":
            pieces.fill(arguments)
        if call.partial_args is not None:
            pieces.add(call.partial_args)
        self._calls.awaited = goes_on
        if not goes_on:
            self._pieces = None
            self._calls.whole(pieces.id, pieces.name, pieces.text(), deltas)


def _usage(counts: object) -> Usage | None:
    """Return the provider's totals; None if input and output are missing, or a count is impossible.

    The API leaves out zeros. Output is `candidatesTokenCount` plus thoughts; input is `promptTokenCount` plus what the
    provider's own tools added to the prompt.
    """
    names = ("promptTokenCount", "toolUsePromptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
    has_input = field(counts, "promptTokenCount") is not None
    if not has_input and field(counts, "candidatesTokenCount") is None:
        return None
    prompt, of_tools, answer, thoughts = (
        0 if field(counts, name) is None else read_count(number(counts, name)) for name in names
    )
    if prompt is None or of_tools is None or answer is None or thoughts is None:
        return None
    return read_usage(
        prompt + of_tools if has_input else None,
        answer,
        total=number(counts, "totalTokenCount"),
        reasoning=thoughts,
        reasoning_is="outside",
        cached=min(read_count(number(counts, "cachedContentTokenCount")) or 0, prompt) if has_input else None,
    )


# The provider.


class GeminiProvider(ModelServer):
    """Google's Gemini API. `base_url` ends where `/models/...` begins.

    For the other arguments see ModelServer. Raises ValueError, which names the argument and never holds its value.
    """

    preset = Preset(
        wire="gemini",
        base_url="https://generativelanguage.googleapis.com/v1beta",
        key_env="GEMINI_API_KEY",
        key_header="x-goog-api-key",  # the other way, ?key=, ends up in the logs of every proxy
        key_prefix="",
        check_path="/models?pageSize=1000",
    )
    lacks = staticmethod(lacks)
    takes = staticmethod(takes)

    def open(self, prompt: Prompt, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """See Provider. Applies only `timeouts.connect`; the caller applies the others, by cancelling."""
        return self._ask(prompt, request_path(prompt.model), request_body(prompt), gemini_codec, timeouts)
