"""Encoders for Responses: numbered events, or the object that the last event holds.

The file is long because one answer is one object here, whose events and items depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from chat_nest.core.deltas import AskedDelta, Batch, Delta, ReasoningDelta, SignatureDelta, TextDelta, ToolCallDelta
from chat_nest.core.errors import ChatError, Stopped
from chat_nest.core.protocols import Ending
from chat_nest.core.sse import event
from chat_nest.core.usage import Usage
from chat_nest.dialects.frames import EVENT_STREAM, JSON, PING, as_json, quick_json
from chat_nest.dialects.openai_refusals import error_body
from chat_nest.dialects.responses_items import Item, output_text, qualified

NOTHING_USED = Usage()
_ENDED_EARLY = {"length": "max_output_tokens", "content_filter": "content_filter"}


def _numbered(number: int) -> bytes:
    return b',"sequence_number":%d}\n\n' % number


_STEP, _MOST = 4_096, 32_768
_NUMBERED = [_numbered(number) for number in range(_STEP)]
"""The ends of events: to format a number is a fifth of a token's encoding."""


def _number_more() -> bool:
    """Make the ends of more events, for a long answer; False beyond those that take 2.4 MB."""
    begun = len(_NUMBERED)
    if begun >= _MOST:
        return False
    _NUMBERED.extend(map(_numbered, range(begun, begun + _STEP)))
    return True


class Output:
    """The items of an answer so far: text, reasoning and calls, in order."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self.items: list[Item] = []
        self.open: type[TextDelta | ReasoningDelta] | None = None
        self.open_at = 0
        self.calls: dict[int, tuple[int, list[str]]] = {}
        """Each open call by the provider's index: its item's index, and its arguments."""

    def add(self, prefix: str, item: Item) -> Item:
        added = {"id": f"{prefix}_{self._run_id}_{len(self.items)}", **item, "status": "in_progress"}
        self.items.append(added)
        return added


class ResponsesEncoder:
    """Encodes one answer as events. Events up to number `after` are left out, for a reader that has them.

    `response` holds the fields of the final object besides the answer. Without it nothing is sent until a log provides
    it.
    """

    streams = True
    headers: Sequence[tuple[bytes, bytes]] = EVENT_STREAM

    def __init__(self, run_id: str, response: dict[str, Any] | None, asked: str = "", *, after: float = -1) -> None:
        self._run_id = run_id
        self._response = response
        self._asked = asked
        self._after = after
        self._model = ""
        self._number = 0
        self._output = Output(run_id)
        self._said: list[Delta] = []
        """The pieces of the open item of text or reasoning."""
        self._head = b""
        self._text_head = b""
        """The same, if the next piece of text needs nothing else: its item is open, and the reader lacks it."""

    def asked(self) -> str:
        """Return what is kept with the answer, once."""
        asked, self._asked = self._asked, ""
        return asked

    def start(self, model: str) -> bytes:
        self._model = model
        if self._response is None:
            return b""
        begun = self.response("in_progress")
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def encode(self, batch: Batch) -> bytes:
        head = self._text_head
        if head and len(batch) == 1 and type(delta := batch[0]) is TextDelta:  # a paced token
            number = self._number
            try:
                event = head + quick_json(delta.text) + _NUMBERED[number]
            except UnicodeEncodeError:
                return self._piece(delta)
            except IndexError:
                return self.encode(batch) if _number_more() else self._piece(delta)
            self._said.append(delta)
            self._number = number + 1
            return event
        if head and (quick := self._texts(batch)):
            return quick
        pieces: list[bytes] = []
        for delta in batch:
            if type(delta) is TextDelta:
                if self._output.open is not TextDelta:
                    pieces.append(self._switch(TextDelta))
                pieces.append(self._piece(delta))
            elif type(delta) is ReasoningDelta:
                if self._output.open is not ReasoningDelta:
                    pieces.append(self._switch(ReasoningDelta))
                pieces.append(self._piece(delta))
            elif type(delta) is ToolCallDelta:
                pieces.append(self._call(delta))
            elif type(delta) is SignatureDelta:
                pieces.append(self._encrypted(delta))
            elif type(delta) is AskedDelta:
                self._response = msgspec.json.decode(delta.text)["response"]
                pieces.append(self.start(self._model))
        return b"".join(pieces)

    def number(self, data: bytes, number: int) -> bytes:  # noqa: ARG002 - the events have their own numbers
        return data

    def heartbeat(self) -> bytes:
        return PING

    def fail(self, error: ChatError) -> bytes:
        """Encode `error`, at which the official clients raise, and the object's last state for other clients."""
        told = error_body(error)["error"]
        flat = {name: told[name] for name in ("code", "message", "param")}
        self.settle("incomplete")  # without an event: a client may run a call whose item is done
        return self._event("error", **flat, error=told) + self._event("response.failed", response=self.failed(error))

    def finish(self, ending: Ending) -> bytes:
        status = "incomplete" if ending.reason in _ENDED_EARLY else "completed"
        ended = self._close(status)
        return ended + self._event(f"response.{status}", response=self.ended(ending))

    # The object.

    def response(self, status: str, usage: Usage = NOTHING_USED, **fields: Any) -> dict[str, Any]:
        """Return the object in its current state, with every field of the format."""
        known = self._response or {}
        kept = {**known, "model": self._model, "output": self._output.items, "usage": usage_of(usage)}
        return {"id": f"resp_{self._run_id}", "object": "response", **kept, "status": status, **fields}

    def ended(self, ending: Ending) -> dict[str, Any]:
        why = _ENDED_EARLY.get(ending.reason or "")
        if why is not None:
            return self.response("incomplete", ending.usage, incomplete_details={"reason": why})
        at = (self._response or {}).get("created_at", 0) + math.ceil(ending.seconds)
        return self.response("completed", ending.usage, completed_at=at)

    def failed(self, error: ChatError) -> dict[str, Any]:
        if isinstance(error, Stopped):
            return self.response("cancelled")
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        return self.response("failed", error={"code": code, "message": error.message})

    def settle(self, status: str = "completed") -> list[Item]:
        """End the open items without events; return all items."""
        number = self._number
        self._close(status)
        self._number = number
        return self._output.items

    # The events.

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._number
        self._number += 1
        if number <= self._after:
            return b""
        return event(kind.encode(), as_json({"type": kind, **fields, "sequence_number": number}))

    def _texts(self, batch: Batch) -> bytes:
        """Encode several pieces of the open text; nothing for a batch with anything else: see `frames.texts`."""
        first = self._number
        last = first + len(batch)
        try:
            pieces = [quick_json(delta.text) for delta in batch if type(delta) is TextDelta]
        except UnicodeEncodeError:
            return b""
        if len(pieces) != len(batch):
            return b""
        events = [self._text_head] * (3 * len(batch))
        events[1::3] = pieces
        while last > len(_NUMBERED) and _number_more():
            pass
        events[2::3] = _NUMBERED[first:last] if last <= len(_NUMBERED) else map(_numbered, range(first, last))
        self._said += batch
        self._number = last
        return b"".join(events)

    def _piece(self, delta: TextDelta | ReasoningDelta) -> bytes:
        """Encode a piece of text or reasoning."""
        self._said.append(delta)
        number = self._number
        self._number = number + 1
        if number <= self._after:
            return b""
        if self._output.open is TextDelta:
            self._text_head = self._head
        return self._head + as_json(delta.text) + _numbered(number)

    def _switch(self, kind: type[TextDelta | ReasoningDelta]) -> bytes:
        """End the open item of text or reasoning, and begin one of another kind."""
        ended = self._end_open("completed")
        output = self._output
        output.open = kind
        index = output.open_at = len(output.items)
        if kind is TextDelta:
            item = output.add("msg", {"type": "message", "role": "assistant", "content": []})
            at: dict[str, Any] = {"item_id": item["id"], "output_index": index, "content_index": 0}
            part = self._added(index, item) + self._event("response.content_part.added", **at, part=output_text(""))
            name, at["logprobs"] = "response.output_text.delta", []
        else:
            item = output.add("rs", {"type": "reasoning", "summary": []})
            at = {"item_id": item["id"], "output_index": index, "summary_index": 0}
            none = {"type": "summary_text", "text": ""}
            part = self._added(index, item) + self._event("response.reasoning_summary_part.added", **at, part=none)
            name = "response.reasoning_summary_text.delta"
        head = as_json({"type": name, **at})
        self._head = b'event: %b\ndata: %b,"delta":' % (name.encode(), head[:-1])
        return ended + part

    def _added(self, index: int, item: Mapping[str, Any]) -> bytes:
        return self._event("response.output_item.added", output_index=index, item=item)

    def _end_open(self, status: str) -> bytes:
        output = self._output
        kind, output.open = output.open, None
        self._text_head = b""
        if kind is None:
            return b""
        said, self._said = self._said, []
        text = "".join([delta.text for delta in said if type(delta) is TextDelta or type(delta) is ReasoningDelta])
        index, item = output.open_at, output.items[output.open_at]
        at: dict[str, Any] = {"item_id": item["id"], "output_index": index}
        if kind is TextDelta:
            part = output_text(text)
            at["content_index"] = 0
            ended = self._event("response.output_text.done", **at, text=text, logprobs=[])
            ended += self._event("response.content_part.done", **at, part=part)
            item["content"] = [part]
        else:
            part = {"type": "summary_text", "text": text}
            at["summary_index"] = 0
            ended = self._event("response.reasoning_summary_text.done", **at, text=text)
            ended += self._event("response.reasoning_summary_part.done", **at, part=part)
            item["summary"] = [part]
        item["status"] = status
        return ended + self._event("response.output_item.done", output_index=index, item=item)

    def _call(self, delta: ToolCallDelta) -> bytes:
        """Encode a piece of a call. Pieces of several calls may alternate, so each call ends with the answer."""
        output = self._output
        begun = b""
        if delta.index not in output.calls:
            begun = self._end_open("completed")
            named = {"call_id": delta.id, **self._named(delta.name), "arguments": ""}
            index = len(output.items)
            begun += self._added(index, output.add("fc", {"type": "function_call", **named}))
            output.calls[delta.index] = (index, [])
        index, pieces = output.calls[delta.index]
        if not delta.arguments:
            return begun
        pieces.append(delta.arguments)
        at = {"item_id": output.items[index]["id"], "output_index": index}
        return begun + self._event("response.function_call_arguments.delta", **at, delta=delta.arguments)

    def _encrypted(self, delta: SignatureDelta) -> bytes:
        """End the item of reasoning with its encrypted form, or encode one that has no summary."""
        output = self._output
        if not delta.encrypted:  # another format's
            return b""
        if output.open is ReasoningDelta:
            output.items[output.open_at]["encrypted_content"] = delta.encrypted
            return self._end_open("completed")
        ended = self._end_open("completed")
        index = len(output.items)
        item = output.add("rs", {"type": "reasoning", "summary": [], "encrypted_content": delta.encrypted})
        added = self._added(index, item)
        item["status"] = "completed"
        return ended + added + self._event("response.output_item.done", output_index=index, item=item)

    def _named(self, name: str) -> dict[str, str]:
        """Return the client's name for the function, which may be in a namespace."""
        for tool in (self._response or {}).get("tools", ()):
            namespace = tool.get("namespace")
            if namespace and name == qualified(tool["name"], namespace):
                return {"name": tool["name"], "namespace": namespace}
        return {"name": name}

    def _close(self, status: str) -> bytes:
        """End every open item."""
        output = self._output
        ended = self._end_open(status)
        for index, pieces in output.calls.values():
            item = output.items[index]
            at = {"item_id": item["id"], "output_index": index}
            if not pieces and status == "completed":
                pieces.append("{}")
                ended += self._event("response.function_call_arguments.delta", **at, delta="{}")
            item |= {"arguments": "".join(pieces), "status": status}
            told = {**at, "name": item["name"], "arguments": item["arguments"]}
            ended += self._event("response.function_call_arguments.done", **told)
            ended += self._event("response.output_item.done", output_index=index, item=item)
        output.calls.clear()
        return ended


class ResponsesWhole(ResponsesEncoder):
    """Encodes one answer as the object alone."""

    streams = False
    headers: Sequence[tuple[bytes, bytes]] = JSON

    def __init__(self, run_id: str, response: dict[str, Any] | None, asked: str = "") -> None:
        super().__init__(run_id, response, asked, after=math.inf)

    def heartbeat(self) -> bytes:
        return b""

    def fail(self, error: ChatError) -> bytes:
        return as_json(error_body(error))

    def finish(self, ending: Ending) -> bytes:
        super().finish(ending)
        return as_json(self.ended(ending))


def usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
