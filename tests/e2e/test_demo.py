"""The real demo model: as a newcomer meets it in the page, and as the provider that runs it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import processes
import pytest
from playwright.async_api import expect
from processes import open_files, state, until

from chat_nest.core.deltas import FinishDelta, TextDelta, UsageDelta
from chat_nest.core.errors import UpstreamRejected, UpstreamUnavailable
from chat_nest.core.messages import Message
from chat_nest.core.protocols import Prompt
from chat_nest.core.timeouts import Timeouts
from chat_nest.providers import demo_server
from chat_nest.providers.demo import DemoProvider
from chat_nest.providers.demo_process import environment, start_demo_server


async def test_a_newcomer_without_a_key_chats_stops_and_sees_the_cost(model, serve, visit):
    page = await visit(await serve(), viewport={"width": 1100, "height": 760})
    await expect(page.locator("#demo")).to_contain_text("A tiny model on the server: fluent, and often wrong.")
    await expect(page.locator("#demo")).to_contain_text("OPENAI_API_KEY")
    await expect(page.locator("#model")).to_have_text("smollm2-135m-instruct")

    prompt = page.get_by_label("Your message")
    await prompt.fill("What is the capital of France?")
    await page.keyboard.press("Enter")
    cost = page.locator(".cost")
    await expect(cost).to_have_text(re.compile(r"^\d+ tokens \(\d+ in, \d+ out\)$"))
    words = page.locator(".assistant .words")
    await expect(words).to_contain_text("Paris")
    spent = int(re.match(r"\d+", await cost.inner_text())[0])
    await expect(page.locator("#left-text")).to_have_text(f"{200_000 - spent:,} of 200,000 tokens left today")

    await prompt.fill("Tell me a long story about a lighthouse.")
    await page.keyboard.press("Enter")
    lengths = set()
    while len(lengths) < 10:  # it grows before our eyes
        lengths.add(len(await words.last.inner_text()))
    await page.get_by_role("button", name="Stop").click()
    await expect(cost.last).to_have_text(re.compile(r"^Stopped · about \d+ tokens charged \(estimated\)$"))
    stopped = await words.last.inner_text()

    await prompt.fill("Give me three names for a cat.")
    await page.keyboard.press("Enter")
    await expect(cost).to_have_count(3)
    assert await words.nth(1).inner_text() == stopped  # nothing came after the stop
    artifacts = Path(os.environ.get("ARTIFACTS") or "artifacts")
    await page.screenshot(path=artifacts / "page.png")


async def test_a_model_that_crashes_in_the_middle_of_an_answer_is_started_again_by_a_retry(model, serve, visit):
    page = await visit(await serve())
    await page.get_by_label("Your message").fill("Tell me a long story about a lighthouse.")
    await page.keyboard.press("Enter")
    words = page.locator(".assistant .words")
    await expect(words).to_contain_text(re.compile(r"\w+ \w+"))
    servers = processes.children("chat_nest.cli.main")  # those of other tests' modules may still run, without a model
    [(server, model)] = [(each, child) for each in servers for child in processes.children("demo_server", each)]
    os.kill(model, signal.SIGKILL)
    await expect(page.locator(".problem")).to_have_text("The demo model stopped. Please try again.")
    await page.get_by_role("button", name="Retry").click()
    await processes.until(lambda: processes.children("demo_server", server) - {model})
    await expect(words).to_contain_text(re.compile(r"\w+ \w+"))


def children():
    return processes.children("demo_server")


def prompt(text, **changes):
    fields = {"model": "any", "messages": (Message(role="user", content=text),), "max_output_tokens": 40, **changes}
    return Prompt(**fields)


async def answer(provider, asked):
    async with provider.open(asked, Timeouts()) as batches:
        return [delta async for batch in batches for delta in batch]


def text_of(deltas):
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


@pytest.fixture
async def provider(model):
    provider = DemoProvider()
    yield provider
    await provider.aclose()


async def test_it_answers_with_text_usage_and_a_finish(provider):
    deltas = await answer(provider, prompt("What is the capital of France?"))
    assert "Paris" in text_of(deltas)
    usage = next(delta.usage for delta in deltas if isinstance(delta, UsageDelta))
    assert usage.input_tokens > 5
    assert 0 < usage.output_tokens <= 40
    assert [delta.reason for delta in deltas if isinstance(delta, FinishDelta)] in (["stop"], ["length"])
    await provider.check()


async def test_it_answers_the_same_again_at_any_temperature_of_a_profile(provider):
    first = await answer(provider, prompt("Tell me about birds.", temperature=2.0))
    again = await answer(provider, prompt("Tell me about birds.", temperature=0.7))
    assert text_of(first) == text_of(again) != ""


async def test_the_answer_ends_at_the_requested_number_of_tokens(provider):
    deltas = await answer(provider, prompt("Tell me a long story.", max_output_tokens=7))
    assert deltas[-1] == FinishDelta("length") or FinishDelta("length") in deltas
    assert next(delta.usage for delta in deltas if isinstance(delta, UsageDelta)).output_tokens == 7


async def test_a_prompt_longer_than_its_context_is_rejected(provider):
    with pytest.raises(UpstreamRejected):
        await answer(provider, prompt("one two three " * 3000))
    assert await answer(provider, prompt("Hello"))  # and the model is none the worse


async def test_killed_mid_stream_it_is_unavailable_and_started_again_for_the_next(provider, caplog):
    streams = 0
    with pytest.raises(UpstreamUnavailable, match="The demo model stopped"):
        async with provider.open(prompt("Tell me a long story.", max_output_tokens=1000), Timeouts()) as batches:
            async for _ in batches:
                if streams == 0:
                    (killed,) = children()
                    os.kill(killed, signal.SIGKILL)
                streams += 1
    assert await answer(provider, prompt("Hello"))
    assert state(killed) == ""  # reaped
    assert len(children() - {killed}) == 1
    assert "(-9)" in caplog.text


async def test_killed_between_two_chats_it_is_started_again_unnoticed(provider):
    await answer(provider, prompt("Hello"))
    (killed,) = children()
    os.kill(killed, signal.SIGKILL)
    await until(lambda: not state(killed))
    assert await answer(provider, prompt("Hello"))


async def test_cancelled_closing_still_closes_everything(model):
    await answer(warm := DemoProvider(), prompt("Hello", max_output_tokens=1))
    await warm.aclose()
    before = open_files()
    for turns in range(1, 5):
        provider = DemoProvider()
        async with provider.open(prompt("Hello"), Timeouts()):
            closing = asyncio.create_task(provider.aclose())
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await provider.aclose()  # waits for the first to end
            assert children() == set()
        await until(lambda: open_files() == before)


async def test_sigterm_ends_it(model):
    server = await asyncio.to_thread(start_demo_server)
    (pid,) = children()
    os.kill(pid, signal.SIGTERM)
    assert await asyncio.to_thread(server.wait, 10)
    assert not server.alive
    server.close()


async def test_a_server_that_runs_already_is_used_and_left_running(model):
    server = await asyncio.to_thread(start_demo_server)
    try:
        worker = DemoProvider(server.url, server.api_key)
        assert await worker.start() == server.url
        assert await answer(worker, prompt("Hello"))
        await worker.aclose()
        assert server.alive
        assert len(children()) == 1
    finally:
        await asyncio.to_thread(server.close)


async def test_it_accepts_only_requests_with_the_key_from_this_machine(model):
    server = await asyncio.to_thread(start_demo_server)
    try:
        (pid,) = children()
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
            for path in ("/v1/chat/completions", "/completion", "/v1/messages", "/slots", "/props", "/metrics"):
                refused = await http.post(path, json=body)
                assert refused.status_code in {401, 404, 501}, path
            headers = {"authorization": f"Bearer {server.api_key}", "origin": "http://evil.example"}
            accepted = await http.post("/v1/chat/completions", json=body, headers=headers)
            assert accepted.status_code == 200
            assert accepted.headers.get("access-control-allow-origin") not in {"*", "http://evil.example"}
        assert server.api_key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert listening(pid) == {("0100007F", urlsplit(server.url).port)}
    finally:
        await asyncio.to_thread(server.close)


def listening(pid):
    """The IPv4 and IPv6 addresses (hexadecimal, as in /proc) and ports on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(link)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and fields[3] == "0A":
                address, _, port = fields[1].partition(":")
                found.add((address, int(port, 16)))
    return found


async def test_it_prints_only_its_url_whatever_is_requested(model, tmp_path):
    """Broken bodies too: they are what llama.cpp would quote."""
    said = tmp_path / "output"
    with said.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-P", demo_server.__file__],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment(),
        )
    try:
        await until(lambda: said.read_text().endswith("\n"))
        url = said.read_text().removeprefix(demo_server.READY).strip()
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            good = b'{"messages": [{"role": "user", "content": "SECRET"}], "max_tokens": 5}'
            for body in (
                good,
                good[:-20],
                b"SECRET",
                good.replace(b"user", b"SECRET"),
                good.replace(b"5", b'"SECRET"'),
            ):
                await http.post("/v1/chat/completions", content=body)
    finally:
        child.stdin.close()  # as when its parent has died
        assert await asyncio.to_thread(child.wait, 10) == 0
    assert said.read_text() == f"{demo_server.READY}{url}\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(url).port))
