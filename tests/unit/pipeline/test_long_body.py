from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from chat_nest import create_chat_handler
from chat_nest.pipeline import chat
from chat_nest.testing import ScriptedProvider, answer, collect


@pytest.mark.parametrize(("length", "order"), [(1_000, ["count", "others"]), (200_000, ["others", "count"])])
async def test_others_have_their_turn_between_the_reading_and_the_counting_of_a_long_body(
    length: int, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, make_prompt, seen = chat.parse, chat.make_prompt, list[str]()

    def parsing(*arguments: Any) -> Any:
        asyncio.get_running_loop().call_soon(seen.append, "others")
        return parse(*arguments)

    def counting(*arguments: Any) -> Any:
        seen.append("count")
        return make_prompt(*arguments)

    monkeypatch.setattr(chat, "parse", parsing)
    monkeypatch.setattr(chat, "make_prompt", counting)
    body = msgspec.json.encode({"messages": [{"role": "user", "content": "word " * (length // 5)}]})
    providers = {"p": ScriptedProvider(answer("a"))}
    async with create_chat_handler(providers=providers, model="p:m", max_body_bytes=1_000_000) as handler:
        await collect(handler, body)
    assert seen == order
