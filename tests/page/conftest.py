"""The page in a real browser, before a real server; only the provider is scripted.

A browser is for all modules, a server for one: to launch Chromium or Firefox takes seconds of a processor.

`talk = await visit()` opens the page as a visitor of its own: each has an address of its own (the browser sends
`X-Forwarded-For`, and the server believes it), so each has budgets of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from urllib.parse import urlsplit

import forked_command
import pytest
import pytest_asyncio
from playwright.async_api import async_playwright
from scripted_provider import ScriptedProvider
from serve_command import LISTENING

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FIREFOX = shutil.which("firefox-esr") or "/usr/bin/firefox-esr"
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
FIREFOX_PREFERENCES = {
    ("color_scheme", "dark"): {"layout.css.prefers-color-scheme.content-override": 0},
    ("forced_colors", "active"): {"browser.display.document_color_use": 2},
    ("reduced_motion", "reduce"): {"ui.prefersReducedMotion": 1},
}
"""What Firefox has to be launched with, to be what a context in Chromium is told to be: its driver can't tell it."""
ADDRESSES = (f"10.{number // 250}.{number % 250}.7" for number in itertools.count(1))

CONFIG = """
default_profile = "balanced"

[server]
trusted_proxies = ["127.0.0.1"]

[timeouts]
idle = 250                           # a busy machine may need half a minute to open a second page

[prices."openai:*"]
input = 1
output = 2

[profiles.balanced]
[profiles.kept]
open = true
on_disconnect = "finish"
[profiles.small_day]
open = true
tokens_per_day = 700
[profiles.small_request]
open = true
tokens_per_request = 500
[profiles.one_a_minute]
open = true
requests_per_minute = 1
[profiles.dollars]
open = true
usd_per_day = 0.002
[profiles.instructed]
open = true
allow_system_prompt = true
[profiles.large]
open = true
tokens_per_day = "none"
tokens_per_request = 1000000
max_output_tokens = 100000
max_messages = 1000
[profiles.signed]
open = true
signed_turns = true

[profiles.seeing]
open = true
allow_images = true
max_images = 3
max_image_bytes = 600000
tokens_per_request = 100000

[profiles.queued]
open = true
model = "busy:scripted"

[providers.openai]
[providers.busy]
kind = "openai"
base_url = "BASE_URL"
api_key = "sk-test"
concurrent_streams = 1

[queue]

[signatures]
secrets = ["a secret of the page's tests, long enough"]
"""


def missing(reason: str) -> None:
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def pytest_generate_tests(metafunc):
    """Run the tests that are marked so in Firefox, too: the journeys of a visitor."""
    if metafunc.definition.get_closest_marker("in_firefox_too"):
        metafunc.parametrize("browser", ["chromium", "firefox"], indirect=True)


@pytest.fixture(scope="session")
def downloads(tmp_path_factory):
    """Where Firefox saves files: its driver reports none."""
    return tmp_path_factory.mktemp("downloads")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browsers(downloads):
    """`await browsers("firefox")`: Debian's browser, the same for all modules; with preferences, one more of its own."""
    started = {}
    async with async_playwright() as playwright:

        async def browsers(name, **preferences):
            path = {"chromium": CHROMIUM, "firefox": FIREFOX}[name]
            if not Path(path).exists():
                missing(f"{path} is not installed; on Debian: apt-get install {Path(path).name}")
            # Playwright's own Firefox is a patched one. Any other is driven by WebDriver BiDi: "moz-firefox".
            kind = {"channel": "moz-firefox", "downloads_path": downloads} if name == "firefox" else {"args": QUIET}
            if preferences:
                return await playwright.firefox.launch(executable_path=path, firefox_user_prefs=preferences, **kind)
            if name not in started:
                started[name] = await getattr(playwright, name).launch(executable_path=path, **kind)
            return started[name]

        yield browsers
        for browser in started.values():
            await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def browser(request, browsers):
    return await browsers(getattr(request, "param", "chromium"))


class Served:
    """`chat-nest serve` on a port of its own."""

    def __init__(self, folder: Path, provider: ScriptedProvider, config: str, **environ: str) -> None:
        (folder / "chat-nest.toml").write_text(config.replace("BASE_URL", provider.url))
        self._folder = folder
        clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        clean |= {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": provider.url, "CHAT_NEST_MODEL": "scripted"}
        self._environ = {**clean, **environ}
        self.url = ""

    async def start(self, port: int = 0) -> None:
        self.process = await forked_command.run(
            *("serve", "--port", str(port), "--config", "chat-nest.toml"),
            cwd=self._folder,
            env=self._environ,
            stdout=PIPE,
            stderr=STDOUT,
        )
        said = b""
        while not (found := LISTENING.search(said)):
            line = await self.process.stdout.readline()
            assert line, said.decode()
            said += line
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}/"
        self._reading = asyncio.create_task(self.process.stdout.read())

    async def kill(self) -> None:
        self.process.kill()
        await self._reading
        await self.process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def serving(tmp_path_factory):
    """`await serving(provider, config)`: a server until the end of the module."""
    running = []

    async def serving(provider: ScriptedProvider, config: str = CONFIG, **environ: str) -> Served:
        served = Served(tmp_path_factory.mktemp("served"), provider, config, **environ)
        await served.start()
        running.append(served)
        return served

    yield serving
    for served in running:
        if served.process.returncode is None:
            await served.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared():
    async with ScriptedProvider() as provider:
        yield provider


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(shared, serving):
    return await serving(shared)


@pytest_asyncio.fixture(loop_scope="session")
async def provider(shared):
    """The module's provider, with this test's own scripts: `provider.scripts = [...]`."""
    shared.scripts, shared.requests[:] = [], []
    return shared


@pytest_asyncio.fixture(loop_scope="session")
async def visit(browser, browsers, served):
    """`page = await visit(profile="kept", **the browser's context)`; what a page must never do fails the test.

    `await before(page)` is done before the page is opened.
    """
    wrong, contexts, own = [], [], []

    async def begin(options):
        preferences = {}
        if browser.browser_type.name == "firefox":
            for (option, value), wanted in FIREFOX_PREFERENCES.items():
                preferences |= wanted if options.get(option) == value else {}
        if not preferences:
            return await browser.new_context(**options)
        own.append(await browsers("firefox", **preferences))
        return await own[-1].new_context(**options)

    async def watch(context, url, before):
        page = await context.new_page()
        if before:
            await before(page)
        host = urlsplit(url).netloc
        page.on("pageerror", lambda error: wrong.append(f"an exception: {error}"))
        page.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda request: urlsplit(request.url).netloc in (host, "") or wrong.append(request.url))
        page.on("console", lambda said: "Content Security Policy" not in said.text or wrong.append(said.text))
        page.set_default_timeout(15_000)
        await page.goto(url)
        await page.wait_for_selector("html[data-ready]")
        return page

    async def visit(url=None, profile=None, beside=None, before=None, **options):
        if beside is None:
            options = {"extra_http_headers": {"x-forwarded-for": next(ADDRESSES)}, "locale": "en-US", **options}
            context = await begin(options)
            contexts.append(context)
        else:
            context = beside.context
        page = await watch(context, url or served.url, before)
        if profile is not None:
            await page.select_option("#profile", profile)
        return page

    yield visit
    for each in (*contexts, *own):
        await each.close()
    assert wrong == []


class Held:
    """Requests of a page for its own files that come late or fail: `await visit(before=held.hold("**/a.js"))`."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    def hold(self, files: str):
        """Answer these only after `release`."""

        async def late(route):
            await self.release.wait()
            await route.continue_()

        return lambda page: page.route(files, late)

    def fail(self, files: str):
        """Fail these until `release`."""

        async def fail(route):
            await (route.continue_() if self.release.is_set() else route.abort())

        return lambda page: page.route(files, fail)


@pytest.fixture
def held():
    return Held()
