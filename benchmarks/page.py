"""How smooth the page is on a slow phone: the tasks of its main thread while an answer is written, and its first load.

    scripts/bench page [--tokens N] [--rate N] [--slower N] [--words N] [--json FILE]

Chromium, with a processor that is four times as slow unless `--slower` says otherwise. An answer of Markdown comes at
`--rate` tokens a second. A task that takes longer than a frame of 50 ms is felt. CPU milliseconds count what the thread
computed, and hold on a busy machine; wall-clock ones do not. Exit code 1 means that a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, Self

from playwright.async_api import BrowserContext, Page, async_playwright

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
        categories = "disabled-by-default-devtools.timeline,devtools.timeline,toplevel"
        await self._session.send("Tracing.start", {"categories": categories, "transferMode": "ReportEvents"})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.send("Tracing.end")
        await self._whole.wait()
        await self._session.detach()

    def tasks(self) -> list[tuple[float, float]]:
        """Return the CPU and the wall-clock milliseconds of each task, the longest first."""
        laid_out = Counter((each["pid"], each["tid"]) for each in self._events if each["name"] == "UpdateLayoutTree")
        main = laid_out.most_common(1)[0][0]  # the thread that computed the most styles is the page's
        found = [each for each in self._events if (each["pid"], each["tid"]) == main and each["name"] == "RunTask"]
        return sorted(((each.get("tdur", 0) / 1000, each.get("dur", 0) / 1000) for each in found), reverse=True)


async def slow_page(context: BrowserContext, slower: float) -> Page:
    page = await context.new_page()
    session = await context.new_cdp_session(page)
    await session.send("Emulation.setCPUThrottlingRate", {"rate": slower})
    return page


async def answered(page: Page, url: str) -> Trace:
    """Ask, and return the trace until the answer is complete."""
    await page.goto(url)
    await page.wait_for_selector("html[data-ready]")
    await page.wait_for_timeout(2_000)  # as long as a visitor needs to write something
    await page.locator("#prompt").fill("Tell me of lighthouses")
    async with Trace(page) as trace:
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".cost", timeout=600_000)
        await page.wait_for_timeout(3_000)  # colours and formulas come after it
    return trace


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


async def measure(asked: argparse.Namespace) -> dict[str, Any]:
    provider = Provider(tokens(rich(asked.tokens), asked.tokens), asked.rate)
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
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            loads = []
            for _ in range(asked.loads):
                context = await browser.new_context(**PHONE)
                loads.append(await first_load(context, url, asked.slower))
                await context.close()
            context = await browser.new_context(**PHONE)
            tasks = (await answered(await slow_page(context, asked.slower), url)).tasks()
            await context.close()
            paragraph = PARAGRAPH * 5 + "\n\n"
            provider.pieces = tokens(paragraph * (asked.words // len(paragraph.split())))
            provider.rate *= 4
            context = await browser.new_context(**PHONE)
            long_tasks = (await answered(await slow_page(context, asked.slower), url)).tasks()
            await browser.close()
    finally:
        server.kill()
        await server.wait()
        await rest
        upstream.close()
        shutil.rmtree(folder)
    paints, readies, sizes = zip(*loads, strict=True)
    return {
        "first paint, ms": median(paints),
        "ready, ms": median(readies),
        "first load, bytes": max(sizes),
        f"tasks of {asked.tokens} tokens": summary(tasks),
        f"tasks of {asked.words} words": summary(long_tasks),
    }


def summary(tasks: list[tuple[float, float]]) -> dict[str, float]:
    return {
        "longest, CPU ms": tasks[0][0],
        f"over {FRAME_MS} CPU ms": sum(cpu > FRAME_MS for cpu, _ in tasks),
        "longest, wall ms": max(wall for _, wall in tasks),
        "ten longest, CPU ms": [round(cpu, 1) for cpu, _ in tasks[:10]],  # type: ignore[dict-item]
        "all, CPU ms": sum(cpu for cpu, _ in tasks),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench page", description=__doc__)
    parser.add_argument("--tokens", type=int, default=4_000)
    parser.add_argument("--rate", type=float, default=150, help="tokens a second")
    parser.add_argument("--words", type=int, default=20_000, help="of the longest answer")
    parser.add_argument("--slower", type=float, default=4, help="how much slower the processor is made")
    parser.add_argument("--loads", type=int, default=5, help="first loads; their median counts")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    found = asyncio.run(measure(asked))
    print(json.dumps(found, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(found))
    missed = found["first paint, ms"] > PAINT_MS or found["first load, bytes"] > FIRST_LOAD
    missed |= any(part["longest, CPU ms"] > FRAME_MS for part in found.values() if isinstance(part, dict))
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
