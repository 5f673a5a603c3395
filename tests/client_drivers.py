"""Runs the drivers in tests/clients: real clients of each format, in a process of their own, and what they saw.

@EVERY                                    # or @parametrize_client([...]), with some of DRIVERS
async def test_it_streams(client):        # all tests of a client run in turn, and its process is started once
    events = await drive(client, port)

A module that does so imports the fixture `client`.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

CLIENTS = Path(__file__).parent / "clients"
FRAMEWORKS_PYTHON = Path(__file__).parents[1] / ".venv-frameworks/bin/python"
AGENTS_PYTHON = Path(__file__).parents[1] / ".venv-agents/bin/python"

TOOLS, SCHEMA, IMAGE, REASONING = "tools", "schema", "image", "reasoning"
ALL = (REASONING, TOOLS, SCHEMA, IMAGE)
MOST = (REASONING, TOOLS, IMAGE)
THREE = (TOOLS, SCHEMA, IMAGE)


class Client(NamedTuple):
    """A client as docs/clients.md has it; what runs it, and what it is able to beyond streams, aborts and refusals."""

    package: str
    format: str
    file: str
    own: dict[str, Any] = {}
    able: tuple[str, ...] = ()


OPENAI, RESPONSES, ANTHROPIC, NATIVE = "Chat Completions", "Responses", "Anthropic", "native"
DRIVERS: dict[str, Client] = {
    "openai": Client("openai (js)", OPENAI, "openai.mjs", able=ALL),
    "openai-python": Client("openai (py)", OPENAI, "openai_client.py", able=ALL),
    "responses": Client("openai (js)", RESPONSES, "responses.mjs", able=ALL),
    "responses-python": Client("openai (py)", RESPONSES, "responses_client.py", able=ALL),
    "openai-agents-js": Client("@openai/agents", RESPONSES, "openai_agents.mjs", able=ALL),
    "openai-agents": Client("openai-agents (py)", RESPONSES, "openai_agents.py", able=ALL),
    "anthropic": Client("@anthropic-ai/sdk", ANTHROPIC, "anthropic.mjs", able=ALL),
    "anthropic-python": Client("anthropic (py)", ANTHROPIC, "anthropic_client.py", able=ALL),
    "ai5": Client("useChat of ai 5", "AI SDK", "ai_sdk.mjs", {"package": "ai5"}, MOST),
    "ai6": Client("useChat of ai 6", "AI SDK", "ai_sdk.mjs", {"package": "ai6"}, MOST),
    "ai7": Client("useChat of ai 7", "AI SDK", "ai_sdk.mjs", {"package": "ai7"}, MOST),
    "ai-openai": Client("@ai-sdk/openai", RESPONSES, "ai_text.mjs", {"provider": "openai"}, ALL),
    "ai-openai-compatible": Client(
        "@ai-sdk/openai-compatible", OPENAI, "ai_text.mjs", {"provider": "openai-compatible"}, ALL
    ),
    "ai-open-responses": Client(
        "@ai-sdk/open-responses", RESPONSES, "ai_text.mjs", {"provider": "open-responses"}, ALL
    ),
    "ai-anthropic": Client("@ai-sdk/anthropic", ANTHROPIC, "ai_text.mjs", {"provider": "anthropic"}, ALL),
    "langchain-openai": Client("langchain-openai", OPENAI, "langchain_client.py", {"model": "openai"}, THREE),
    "langchain-responses": Client("langchain-openai", RESPONSES, "langchain_client.py", {"model": "responses"}, ALL),
    "langchain-anthropic": Client("langchain-anthropic", ANTHROPIC, "langchain_client.py", {"model": "anthropic"}, ALL),
    "pydantic-ai-openai": Client("pydantic-ai", OPENAI, "pydantic_ai_client.py", {"model": "openai"}, ALL),
    "pydantic-ai-responses": Client("pydantic-ai", RESPONSES, "pydantic_ai_client.py", {"model": "responses"}, ALL),
    "pydantic-ai-anthropic": Client("pydantic-ai", ANTHROPIC, "pydantic_ai_client.py", {"model": "anthropic"}, ALL),
    "llm": Client("llm", OPENAI, "llm_client.py", able=THREE),
    "llm-responses": Client("llm", RESPONSES, "llm_client.py", {"responses": True}, THREE),
    "ag-ui": Client("@ag-ui/client", "AG-UI", "ag_ui.mjs", able=MOST),
    "eventsource": Client("eventsource", "blog", "eventsource.mjs"),
    "eventsource-parser": Client("eventsource-parser", NATIVE, "eventsource_parser.mjs"),
    "fetch-event-source": Client("@microsoft/fetch-event-source", NATIVE, "fetch_event_source.mjs"),
    "httpx-sse": Client("httpx-sse (py)", NATIVE, "httpx_sse_client.py"),
}
HEAVY: dict[str, Client] = {
    "claude": Client("@anthropic-ai/claude-code", ANTHROPIC, "coding", able=THREE),
    "codex": Client("@openai/codex", RESPONSES, "coding", able=THREE),
    "assistant-ui": Client("@assistant-ui/react-ai-sdk", "AI SDK", "browser", able=(TOOLS, IMAGE)),
    "data-stream": Client("@assistant-ui/react-data-stream", "AI SDK", "browser", able=(TOOLS, IMAGE)),
    "copilotkit": Client("@copilotkit/react-core", "AG-UI", "browser", able=(TOOLS, IMAGE)),
    "copilotkit-ag-ui": Client("@copilotkit/runtime", "AG-UI", "browser", able=(TOOLS, IMAGE)),
    "copilotkit-openai": Client("@copilotkit/runtime", RESPONSES, "browser", able=(TOOLS, IMAGE)),
    "opencode": Client("opencode-ai", OPENAI, "coding", able=(TOOLS, IMAGE)),
    "qwen": Client("@qwen-code/qwen-code", OPENAI, "coding", able=(TOOLS, SCHEMA, IMAGE)),
    "aider": Client("aider-chat", OPENAI, "aider", able=(IMAGE,)),
    "langchain-js-openai": Client(
        "@langchain/openai", OPENAI, "chains/langchain.mjs", {"model": "openai"}, (TOOLS, SCHEMA, IMAGE)
    ),
    "langchain-js-responses": Client(
        "@langchain/openai", RESPONSES, "chains/langchain.mjs", {"model": "responses"}, ALL
    ),
    "langchain-js-anthropic": Client(
        "@langchain/anthropic", ANTHROPIC, "chains/langchain.mjs", {"model": "anthropic"}, ALL
    ),
    "mastra-chat": Client("@mastra/core", OPENAI, "chains/mastra.mjs", {"model": "chat"}, ALL),
    "mastra-responses": Client("@mastra/core", RESPONSES, "chains/mastra.mjs", {"model": "responses"}, ALL),
    "litellm": Client("litellm", OPENAI, "agents/litellm_client.py", {"model": "openai"}, THREE),
    "litellm-responses": Client("litellm", RESPONSES, "agents/litellm_client.py", {"model": "responses"}, THREE),
    "litellm-anthropic": Client("litellm", ANTHROPIC, "agents/litellm_client.py", {"model": "anthropic"}, THREE),
    "instructor": Client("instructor", OPENAI, "agents/instructor_client.py", {"model": "openai"}, (SCHEMA, IMAGE)),
    "instructor-responses": Client(
        "instructor", RESPONSES, "agents/instructor_client.py", {"model": "responses"}, (SCHEMA, IMAGE)
    ),
    "instructor-anthropic": Client(
        "instructor", ANTHROPIC, "agents/instructor_client.py", {"model": "anthropic"}, (SCHEMA, IMAGE)
    ),
    "llama-index": Client(
        "llama-index-llms-openai-like", OPENAI, "agents/llama_index_client.py", {"model": "openai"}, THREE
    ),
    "llama-index-responses": Client(
        "llama-index-llms-openai", RESPONSES, "agents/llama_index_client.py", {"model": "responses"}, THREE
    ),
    "smolagents": Client("smolagents", OPENAI, "agents/smolagents_client.py", able=THREE),
    "haystack": Client("haystack-ai", OPENAI, "agents/haystack_client.py", {"model": "openai"}, THREE),
    "haystack-responses": Client("haystack-ai", RESPONSES, "agents/haystack_client.py", {"model": "responses"}, THREE),
    "dspy": Client("dspy", OPENAI, "agents/dspy_client.py", {"model": "chat"}, THREE),
    "dspy-responses": Client("dspy", RESPONSES, "agents/dspy_client.py", {"model": "responses"}, THREE),
    "agno": Client("agno", OPENAI, "agents/agno_client.py", {"model": "openai"}, THREE),
    "agno-responses": Client("agno", RESPONSES, "agents/agno_client.py", {"model": "responses"}, THREE),
    "agno-anthropic": Client("agno", ANTHROPIC, "agents/agno_client.py", {"model": "anthropic"}, THREE),
    "strands": Client("strands-agents", OPENAI, "agents/strands_client.py", {"model": "openai"}, THREE),
    "strands-responses": Client("strands-agents", RESPONSES, "agents/strands_client.py", {"model": "responses"}, THREE),
    "strands-anthropic": Client("strands-agents", ANTHROPIC, "agents/strands_client.py", {"model": "anthropic"}, THREE),
}
"""The clients of `scripts/heavy-clients`, each in a folder of tests/clients."""
ALL_CLIENTS = {**DRIVERS, **HEAVY}
AGENTS = {name: client for name, client in HEAVY.items() if client.file.startswith("agents/")}
"""Those in Python, which run in a virtual environment of their own: `scripts/setup agents`."""
CHAINS = {name: client for name, client in HEAVY.items() if client.file.startswith("chains/")}
"""Those in JavaScript that the tests drive like the ones above."""
FRAMEWORKS = ("langchain_client.py", "pydantic_ai_client.py", "llm_client.py")
"""The drivers that run in a virtual environment of their own: `scripts/setup frameworks`."""
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "AGNO_TELEMETRY": "false",
    "OTEL_SDK_DISABLED": "true",
}
"""What keeps the frameworks from asking the Internet when they are imported or used."""
Events = list[dict[str, Any]]
RUNNING: list[Driver] = []
"""The driver of the latest client, if there is one."""


class Watched:
    """An application, and what was asked of it: `asked` counts requests by path, `pings` those that were sent."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.asked: Counter[str] = Counter()
        self.pings = 0
        self.pinged = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.asked[f"{scope['method']} {scope['path']}"] += 1

        async def watch(message: Any) -> None:
            await send(message)
            if b"ping" in message.get("body", b""):
                self.pings += 1
                if self.pings >= 3:
                    self.pinged.set()

        await self._app(scope, receive, watch)


def find_node() -> str | None:
    """The node that scripts/setup put beside our Python because the system's is missing or too old, or the system's."""
    return shutil.which("node", path=str(Path(sys.executable).parent)) or shutil.which("node")


def find_command(file: str) -> list[str]:
    """What runs a driver's cases."""
    if file.startswith("chains/") and not (CLIENTS / "chains/node_modules").exists():
        pytest.skip("scripts/heavy-clients installs it")
    if file.startswith("agents/"):
        if not AGENTS_PYTHON.exists():
            pytest.skip("scripts/heavy-clients installs it")
        return [str(AGENTS_PYTHON), str(CLIENTS / "cases.py"), str(CLIENTS / file)]
    if file.endswith(".py"):
        python = FRAMEWORKS_PYTHON if file in FRAMEWORKS else Path(sys.executable)
        if not python.exists():
            missing("the frameworks", "frameworks")
        return [str(python), str(CLIENTS / "cases.py"), str(CLIENTS / file)]
    node = find_node()
    if node is None or not (CLIENTS / "node_modules/.setup-clients").exists():
        missing("the clients in JavaScript", "clients")
    return [node, str(CLIENTS / "cases.mjs"), file]


def missing(what: str, part: str) -> NoReturn:
    """Skip the test of a part that is not set up. In CI, fail."""
    said = f"{what} are not installed: scripts/setup {part}"
    if os.environ.get("CI"):
        pytest.fail(said)
    pytest.skip(said)


class Driver:
    """The process of a driver's file. Its first case starts it, and so does the next one after it failed."""

    def __init__(self, file: str, folder: Path) -> None:
        self.file = file
        self._command = find_command(file)
        self._complaints = folder / "complaints.txt"
        self._process: subprocess.Popen[str] | None = None

    def run(self, url: str, options: dict[str, Any]) -> Events:
        """Run a case to its end. Raises AssertionError for a driver that fails or complains."""
        process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps([url, options]) + "\n")
        process.stdin.flush()
        events: Events = []
        while line := process.stdout.readline():
            event = json.loads(line)
            if event == {"event": "over"}:
                break
            events.append(event)
        else:
            self.stop()
        complained = self._complaints.read_text()
        os.truncate(self._complaints, 0)
        assert not complained, complained
        assert self._process, "the driver ended"
        return events

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        with self._complaints.open("a") as complaints:
            self._process = subprocess.Popen(
                self._command,
                env={
                    **environment(),
                    "NO_PROXY": "127.0.0.1",
                    "SUPPRESS_TRANSFORMATION_WARNINGS": "true",
                    "OPENAI_AGENTS_DISABLE_TRACING": "1",
                    **QUIET,
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )
        return self._process


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a client. The driver of its file runs until a test needs another one, or the tests end."""
    file = ALL_CLIENTS[request.param].file
    if not RUNNING or RUNNING[0].file != file:
        stop_driver()
        RUNNING.append(Driver(file, tmp_path_factory.mktemp("driver")))
    return request.param


def stop_driver() -> None:
    while RUNNING:
        RUNNING.pop().stop()


atexit.register(stop_driver)


def parametrize_client(clients: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("client", clients, indirect=True)


EVERY = parametrize_client(DRIVERS)


def able(what: str, clients: dict[str, Client] = DRIVERS) -> list[str]:
    """Return the clients that are able to do this."""
    return [name for name, client in clients.items() if what in client.able]


async def drive(client: str, port: int, **options: Any) -> Events:
    """Let a client ask once, and return what it told. Raises where its driver failed."""
    [driver] = RUNNING
    own = ALL_CLIENTS[client].own
    try:
        return await asyncio.to_thread(driver.run, f"http://127.0.0.1:{port}", {**own, **options})
    except BaseException:
        driver.stop()  # or its thread would wait for ever
        raise


def environment() -> dict[str, str]:
    """Ours, without keys of ours, and with compiled modules: the official clients are large."""
    left_out = ("OPENAI_", "ANTHROPIC_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
