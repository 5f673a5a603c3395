"""The AI SDK's messages: a page's UI messages, and model messages, which assistant-ui's data stream sends.

https://ai-sdk.dev/docs/reference/ai-sdk-core/ui-message and .../model-message
"""

from __future__ import annotations

from typing import Any

from chat_nest.core.errors import BadRequest
from chat_nest.core.held_text import Held
from chat_nest.core.messages import Message, Role, ToolCall
from chat_nest.dialects import fields as read
from chat_nest.dialects.media_parts import MessageParts, file_name, from_base64, from_url, media_type
from chat_nest.dialects.strict_json import flaw, is_array, is_object
from chat_nest.dialects.turns import PlacedMessage

ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
DENIED = "The user did not allow this call."
URLS = ("data:", "https:", "http:")


def read_turns(entry: Any, field: str) -> list[PlacedMessage]:
    """Return a message as turns: a UI message of the assistant holds its calls with their results, step after step."""
    fields = read.table(entry, field)
    named = fields.get("role")
    role = ROLES.get(named) if type(named) is str else None
    said = fields.get("content")
    model_parts = said if fields.get("parts") is None and is_array(said) else None
    if role is None or (role == "tool" and model_parts is None):
        raise BadRequest("must be system, user or assistant, or tool with an array of results", field=f"{field}.role")
    if model_parts is not None:
        return _model_message(role, model_parts, field)
    if fields.get("parts") is None and said is not None:  # the form of version 4
        return [(field, Message(role=role, content=read.text(said, f"{field}.content")))]
    return _ui_message(role, fields, field)


def _ui_message(role: Role, fields: dict[str, Any], field: str) -> list[PlacedMessage]:
    metadata = fields.get("metadata")
    signature = read.signature(metadata, f"{field}.metadata") if is_object(metadata) and role == "assistant" else ""
    said = _only_text(fields.get("parts"))
    if said is not None:
        return [(field, Message(role=role, content=read.text(said, f"{field}.parts"), signature=signature))]
    turns: list[PlacedMessage] = []
    parts = MessageParts()
    calls: list[ToolCall] = []
    results: list[Message] = []

    def end_step() -> None:
        nonlocal parts
        if parts or calls or not turns:
            turns.append((field, parts.message(role, field, tool_calls=tuple(calls), signature=signature)))
        turns.extend((field, result) for result in results)
        parts = MessageParts()
        calls.clear()
        results.clear()

    for index, item in enumerate(read.array(fields.get("parts"), f"{field}.parts", read.MAX_PARTS)):
        at = f"{field}.parts[{index}]"
        part = read.table(item, at)
        kind = read.text(part.get("type"), f"{at}.type")
        if kind == "text":
            if results:
                end_step()
            parts.say(read.text(part.get("text"), f"{at}.text"))
        elif kind == "file":
            named = file_name(part.get("filename"), f"{at}.filename")
            parts.attach(from_url(part.get("url"), f"{at}.url", media_type(part, "mediaType", at), name=named))
        elif kind == "step-start" and (parts or calls):
            end_step()
        elif role == "assistant" and (kind == "dynamic-tool" or kind.startswith("tool-")):
            done = _result(part, at)
            if done is not None:
                calls.append(_call(part, kind, at))
                results.append(done)
    end_step()
    return turns


def _only_text(parts: Any) -> str | None:
    """Return the text of a message whose one part is a text, as nearly all are: a long chat is then read quicker."""
    if not is_array(parts) or not 1 <= len(parts) <= 2:
        return None
    if len(parts) == 2 and not (is_object(parts[0]) and parts[0].get("type") == "step-start"):
        return None
    last = parts[-1]
    said = last.get("text") if is_object(last) and last.get("type") == "text" else None
    return said if type(said) is str and flaw(said) is None else None


def _call(part: dict[str, Any], kind: str, field: str) -> ToolCall:
    named = part.get("toolName") if kind == "dynamic-tool" else kind.removeprefix("tool-")
    return ToolCall(
        id=read.word(part.get("toolCallId"), f"{field}.toolCallId"),
        name=read.word(named, f"{field}.toolName"),
        arguments=read.written(part.get("input", {}), f"{field}.input"),
    )


def _result(part: dict[str, Any], field: str) -> Message | None:
    """Return the result of a tool; None if there is none, and the call is left out, as providers require."""
    match part.get("state"):
        case "output-available":
            said = read.written(part.get("output"), f"{field}.output")
        case "output-error":
            said = read.text(part.get("errorText"), f"{field}.errorText")
        case "output-denied":
            said = DENIED
        case _:
            return None
    return Message(role="tool", content=said, tool_call_id=read.word(part.get("toolCallId"), f"{field}.toolCallId"))


def _model_message(role: Role, content: list[Any], field: str) -> list[PlacedMessage]:
    """Return a model message as turns: each result of a tool is one. The assistant's reasoning is left out."""
    turns: list[PlacedMessage] = []
    parts = MessageParts()
    calls: list[ToolCall] = []
    for index, item in enumerate(read.array(content, f"{field}.content", read.MAX_PARTS)):
        at = f"{field}.content[{index}]"
        part = read.table(item, at)
        match part.get("type"):
            case "text":
                parts.say(read.text(part.get("text"), f"{at}.text"))
            case "image" | "file" as kind:
                _attach(part, "image" if kind == "image" else "data", at, parts)
            case "tool-call" if role == "assistant":
                calls.append(_model_call(part, at))
            case "tool-result" if role in ("assistant", "tool"):
                turns.append((field, _model_result(part, at)))
            case "reasoning" if role == "assistant":
                pass
            case _:
                raise BadRequest("must be text, image, file, tool-call or tool-result", field=f"{at}.type")
    if parts or calls or not turns:
        turns.insert(0, (field, parts.message(role, field, tool_calls=tuple(calls))))
    return turns


def _attach(part: dict[str, Any], name: str, field: str, parts: MessageParts) -> None:
    said, kind = part.get(name), media_type(part, "mediaType", field)
    named = file_name(part.get("filename"), f"{field}.filename")
    if said.media_type is None if isinstance(said, Held) else type(said) is str and not said.startswith(URLS):
        parts.attach(from_base64(said, kind, f"{field}.{name}", name=named))
    else:
        parts.attach(from_url(said, f"{field}.{name}", kind, name=named))


def _model_call(part: dict[str, Any], field: str) -> ToolCall:
    given = "args" if "input" not in part and "args" in part else "input"
    return ToolCall(
        id=read.word(part.get("toolCallId"), f"{field}.toolCallId"),
        name=read.word(part.get("toolName"), f"{field}.toolName"),
        arguments=read.written(part.get(given, {}), f"{field}.{given}"),
    )


def _model_result(part: dict[str, Any], field: str) -> Message:
    """Return the result: `output` with a type, or `result` of version 4."""
    id = read.word(part.get("toolCallId"), f"{field}.toolCallId")
    if "output" not in part and "result" in part:
        return Message(role="tool", content=read.written(part["result"], f"{field}.result"), tool_call_id=id)
    at = f"{field}.output"
    output = read.table(part.get("output"), at)
    match output.get("type"):
        case "text" | "json" | "error-text" | "error-json":
            return Message(role="tool", content=read.written(output.get("value"), f"{at}.value"), tool_call_id=id)
        case "execution-denied":
            return Message(role="tool", content=DENIED, tool_call_id=id)
        case "content":
            parts = MessageParts()
            for index, item in enumerate(read.array(output.get("value"), f"{at}.value", read.MAX_PARTS)):
                inner = f"{at}.value[{index}]"
                shown = read.table(item, inner)
                if shown.get("type") == "text":
                    parts.say(read.text(shown.get("text"), f"{inner}.text"))
                else:
                    _attach(shown, "url" if "url" in shown else "data", inner, parts)
            return parts.message("tool", at, tool_call_id=id)
        case _:
            raise BadRequest("must be text, json, content, error-text or error-json", field=f"{at}.type")
