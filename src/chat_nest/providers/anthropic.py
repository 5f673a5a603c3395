"""Anthropic's Messages API: the request body, the events of a stream, and the provider.

The format is that of https://docs.anthropic.com/en/api/messages-streaming. llama.cpp and others also have it.
The file is long because it has all that is known of one wire format, so that a format is one file.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import msgspec

from chat_nest.core.attachments import segments
from chat_nest.core.deltas import Batch, Delta, ReasoningDelta, SignatureDelta, TextDelta, UsageDelta
from chat_nest.core.errors import UpstreamTruncated
from chat_nest.core.messages import Attachment, Message, Thought, Tool
from chat_nest.core.protocols import Prompt
from chat_nest.core.sse import Decoder
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.usage import Usage
from chat_nest.counting.reported import read_count, read_usage
from chat_nest.counting.tokens import base_name
from chat_nest.providers.bodies import Finish, WholeBody, says_stop
from chat_nest.providers.calls import Calls, Index, as_arguments, as_index, as_name
from chat_nest.providers.codec import Codec, lines_of, number, parsed, texts
from chat_nest.providers.loose import field
from chat_nest.providers.media import base64, taken
from chat_nest.providers.model_server import ModelServer
from chat_nest.providers.presets import Preset
from chat_nest.providers.refusals import event_failure
from chat_nest.providers.tools import as_object

# The request.

_NEWER = re.compile(r"claude-(?!(?:[123]|instant|(?:opus|sonnet|haiku)-4(?!-(?:[7-9]|\d\d)(?!\d)))(?![a-z]))")

_UNSTRUCTURED = re.compile(r"claude-(?:[123](?!\d)|instant|(?:opus|sonnet|haiku)-4(?:$|-0|[-@]20\d{6}))")
_EFFORTS: Final[dict[str, str]] = {
    **dict.fromkeys(("none", "minimal", "low"), "low"),
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "max",
}


def takes_temperature(model: str) -> bool:
    """Return whether a model takes a temperature. Claude models since Opus 4.7 refuse it."""
    return _NEWER.match(base_name(model)) is None


def takes_schemas(model: str) -> bool:
    """Return whether a model takes a JSON schema. Claude models since Opus 4.1 and Sonnet 4.5 do."""
    return _UNSTRUCTURED.match(base_name(model)) is None


def request_body(prompt: Prompt) -> bytes:
    """Return the JSON of one request for a stream."""
    system = [message.content for message in prompt.messages if message.role in ("system", "developer")]
    body: dict[str, Any] = {
        "model": prompt.model,
        "max_tokens": prompt.max_output_tokens,
        "messages": _turns(prompt.messages),
        "stream": True,
    }
    if text := "\n\n".join(part for part in system if part.strip()):
        body["system"] = text
    if prompt.temperature is not None and takes_temperature(prompt.model):
        body["temperature"] = min(prompt.temperature, 1.0)
    body |= _options(prompt)
    if prompt.tools:
        body["tools"] = [_tool(tool, prompt.model) for tool in prompt.tools]
        if choice := _tool_choice(prompt):
            body["tool_choice"] = choice
    return msgspec.json.encode(body)


def lacks(prompt: Prompt) -> list[str]:
    """See Provider. The API has no JSON format without a schema; models up to Claude 4 have neither."""
    format = prompt.options.format
    known = format is None or (format.schema is not None and takes_schemas(prompt.model))
    return [] if known else ["format"]


def _options(prompt: Prompt) -> dict[str, Any]:
    options = prompt.options
    said: dict[str, Any] = {}
    config: dict[str, Any] = {}
    if options.format is not None and options.format.schema is not None:
        config["format"] = {"type": "json_schema", "schema": options.format.schema}
    if options.effort is not None and not takes_temperature(prompt.model):
        config["effort"] = _EFFORTS[options.effort]
    if config:
        said["output_config"] = config
    if options.stop:
        said["stop_sequences"] = options.stop
    if options.top_k is not None and takes_temperature(prompt.model):
        said["top_k"] = options.top_k
    if options.top_p is not None and not takes_schemas(prompt.model):  # later models take it or a temperature, not both
        said["top_p"] = options.top_p
    return said


def _tool(tool: Tool, model: str) -> dict[str, Any]:
    said: dict[str, Any] = {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
    return {**said, "strict": True} if tool.strict and takes_schemas(model) else said


def _tool_choice(prompt: Prompt) -> dict[str, Any] | None:
    kind, _, name = prompt.tool_choice.partition(":")
    alone = prompt.options.parallel_calls is False and kind != "none"
    if kind == "auto" and not alone:
        return None
    choice: dict[str, Any] = {"type": {"required": "any"}.get(kind, kind)}
    if name:
        choice["name"] = name
    return {**choice, "disable_parallel_tool_use": True} if alone else choice


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return user and assistant messages in alternation, the user's first. Tool results are the user's.

    Messages in a row from one side are merged. Blank texts, and assistant messages before the user's first, are left
    out: the API refuses all of these.
    """
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if not blocks or (not turns and role == "assistant"):
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if turns and turns[-1]["role"] == "assistant" and "text" in (last := turns[-1]["content"][-1]):
        last["text"] = last["text"].rstrip()  # the API refuses an assistant's text to continue that ends in spaces
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = [_block(each) for each in segments(message)] if message.attachments else []
    thoughts = [_thought(each) for each in message.thoughts if not each.encrypted]
    if message.role == "tool":
        said = blocks or message.content
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": said}]
    if not blocks and message.content.strip():
        blocks = [{"type": "text", "text": message.content}]
    return [*thoughts, *blocks] + [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": as_object(call.arguments)}
        for call in message.tool_calls
    ]


def _thought(thought: Thought) -> dict[str, Any]:
    if thought.redacted:
        return {"type": "redacted_thinking", "data": thought.redacted}
    return {"type": "thinking", "thinking": thought.text, "signature": thought.signature}


def _block(part: str | Attachment) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    source: dict[str, Any] = {"type": "base64", "media_type": part.media_type, "data": base64(part)}
    if part.url:
        source = {"type": "url", "url": part.url}
    block = {"type": "document" if part.is_file else "image", "source": source}
    return {**block, "title": part.name} if part.is_file and part.name else block


def takes(model: str) -> frozenset[str]:
    """See Provider."""
    return taken(model, "images", "files", "image_urls", "file_urls")


# The stream. A field that servers write in different types has type Any here.


class _Part(msgspec.Struct, gc=False):
    """A content block, or a delta: its fields by `type`."""

    type: Any = None
    text: Any = None
    thinking: Any = None
    signature: Any = None
    data: Any = None
    partial_json: Any = None
    id: Any = None
    name: Any = None
    input: Any = None
    stop_reason: Any = None


class _Message(msgspec.Struct, gc=False):
    id: Any = None
    content: list[_Part] | None = None
    usage: Any = None


class _Event(msgspec.Struct, gc=False):
    type: Any = None
    index: Any = None
    delta: _Part | None = None
    content_block: _Part | None = None
    message: _Message | None = None
    usage: Any = None
    error: Any = None
    # A message that is not streamed.
    content: list[_Part] | str | None = None
    stop_reason: Any = None


_decode = msgspec.json.Decoder(_Event).decode

_INPUT: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_CACHE_WRITES: Final = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
_TOTALS: Final = (*_INPUT, "output_tokens", "thinking_tokens")


def anthropic_codec(calls: str = "call", taken: Collection[str] = (), *, whole: bool = False) -> Codec:
    """Return the codec of one answer, which is one JSON object if it is `whole`. See Calls for `calls` and `taken`."""
    return Codec(AnthropicReader(Calls(calls, taken)), WholeBody() if whole else Decoder())


class AnthropicReader:
    """See Reader. An answer is over at `message_stop`, and finished if a stop reason came before it.

    Some servers leave `message_stop` out: the end of a complete body then finishes the answer.

    The first event has the input count, so a stream that is cut has at least that; the output counts are totals so far.
    Events and blocks of unknown types are ignored, as in the API's versioning policy.

    A gateway may begin another message in the middle: see _begin.
    """

    def __init__(self, calls: Calls) -> None:
        self.over = False
        self.loose = False
        self.finish = Finish(calls)
        self._message: object = None
        """The message's id."""
        self._open: set[Index] = set()
        """The indices of the blocks that have begun and not ended."""
        self._left: set[Index] = set()
        """Those that were open when the message's start was repeated, and still are."""
        self._said = False
        """Whether the message has content."""
        self._counts: dict[str, object] = {}
        self._usage: Usage | None = None
        self._calls = calls
        self._blocks: dict[Index, _Part] = {}
        """The calls so far, by the index of their blocks; a delta without an index belongs to the latest call."""
        self._block: _Part | None = None

    def read(self, events: Sequence[bytes], deltas: list[Delta]) -> None:
        for data in events:
            event = parsed(data, _decode, _Event, self)
            if event is None:
                self.read(lines_of(data), deltas)
                if self.over:
                    return
                continue
            match event.type:
                case "content_block_delta" if event.delta is not None:
                    self._said = True
                    self._read_delta(event.index, event.delta, deltas)
                case "content_block_start" if event.content_block is not None:
                    self._read_block(event.index, event.content_block, deltas)
                case "content_block_stop":
                    self._end_block(event.index, deltas)
                case "message_start" if event.message is not None:
                    self._begin(event.message, deltas)
                    if self.over:
                        return
                case "message_delta":
                    self._count(event.usage, _TOTALS, deltas)
                    if event.delta is not None and event.delta.stop_reason:
                        self._give_inputs(deltas)
                        if not (self.finish.pending and says_stop(event.delta.stop_reason)):
                            self.finish.pending = event.delta.stop_reason
                case "message_stop":
                    if event.usage is not None:
                        self._count(event.usage, _TOTALS, deltas)
                    self._end(deltas)
                    return
                case "message":
                    self._read_message(event, deltas)
                case "error":
                    raise event_failure(event.error)
                case _ if event.error:  # sent by a gateway
                    raise event_failure(event.error)
                case _:
                    pass

    def _begin(self, message: _Message, deltas: list[Delta]) -> None:
        """Read the start of a message, which a gateway may repeat.

        After a stop reason it ends the answer. Another id is the answer of another server, which the gateway asked
        after it lost the first: it replaces a message that said nothing. Raises UpstreamTruncated if that message said
        something, as the two would be mixed.
        """
        if self._said and self.finish.pending:
            self._end(deltas)
            return
        id = message.id or self._message
        if self._message and id != self._message:
            if self._said:
                raise UpstreamTruncated
            self._counts.clear()
        elif read_count(number(message.usage, "input_tokens")) is not None:
            for name in _INPUT:  # parts of two reports must not be added
                self._counts.pop(name, None)
        self._message = id
        self._left = self._open.copy() if self._said else set()
        self._open &= self._left
        # Its output count is that of the deltas that follow.
        self._count(message.usage, _INPUT, deltas)

    def _end(self, deltas: list[Delta]) -> None:
        self.over = True
        self._give_inputs(deltas)
        self.finish.say(self.finish.pending, deltas)

    def _read_message(self, message: _Event, deltas: list[Delta]) -> None:
        """Read a message that is not streamed."""
        content = message.content or ()
        for index, block in enumerate([_Part(text=content)] if isinstance(content, str) else content):
            self._read_block(index, block, deltas)
            self._end_block(index, deltas)
        self._count(message.usage, _TOTALS, deltas)
        self.finish.say(message.stop_reason, deltas)

    def _read_delta(self, index: object, delta: _Part, deltas: list[Delta]) -> None:
        if type(delta.text) is str:
            if delta.text:
                deltas.append(TextDelta(delta.text))
        elif delta.text is not None:
            deltas += [TextDelta(text) for _, text in texts(delta.text)]
        if delta.thinking:
            deltas += [ReasoningDelta(text) for _, text in texts(delta.thinking)]
        if delta.signature and type(delta.signature) is str:
            deltas.append(SignatureDelta(signature=delta.signature))
        elif delta.type == "redacted_thinking" and delta.data and type(delta.data) is str:
            deltas.append(SignatureDelta(redacted=delta.data))
        if delta.partial_json:
            block = self._of(index)
            if block is not None:  # else of a tool that the provider runs itself
                block.input = None
                self._calls.piece(as_index(block.partial_json), "", "", as_arguments(delta.partial_json), deltas)

    def _read_block(self, index: object, block: _Part, deltas: list[Delta]) -> None:
        if self._left:
            raise UpstreamTruncated  # the message begins anew, and a block of its first beginning never ended
        self._open.add(as_index(index))
        self._said = self._said or bool(block.type == "tool_use" or block.text or block.thinking)
        if block.type == "tool_use":
            at = len(self._calls)
            block.partial_json = at  # from here on: the call's identity
            self._give_inputs(deltas)
            self._blocks[as_index(index)] = self._block = block
            self._calls.piece(at, as_name(block.id), as_name(block.name), "", deltas)
        else:
            self._blocks.pop(as_index(index), None)
            self._block = None
            self._read_delta(index, block, deltas)

    def _of(self, index: object) -> _Part | None:
        """Return the call whose block has this index."""
        key = as_index(index)
        return self._block if key is None else self._blocks.get(key)

    def _end_block(self, index: object, deltas: list[Delta]) -> None:
        """End a block."""
        self._open.discard(as_index(index))
        self._left.discard(as_index(index))
        block = self._of(index)
        if block is not None:
            self._give_input(block, deltas)

    def _give_inputs(self, deltas: list[Delta]) -> None:
        """Give the inputs of the calls whose blocks some servers do not end."""
        for block in self._blocks.values():
            self._give_input(block, deltas)

    def _give_input(self, block: _Part, deltas: list[Delta]) -> None:
        """Give a call's input, if it came whole at the block's start."""
        if block.input:
            self._calls.piece(as_index(block.partial_json), "", "", as_arguments(block.input), deltas)
            block.input = None

    def _count(self, counts: object, names: Sequence[str], deltas: list[Delta]) -> None:
        """Take the counts that are present and possible. Every event may update some of the totals."""
        details = field(counts, "output_tokens_details")
        places = [(name, details if name == "thinking_tokens" else counts) for name in names]
        found = {name: value for name, place in places if read_count(value := number(place, name)) is not None}
        if "cache_creation_input_tokens" in names and "cache_creation_input_tokens" not in found:
            parts = field(counts, "cache_creation")  # the same by its lifetime: some gateways have only this
            written = [read_count(number(parts, name)) or 0 for name in _CACHE_WRITES]
            if any(written):
                found["cache_creation_input_tokens"] = sum(written)
        self._counts |= found
        prompt = self._counts.get("input_tokens")
        usage = read_usage(
            prompt,
            self._counts.get("output_tokens", None if prompt is None else 0),
            cached=self._counts.get("cache_read_input_tokens"),
            cache_write=self._counts.get("cache_creation_input_tokens"),
            cache_is="outside",
            reasoning=self._counts.get("thinking_tokens"),
            known=self._usage,
        )
        if usage is not None and usage != self._usage:
            self._usage = usage
            deltas.append(UsageDelta(usage))


# The provider.


class AnthropicProvider(ModelServer):
    """Anthropic, or a server with its Messages API. `base_url` ends where `/v1/messages` begins.

    For the other arguments see ModelServer. Raises ValueError, which names the argument and never holds its value.
    """

    preset = Preset(
        wire="anthropic",
        imitated=True,  # by llama.cpp, Ollama, LM Studio and Jan
        base_url="https://api.anthropic.com",
        key_env="ANTHROPIC_API_KEY",
        key_header="x-api-key",
        key_prefix="",
        headers={"anthropic-version": "2023-06-01"},
        check_path="/v1/models?limit=1000",
        abort_bills="stops",
    )
    lacks = staticmethod(lacks)
    takes = staticmethod(takes)

    def open(self, prompt: Prompt, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """See Provider. Applies only `timeouts.connect`; the caller applies the others, by cancelling."""
        return self._ask(prompt, "/v1/messages", request_body(prompt), anthropic_codec, timeouts)
