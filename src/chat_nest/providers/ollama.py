"""Ollama's own API: the request body, the lines of a stream, and the provider.

The format is that of https://docs.ollama.com/api/chat. For Ollama's OpenAI API, see the preset `ollama_v1`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import msgspec

from chat_nest.core.deltas import Batch, Delta, ReasoningDelta, TextDelta, UsageDelta
from chat_nest.core.messages import Message, Tool
from chat_nest.core.protocols import Prompt
from chat_nest.core.timeouts import Timeouts
from chat_nest.counting.reported import read_usage
from chat_nest.providers.bodies import Finish, WholeBody
from chat_nest.providers.calls import Calls, as_name, raw_arguments
from chat_nest.providers.codec import Codec, lines_of, number, parsed, texts
from chat_nest.providers.media import base64, moved_to_user, taken
from chat_nest.providers.model_server import ModelServer
from chat_nest.providers.ndjson import LineDecoder
from chat_nest.providers.presets import NDJSON, Preset
from chat_nest.providers.refusals import event_failure
from chat_nest.providers.tools import as_object, names_by_id

# The request.


def request_body(prompt: Prompt) -> bytes:
    """Return the JSON of one request for a stream."""
    names = names_by_id(prompt.messages)
    options: dict[str, Any] = {"num_predict": prompt.max_output_tokens}
    if prompt.temperature is not None:
        options["temperature"] = prompt.temperature
    asked = prompt.options
    for name in ("seed", "top_p", "top_k", "frequency_penalty", "presence_penalty"):
        if (value := getattr(asked, name)) is not None:
            options[name] = value
    if asked.stop:
        options["stop"] = asked.stop
    body: dict[str, Any] = {
        "model": prompt.model,
        "messages": [_message(message, names) for message in moved_to_user(prompt.messages)],
        "stream": True,
        "options": options,
    }
    if asked.format is not None:
        body["format"] = "json" if asked.format.schema is None else asked.format.schema
    if tools := _tools(prompt):
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
            }
            for tool in tools
        ]
    return msgspec.json.encode(body)


def lacks(prompt: Prompt) -> list[str]:
    """See Provider. The API can't require a tool call, or forbid parallel ones."""
    one = prompt.options.parallel_calls is False and bool(prompt.tools)
    asked = {"tool_choice": prompt.tool_choice == "required", "parallel_calls": one}
    return [name for name, lacking in asked.items() if lacking]


def takes(model: str) -> frozenset[str]:
    """See Provider. The API takes images in base64, before a message's text."""
    return taken(model, "images")


def _tools(prompt: Prompt) -> Sequence[Tool]:
    """Return the tools to offer.

    The API has no tool choice: only `none` and a certain tool can be expressed, by the offer.
    """
    if prompt.tool_choice == "none":
        return ()
    if prompt.tool_choice.startswith("tool:"):
        return [tool for tool in prompt.tools if tool.name == prompt.tool_choice.removeprefix("tool:")]
    return prompt.tools


def _message(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    said: dict[str, Any] = {"role": role, "content": message.content}
    if message.attachments:
        said["images"] = [base64(each) for each in message.attachments]
    if message.tool_calls:
        said["tool_calls"] = [
            {"function": {"name": call.name, "arguments": as_object(call.arguments)}} for call in message.tool_calls
        ]
    if message.role == "tool":
        said["tool_name"] = names.get(message.tool_call_id) or message.tool_call_id
    return said


# The stream. A field that servers write in different types has type Any here.


class _Function(msgspec.Struct, gc=False):
    name: Any = None
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _Call(msgspec.Struct, gc=False):
    function: _Function | None = None
    id: Any = None


class _Message(msgspec.Struct, gc=False):
    content: Any = None
    thinking: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: list[_Call] | None = None


class _Line(msgspec.Struct, gc=False):
    message: _Message | str | None = None
    # The fields of /api/generate, which some servers also use here.
    response: Any = None
    thinking: Any = None
    done: Any = None
    done_reason: Any = None
    error: Any = None
    prompt_eval_count: Any = None
    eval_count: Any = None


_decode = msgspec.json.Decoder(_Line).decode
_DONE: Final = (1, "true", "True", "1")


def ollama_codec(calls: str = "call", taken: Collection[str] = (), *, whole: bool = False) -> Codec:
    """Return the codec of one answer, which is one JSON object if it is `whole`. See Calls for `calls` and `taken`."""
    return Codec(OllamaReader(Calls(calls, taken)), WholeBody() if whole else LineDecoder())


class OllamaReader:
    """See Reader. An answer is over with the line that has `done`, the reason and the counts.

    If the prompt was in the server's cache, its count is missing.
    """

    def __init__(self, calls: Calls) -> None:
        self.over = False
        self.loose = False
        self.finish = Finish(calls)
        self._calls = calls
        self._prompt: object = None
        self._answer: object = None
        """The newest counts: some servers with this format send them in every line except the last one."""

    def read(self, events: Sequence[bytes], deltas: list[Delta]) -> None:
        for data in events:
            line = parsed(data, _decode, _Line, self)
            if line is None:
                self.read(lines_of(data), deltas)
                if self.over:
                    return
                continue
            if line.error is not None and (line.error or line.message is None):
                raise event_failure(line.error)
            message = _Message(content=line.message) if isinstance(line.message, str) else line.message
            if line.response or line.thinking:
                message = message or _Message()
                message.content, message.thinking = message.content or line.response, message.thinking or line.thinking
            if message is not None:
                self._read_message(message, deltas)
            if line.prompt_eval_count is not None:
                self._prompt = line.prompt_eval_count
            if line.eval_count is not None:
                self._answer = line.eval_count
            if line.done is True or (line.done and line.done in _DONE):
                self.over = True
                # Servers older than done_reason, and some others with this format, leave it out.
                self.finish.say("stop" if line.done_reason is None else line.done_reason, deltas)
                counts = {"prompt": self._prompt, "answer": self._answer}
                usage = read_usage(number(counts, "prompt"), number(counts, "answer"))
                if usage is not None:
                    deltas.append(UsageDelta(usage))
                return

    def _read_message(self, message: _Message, deltas: list[Delta]) -> None:
        if thought := message.thinking or message.reasoning or message.reasoning_content:
            deltas += [ReasoningDelta(text) for _, text in texts(thought)]
        if type(message.content) is str:
            if message.content:
                deltas.append(TextDelta(message.content))
        elif message.content is not None:
            deltas += [ReasoningDelta(text) if thinks else TextDelta(text) for thinks, text in texts(message.content)]
        for call in message.tool_calls or ():
            function = call.function or _Function()
            self._calls.whole(as_name(call.id), as_name(function.name), raw_arguments(function.arguments), deltas)


# The provider.


class OllamaProvider(ModelServer):
    """An Ollama server. `base_url` ends where `/api/chat` begins.

    For the other arguments see ModelServer. Raises ValueError, which names the argument and never holds its value.
    """

    preset = Preset(
        wire="ollama",
        think_tags="on",
        base_url="http://localhost:11434",
        hosted=False,
        key_env="OLLAMA_API_KEY",
        media_type=NDJSON,
        check_path="/api/tags",
        abort_bills="stops",
    )
    lacks = staticmethod(lacks)
    takes = staticmethod(takes)

    def open(self, prompt: Prompt, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """See Provider. Applies only `timeouts.connect`; the caller applies the others, by cancelling."""
        return self._ask(prompt, "/api/chat", request_body(prompt), ollama_codec, timeouts)
