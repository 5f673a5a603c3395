"""Signed answers on the page: it sends each as it came, and leaves out what the server did not sign."""

from __future__ import annotations

import pytest
from page_words import forever, say, sent, words
from playwright.async_api import expect
from scripted_provider import DONE, answer, chunk, finish, stream, usage

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_conversation_continues_after_a_continued_and_a_stopped_answer(provider, visit):
    cut = stream(chunk("one two "), finish("length"), usage(5, 2), DONE)
    provider.scripts = [cut, answer("three"), answer("Yes"), forever("Never"), answer("Well")]
    page = await visit(profile="signed")
    await say(page, "Count")
    await page.get_by_role("button", name="Continue").click()
    await expect(words(page)).to_have_text("one two three")
    await say(page, "Go on")
    await expect(words(page)).to_have_text("Yes")
    asked = [content for _, content in sent(provider.requests[2])]
    assert [asked[0], *asked[-2:]] == ["Count", "three", "Go on"], "each piece as it was signed"
    await say(page, "Stop")
    await expect(words(page)).to_have_text("Never")
    await page.get_by_role("button", name="Stop").click()
    await say(page, "And now?")
    await expect(words(page)).to_have_text("Well")
    assert [content for _, content in sent(provider.requests[4])][-3:] == ["Yes", "Stop", "And now?"]
