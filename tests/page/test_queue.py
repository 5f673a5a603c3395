"""A visitor who waits for a free stream of the provider sees the place in the queue."""

from __future__ import annotations

import asyncio

import pytest
from page_words import say, words
from playwright.async_api import expect
from scripted_provider import DONE, answer, chunk, finish, stream, usage

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.in_firefox_too
async def test_the_place_in_the_queue_is_shown_until_the_answer_begins(provider, visit):
    release = asyncio.Event()
    provider.scripts = [stream(chunk("First"), release, finish(), usage(1, 1), DONE), answer("Second")]
    one, two = await visit(profile="queued"), await visit(profile="queued")
    await say(one, "Hi")
    await expect(words(one)).to_have_text("First")
    await say(two, "Hi")
    await expect(two.locator(".reconnecting")).to_contain_text("place 1 in the queue")
    release.set()
    await expect(words(two)).to_have_text("Second")
    await expect(two.locator(".reconnecting")).to_have_count(0)
