"""What can be done with a message: copy, another answer, a changed question, going on after a cut."""

from __future__ import annotations

import pytest
from page_words import say, sent, words
from playwright.async_api import expect
from scripted_provider import DONE, answer, chunk, failure, finish, stream, usage

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_message_and_its_code_are_copied_as_they_were_written(provider, visit):
    text = "Use **this**:\n\n```python\nx = 1\n\ny = 2\n```"
    provider.scripts = [answer(text)]
    page = await visit(permissions=["clipboard-read", "clipboard-write"])
    await say(page, "Code")
    await expect(page.locator(".cost")).to_be_visible()
    await page.locator(".assistant button.copy").click()
    assert await page.evaluate("navigator.clipboard.readText()") == text
    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    await page.get_by_role("button", name="Copy code").click()
    assert await page.evaluate("navigator.clipboard.readText()") == "x = 1\n\ny = 2"
    await page.locator(".user").hover()
    await page.locator(".user button.copy").click()
    assert await page.evaluate("navigator.clipboard.readText()") == "Code"


@pytest.mark.in_firefox_too
async def test_another_answer_is_a_version_beside_the_first(provider, visit):
    provider.scripts = [answer("First"), answer("Second"), answer("Third")]
    page = await visit()
    await say(page, "Hi")
    await expect(words(page)).to_have_text("First")
    await page.get_by_role("button", name="Write another answer").click()
    await expect(words(page)).to_have_text("Second")
    await expect(page.locator(".branch")).to_contain_text("2 of 2")
    assert sent(provider.requests[1]) == [("user", "Hi")]
    await page.get_by_role("button", name="Previous version").click()
    await expect(words(page)).to_have_text("First")
    await say(page, "Go on")
    await expect(words(page)).to_have_text("Third")
    assert sent(provider.requests[2]) == [("user", "Hi"), ("assistant", "First"), ("user", "Go on")]
    await page.get_by_role("button", name="Next version").click()
    await expect(page.locator(".words")).to_have_text(["Hi", "Second"])
    await page.reload()
    await expect(page.locator(".words")).to_have_text(["Hi", "Second"])


@pytest.mark.in_firefox_too
async def test_a_changed_question_begins_a_branch_and_the_old_one_stays(provider, visit):
    provider.scripts = [answer("Bread"), answer("Cake")]
    page = await visit()
    await say(page, "Bake bread")
    await expect(page.locator(".cost")).to_be_visible()
    prompt = page.get_by_label("Your message")
    await prompt.fill("a draft")
    await page.locator(".user").hover()
    await page.get_by_role("button", name="Edit message").click()
    await expect(prompt).to_have_value("Bake bread")
    await page.keyboard.press("Escape")
    await expect(prompt).to_have_value("a draft")
    await page.locator(".user").hover()
    await page.get_by_role("button", name="Edit message").click()
    await say(page, "Bake a cake")
    await expect(words(page)).to_have_text("Cake")
    await expect(prompt).to_have_value("a draft")
    assert sent(provider.requests[1]) == [("user", "Bake a cake")]
    await page.get_by_role("button", name="Previous version").click()
    await expect(page.locator(".words")).to_have_text(["Bake bread", "Bread"])


@pytest.mark.in_firefox_too
async def test_an_answer_cut_at_the_limit_continues_in_its_place(provider, visit):
    cut = stream(chunk("one two "), finish("length"), usage(5, 2), DONE)
    provider.scripts = [cut, answer("three"), answer("Yes")]
    page = await visit()
    await say(page, "Count")
    await expect(page.locator(".cost")).to_contain_text("cut at the length limit")
    await page.get_by_role("button", name="Continue").click()
    await expect(words(page)).to_have_text("one two three")
    [_, (role, partial), (last, asked)] = sent(provider.requests[1])
    assert (role, partial.strip(), last) == ("assistant", "one two", "user")
    assert "Continue exactly" in asked
    await expect(page.get_by_role("button", name="Continue")).to_have_count(0)
    await say(page, "Go on")
    await expect(words(page)).to_have_text("Yes")
    assert [content.strip() for _, content in sent(provider.requests[2])] == ["Count", "one two three", "Go on"]


async def test_a_refused_second_answer_leaves_the_first_and_its_question(provider, visit):
    provider.scripts = [
        answer("First"),
        failure(400, "This model's maximum context length is 10 tokens", "context_length_exceeded"),
    ]
    page = await visit()
    await say(page, "Hi")
    await expect(words(page)).to_have_text("First")
    await page.get_by_role("button", name="Write another answer").click()
    await expect(page.locator(".problem")).to_contain_text("too long for this model")
    await expect(page.locator(".words")).to_have_text(["Hi", "First"])
    await expect(page.get_by_label("Your message")).to_have_value("")


@pytest.mark.in_firefox_too
async def test_instructions_are_sent_with_a_conversation_if_the_profile_accepts_them(provider, visit):
    provider.scripts = [answer("Arr")]
    page = await visit(profile="instructed")
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("Instructions for this conversation").fill("Talk like a pirate")
    await page.get_by_role("button", name="Save").click()
    await say(page, "Hi")
    await expect(words(page)).to_have_text("Arr")
    assert sent(provider.requests[0]) == [("system", "Talk like a pirate"), ("user", "Hi")]
    await page.select_option("#profile", "balanced")
    await page.get_by_role("button", name="Settings").click()
    await expect(page.get_by_label("Instructions for this conversation")).to_be_hidden()
