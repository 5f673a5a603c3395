"""How smooth the page is on a slow phone: the tasks of its main thread while an answer is written, and its first load.

    scripts/bench page [--only PART] [--precedence] [--tokens N] [--rate N] [--slower N] [--words N] [--json FILE]

Chromium, with a processor that is four times as slow unless `--slower` says otherwise. An answer of Markdown comes at
`--rate` tokens a second. A task that takes longer than a frame of 50 ms is felt. Progress, and what the longest tasks
did, is on stderr. Exit code 1 means that a goal is missed.

On a busy machine, CPU milliseconds are too many, too: Chromium slows its thread down by the time that passes, which
counts what other processes did meanwhile. `--precedence` keeps them away from this thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

from playwright.async_api import BrowserContext, Page, async_playwright
from playwright.async_api import TimeoutError as TimedOut

FRAME_MS, PAINT_MS, FIRST_LOAD = 50, 500, 60_000
"""The goals."""
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True}
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
CONFIG = """
[profiles.balanced]
tokens_per_day = "none"
tokens_per_request = 1000000
max_output_tokens = 100000
on_disconnect = "finish"
[providers.openai]
"""
PARAGRAPH = (
    "The keeper of the **lighthouse** counted the ships, wrote `42` into a [log](https://example.com) and slept. "
)
SECTION = (
    "## Part {number}\n\n"
    + PARAGRAPH * 6
    + "\n\n1. First, *trim* the wick\n2. Then light it\n   - from below\n   - with care\n\n"
    + "| hour | ships | light |\n|---|---:|---|\n"
    + "| 22:00 | 14 | on |\n" * 6
    + "\n```python\n"
    + "def ships(hour: int) -> list[str]:  # as counted\n    return [f'ship {number}' for number in range(hour)]\n" * 12
    + "```\n\nThe light falls as $I = I_0 / r^2$.\n\n"
)
LONG_CODE = (
    "```js\n" + "const light = (hour) => ({ on: hour > 18, words: `at ${hour}` }); // as before\n" * 120 + "```\n\n"
)
LISTENING = re.compile(rb"listening on (http://127\.0\.0\.1:\d+)\n")


def tokens(text: str, count: int | None = None) -> list[str]:
    """Cut a text as a model's tokens do, of about four characters each."""
    return [text[at : at + 4] for at in range(0, len(text), 4)][:count]


def rich(count: int) -> str:
    """Return Markdown of all kinds with at least this many tokens."""
    text = "".join(SECTION.replace("{number}", str(number)) for number in range(3)) + LONG_CODE
    while len(text) < 4 * count:
        text += SECTION.replace("{number}", "more")
    return text


class Provider:
    """An OpenAI-compatible server that writes `pieces`, `rate` of them a second."""

    def __init__(self, pieces: list[str], rate: float) -> None:
        self.pieces, self.rate = pieces, rate

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if length := re.search(rb"content-length: *(\d+)", head, re.IGNORECASE):
            await reader.readexactly(int(length[1]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number, piece in enumerate(self.pieces):
            if writer.is_closing():  # the page is closed
                return
            writer.write(
                b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": {"content": piece}}]}).encode()
            )
            await asyncio.sleep(max(0.0, began + number / self.rate - loop.time()))
        writer.write(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')
        writer.close()


@dataclass(frozen=True)
class Task:
    """A task of the main thread, in milliseconds: CPU, wall clock, since the trace began, and the CPU of each part."""

    cpu: float
    wall: float
    at: float
    parts: dict[str, float]


class Trace:
    """The tasks of a page's main thread, from Chromium's own trace."""

    def __init__(self, page: Page) -> None:
        self._page = page

    async def __aenter__(self) -> Self:
        self._session = await self._page.context.new_cdp_session(self._page)
        self._events: list[dict[str, Any]] = []
        self._whole = asyncio.Event()
        self._session.on("Tracing.dataCollected", lambda data: self._events.extend(data["value"]))
        self._session.on("Tracing.tracingComplete", lambda _: self._whole.set())
        config = {
            "recordMode": "recordAsMuchAsPossible",
            "includedCategories": ["disabled-by-default-devtools.timeline", "devtools.timeline"],
            "excludedCategories": ["*"],
        }
        await self._session.send("Tracing.start", {"traceConfig": config, "transferMode": "ReportEvents"})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.send("Tracing.end")
        await self._whole.wait()
        await self._session.detach()

    def tasks(self) -> list[Task]:
        """Return the tasks, the longest first."""
        laid_out = Counter((each["pid"], each["tid"]) for each in self._events if each["name"] == "UpdateLayoutTree")
        main = laid_out.most_common(1)[0][0]  # the thread that computed the most styles is the page's
        whole = [each for each in self._events if each["ph"] == "X" and (each["pid"], each["tid"]) == main]
        whole.sort(key=lambda each: (each["ts"], -each.get("dur", 0)))
        began = whole[0]["ts"]
        found: list[Task] = []
        open_ones: list[dict[str, Any]] = []
        for each in whole:
            cpu = each.get("tdur", 0) / 1000
            while open_ones and open_ones[-1]["ts"] + open_ones[-1].get("dur", 0) <= each["ts"]:
                open_ones.pop()
            if each["name"] == "RunTask":
                found.append(Task(cpu, each.get("dur", 0) / 1000, (each["ts"] - began) / 1000, defaultdict(float)))
            elif open_ones and found:
                found[-1].parts[each["name"]] += cpu
                if open_ones[-1]["name"] != "RunTask":
                    found[-1].parts[open_ones[-1]["name"]] -= cpu
            open_ones.append(each)
        return sorted(found, key=lambda task: -task.cpu)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def slow_page(context: BrowserContext, slower: float) -> Page:
    page = await context.new_page()
    session = await context.new_cdp_session(page)
    await session.send("Emulation.setCPUThrottlingRate", {"rate": slower})
    return page


async def take_precedence(page: Page) -> None:
    """Run the page's main thread before all other work of the machine, which then only slows what is around it."""
    assert page.context.browser
    session = await page.context.browser.new_browser_cdp_session()
    for process in (await session.send("SystemInfo.getProcessInfo"))["processInfo"]:
        if process["type"] == "renderer":
            os.sched_setscheduler(process["id"], os.SCHED_FIFO, os.sched_param(1))
    await session.detach()


async def answered(page: Page, url: str, whole: int, *, first: bool) -> list[Task]:
    """Ask, and return the tasks until the answer, which has this many characters, is complete."""
    await page.goto(url)
    await page.wait_for_selector("html[data-ready]")
    if first:
        await take_precedence(page)
    await page.wait_for_timeout(2_000)  # as long as a visitor needs to write something
    await page.locator("#prompt").fill("Tell me of lighthouses")
    async with Trace(page) as trace:
        await page.locator("#send").tap(force=True)  # by force: without the driver's listeners
        cost = page.locator(".cost")
        while not await cost.count():
            shown = await page.evaluate("document.querySelector('.assistant .words')?.textContent.length ?? 0")
            note(f"  {shown:,} of about {whole:,} characters are shown")
            try:
                await cost.wait_for(timeout=10_000)
            except TimedOut:
                continue
        await page.wait_for_timeout(3_000)  # colours and formulas come after it
    tasks = trace.tasks()
    for task in tasks[:3]:
        parts = sorted(task.parts.items(), key=lambda part: -part[1])[:6]
        did = ", ".join(f"{name} {cpu:.1f}" for name, cpu in parts)
        note(f"  {task.cpu:.1f} CPU ms after {task.at / 1000:.1f} s: {did}")
    return tasks


async def first_load(context: BrowserContext, url: str, slower: float) -> tuple[float, float, int]:
    """Return the milliseconds until the first paint and until the page is ready, and the bytes that were loaded."""
    page = await slow_page(context, slower)
    await page.add_init_script("""new MutationObserver((_, observer) => {
        if (document.documentElement?.dataset.ready === undefined) return;
        observer.disconnect();
        globalThis.ready = performance.now();
    }).observe(document, { attributes: true, subtree: true })""")
    await page.goto(url)
    await page.wait_for_selector("html[data-ready]")
    script = """() => new Promise((resolve) => new PerformanceObserver((list) => {
        const paint = list.getEntriesByName("first-contentful-paint")[0];
        const loaded = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
            .filter(({ startTime }) => startTime < ready); // later, when the page is idle, it loads the Markdown code
        const bytes = loaded.reduce((sum, { transferSize }) => sum + transferSize, 0);
        if (paint) resolve([paint.startTime, ready, bytes]);
    }).observe({ type: "paint", buffered: true }))"""
    found: list[float] = await page.evaluate(script)
    await page.close()
    return found[0], found[1], int(found[2])


@asynccontextmanager
async def serving(provider: Provider) -> AsyncIterator[str]:
    """Run a server whose model is the provider; the value is its URL."""
    upstream = await asyncio.start_server(provider.answer, "127.0.0.1", 0)
    folder = Path(tempfile.mkdtemp(prefix="chat-nest-page-"))
    (folder / "chat-nest.toml").write_text(CONFIG)
    port = upstream.sockets[0].getsockname()[1]
    environ = {"OPENAI_API_KEY": "sk", "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "CHAT_NEST_MODEL": "scripted"}
    server = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("chat-nest"), "serve", "--port", "0", "--config", "chat-nest.toml"),
        cwd=folder, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert server.stdout
    url = ""
    while not url:
        line = await server.stdout.readline()
        assert line, "the server ended: run it by hand to see why"
        if found := LISTENING.search(line):
            url = found[1].decode() + "/"
    rest = asyncio.create_task(server.stdout.read())
    try:
        yield url
    finally:
        server.kill()
        await server.wait()
        await rest
        upstream.close()
        shutil.rmtree(folder)


async def measure(asked: argparse.Namespace) -> dict[str, Any]:
    provider = Provider([], asked.rate)
    found: dict[str, Any] = {}
    async with serving(provider) as url, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)

        async def tasks(pieces: list[str], rate: float) -> dict[str, Any]:
            provider.pieces, provider.rate = pieces, rate
            context = await browser.new_context(**PHONE)
            found = await answered(
                await slow_page(context, asked.slower), url, sum(map(len, pieces)), first=asked.precedence
            )
            await context.close()
            return summary(found)

        if asked.only in {None, "load"}:
            loads = []
            for number in range(asked.loads):
                context = await browser.new_context(**PHONE)
                loads.append(await first_load(context, url, asked.slower))
                await context.close()
                note(f"first load {number + 1} of {asked.loads}: painted after {loads[-1][0]:.0f} ms")
            paints, readies, sizes = zip(*loads, strict=True)
            found |= {"first paint, ms": median(paints), "ready, ms": median(readies), "first load, bytes": max(sizes)}
        if asked.only in {None, "tokens"}:
            note(f"{asked.tokens} tokens of Markdown, {asked.rate:g} a second")
            pieces = tokens(rich(asked.tokens), asked.tokens)
            found[f"tasks of {asked.tokens} tokens"] = await tasks(pieces, asked.rate)
        if asked.only in {None, "words"}:
            note(f"{asked.words} words, {4 * asked.rate:g} tokens a second")
            paragraph = PARAGRAPH * 5 + "\n\n"
            pieces = tokens(paragraph * (asked.words // len(paragraph.split())))
            found[f"tasks of {asked.words} words"] = await tasks(pieces, 4 * asked.rate)
        await browser.close()
    return found


def summary(tasks: list[Task]) -> dict[str, Any]:
    return {
        "longest, CPU ms": tasks[0].cpu,
        f"over {FRAME_MS} CPU ms": sum(task.cpu > FRAME_MS for task in tasks),
        "longest, wall ms": max(task.wall for task in tasks),
        "ten longest, CPU ms": [round(task.cpu, 1) for task in tasks[:10]],
        "all, CPU ms": sum(task.cpu for task in tasks),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench page", description=__doc__)
    parser.add_argument("--tokens", type=int, default=4_000)
    parser.add_argument("--rate", type=float, default=150, help="tokens a second")
    parser.add_argument("--words", type=int, default=20_000, help="of the longest answer")
    parser.add_argument("--slower", type=float, default=4, help="how much slower the processor is made")
    parser.add_argument("--loads", type=int, default=5, help="first loads; their median counts")
    parser.add_argument(
        "--precedence", action="store_true", help="run the page's main thread before other work; needs Linux and root"
    )
    parser.add_argument("--only", choices=["load", "tokens", "words"])
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    found = asyncio.run(measure(asked))
    print(json.dumps(found, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(found))
    missed = found.get("first paint, ms", 0) > PAINT_MS or found.get("first load, bytes", 0) > FIRST_LOAD
    missed |= any(part["longest, CPU ms"] > FRAME_MS for part in found.values() if isinstance(part, dict))
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
