"""OpenAI's Responses, streamed or whole. https://platform.openai.com/docs/api-reference/responses

Unless `store` is false, an answer is kept for a while, and its caller can read, continue and delete it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from chat_nest.core.attachments import without
from chat_nest.core.claims import Quota
from chat_nest.core.errors import BadRequest, ChatError, NotFound, by_code
from chat_nest.core.messages import ChatRequest, Message, Options, Tool
from chat_nest.core.protocols import Answer, Now, Route
from chat_nest.dialects import fields as read
from chat_nest.dialects import options as asked
from chat_nest.dialects import responses_items as items
from chat_nest.dialects.frames import LONGEST_WAIT, as_json
from chat_nest.dialects.openai_refusals import quota_headers, refusal
from chat_nest.dialects.responses_stream import ResponsesEncoder, ResponsesWhole
from chat_nest.dialects.strict_json import is_object
from chat_nest.dialects.turns import conversation, with_open_thoughts
from chat_nest.runs.kept import Kept

REFUSED_FIELDS = read.OWN_CONNECTION | {"models", "conversation", "prompt", "context_management", "moderation"}
"""Fields that would choose a provider, open a connection, or need data that is kept elsewhere."""
ONLY = {"background": False, "top_logprobs": 0}
OUTPUT_FIELDS = ("max_output_tokens",)
OPTION_NAMES = {"format": "text.format", "parallel_calls": "parallel_tool_calls"}
HOSTED = (
    *("web_search_preview", "web_search", "file_search", "code_interpreter", "computer_use_preview", "computer"),
    *("image_generation", "mcp", "local_shell", "shell", "apply_patch", "custom", "tool_search"),
)
"""Tools that run at OpenAI, or that other providers do not have."""
INCLUDED = (
    *("reasoning.encrypted_content", "web_search_call.results", "web_search_call.action.sources"),
    *("file_search_call.results", "code_interpreter_call.outputs", "computer_call_output.output.image_url"),
    "message.input_image.image_url",
)
"""The values that `include` may have. Answers contain only the first, if the provider has Responses itself."""
SUMMARIES = ("auto", "concise", "detailed")
MAX_METADATA = 16
MAX_REFERRED = 64
"""The most kept answers that one request may refer to."""

FORGOTTEN = ChatRequest(messages=(), keep=False)
"""The request of an answer that is not kept."""

_ITEM_ID = re.compile(r"(?:msg|fc|rs)_([0-9a-f]{24})_\d{1,9}")
_RESPONSE_ID = re.compile(r"resp_([0-9a-f]{24})")


class Responses:
    """The dialect of Responses.

    A client's `base_url` plus `/responses` gives `path`; `now` is the clock of `created_at`.

    Without `store` no answer is kept, whatever a client sends.
    """

    option_names = OPTION_NAMES
    takes_images = True
    longest_wait = LONGEST_WAIT

    def __init__(self, path: str = "/v1/responses", *, store: bool = True, now: Now = time.time) -> None:
        path = path.rstrip("/")
        self.routes: Sequence[Route] = (
            Route(path=path),
            Route(path=f"{path}/input_tokens", count=_counted),
            Route(path=path, method="GET", kept=True),
        )
        self._store = store
        self._now = now

    def parse(self, body: bytes, earlier: Mapping[str, Kept] | None = None) -> ChatRequest:
        """Parse a body. Raises BadRequest, which names the field and the rule, never the value. Ignores unknown fields.

        `earlier` holds the kept answers that the body refers to, by the ids of their runs.
        """
        fields = read.parse_fields(body, REFUSED_FIELDS)
        for name, only in ONLY.items():
            if fields.get(name, only) != only or type(fields.get(name, only)) is not type(only):
                raise BadRequest("is not offered here: leave it out", field=name)
        _check_include(fields)
        context, referred = _continued(fields, earlier or {})
        turns = items.turns(items.entries(fields.get("input")), referred)
        if not turns:
            raise BadRequest("must hold a message", field="input")
        tools = _tools(fields)
        choice, tools = _tool_choice(fields.get("tool_choice", "auto"), tools)
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
            options=_options(fields, text, reasoning),
            stream=read.switch(fields, "stream"),
            keep=(read.switch(fields, "store") if "store" in fields else True) and self._store,
            may_trim=asked.word(fields.get("truncation"), ("auto", "disabled"), "truncation") != "disabled",
            echo=(as_json(_echo(fields, reasoning)).decode(),),
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
        return refusal(error, param="")  # Open Responses' clients require a string

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
        echo: dict[str, Any] = msgspec.json.decode(request.echo[0]) if request.echo else _echo({}, {})
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
            "text": {"format": _format(options), "verbosity": options.verbosity or "medium"},
            "tool_choice": _choice(request.tool_choice),
            "tools": [_tool(tool) for tool in request.tools],
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


def _check_include(fields: Mapping[str, Any]) -> None:
    for index, name in enumerate(read.array(fields.get("include", []), "include", 16)):
        if type(name) is not str or name not in INCLUDED:
            raise BadRequest("is not offered here: leave it out", field=f"include[{index}]")


def _options(fields: dict[str, Any], text: dict[str, Any], reasoning: dict[str, Any]) -> Options:
    chosen = text.get("format")
    return Options(
        format=None if chosen is None else asked.json_format(chosen, "text.format"),
        parallel_calls=asked.switch(fields, "parallel_tool_calls"),
        effort=asked.word(reasoning.get("effort"), asked.EFFORTS, "reasoning.effort"),
        summary=_summary(reasoning),
        encrypted_reasoning="reasoning.encrypted_content" in fields.get("include", ()),
        verbosity=asked.word(text.get("verbosity"), asked.VERBOSITIES, "text.verbosity"),
        **asked.sampling(
            fields, top_p="top_p", frequency_penalty="frequency_penalty", presence_penalty="presence_penalty"
        ),
    )


def _tools(fields: dict[str, Any]) -> tuple[Tool, ...]:
    """Return the functions.

    A function of a namespace is named NAMESPACE__NAME: models and other providers have no groups.
    """
    tools = _functions(fields.get("tools", []), "tools")
    if len(tools) > read.MAX_TOOLS:
        raise BadRequest(f"must not have more than {read.MAX_TOOLS} functions", field="tools")
    return tools


def _functions(value: Any, field: str, namespace: str = "") -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for index, entry in enumerate(read.array(value, field, read.MAX_TOOLS)):
        at = f"{field}[{index}]"
        offered = read.table(entry, at)
        kind = offered.get("type")
        if kind == "namespace" and not namespace:
            tools += _functions(offered.get("tools"), f"{at}.tools", read.name(offered.get("name"), f"{at}.name"))
            continue
        if kind == "web_search" and offered.get("external_web_access") is False:
            continue  # Codex always sends it: with this value the tool may look up nothing
        if kind != "function":
            hosted = next((f"{name} is not offered here: " for name in HOSTED if _is(kind, name)), "")
            raise BadRequest(f"{hosted}must be function", field=f"{at}.type")
        named, description, parameters = (offered.get(name) for name in ("name", "description", "parameters"))
        if namespace and type(named) is str:
            named = items.qualified(named, namespace)
        strict = asked.strictness(offered, at)
        tool = read.tool(named, description, parameters, at, "parameters", strict=strict)
        tools.append(replace(tool, namespace=namespace) if namespace else tool)
    return tuple(tools)


def _is(kind: Any, name: str) -> bool:
    """Return whether a type has this name, with or without a date."""
    return type(kind) is str and (kind == name or re.fullmatch(rf"{name}_\d{{4}}_\d\d_\d\d", kind) is not None)


def _tool_choice(value: Any, tools: tuple[Tool, ...]) -> tuple[str, tuple[Tool, ...]]:
    """Return the choice, and the tools that it leaves."""
    if type(value) is str and value in ("auto", "none", "required"):
        return read.choice(value, tools, "tool_choice"), tools
    if is_object(value) and value.get("type") == "function":
        named = read.name(value.get("name"), "tool_choice.name")
        return read.choice(f"tool:{named}", tools, "tool_choice.name"), tools
    if is_object(value) and value.get("type") == "allowed_tools":
        mode = asked.word(value.get("mode"), ("auto", "required"), "tool_choice.mode") or "auto"
        allowed: set[str] = set()
        for index, entry in enumerate(read.array(value.get("tools"), "tool_choice.tools", read.MAX_TOOLS)):
            at = f"tool_choice.tools[{index}]"
            named = read.name(read.table(entry, at).get("name"), f"{at}.name")
            read.choice(f"tool:{named}", tools, f"{at}.name")
            allowed.add(named)
        left = tuple(tool for tool in tools if tool.name in allowed)
        return read.choice(mode, left, "tool_choice.mode"), left
    raise BadRequest("must be auto, none, required, a function or allowed_tools", field="tool_choice")


def _echo(fields: Mapping[str, Any], reasoning: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are only echoed."""
    summary = _summary(reasoning)
    effort = asked.word(reasoning.get("effort"), asked.EFFORTS, "reasoning.effort")
    named = {
        name: read.name(fields[name], name) for name in ("safety_identifier", "prompt_cache_key") if name in fields
    }
    return {
        "metadata": _metadata(fields),
        "previous_response_id": fields.get("previous_response_id"),
        "reasoning": {"effort": effort, "summary": summary},
        "safety_identifier": named.get("safety_identifier"),
        "prompt_cache_key": named.get("prompt_cache_key"),
        "user": read.text(fields.get("user", ""), "user"),
    }


def _summary(reasoning: Mapping[str, Any]) -> Any:
    """Return the client's wish; `generate_summary` is the field's former name."""
    name = "generate_summary" if reasoning.get("summary") is None else "summary"
    return asked.word(reasoning.get(name), SUMMARIES, f"reasoning.{name}")


def _metadata(fields: Mapping[str, Any]) -> dict[str, str]:
    pairs = read.table(fields.get("metadata", {}), "metadata")
    if len(pairs) > MAX_METADATA:
        raise BadRequest(f"must not have more than {MAX_METADATA} pairs", field="metadata")
    for key, value in pairs.items():
        if len(read.text(key, "metadata")) > 64 or len(read.text(value, "metadata")) > 512:
            raise BadRequest("must have keys of at most 64 and values of at most 512 characters", field="metadata")
    return pairs


def _format(options: Options) -> dict[str, Any]:
    format = options.format
    if format is None:
        return {"type": "text"}
    if format.schema is None:
        return {"type": "json_object"}
    described = {"description": format.description} if format.description else {}
    strict = format.strict is True
    return {"type": "json_schema", "name": format.name, **described, "schema": format.schema, "strict": strict}


def _choice(choice: str) -> object:
    kind, _, name = choice.partition(":")
    return {"type": "function", "name": name} if name else kind


def _tool(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        **items.named(tool.name, tool.namespace),
        "description": tool.description or None,
        "parameters": tool.parameters,
        "strict": tool.strict is True,
    }
