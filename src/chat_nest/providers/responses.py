"""OpenAI's Responses API: the request body, the events of a stream, and the provider.

The format is that of https://platform.openai.com/docs/api-reference/responses-streaming. vLLM, Ollama, LM Studio and
OpenRouter also have it. Nothing is stored at the provider: each request sends the whole conversation.
The file is long because it has all that is known of one wire format, so that a format is one file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import msgspec

from chat_nest.core.attachments import segments
from chat_nest.core.deltas import Batch, Delta, ReasoningDelta, SignatureDelta, TextDelta, UsageDelta
from chat_nest.core.messages import Attachment, Format, Message, Thought
from chat_nest.core.protocols import Prompt
from chat_nest.core.sse import Decoder
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.usage import Usage
from chat_nest.counting.reported import read_usage
from chat_nest.counting.tokens import is_reasoning_model
from chat_nest.providers.bodies import Finish, WholeBody
from chat_nest.providers.calls import Calls, Index, as_arguments, as_index, as_name
from chat_nest.providers.codec import Codec, lines_of, number, parsed, texts
from chat_nest.providers.loose import field
from chat_nest.providers.media import data_url, taken
from chat_nest.providers.model_server import ModelServer
from chat_nest.providers.openai_codec import takes_temperature, takes_verbosity
from chat_nest.providers.presets import Preset
from chat_nest.providers.refusals import event_failure
from chat_nest.providers.tools import filled

# The request.

LEAST_OUTPUT: Final = 16
"""Tokens. The API refuses a lower limit; output beyond the prompt's own limit is cut here."""


def request_body(prompt: Prompt) -> bytes:
    """Return the JSON of one request for a stream."""
    body: dict[str, Any] = {
        "model": prompt.model,
        "input": [item for message in prompt.messages for item in _items(message)],
        "stream": True,
        "store": False,
        "max_output_tokens": max(prompt.max_output_tokens, LEAST_OUTPUT),
    }
    body |= _options(prompt)
    if prompt.tools:
        body["tools"] = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": tool.strict is True,  # the API's default would be true
            }
            for tool in prompt.tools
        ]
        if prompt.options.parallel_calls is not None:
            body["parallel_tool_calls"] = prompt.options.parallel_calls
        if prompt.tool_choice.startswith("tool:"):
            body["tool_choice"] = {"type": "function", "name": prompt.tool_choice.removeprefix("tool:")}
        elif prompt.tool_choice != "auto":
            body["tool_choice"] = prompt.tool_choice
    return msgspec.json.encode(body)


def lacks(prompt: Prompt) -> list[str]:
    """See Provider. The API has no stop sequences."""
    return ["stop"] if prompt.options.stop else []


def takes(model: str) -> frozenset[str]:
    """See Provider."""
    return taken(model, "images", "files", "image_urls", "file_urls")


def _options(prompt: Prompt) -> dict[str, Any]:
    options = prompt.options
    said: dict[str, Any] = {}
    text: dict[str, Any] = {}
    if takes_temperature(prompt.model):
        if prompt.temperature is not None:
            said["temperature"] = prompt.temperature
        if options.top_p is not None:
            said["top_p"] = options.top_p
    if is_reasoning_model(prompt.model) and options.encrypted_reasoning:
        said["include"] = ["reasoning.encrypted_content"]
    reasoning = {"effort": options.effort, "summary": options.summary}
    if is_reasoning_model(prompt.model) and (given := {name: word for name, word in reasoning.items() if word}):
        said["reasoning"] = given
    if options.format is not None:
        text["format"] = _format(options.format)
    if options.verbosity is not None and takes_verbosity(prompt.model):
        text["verbosity"] = options.verbosity
    return {**said, "text": text} if text else said


def _format(format: Format) -> dict[str, Any]:
    if format.schema is None:
        return {"type": "json_object"}
    described: dict[str, Any] = {"type": "json_schema", "name": format.name, "schema": format.schema}
    if format.description:
        described["description"] = format.description
    return {**described, "strict": format.strict is True}


def _items(message: Message) -> Iterator[dict[str, Any]]:
    """Yield a message as items. An assistant's calls are items of their own."""
    if message.role == "tool":
        said: Any = [_part(each) for each in segments(message)] if message.attachments else message.content
        yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": said}
        return
    yield from (_reasoning(thought) for thought in message.thoughts if thought.encrypted)
    if message.role == "assistant":
        if message.content.strip():
            yield {"role": "assistant", "content": [{"type": "output_text", "text": message.content}]}
    else:
        content: Any = [_part(each) for each in segments(message)] if message.attachments else message.content
        yield {"role": message.role, "content": content}
    for call in message.tool_calls:
        yield {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": filled(call.arguments)}


def _reasoning(thought: Thought) -> dict[str, Any]:
    """Return a thought as an item. It has no id: the client knows it by one of this server's."""
    summary = [{"type": "summary_text", "text": thought.text}] if thought.text else []
    return {"type": "reasoning", "summary": summary, "encrypted_content": thought.encrypted}


def _part(part: str | Attachment) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "input_text", "text": part}
    if not part.is_file:
        return {"type": "input_image", "image_url": data_url(part), "detail": part.detail or "auto"}
    if part.url:
        return {"type": "input_file", "file_url": part.url}
    return {"type": "input_file", "filename": part.name or "file.pdf", "file_data": data_url(part)}


# The stream. A field that servers write in different types has type Any here.


class _Item(msgspec.Struct, gc=False):
    type: Any = None
    id: Any = None
    call_id: Any = None
    name: Any = None
    arguments: Any = None
    content: Any = None
    summary: Any = None
    encrypted_content: Any = None


class _Response(msgspec.Struct, gc=False):
    status: Any = None
    error: Any = None
    incomplete_details: Any = None
    usage: Any = None
    output: list[_Item] | None = None


class _Event(msgspec.Struct, gc=False):
    type: Any = None
    output_index: Any = None
    item_id: Any = None
    summary_index: Any = None
    delta: Any = None
    arguments: Any = None
    item: _Item | None = None
    response: _Response | None = None
    error: Any = None
    code: Any = None
    message: Any = None
    # A response that is not streamed.
    object: Any = None
    status: Any = None
    incomplete_details: Any = None
    usage: Any = None
    output: list[_Item] | None = None


_decode = msgspec.json.Decoder(_Event).decode
_FAILED: Final = {"code": "server_error", "message": ""}
_OTHER_ENDS: Final = ("incomplete", "failed", "cancelled")
"""What the status of a response says though its event says `completed`: vLLM's, if it reached the limit."""


def responses_codec(calls: str = "call", taken: Collection[str] = (), *, whole: bool = False) -> Codec:
    """Return the codec of one answer, which is one JSON object if it is `whole`. See Calls for `calls` and `taken`."""
    return Codec(ResponsesReader(Calls(calls, taken)), WholeBody() if whole else Decoder())


class ResponsesReader:
    """See Reader. `response.completed` or `response.incomplete` ends an answer, and finishes it.

    Some servers send an item only when it is done, and some the whole answer only at the end: the reader then takes
    from there what it has not got in pieces. Until then items are identified by index, because some servers change the
    id in each event; without one by id. At the end the indices may be others: calls are identified by id, and text is
    taken if there was none.
    """

    def __init__(self, calls: Calls) -> None:
        self.over = False
        self.loose = False
        self.finish = Finish(calls)
        self._calls = calls
        self._usage: Usage | None = None
        self._spoken: set[tuple[str, Index]] = set()
        """The parts of each open item that have come: `text`, `reasoning`, `encrypted`, `call`, `arguments`."""
        self._places: dict[str, Index] = {}
        """The index of each item that was added, by id: some servers give another one in a later event."""
        self._told: set[str] = set()
        """The parts that have come of any item, and the ids of calls."""

    def read(self, events: Sequence[bytes], deltas: list[Delta]) -> None:
        """Add what events mean to `deltas`. It is long because it has every event, also those of other servers."""
        for data in events:
            event = parsed(data, _decode, _Event, self)
            if event is None:
                self.read(lines_of(data), deltas)
                if self.over:
                    return
                continue
            at = as_index(event.output_index)
            if type(event.item_id) is str:
                at = self._places.get(event.item_id, at)
            if at is None:
                at = as_index(event.item_id)
            match event.type:
                case "response.output_text.delta" | "response.refusal.delta":
                    self._say("text", at, event.delta, deltas)
                case (
                    "response.reasoning_summary_text.delta"
                    | "response.reasoning_text.delta"
                    | "response.reasoning.delta"  # Open Responses' name
                    | "response.reasoning_summary.delta"
                ):
                    self._say("reasoning", at, event.delta, deltas)
                case "response.reasoning_summary_part.added" if event.summary_index:
                    self._say("reasoning", at, "\n\n", deltas)
                case "response.function_call_arguments.delta":
                    self._arguments(at, event.delta, deltas)
                case "response.function_call_arguments.done":
                    self._all_arguments(at, event.arguments, deltas)
                case "response.output_item.added" if event.item is not None:
                    at = self._places[as_name(event.item.id)] = _place(at, event.item)
                    if event.item.name:
                        self._begin(at, event.item, deltas)
                    elif event.item.type == "function_call":
                        self._calls.awaited = True  # its name comes when it is done
                case "response.output_item.done" if event.item is not None:
                    at = self._places.get(as_name(event.item.id), _place(at, event.item))
                    self._item(at, event.item, deltas)
                    self._spoken = {part for part in self._spoken if part[1] != at}
                case (
                    "response.completed"
                    | "response.incomplete"
                    | "response.failed"
                    | "response.cancelled"
                    | "response.done"  # some servers' name
                ):
                    self._end(event.response or _Response(), str(event.type).partition(".")[2], deltas)
                    return
                case "error":
                    raise event_failure(event.error or {"code": event.code, "message": event.message})
                case _ if event.object == "response":
                    whole = _Response(
                        status=event.status,
                        error=event.error,
                        incomplete_details=event.incomplete_details,
                        usage=event.usage,
                        output=event.output,
                    )
                    self._end(whole, as_name(event.status), deltas)
                    return
                case _ if event.error:  # sent by a gateway
                    raise event_failure(event.error)
                case _:
                    pass

    def _say(self, kind: str, at: Index, value: object, deltas: list[Delta]) -> None:
        make = TextDelta if kind == "text" else ReasoningDelta
        said = [value] if type(value) is str and value else [text for _, text in texts(value)]
        if said:
            self._spoken.add((kind, at))
            self._told.add(kind)
            deltas += [make(text) for text in said]

    def _begin(self, at: Index, item: _Item, deltas: list[Delta]) -> None:
        if item.type == "function_call":
            id = _call_id(item)
            self._calls.awaited = False
            self._spoken.add(("call", at))
            self._spoken.discard(("arguments", at))
            self._told |= {"call", id}
            self._calls.piece(at, id, as_name(item.name), "", deltas)

    def _arguments(self, at: Index, value: object, deltas: list[Delta]) -> None:
        if ("call", at) in self._spoken and value:
            self._spoken.add(("arguments", at))
            self._calls.piece(at, "", "", as_arguments(value), deltas)

    def _all_arguments(self, at: Index, value: object, deltas: list[Delta]) -> None:
        if ("arguments", at) not in self._spoken:
            self._arguments(at, value, deltas)

    def _item(self, at: Index, item: _Item, deltas: list[Delta]) -> None:
        """Take what an item that is done has beyond its earlier pieces."""
        if item.type == "function_call":
            if ("call", at) not in self._spoken:
                self._begin(at, item, deltas)
            self._all_arguments(at, item.arguments, deltas)
        elif item.type == "message" and ("text", at) not in self._spoken:
            self._say("text", at, item.content, deltas)
        elif item.type == "reasoning":
            if ("reasoning", at) not in self._spoken:
                self._say("reasoning", at, item.summary or item.content, deltas)
            if ("encrypted", at) not in self._spoken and (encrypted := as_name(item.encrypted_content)):
                self._spoken.add(("encrypted", at))
                self._told.add("encrypted")
                deltas.append(SignatureDelta(encrypted=encrypted))

    def _end(self, response: _Response, kind: str, deltas: list[Delta]) -> None:
        self.over = True
        self._rest(response.output or (), deltas)
        self._count(response.usage, deltas)
        if kind in ("completed", "done") and response.status in _OTHER_ENDS:
            kind = response.status
        elif kind == "done":
            kind = "completed"
        if kind == "failed" or (response.error and kind != "completed"):
            raise event_failure(response.error or _FAILED)
        if kind == "incomplete":
            self.finish.say(field(response.incomplete_details, "reason") or "length", deltas)
        else:
            self.finish.say(kind, deltas)

    def _rest(self, output: Sequence[_Item], deltas: list[Delta]) -> None:
        """Take from the whole answer what has not come."""
        told = self._told.copy()
        has_more = sum(item.type == "function_call" for item in output) > len(self._calls)
        for index, item in enumerate(output):
            if item.type == "function_call":
                id = _call_id(item)
                if ("call", index) in self._spoken and (id in told or not id):
                    self._all_arguments(index, item.arguments, deltas)
                elif has_more and id not in told:
                    self._begin(index, item, deltas)
                    self._all_arguments(index, item.arguments, deltas)
            elif item.type == "message" and "text" not in told:
                self._say("text", index, item.content, deltas)
            elif item.type == "reasoning":
                if "reasoning" not in told:
                    self._say("reasoning", index, item.summary or item.content, deltas)
                if "encrypted" not in told and (encrypted := as_name(item.encrypted_content)):
                    deltas.append(SignatureDelta(encrypted=encrypted))

    def _count(self, counts: object, deltas: list[Delta]) -> None:
        usage = read_usage(
            number(counts, "input_tokens"),
            number(counts, "output_tokens"),
            total=number(counts, "total_tokens"),
            reasoning=number(field(counts, "output_tokens_details"), "reasoning_tokens"),
            cached=number(field(counts, "input_tokens_details"), "cached_tokens"),
            known=self._usage,
        )
        if usage is not None and usage != self._usage:
            self._usage = usage
            deltas.append(UsageDelta(usage))


def _place(at: Index, item: _Item) -> Index:
    return as_name(item.id) or None if at is None else at


def _call_id(item: _Item) -> str:
    return as_name(item.call_id) or as_name(item.id)


# The provider.


class ResponsesProvider(ModelServer):
    """OpenAI's Responses, or a server that has this API. `base_url` ends where `/responses` begins.

    For the other arguments see ModelServer. Raises ValueError, which names the argument and never holds its value.
    """

    preset = Preset(
        wire="responses",
        imitated=True,
        base_url="https://api.openai.com/v1",
        key_env="OPENAI_API_KEY",
        abort_bills="stops",
        abort_source="https://platform.openai.com/docs/guides/background",  # "terminate the connection" cancels
        images="yes",
        files=True,
    )
    lacks = staticmethod(lacks)
    takes = staticmethod(takes)

    def open(self, prompt: Prompt, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """See Provider. Applies only `timeouts.connect`; the caller applies the others, by cancelling."""
        return self._ask(prompt, "/responses", request_body(prompt), responses_codec, timeouts)
