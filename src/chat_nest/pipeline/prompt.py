"""Make the prompt that is sent from a parsed request, with an upper bound of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chat_nest.core.errors import BadRequest
from chat_nest.core.messages import ChatRequest, Message, Tool
from chat_nest.core.protocols import Dialect, Prompt
from chat_nest.counting.bounds import prompt_bound
from chat_nest.counting.tokens import TokenCounters
from chat_nest.counting.trim import Trimmed, trim
from chat_nest.limits.spec import Profile
from chat_nest.pipeline.upstream import split_model
from chat_nest.runs.kept import Kept


def parse(dialect: Dialect, body: bytes, earlier: Mapping[str, Kept]) -> ChatRequest:
    """Parse the body, with the kept answers that it refers to. Raises BadRequest."""
    if not earlier:
        return dialect.parse(body)
    with_earlier: Callable[[bytes, Mapping[str, Kept]], ChatRequest] = dialect.parse  # type: ignore[assignment]
    return with_earlier(body, earlier)


def make_prompt(request: ChatRequest, profile: Profile, counters: TokenCounters) -> tuple[Prompt, int, Trimmed]:
    """Return the prompt to send, an upper bound of its tokens for every model that may answer, and what was trimmed."""
    messages = request.messages
    if profile.allow_system_prompt:
        messages = _with_system(request)
    first, *others = (counters.of(model) for model in (profile.model, *profile.fallbacks))
    room = None
    if profile.tokens_per_request is not None:
        # Older turns must not take the answer's share, unless the answer's share is most of the request.
        room = profile.tokens_per_request - min(profile.max_output_tokens, profile.tokens_per_request // 2)
    counted = _with_schema(request)
    kept = trim(messages, profile.max_messages, room, first, counted)
    if (kept.dropped or kept.dropped_images) and not request.may_trim:
        raise BadRequest("is longer than this caller may send at once", field=request.messages_field)
    prompt = Prompt(
        model=split_model(profile.model)[1],
        messages=kept.messages,
        max_output_tokens=profile.max_output_tokens,
        temperature=profile.temperature,
        tools=request.tools,
        tool_choice=request.tool_choice,
        options=request.options,
    )
    bound = max([kept.tokens, *(prompt_bound(kept.messages, counter, counted) for counter in others)])
    return prompt, bound, kept


def input_bound(request: ChatRequest, model: str, counters: TokenCounters) -> tuple[int, bool]:
    """Return an upper bound of the request's input tokens, untrimmed, and whether the count of its texts is exact."""
    counter = counters.of(model)
    return prompt_bound(_with_system(request), counter, _with_schema(request)), counter.exact


def _with_system(request: ChatRequest) -> tuple[Message, ...]:
    """Return the messages with the system prompt."""
    if not request.system_prompt:
        return request.messages
    return (Message(role="system", content=request.system_prompt), *request.messages)


def _with_schema(request: ChatRequest) -> tuple[Tool, ...]:
    """Return the tools with the schema of the answer, which providers bill as a tool."""
    format = request.options.format
    if format is None or format.schema is None:
        return request.tools
    return (*request.tools, Tool(name=format.name, description=format.description, parameters=format.schema))
