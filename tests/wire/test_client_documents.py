"""The examples of docs/clients.md connect, as they stand, and print the answer."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from asgi_servers import serve
from client_drivers import CLIENTS, environment, find_command
from client_table import heavy_table, table
from raw_client import ask
from scripted_provider import ScriptedProvider as Provider
from scripted_provider import answer as wire_answer
from serve_command import command

from chat_nest import BALANCED, create_chat_handler
from chat_nest.dialects.blog import Blog
from chat_nest.testing import ScriptedProvider, answer

PAGE = (Path(__file__).parents[2] / "docs/clients.md").read_text()
PRESENT = re.sub(
    r"\n## Frameworks for agents\n.*?(?=\n## )", "", PAGE, flags=re.DOTALL
)  # without those of heavy clients
EXAMPLES = re.findall(r"```(python|js)\n(.*?)```", PRESENT, re.DOTALL)
ALL = ("native", "openai", "responses", "ai_sdk", "ag_ui", "anthropic", Blog(get=True))


@pytest.mark.parametrize(("language", "example"), EXAMPLES, ids=[code.split("\n")[0] for _, code in EXAMPLES])
async def test_an_example_prints_the_answer(language: str, example: str) -> None:
    provider = ScriptedProvider(answer("Hello ", "from ", "the nest"))
    handler = create_chat_handler(
        providers={"openai": provider}, profiles={"balanced": BALANCED}, dialects=ALL, store="memory://"
    )
    async with serve(handler) as port:
        ai = "ai6" if "openai-compatible" in example else "ai7"  # each provider has its own version of it
        code = example.replace("localhost:8000", f"127.0.0.1:{port}").replace("from 'ai'", f"from '{ai}'")
        assert code != example
        said = await printed(python(example) if language == "python" else node(), code)
    assert said.strip() == "Hello from the nest"
    assert provider.opened == 1


def python(example: str) -> list[str]:
    driver = "langchain_client.py" if "langchain" in example or "pydantic_ai" in example else "openai_client.py"
    return [find_command(driver)[0], "-c"]


def node() -> list[str]:
    return [find_command("say.mjs")[0], "--input-type=module", "--eval"]


async def printed(how: list[str], code: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *how, code, cwd=CLIENTS, env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complained = await process.communicate()
    assert process.returncode == 0, complained.decode()
    return said.decode()


def test_there_is_an_example_for_each_format() -> None:
    assert len(EXAMPLES) == 19


def test_the_table_is_what_the_tests_of_the_clients_prove() -> None:
    assert table() in PAGE, "print it with: .venv/bin/python tests/client_table.py"
    assert heavy_table() in PAGE, "print it with: .venv/bin/python tests/client_table.py"


YAML = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1]


async def test_llm_s_model_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = ScriptedProvider(answer("Hello ", "from ", "the nest"))
    handler = create_chat_handler(providers={"openai": provider}, profiles={"balanced": BALANCED}, dialects=ALL)
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    async with serve(handler) as port:
        (tmp_path / "extra-openai-models.yaml").write_text(YAML.replace("localhost:8000", f"127.0.0.1:{port}"))
        said = await printed([find_command("llm_client.py")[0], "-m", "llm", "-m", "nest", "-n"], "Say hello")
    assert said.strip() == "Hello from the nest"


[BEHIND] = re.findall(r"```toml\n(\[server\]\ntrusted_proxies.*?)```", PAGE, re.DOTALL)


async def test_each_user_behind_a_server_of_chats_has_a_budget(tmp_path: Path) -> None:
    (tmp_path / "chat.toml").write_text(f"{BEHIND}requests_per_day = 1\n")
    body = {"model": "balanced", "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "Hi"}]}
    async with Provider(wire_answer("Hello")) as provider:
        async with command(tmp_path, provider.url, "sk-behind", "--config", "chat.toml") as server:
            users = ("ada", "ada", "bob", None)
            kind = {"content-type": "application/json"}
            headers = [{**kind, "x-openwebui-user-id": user} if user else kind for user in users]
            replies = [await ask(server.port, body, path="/v1/chat/completions", headers=each) for each in headers]
    assert [reply.status for reply in replies] == [200, 429, 200, 401]


[REFUSING] = re.findall(r"```toml\n(\[dialects\]\nbudget_status.*?)```", PAGE, re.DOTALL)


async def test_a_daily_limit_is_refused_with_the_configured_status(tmp_path: Path) -> None:
    (tmp_path / "chat.toml").write_text(f"{REFUSING}[profiles.balanced]\nrequests_per_day = 1\n")
    body = {"model": "balanced", "messages": [{"role": "user", "content": "Hi"}]}
    async with Provider(wire_answer("Hello")) as provider:
        async with command(tmp_path, provider.url, "sk-refusing", "--config", "chat.toml") as server:
            replies = [await ask(server.port, body, path="/v1/chat/completions") for _ in range(2)]
    assert [reply.status for reply in replies] == [200, 402]


SESSIONS = (Path(__file__).parents[2] / "docs/sessions.md").read_text()
(BACKEND,) = re.findall(r"```python\n(.*?)```", SESSIONS, re.DOTALL)
IN_A_PAGE = re.findall(r"```js\n(.*?)```", SESSIONS, re.DOTALL)


@pytest.mark.parametrize("example", IN_A_PAGE, ids=["fetch", "ai", "openai", "eventsource"])
async def test_a_session_of_the_example_s_backend_chats(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Provider(wire_answer("Hello from the nest")) as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-sessions")
        made: dict[str, Any] = {}
        exec(compile(BACKEND, "docs/sessions.md", "exec"), made)
        async with serve(made["app"]) as port:
            refused = await ask(port)
            assert (refused.status, json.loads(refused.raw)["code"]) == (401, "unauthorized")
            for package in ("ai5", "ai6", "ai7") if "from 'ai'" in example else ("",):
                code = example.replace("localhost:8000", f"127.0.0.1:{port}").replace("from 'ai'", f"from '{package}'")
                assert (await printed(node(), code)).strip() == "Hello from the nest"
