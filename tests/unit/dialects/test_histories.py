"""What comes back in a client's history: calls without results, ids that come again, and all that we sent out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from chat_nest.dialects import named, DialectName
from chat_nest.core.errors import BadRequest
from chat_nest.core.messages import Message

Entry = dict[str, Any]
History = list[tuple[str, Any]]
"""Each `user` or `said` with a text, `calls` with ids, `result` with an id and a text."""


def openai(history: History) -> Entry:
    messages: list[Entry] = []
    for kind, value in history:
        if kind in ("user", "said"):
            messages.append({"role": "user" if kind == "user" else "assistant", "content": value})
        elif kind == "calls":
            calls = [
                {"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}} for id, name in value
            ]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        else:
            messages.append({"role": "tool", "tool_call_id": value[0], "content": value[1]})
    return {"model": "m", "messages": messages}


def ag_ui(history: History) -> Entry:
    body = json.dumps(openai(history)).replace('"tool_calls"', '"toolCalls"').replace('"tool_call_id"', '"toolCallId"')
    return {"threadId": "t", "runId": "r", **json.loads(body)}


def anthropic(history: History) -> Entry:
    messages: list[Entry] = []
    for kind, value in history:
        if kind in ("user", "said"):
            messages.append({"role": "user" if kind == "user" else "assistant", "content": value})
        elif kind == "calls":
            blocks = [{"type": "tool_use", "id": id, "name": name, "input": {}} for id, name in value]
            messages.append({"role": "assistant", "content": blocks})
        else:
            block = {"type": "tool_result", "tool_use_id": value[0], "content": value[1]}
            messages.append({"role": "user", "content": [block]})
    return {"model": "m", "max_tokens": 9, "messages": messages}


def responses(history: History) -> Entry:
    items: list[Entry] = []
    for kind, value in history:
        if kind in ("user", "said"):
            items.append({"role": "user" if kind == "user" else "assistant", "content": value})
        elif kind == "calls":
            items += [{"type": "function_call", "call_id": id, "name": name, "arguments": "{}"} for id, name in value]
        else:
            items.append({"type": "function_call_output", "call_id": value[0], "output": value[1]})
    return {"model": "m", "input": items}


FORMATS: dict[DialectName, Callable[[History], Entry]] = {
    "openai": openai,
    "ag_ui": ag_ui,
    "anthropic": anthropic,
    "responses": responses,
}
every_format = pytest.mark.parametrize("name", FORMATS)


def messages(name: DialectName, history: History) -> list[tuple[str, Any]]:
    parsed = named(name).parse(json.dumps(FORMATS[name](history)).encode()).messages
    return [shown(message) for message in parsed]


def shown(message: Message) -> tuple[str, Any]:
    if message.role == "tool":
        return "result", (message.tool_call_id, message.content)
    if message.tool_calls:
        return "calls", [(call.id, call.name) for call in message.tool_calls]
    return "user" if message.role == "user" else "said", message.content


@every_format
def test_a_call_without_a_result_is_left_out(name: DialectName) -> None:
    """https://github.com/letta-ai/letta/issues/3308, https://github.com/iOfficeAI/AionCore/pull/330."""
    history: History = [("user", "a"), ("calls", [("x", "f")]), ("user", "b")]
    assert messages(name, history) == [("user", "a"), ("user", "b")]
    history = [("user", "a"), ("calls", [("x", "f"), ("y", "g")]), ("result", ("y", "1")), ("user", "b")]
    assert messages(name, history) == [("user", "a"), ("calls", [("y", "g")]), ("result", ("y", "1")), ("user", "b")]


@every_format
def test_a_result_follows_its_call(name: DialectName) -> None:
    history: History = [("user", "a"), ("calls", [("x", "f"), ("y", "g")]), ("user", "b")]
    history += [("result", ("y", "2")), ("result", ("x", "1"))]
    assert messages(name, history) == [
        ("user", "a"),
        ("calls", [("x", "f"), ("y", "g")]),
        ("result", ("x", "1")),
        ("result", ("y", "2")),
        ("user", "b"),
    ]


@every_format
def test_an_id_that_comes_again_is_another_call(name: DialectName) -> None:
    """https://github.com/open-webui/open-webui/issues/28305."""
    round_one: History = [("calls", [("c", "f")]), ("result", ("c", "1"))]
    round_two: History = [("calls", [("c", "g")]), ("result", ("c", "2"))]
    got = messages(name, [("user", "a"), *round_one, *round_two, ("user", "b")])
    assert [kind for kind, _ in got] == ["user", "calls", "result", "calls", "result", "user"]
    (first,), (second,) = got[1][1], got[3][1]
    assert (first, second[1]) == (("c", "f"), "g")
    assert second[0] != "c"
    assert (got[2][1], got[4][1]) == (("c", "1"), (second[0], "2"))


@every_format
def test_one_id_twice_in_a_message(name: DialectName) -> None:
    history: History = [
        ("user", "a"),
        ("calls", [("c", "f"), ("c", "g")]),
        ("result", ("c", "1")),
        ("result", ("c", "2")),
    ]
    got = messages(name, history)
    ids = [id for id, _ in got[1][1]]
    assert len(set(ids)) == 2
    assert got[2:] == [("result", (ids[0], "1")), ("result", (ids[1], "2"))]


@every_format
def test_a_result_that_answers_nothing_is_refused(name: DialectName) -> None:
    with pytest.raises(BadRequest):
        messages(name, [("user", "a"), ("result", ("x", "1")), ("user", "b")])


@every_format
@pytest.mark.parametrize("word", ["x" * 405, "x" * 8_192, "a\tb", "é\U0001f600", "functions.f:0", " "])
def test_ids_and_names_that_we_sent_out_are_accepted(name: DialectName, word: str) -> None:
    history: History = [("user", "a"), ("calls", [(word, word)]), ("result", (word, ""))]
    assert messages(name, history) == history


def test_in_the_ai_sdk_s_format_as_well() -> None:
    word = "x" * 405

    def part(id: str, **fields: object) -> Entry:
        return {"type": f"tool-{word}", "toolCallId": id, "input": {}, **fields}

    done = {"state": "output-available", "output": "1"}
    parts = [part(word, **done), {"type": "step-start"}, part(word, **done), part("y", state="input-available")]
    messages: list[Entry] = [{"role": "user", "parts": [{"type": "text", "text": "a"}]}]
    messages.append({"role": "assistant", "parts": parts})
    messages.append({"role": "user", "parts": [{"type": "text", "text": "b"}]})
    body = {"id": "c", "messages": messages}
    got = [shown(message) for message in named("ai_sdk").parse(json.dumps(body).encode()).messages]
    assert [kind for kind, _ in got] == ["user", "calls", "result", "calls", "result", "user"]
    assert len({got[1][1][0][0], got[3][1][0][0]}) == 2


@pytest.mark.parametrize("arguments", ["", None, {}, {"a": 1}, '{"a":1}'])
def test_arguments_of_any_shape(arguments: object) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}
    said = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "x", "content": "1"}]
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}, *said]}
    (made,) = named("openai").parse(json.dumps(body).encode()).messages[1].tool_calls
    assert json.loads(made.arguments or "{}") in ({}, {"a": 1})


# Anthropic's format behind coding clients.


def parse(**body: object) -> Any:
    return named("anthropic").parse(json.dumps({"model": "m", "max_tokens": 9, **body}).encode())


def test_a_system_message_among_the_others_is_for_the_profile_to_allow() -> None:
    request = parse(messages=[{"role": "user", "content": "a"}, {"role": "system", "content": [{"type": "text", "text": "b"}]}, {"role": "user", "content": "c"}])  # fmt: skip
    assert [(message.role, message.content) for message in request.messages] == [
        ("user", "a"),
        ("system", "b"),
        ("user", "c"),
    ]


def test_a_reference_to_a_tool_is_kept_as_text() -> None:
    """https://github.com/anthropics/claude-code/issues/77928."""
    content = [{"type": "tool_reference", "tool_name": "WebFetch"}, {"type": "text", "text": "x"}]
    request = parse(
        messages=[
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "ToolSearch", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": content}]},
        ]
    )
    assert request.messages[-1].content == "Tool available: WebFetch\nx"


def test_tools_that_anthropic_runs_are_left_out_with_all_about_them() -> None:
    blocks = [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"type": "web_search_result", "url": "x"}]},
        {"type": "text", "text": "Found."},
    ]
    own = {"name": "f", "input_schema": {"type": "object"}, "defer_loading": True}
    asked: Entry = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": blocks},
            {"role": "user", "content": "b"},
        ],
        "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}, own],
    }
    request = parse(**asked)
    assert [message.content for message in request.messages] == ["a", "Found.", "b"]
    assert [tool.name for tool in request.tools] == ["f"]
    with pytest.raises(BadRequest):
        parse(**asked, tool_choice={"type": "tool", "name": "web_search"})
