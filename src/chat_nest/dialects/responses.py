"""OpenAI's Responses, streamed or whole. https://platform.openai.com/docs/api-reference/responses

Unless `store` is false, an answer is kept for a while, and its caller can read, continue and delete it.
The file is long because the schemas of the format are beside what they describe.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
from msgspec.structs import replace

from chat_nest.core.attachments import without
from chat_nest.core.claims import Quota
from chat_nest.core.errors import BadRequest, ChatError, NotFound, by_code
from chat_nest.core.messages import ChatRequest, Message
from chat_nest.core.protocols import Answer, Now, Route
from chat_nest.dialects import fields as read
from chat_nest.dialects import options, responses_items
from chat_nest.dialects import options as asked
from chat_nest.dialects import responses_items as items
from chat_nest.dialects.facts import Facts
from chat_nest.dialects.fields import MAX_PARTS, MAX_TOOLS
from chat_nest.dialects.frames import LONGEST_WAIT, BudgetStatus, as_json
from chat_nest.dialects.openai_refusals import quota_headers, refusal
from chat_nest.dialects.responses_request import (
    INCLUDED,
    MAX_METADATA,
    SUMMARIES,
    check_include,
    choice_as_echoed,
    echo_of,
    read_format,
    read_options,
    read_tool_choice,
    read_tools,
    tool_as_echoed,
)
from chat_nest.dialects.responses_stream import ResponsesEncoder, ResponsesWhole
from chat_nest.dialects.schemas import (
    COUNT,
    DETAIL,
    EFFORT,
    JSON_SCHEMA,
    JSON_SCHEMA_FORMAT,
    LOWERED,
    MODEL,
    NAME,
    NULL,
    OPENAI_ERROR,
    PENALTY,
    STRING,
    SWITCH,
    TEMPERATURE,
    TEXT,
    TOOL,
    TOP_P,
    URL,
    array,
    block,
    described,
    either,
    event_schema,
    formats,
    listed,
    nullable,
    refusing,
    table,
    whole,
)
from chat_nest.dialects.strict_json import is_object
from chat_nest.dialects.turns import MAX_MESSAGES, conversation, with_open_thoughts
from chat_nest.runs.kept import Kept

REFUSED_FIELDS = (
    read.OWN_CONNECTION | {"models", "conversation", "prompt", "context_management", "moderation"} | {"response_format"}
)
"""Fields that would choose a provider, open a connection, need data that is kept elsewhere, or are another API's."""
ONLY = {"background": False, "top_logprobs": 0}
OUTPUT_FIELDS = ("max_output_tokens",)
OPTION_NAMES = {"format": "text.format", "parallel_calls": "parallel_tool_calls"}
MAX_REFERRED = 64
"""The most kept answers that one request may refer to."""

FORGOTTEN = ChatRequest(messages=(), keep=False)
"""The request of an answer that is not kept."""

_ITEM_ID = re.compile(r"(?:msg|fc|rs)_([0-9a-f]{24})_\d{1,9}")
_RESPONSE_ID = re.compile(r"resp_([0-9a-f]{24})")

INPUT_PART = either(
    *(block(kind, {"text": TEXT}, "text") for kind in sorted(responses_items.TEXT_PARTS)),
    block("refusal", {"refusal": TEXT}, "refusal"),
    block("input_image", nullable({"image_url": URL, "detail": DETAIL})),
    block("input_file", nullable({"file_data": URL, "file_url": URL, "filename": TEXT})),
)
INPUT_TEXT = either(TEXT, array(INPUT_PART, MAX_PARTS))
ITEM = either(
    table(
        {
            "type": {"enum": ["message", None]},
            "role": {"enum": ["user", "assistant", "system", "developer"]},
            "content": INPUT_TEXT,
        },
        "role",
        "content",
    ),
    block("function_call", {"call_id": NAME, "name": NAME, "arguments": TEXT}, "call_id", "name", "arguments"),
    block("function_call_output", {"call_id": NAME, "output": INPUT_TEXT}, "call_id", "output"),
    described(block("reasoning", {}), "Left out; not sent to the model"),
    described(block("item_reference", {"id": NAME}, "id"), "To an item of an answer that is kept"),
)
RESPONSES_TOOL = block(
    "function", {"name": TOOL, **nullable({"description": TEXT, "parameters": JSON_SCHEMA, "strict": SWITCH})}, "name"
)
RESPONSES_CHOICE = {
    **either(
        {"enum": ["auto", "none", "required"]},
        block("function", {"name": NAME}, "name"),
        block(
            "allowed_tools",
            {"mode": {"enum": ["auto", "required", None]}, "tools": array(table({"name": NAME}, "name"), MAX_TOOLS)},
            "tools",
        ),
    ),
    "examples": ["auto"],
}
RESPONSE_USAGE = whole(
    {
        "input_tokens": COUNT,
        "input_tokens_details": whole({"cached_tokens": COUNT, "cache_write_tokens": COUNT}),
        "output_tokens": COUNT,
        "output_tokens_details": whole({"reasoning_tokens": COUNT}),
        "total_tokens": COUNT,
    }
)
RESPONSE = described(
    whole(
        {
            "id": STRING,
            "object": {"const": "response"},
            "created_at": described(COUNT, "Unix time in seconds"),
            "completed_at": either(COUNT, NULL),
            "status": {"enum": ["completed", "incomplete", "failed", "cancelled", "in_progress"]},
            "model": STRING,
            "output": described(listed({"type": "object"}), "Items of type message, reasoning or function_call"),
            "usage": RESPONSE_USAGE,
            "error": either(whole({"code": STRING, "message": STRING}), NULL),
            "incomplete_details": either(whole({"reason": {"enum": ["max_output_tokens", "content_filter"]}}), NULL),
            "store": described(SWITCH, "Whether it can be read again, for a while"),
        }
    ),
    "OpenAI's response object, with every field of it",
)

REQUEST = refusing(
    REFUSED_FIELDS,
    table(
        {
            "input": {
                **either(TEXT, array(ITEM, MAX_MESSAGES, 1)),
                "description": "Text of the user's, or items; the last one is the user's or the result of a tool",
            },
            **nullable(
                {
                    "instructions": TEXT,
                    "model": MODEL,
                    "stream": SWITCH,
                    "store": described(
                        SWITCH, "Whether the answer may be kept, for a while; it is unless this is false"
                    ),
                    "previous_response_id": described(NAME, "A kept answer that the request goes on from"),
                    **dict.fromkeys(OUTPUT_FIELDS, LOWERED),
                    "temperature": TEMPERATURE,
                    "top_p": TOP_P,
                    **dict.fromkeys(("frequency_penalty", "presence_penalty"), PENALTY),
                    "tools": array(RESPONSES_TOOL, MAX_TOOLS),
                    "tool_choice": RESPONSES_CHOICE,
                    "parallel_tool_calls": SWITCH,
                    "text": table(
                        nullable(
                            {
                                "format": formats(JSON_SCHEMA_FORMAT, "json_object"),
                                "verbosity": {"enum": [*options.VERBOSITIES]},
                            }
                        )
                    ),
                    "reasoning": table(nullable({"effort": EFFORT, "summary": {"enum": [*SUMMARIES]}})),
                    "truncation": {"enum": ["auto", "disabled"]},
                    "include": array({"enum": [*INCLUDED]}, 16),
                    "metadata": {
                        "type": "object",
                        "maxProperties": MAX_METADATA,
                        "propertyNames": {**TEXT, "maxLength": 64},
                        "additionalProperties": {**TEXT, "maxLength": 512},
                    },
                    "user": TEXT,
                    **dict.fromkeys(("safety_identifier", "prompt_cache_key"), NAME),
                    **{name: {"const": only} for name, only in ONLY.items()},
                }
            ),
        },
        "input",
    ),
)

FACTS = Facts(
    path="/v1/responses",
    request=REQUEST,
    example={"input": [{"role": "user", "content": "Hello"}], "stream": True},
    event=event_schema(
        *("response.created", "response.in_progress", "response.output_item.added", "response.output_item.done"),
        *("response.content_part.added", "response.content_part.done"),
        *("response.output_text.delta", "response.output_text.done"),
        *("response.reasoning_summary_part.added", "response.reasoning_summary_part.done"),
        *("response.reasoning_summary_text.delta", "response.reasoning_summary_text.done"),
        *("response.function_call_arguments.delta", "response.function_call_arguments.done"),
        *("response.completed", "response.incomplete", "response.failed", "error"),
    ),
    stream="`response.created` to `response.completed`, `response.incomplete` or `response.failed`",
    answer=RESPONSE,
    error=OPENAI_ERROR,
)


class Responses:
    """The dialect of Responses.

    A client's `base_url` plus `/responses` gives `path`; `now` is the clock of `created_at`; `budget_status` is as in
    OpenAI.

    Without `store` no answer is kept, whatever a client sends.
    """

    facts: ClassVar[Facts] = FACTS

    option_names = OPTION_NAMES
    takes_images = True
    longest_wait = LONGEST_WAIT

    def __init__(
        self,
        path: str = "/v1/responses",
        *,
        store: bool = True,
        budget_status: BudgetStatus = 429,
        now: Now = time.time,
    ) -> None:
        path = path.rstrip("/")
        self.routes: Sequence[Route] = (
            Route(path=path),
            Route(path=f"{path}/input_tokens", count=_counted),
            Route(path=path, method="GET", kept=True),
        )
        self._store = store
        self._budget_status: BudgetStatus = budget_status
        self._now = now

    def parse(self, body: bytes, earlier: Mapping[str, Kept] | None = None) -> ChatRequest:
        """Parse a body. Raises BadRequest, which names the field and the rule, never the value. Ignores unknown fields.

        `earlier` holds the kept answers that the body refers to, by the ids of their runs.
        """
        fields = read.parse_fields(body, REFUSED_FIELDS)
        for name, only in ONLY.items():
            if fields.get(name, only) != only or type(fields.get(name, only)) is not type(only):
                raise BadRequest("is not offered here: leave it out", field=name)
        check_include(fields)
        context, referred = _continued(fields, earlier or {})
        turns = items.turns(items.entries(fields.get("input")), referred)
        if not turns:
            raise BadRequest("must hold a message", field="input")
        tools = read_tools(fields)
        choice, tools = read_tool_choice(fields.get("tool_choice", "auto"), tools)
        text = read.table(fields.get("text", {}), "text")
        reasoning = read.table(fields.get("reasoning", {}), "reasoning")
        instructions = read.text(fields.get("instructions", ""), "instructions")
        return ChatRequest(
            messages=with_open_thoughts(conversation([*(("input", message) for message in context), *turns])),
            messages_field="input",
            model=read.model(fields),
            system_prompt=instructions or None,
            system_field="instructions",
            max_output_tokens=read.least(fields, OUTPUT_FIELDS),
            temperature=read.temperature(fields),
            tools=tools,
            tool_choice=choice,
            options=read_options(fields, text, reasoning),
            stream=read.switch(fields, "stream"),
            keep=(read.switch(fields, "store") if "store" in fields else True) and self._store,
            may_trim=asked.word(fields.get("truncation"), ("auto", "disabled"), "truncation") != "disabled",
            echo=(as_json(echo_of(fields, reasoning)).decode(),),
        )

    def earlier(self, body: bytes) -> Sequence[str]:
        """Return the runs of the kept answers that a body refers to; none for an invalid body."""
        if b"previous_response_id" not in body and b'"id"' not in body:
            return ()
        try:
            fields = read.parse_fields(body, ())
            entries = items.entries(fields.get("input", "x"))
        except BadRequest:
            return ()
        found = [match[1] for match in [_RESPONSE_ID.fullmatch(str(fields.get("previous_response_id")))] if match]
        for entry in entries:
            if is_object(entry) and items.kind_of(entry) == "item_reference":
                match = _ITEM_ID.fullmatch(str(entry.get("id")))
                found += [match[1]] if match else []
        runs = tuple(dict.fromkeys(found))
        if len(runs) > MAX_REFERRED:
            raise BadRequest(f"must not refer to more than {MAX_REFERRED} answers", field="input")
        return runs

    def encoder(self, request: ChatRequest, run_id: str) -> ResponsesEncoder:
        response = self._response(request)
        kept = ""
        if request.keep:
            texts = [without(message) for message in request.messages]  # images are too large to be kept
            kept = as_json({"messages": texts, "response": response}).decode()
        kind = ResponsesEncoder if request.stream else ResponsesWhole
        return kind(run_id, response, kept)

    def follower(self, run_id: str, after: int = -1) -> ResponsesEncoder:
        """Return an encoder for a reader that reconnects and has the events up to number `after`."""
        return ResponsesEncoder(run_id, None, after=after)

    def refuse(self, error: ChatError, request_id: str) -> Answer:  # noqa: ARG002 - OpenAI sends it in a header
        return refusal(error, self._budget_status, param="")  # Open Responses' clients require a string

    def quota_headers(self, quotas: Sequence[Quota]) -> list[tuple[bytes, bytes]]:
        return quota_headers(quotas)

    # What is kept.

    def run_of(self, response_id: str) -> str:
        """Return the run of a response. Raises NotFound if the text is not the id of a response."""
        match = _RESPONSE_ID.fullmatch(response_id)
        if match is None:
            raise NotFound("There is no such response")
        return match[1]

    def whole(self, kept: Kept) -> Answer:
        """Return the object of a kept answer in its current state."""
        if not kept.asked:  # an answer that is not to be kept
            kept = replace(kept, asked=as_json({"response": self._response(FORGOTTEN)}).decode())
        encoder = _replayed(kept)
        if kept.finale is not None and kept.finale.ending is not None:
            return Answer(status=200, body=encoder.finish(kept.finale.ending))
        encoder.settle("incomplete")
        if kept.finale is None:
            return Answer(status=200, body=as_json(encoder.response("in_progress")))
        error = by_code(kept.finale.code)
        error.message = kept.finale.message or error.message
        return Answer(status=200, body=as_json(encoder.failed(error)))

    def input_items(self, kept: Kept, *, newest_first: bool, limit: int, after: str) -> Answer:
        """Return a page of the input items."""
        listed = items.items_of(_messages(kept), kept.id)
        if newest_first:
            listed.reverse()
        ids = [item["id"] for item in listed]
        begin = ids.index(after) + 1 if after in ids else 0
        page = listed[begin : begin + limit]
        edges = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": "", "last_id": ""}
        more = begin + limit < len(listed)
        return Answer(status=200, body=as_json({"object": "list", "data": page, **edges, "has_more": more}))

    def deleted(self, response_id: str) -> Answer:
        return Answer(status=200, body=as_json({"id": response_id, "object": "response.deleted", "deleted": True}))

    def _response(self, request: ChatRequest) -> dict[str, Any]:
        """Return the fields of the object besides the answer: the values that apply, not the requested ones."""
        options = request.options
        echo: dict[str, Any] = msgspec.json.decode(request.echo[0]) if request.echo else echo_of({}, {})
        return {
            "created_at": int(self._now()),
            "completed_at": None,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": request.system_prompt,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": None,
            "parallel_tool_calls": options.parallel_calls is not False,
            "presence_penalty": options.presence_penalty or 0.0,
            "frequency_penalty": options.frequency_penalty or 0.0,
            "service_tier": "default",
            "store": request.keep,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": read_format(options), "verbosity": options.verbosity or "medium"},
            "tool_choice": choice_as_echoed(request.tool_choice),
            "tools": [tool_as_echoed(tool) for tool in request.tools],
            "top_logprobs": 0,
            "top_p": 1.0 if options.top_p is None else options.top_p,
            "truncation": "auto" if request.may_trim else "disabled",
            **echo,
        }


def _counted(tokens: int, *, exact: bool) -> Answer:
    said = {"object": "response.input_tokens", "input_tokens": tokens, "exact": exact}
    return Answer(status=200, body=as_json(said))


def _replayed(kept: Kept) -> ResponsesEncoder:
    encoder = ResponsesWhole(kept.id, msgspec.json.decode(kept.asked)["response"])
    encoder.start(kept.model)
    for batch in kept.batches:
        encoder.encode(batch)
    return encoder


def _messages(kept: Kept) -> list[Message]:
    return msgspec.convert(msgspec.json.decode(kept.asked)["messages"], list[Message])


def _continued(fields: Mapping[str, Any], earlier: Mapping[str, Kept]) -> tuple[list[Message], dict[str, items.Item]]:
    """Return the earlier messages, if the request continues an answer, and the items of all answers it refers to."""
    context: list[Message] = []
    if "previous_response_id" in fields:
        named = read.name(fields["previous_response_id"], "previous_response_id")
        match = _RESPONSE_ID.fullmatch(named)
        before = earlier.get(match[1]) if match else None
        if before is None:
            raise PreviousNotFound
        if before.finale is None:
            raise BadRequest("must be an answer that has ended", field="previous_response_id")
        answered = [replace(message, ours=True) for message in items.answered(_replayed(before).settle())]
        context = [*_messages(before), *answered]
    referred = {item["id"]: item for kept in earlier.values() for item in _replayed(kept).settle()}
    return context, referred


class PreviousNotFound(BadRequest):
    code, status = "previous_response_not_found", 404

    def __init__(self) -> None:
        rule = "there is no such response here, or it is not kept any more: send its items as input"
        super().__init__(rule, field="previous_response_id")
