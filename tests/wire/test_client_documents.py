"""The examples of docs/clients.md connect, as they stand, and print the answer."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
from asgi_servers import serve
from client_drivers import CLIENTS, command, environment

from chat_nest import BALANCED, create_chat_handler
from chat_nest.dialects.blog import Blog
from chat_nest.testing import ScriptedProvider, answer

PAGE = (Path(__file__).parents[2] / "docs/clients.md").read_text()
EXAMPLES = re.findall(r"```(python|js)\n(.*?)```", PAGE, re.DOTALL)
ALL = ("native", "openai", "ai_sdk", "ag_ui", "anthropic", Blog(get=True))


@pytest.mark.parametrize(("language", "example"), EXAMPLES, ids=[code.split("\n")[0] for _, code in EXAMPLES])
async def test_an_example_prints_the_answer(language: str, example: str) -> None:
    provider = ScriptedProvider(answer("Hello ", "from ", "the nest"))
    handler = create_chat_handler(
        providers={"openai": provider}, profiles={"balanced": BALANCED}, dialects=ALL, store="memory://"
    )
    async with serve(handler) as port:
        code = example.replace("localhost:8000", f"127.0.0.1:{port}").replace("from 'ai'", "from 'ai6'")
        assert code != example
        said = await printed([sys.executable, "-c"] if language == "python" else node(), code)
    assert said.strip() == "Hello from the nest"
    assert provider.opened == 1


def node() -> list[str]:
    return [command("say.mjs")[0], "--input-type=module", "--eval"]


async def printed(how: list[str], code: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *how, code, cwd=CLIENTS, env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complained = await process.communicate()
    assert process.returncode == 0, complained.decode()
    return said.decode()


def test_there_is_an_example_for_each_format() -> None:
    assert len(EXAMPLES) == 10
