from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest

from chat_nest import create_chat_handler
from chat_nest.pipeline import chat
from chat_nest.testing import ScriptedProvider, answer, collect

PATHS = {"/api/chat": "make_prompt", "/v1/messages/count_tokens": "input_bound"}


@pytest.mark.parametrize(("path", "counts"), PATHS.items())
async def test_others_have_their_turn_while_a_long_prompt_is_counted(
    path: str, counts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, loop, had_turn = getattr(chat, counts), asyncio.get_running_loop(), threading.Event()
    turns: list[bool] = []

    def counting(*arguments: Any) -> Any:
        loop.call_soon_threadsafe(had_turn.set)
        turns.append(had_turn.wait(20))
        return count(*arguments)

    monkeypatch.setattr(chat, counts, counting)
    said = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "word " * 40_000}]}
    body = msgspec.json.encode(said if path != "/api/chat" else {"messages": said["messages"]})
    providers = {"p": ScriptedProvider(answer("a"))}
    options: dict[str, Any] = {"dialects": ("native", "anthropic"), "max_body_bytes": 1_000_000}
    async with create_chat_handler(providers=providers, model="p:m", **options) as handler:
        got = await collect(handler, body, path=path)
    assert turns == [True]
    assert got.status == (200 if counts == "input_bound" else 429), "counted, and larger than the profile allows"
