"""What can be measured besides the stacks of the main table: every dialect over the wire, and every store."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.databases import start_postgres, start_redis
from benchmarks.stacks import NATIVE, OPENAI, Stack, chat_nest, conversation, openai_body

STORED = frozenset(("burst-1", "paced"))
COST_ONLY = frozenset(("burst-1", "burst-200", "paced"))


def _profile(steering: str) -> str:
    """A stamped token counts as six: an answer of them has more than the balanced profile's 400."""
    return "expanded" if "stamp=1" in steering else "balanced"


def _openai(steering: str) -> Any:
    return openai_body(steering) | {"model": _profile(steering)}


def _responses(steering: str) -> Any:
    return {"model": _profile(steering), "input": conversation(steering), "stream": True}


def _ai_sdk(steering: str) -> Any:
    turns = [
        {"id": str(at), "role": turn["role"], "parts": [{"type": "text", "text": turn["content"]}]}
        for at, turn in enumerate(conversation(steering))
    ]
    return {"id": "chat-1", "trigger": "submit-message", "messages": turns, "profile": _profile(steering)}


def _ag_ui(steering: str) -> Any:
    turns = [{"id": str(at), **turn} for at, turn in enumerate(conversation(steering))]
    run = {"threadId": "thread-1", "runId": "run-########", "state": {}, "tools": [], "context": []}
    return {**run, "messages": turns, "forwardedProps": {"profile": _profile(steering)}}


def _anthropic(steering: str) -> Any:
    profile = _profile(steering)
    most = 4_096 if profile == "expanded" else 400
    return {"model": profile, "max_tokens": most, "messages": conversation(steering), "stream": True}


def _blog(steering: str) -> Any:
    """One message as long as the others' five: the format has no more."""
    return {"message": "\n\n".join(turn["content"] for turn in conversation(steering))}


def _dialect(name: str, path: str, body: Callable[[str], Any], mark: str, done: str) -> Stack:
    prepare = _with_blog if name == "blog" else chat_nest("memory://")
    return Stack(name=name, prepare=prepare, path=path, body=body, mark=mark, done=done, scenarios=COST_ONLY)


def _with_blog(directory: Path, port: int, provider: str) -> list[str]:
    """The format is off unless asked for, and names no profile: its answers are those of the default one."""
    command = chat_nest("memory://", more="[dialects]\nblog = true\n")(directory, port, provider)
    return ["env", "CHAT_NEST_PROFILES_BALANCED_MAX_OUTPUT_TOKENS=4096", *command]


DIALECTS = (
    Stack(name="native", prepare=chat_nest("memory://"), scenarios=COST_ONLY, **NATIVE),
    _dialect("openai", "/v1/chat/completions", _openai, OPENAI["mark"], OPENAI["done"]),
    _dialect("responses", "/v1/responses", _responses, '"logprobs":[],"delta":"', "event: response.completed"),
    _dialect("ai_sdk", "/api/ai", _ai_sdk, '"type":"text-delta","id":"0","delta":"', "data: [DONE]"),
    _dialect("ag_ui", "/api/ag-ui", _ag_ui, '-0","delta":"', '"type":"RUN_FINISHED"'),
    _dialect("anthropic", "/v1/messages", _anthropic, '"type":"text_delta","text":"', "event: message_stop"),
    _dialect("blog", "/chat", _blog, 'data: {"text":"', "event: done"),
)


@contextmanager
def stores() -> Generator[list[Stack]]:
    """Chat Nest with each store. Redis and PostgreSQL run on the caller's core. Raises Missing where one is absent."""
    redis = start_redis(None)
    try:
        postgres = start_postgres(None)
        try:
            urls = {"memory": "memory://", "sqlite": "sqlite:///chat-nest.db"}
            urls |= {"redis": redis.url, "postgres": postgres.url}
            yield [Stack(name=name, prepare=chat_nest(url), scenarios=STORED, **NATIVE) for name, url in urls.items()]
        finally:
            postgres.stop()
    finally:
        redis.stop()
