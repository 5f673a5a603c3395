"""assistant-ui and CopilotKit in Chromium, before a real server: one page, bundled from the packages as npm installs them.

`scripts/heavy-clients` installs the packages. The page is tests/clients/browser/page.jsx. CopilotKit's own runtime,
tests/clients/browser/runtime.mjs, stands between page and chat for two of the clients.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from asgi_servers import serve
from client_drivers import CLIENTS, HEAVY, Watched, environment, find_node
from msgspec.structs import replace
from pictures import png
from playwright.async_api import Browser, Page, async_playwright, expect
from scripted_provider import HANG, ScriptedProvider, chunk, stream

from chat_nest import BALANCED, create_chat_handler
from chat_nest.core.deltas import FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.core.errors import UpstreamIdle
from chat_nest.core.usage import Usage
from chat_nest.testing import ScriptedProvider as Scripted
from chat_nest.testing import Step, answer

FOLDER = CLIENTS / "browser"
BUNDLER = FOLDER / "node_modules/.bin/esbuild"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
PATIENCE = 90_000
"""Milliseconds: a bound on a hang."""
PROFILE = replace(BALANCED, model="p:gpt-4o-mini", allow_tools=True, allow_images=True, allow_system_prompt=True)
HTML = b"<!doctype html><meta charset=utf-8><div id=root></div><script type=module src=/page.js></script>"
DIALECTS = ("ai_sdk", "ag_ui", "responses")
RUNTIMES = {"copilotkit-openai": "openai", "copilotkit-ag-ui": "ag-ui"}
"""The clients with a runtime, and how that asks the chat."""
BROKEN = {"copilotkit-openai": "AI SDK stream error"}
"""What a client shows after an error in the middle of an answer, if not the server's message."""
CLIENTS_IN_PAGES = [name for name, client in HEAVY.items() if client.file == "browser"]

pytestmark = [
    pytest.mark.skipif(not BUNDLER.exists(), reason="scripts/heavy-clients installs them"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.parametrize("client", CLIENTS_IN_PAGES),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the page's scripts, which load each other."""
    folder = tmp_path_factory.mktemp("bundle")
    none = [f"--loader:.{kind}=empty" for kind in ("css", "woff", "woff2", "ttf")]
    options = ["--bundle", "--splitting", "--minify", "--jsx=automatic", "--format=esm", "--log-level=error", *none]
    options.append('--define:process.env.NODE_ENV="production"')
    node = find_node()
    assert node, "node is missing: scripts/setup clients"
    subprocess.run([node, BUNDLER, FOLDER / "page.jsx", *options, f"--outdir={folder}"], check=True)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        yield await playwright.chromium.launch(executable_path=CHROMIUM, args=options)


@pytest.fixture(scope="module")
def runtime() -> Iterator[str]:
    """The URL of CopilotKit's runtime."""
    node = find_node()
    assert node, "node is missing: scripts/setup clients"
    process = subprocess.Popen(
        [node, FOLDER / "runtime.mjs"],
        env={**environment(), "COPILOTKIT_TELEMETRY_DISABLED": "true"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it logs each refusal
        text=True,
    )
    with process:
        assert process.stdout
        ports = (line.strip() for line in process.stdout)
        port = next((line for line in ports if line.isdigit()), None)
        assert port, "CopilotKit's runtime ended"
        yield f"http://127.0.0.1:{port}"
        process.kill()


class WithPage:
    """A chat, and the page before it."""

    def __init__(self, chat: Any, bundle: Path) -> None:
        self._chat, self._bundle = chat, bundle

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if path == "/":
            kind, body = b"text/html", HTML
        elif path.endswith(".js"):
            kind, body = b"text/javascript", (self._bundle / path[1:]).read_bytes()
        else:
            await self._chat(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": body})


class Talk:
    """A page's chat, by what a visitor sees and does."""

    def __init__(self, page: Page, client: str) -> None:
        self.page = page
        self.client = client
        self._copilot = client.startswith("copilotkit")

    async def ask(self, text: str, picture: Path | None = None) -> None:
        page = self.page
        if picture is not None:
            async with page.expect_file_chooser() as choosing:
                if self._copilot:
                    await page.get_by_test_id("copilot-add-menu-button").click()
                    await page.get_by_role("menuitem").first.click()
                else:
                    await page.get_by_test_id("attach").click()
            await (await choosing.value).set_files(picture)
            await expect(self.attached).to_have_count(1, timeout=PATIENCE)
        await page.get_by_test_id("copilot-chat-textarea" if self._copilot else "input").fill(text)
        await page.get_by_test_id("copilot-send-button" if self._copilot else "send").click()

    @property
    def attached(self) -> Any:
        return self.page.get_by_test_id("copilot-attachment-queue" if self._copilot else "attached")

    async def stop(self) -> None:
        await self.page.get_by_test_id("copilot-send-button" if self._copilot else "stop").click()

    async def sees(self, text: str) -> None:
        await expect(self.page.locator("body")).to_contain_text(text, timeout=PATIENCE)


class Visits:
    """Opens the page before a chat whose provider follows a script; `app.asked` counts its requests."""

    def __init__(self, browser: Browser, bundle: Path, client: str, runtime: str) -> None:
        self.bundle = bundle
        self._browser, self._client, self._runtime = browser, client, runtime

    async def __call__(self, port: int, *, tools: bool = False) -> Talk:
        page = await self._browser.new_page()
        page.set_default_timeout(PATIENCE)
        between = ""
        if self._client in RUNTIMES:
            between = f"&runtime={self._runtime}/{RUNTIMES[self._client]}/{port}/api/copilotkit"
        await page.goto(f"http://127.0.0.1:{port}/?client={self._client}{between}{'&tools' if tools else ''}")
        return Talk(page, self._client)

    def app(self, provider: Any, **limits: Any) -> Watched:
        profiles = {"balanced": replace(PROFILE, **limits)}
        chat = create_chat_handler(providers={"p": provider}, profiles=profiles, dialects=DIALECTS)
        return Watched(WithPage(chat, self.bundle))


@pytest.fixture
def visit(browser: Browser, bundle: Path, client: str, runtime: str) -> Visits:
    return Visits(browser, bundle, client, runtime)


def chats(app: Watched) -> int:
    return sum(count for request, count in app.asked.items() if request.startswith("POST /"))


async def test_an_answer_is_seen_as_it_comes(visit: Visits) -> None:
    more = asyncio.Event()
    script: list[Step] = [[TextDelta("Good ")], more.wait, *answer("morning", input_tokens=9)]
    app = visit.app(Scripted(script))
    async with serve(app) as port:
        talk = await visit(port)
        await talk.ask("Hi")
        await talk.sees("Good")
        more.set()
        await talk.sees("Good morning")
        assert chats(app) == 1
        await talk.page.close()


class InTurn(Scripted):
    """Answers each request by the next script."""

    def __init__(self, *scripts: list[Step]) -> None:
        super().__init__(scripts[0])
        self._scripts = scripts

    def open(self, prompt: Any, timeouts: Any) -> Any:
        self.script = self._scripts[min(self.opened, len(self._scripts) - 1)]
        return super().open(prompt, timeouts)


async def test_a_tool_of_the_page_is_called_and_its_result_sent_back(visit: Visits, client: str) -> None:
    calling: list[Step] = [
        [ReasoningDelta("Hm.")],
        [ToolCallDelta(0, '{"city":"Bonn"}', "call-a", "weather")],
        [FinishDelta("tool_calls"), UsageDelta(Usage(input_tokens=9, output_tokens=20))],
    ]
    provider = InTurn(calling, answer("It is 19 degrees", input_tokens=9))
    app = visit.app(provider)
    async with serve(app) as port:
        talk = await visit(port, tools=True)
        await talk.ask("How is the weather?")
        await talk.sees("It is 19 degrees")
        await talk.page.close()
    own = ["AGUISendStateSnapshot", "AGUISendStateDelta"] if client == "copilotkit-openai" else []
    assert [tool.name for tool in provider.prompts[0].tools] == ["weather", *own]
    *_, called, result = provider.prompts[1].messages
    assert [(call.id, call.arguments) for call in called.tool_calls] == [("call-a", '{"city":"Bonn"}')]
    assert result.tool_call_id == "call-a"
    assert "19 degrees" in result.content
    assert provider.opened == 2


async def test_an_image_reaches_the_model(visit: Visits, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(png(64, 48))
    provider = Scripted(answer("A grey picture", input_tokens=9))
    app = visit.app(provider)
    async with serve(app) as port:
        talk = await visit(port)
        await talk.ask("What is it?", picture)
        await talk.sees("A grey picture")
        await talk.page.close()
    [message] = provider.prompts[0].messages
    assert message.content == "What is it?"
    assert [(each.media_type, each.width, each.height) for each in message.attachments] == [("image/png", 64, 48)]


async def test_a_stop_closes_the_providers_socket(visit: Visits) -> None:
    async with ScriptedProvider(stream(chunk("one"), HANG)) as provider:
        profiles = {"balanced": replace(BALANCED, allow_tools=True)}  # CopilotKit's agent always has tools of its own
        chat = create_chat_handler(api_key="k", base_url=provider.url, profiles=profiles, dialects=DIALECTS)
        async with serve(WithPage(chat, visit.bundle)) as port:
            talk = await visit(port)
            await talk.ask("Hi")
            await talk.sees("one")
            await talk.stop()
            await provider.closed()
            await talk.page.close()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"requests_per_minute": 1}, "Rate limit exceeded"),
        ({"requests_per_minute": None, "tokens_per_day": 2_100}, "budget exceeded"),
    ],
)
async def test_a_refusal_is_shown_and_not_retried(visit: Visits, limits: dict[str, int], said: str) -> None:
    provider = Scripted(answer("Hello", input_tokens=100, output_tokens=2_000))
    app = visit.app(provider, **limits)
    async with serve(app) as port:
        talk = await visit(port)
        await talk.ask("Hi")
        await talk.sees("Hello")
        await talk.ask("Again")
        await talk.sees(said)
        assert chats(app) == 2
        await talk.page.close()
    assert provider.opened == 1


async def test_a_prompt_that_is_too_long_is_shown(visit: Visits) -> None:
    provider = Scripted(answer("Hello"))
    app = visit.app(provider, tokens_per_request=500)
    async with serve(app) as port:
        talk = await visit(port)
        await talk.ask("Hello " * 2_000)
        await talk.sees("Request too large")
        assert chats(app) == 1
        await talk.page.close()
    assert provider.opened == 0


async def test_an_error_in_the_middle_is_shown(visit: Visits) -> None:
    app = visit.app(Scripted([[TextDelta("one ")], UpstreamIdle()]))
    async with serve(app) as port:
        talk = await visit(port)
        await talk.ask("Hi")
        await talk.sees(BROKEN.get(talk.client, "The model provider stopped answering"))
        assert chats(app) == 1
        await talk.page.close()
