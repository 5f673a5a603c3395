"""examples/static-page: a chat on a page of another origin than the endpoint, in a real browser."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import expect
from scripted_provider import answer

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAGE = Path(__file__).parents[2] / "examples/static-page/index.html"
CONFIG = """
[server]
origins = ["{origin}"]
allowed_hosts = ["127.0.0.1"]
[visitors]
secret = "a secret of the page's visitors, long enough"
[addresses]
requests_per_day = 9
[challenge]
kind = "proof_of_work"
before = "taste"
after = "balanced"
milliseconds = 100
[profiles.balanced]
signed_turns = true
turns_per_conversation = 20
[profiles.taste]
open = true
signed_turns = true
requests_per_day = 1
[signatures]
secrets = ["a secret of the page's tests, long enough"]
"""


async def page_server(endpoint):
    """Serve the page with the URLs in `endpoint` for that of its chat; each server is an origin of its own."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = PAGE.read_bytes().replace(b"https://chat.example", endpoint[0].encode())
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_the_page_is_short():
    assert len(PAGE.read_text().splitlines()) < 60


async def test_a_page_of_the_named_origin_chats_and_one_of_another_origin_does_not(provider, serving, browser):
    endpoint: list[str] = []
    own, origin = await page_server(endpoint)
    foreign, elsewhere = await page_server(endpoint)
    async with own, foreign:
        served = await serving(provider, CONFIG.format(origin=origin))
        endpoint.append(served.url.rstrip("/"))
        provider.scripts = [answer("Good morning"), answer("Still here"), answer("And again")]
        context = await browser.new_context()
        page = await context.new_page()
        lines = page.locator("#log li")
        await page.goto(origin)
        for question, text in (("Hello", "Good morning"), ("And now?", "Still here")):
            await page.get_by_label("Your question").fill(question)
            await page.get_by_role("button", name="Ask").click()
            await expect(lines.last).to_have_text(text)
        assert len(provider.requests[1].json()["messages"]) == 3, "the history, with its signature, after a challenge"
        await page.reload()
        await page.get_by_label("Your question").fill("Again")
        await page.get_by_role("button", name="Ask").click()
        await expect(lines.last).to_have_text("And again")
        await page.goto(elsewhere)
        await page.get_by_label("Your question").fill("Hello")
        await page.get_by_role("button", name="Ask").click()
        await expect(lines).to_have_count(3)  # the question, an empty answer, and why
        assert len(provider.requests) == 3
        await context.close()
