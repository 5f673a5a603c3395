"""Conversations on the device: kept, found, renamed, exported, deleted, resumed, and the same in two tabs."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from page_words import PHONE, forever, say, sent, words
from playwright.async_api import expect
from scripted_provider import DONE, answer, chunk, finish, stream, usage

pytestmark = pytest.mark.asyncio(loop_scope="session")


def talks(page):
    return page.locator("#list .talk")


async def choose(page, title, action):
    await page.get_by_role("button", name=f"Actions for “{title}”").click()
    await page.get_by_role("menuitem", name=action).click()


@pytest.mark.in_firefox_too
async def test_conversations_are_listed_found_renamed_and_opened_again(provider, visit):
    provider.scripts = [answer("Yes, **bread**"), answer("A lighthouse")]
    page = await visit()
    await say(page, "How do I bake?")
    await expect(page.locator(".cost")).to_be_visible()
    await page.get_by_role("button", name="New chat").click()
    await expect(page.locator("#welcome")).to_be_visible()
    await say(page, "Tell a story")
    await expect(page.locator(".cost")).to_be_visible()
    await expect(talks(page)).to_have_text(["Tell a story", "How do I bake?"])
    search = page.get_by_label("Search conversations")
    await search.fill("BREAD")  # in the answer
    await expect(talks(page)).to_have_text(["How do I bake?"])
    await search.fill("nowhere")
    await expect(page.locator("#list-note")).to_have_text("Nothing found.")
    await search.fill("")
    await choose(page, "How do I bake?", "Rename")
    await page.keyboard.type("Baking")
    await page.keyboard.press("Enter")
    await expect(talks(page)).to_have_text(["Tell a story", "Baking"])
    await page.reload()
    await expect(words(page)).to_have_text("A lighthouse")
    await talks(page).nth(1).click()
    await expect(words(page).locator("strong")).to_have_text("bread")
    assert await page.title() == "Baking · Chat Nest"
    await expect(page.locator(".cost")).to_contain_text("tokens")


@pytest.fixture
def exported(browser, downloads):
    """`name, text = await exported(page, act())`: the file that the browser saves."""

    async def exported(page, act):
        if browser.browser_type.name == "chromium":
            async with page.expect_download() as download:
                await act
            saved = await download.value
            return saved.suggested_filename, (await saved.path()).read_text()
        before = {*downloads.iterdir()}
        await act
        while True:
            found = {*downloads.iterdir()} - before
            if len(found) == 1 and (
                text := (file := found.pop()).read_text()
            ):  # two while it is written: it and its part
                return file.name, text
            await asyncio.sleep(0.01)

    return exported


@pytest.mark.in_firefox_too
async def test_a_conversation_is_exported_as_markdown_and_everything_as_json(provider, visit, exported):
    provider.scripts = [answer("Yes, **bread**")]
    page = await visit()
    await say(page, "How do I bake?")
    await expect(page.locator(".cost")).to_be_visible()
    name, text = await exported(page, choose(page, "How do I bake?", "Export as Markdown"))
    assert name == "How-do-I-bake.md"
    assert text == "# How do I bake?\n\n## You\n\nHow do I bake?\n\n## Answer\n\nYes, **bread**\n"
    await page.get_by_role("button", name="Settings").click()
    name, text = await exported(page, page.get_by_role("button", name="Export everything").click())
    assert name == "Chat-Nest.json"
    everything = json.loads(text)
    assert everything["format"] == "chat-nest-conversations-1"
    [conversation] = everything["conversations"]
    said = sorted(conversation["messages"], key=lambda message: message["created"])
    assert [message["content"] for message in said] == ["How do I bake?", "Yes, **bread**"]


@pytest.mark.in_firefox_too
async def test_undo_restores_a_deleted_conversation(provider, visit):
    provider.scripts = [answer("Yes")]
    page = await visit()
    for title in ("One", "Two"):
        await page.get_by_role("button", name="New chat").click()
        await say(page, title)
        await expect(page.locator(".cost")).to_be_visible()
    await choose(page, "Two", "Delete")
    await expect(talks(page)).to_have_text(["One"])
    await expect(page.locator("#welcome")).to_be_visible()
    await page.get_by_role("button", name="Undo").click()
    await expect(talks(page)).to_have_text(["Two", "One"])
    await expect(words(page)).to_have_text("Yes")
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_role("button", name="Delete all conversations").click()
    await expect(talks(page)).to_have_count(0)
    await page.reload()
    await expect(page.locator("#list-note")).to_have_text("No conversations yet.")


@pytest.mark.in_firefox_too
async def test_a_reload_in_the_middle_of_an_answer_loses_and_doubles_nothing(provider, visit):
    more, rest = asyncio.Event(), asyncio.Event()
    script = stream(
        chunk("one "), chunk("two "), more, chunk("three "), rest, chunk("four"), finish(), usage(9, 4), DONE
    )
    provider.scripts = [answer("Hello"), script, answer("Yes")]
    page = await visit(profile="kept")
    await say(page, "First")
    await expect(page.locator(".cost")).to_be_visible()
    await say(page, "Count")
    await expect(words(page)).to_have_text("one two")
    await page.reload()
    await expect(words(page)).to_have_text("one two")
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    more.set()
    await expect(words(page)).to_have_text("one two three")
    await page.reload()
    rest.set()
    await expect(words(page)).to_have_text("one two three four")
    await expect(page.locator(".cost").last).to_contain_text("13 tokens (9 in, 4 out)")
    await page.reload()  # and when it has ended
    await expect(page.locator(".words")).to_have_text(["First", "Hello", "Count", "one two three four"])
    await expect(page.get_by_label("Your message")).to_be_focused()
    await say(page, "Go on")
    await expect(words(page)).to_have_text("Yes")
    assert [content for _, content in sent(provider.requests[2])] == [
        "First",
        "Hello",
        "Count",
        "one two three four",
        "Go on",
    ]
    assert len(provider.requests) == 3


@pytest.mark.in_firefox_too
async def test_a_reload_before_the_first_word_sends_no_request_twice(provider, visit):
    begin = asyncio.Event()
    provider.scripts = [[begin, *answer("late")]]
    page = await visit(profile="kept")
    await say(page, "Hi")
    await provider.request(0)
    await page.reload()
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    begin.set()
    await expect(words(page)).to_have_text("late")
    await expect(page.locator(".cost")).to_contain_text("tokens")
    assert len(provider.requests) == 1


@pytest.mark.in_firefox_too
async def test_stop_after_a_reload_ends_the_run_on_the_server(provider, visit):
    provider.scripts = [forever("one ", "two "), answer("Yes")]
    page = await visit(profile="kept", **PHONE)
    await say(page, "Count")
    await expect(words(page)).to_have_text("one two")
    await page.reload()
    await expect(words(page)).to_have_text("one two")
    await page.get_by_role("button", name="Stop").click()
    await provider.closed(0)
    await expect(page.locator(".cost")).to_have_text(re.compile(r"^Stopped · about \d+ tokens charged \(estimated\)$"))
    await page.reload()
    await expect(page.get_by_role("button", name="Send")).to_be_visible()
    await expect(words(page)).to_have_text("one two")
    await say(page, "Go on")
    await expect(words(page)).to_have_text("Yes")


@pytest.mark.in_firefox_too
async def test_a_reload_ends_an_answer_with_a_note_if_answers_are_not_kept(provider, visit):
    provider.scripts = [forever("one"), answer("again")]
    page = await visit()
    await say(page, "Count")
    await expect(words(page)).to_have_text("one")
    assert "idempotency-key" not in (await provider.request(0)).headers
    await saved(page, "one")
    await page.reload()
    await provider.closed(0)
    await expect(page.locator(".problem")).to_have_text("The page was closed before this answer was complete.")
    await page.get_by_role("button", name="Retry").click()
    await expect(words(page)).to_have_text("again")


CLOSED_TOO_SOON = """() => {
  const put = IDBObjectStore.prototype.put;
  IDBObjectStore.prototype.put = function (record) {
    return put.call(this, record.role === "assistant" ? { ...record, content: "" } : record);
  };
}"""


@pytest.mark.in_firefox_too
async def test_the_shown_part_of_an_answer_survives_a_reload_before_it_is_stored(provider, visit):
    provider.scripts = [forever("one ", "**two**"), answer("again"), forever("later")]
    page = await visit()
    await page.evaluate(CLOSED_TOO_SOON)
    await say(page, "Count")
    await expect(words(page)).to_have_text("one two")
    await page.reload()
    await expect(page.locator(".problem")).to_have_text("The page was closed before this answer was complete.")
    await expect(words(page).locator("strong")).to_have_text("two")
    await page.reload()  # and now it is stored
    await expect(words(page)).to_have_text("one two")
    await page.get_by_role("button", name="Retry").click()
    await expect(words(page)).to_have_text("again")
    await page.get_by_role("button", name="Write another answer").click()
    await expect(words(page)).to_have_text("later")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator(".cost").last).to_contain_text("Stopped")
    await page.reload()
    await expect(words(page)).to_have_text("later")


SAVED = """(text) => new Promise((resolve) => {
  const request = indexedDB.open("chat-nest");
  request.onsuccess = () => {
    const all = request.result.transaction("messages").objectStore("messages").getAll();
    all.onsuccess = () => (request.result.close(), resolve(all.result.some(({ content, role }) => role === "assistant" && content === text)));
  };
})"""


async def saved(page, text):
    """Wait until an answer with this text is stored. `wait_for_function` does not wait for promises in Firefox."""
    while not await page.evaluate(SAVED, text):
        await asyncio.sleep(0.01)


@pytest.mark.in_firefox_too
async def test_an_answer_continues_while_another_conversation_is_open(provider, visit):
    more = asyncio.Event()
    provider.scripts = [stream(chunk("one "), more, chunk("two"), finish(), usage(1, 2), DONE), answer("Yes")]
    page = await visit()
    await say(page, "Count")
    await expect(words(page)).to_have_text("one")
    await page.get_by_role("button", name="New chat").click()
    await say(page, "Other")
    await expect(words(page)).to_have_text("Yes")
    more.set()
    await page.get_by_role("button", name="Count", exact=True).click()
    await expect(words(page)).to_have_text("one two")
    await expect(page.locator(".cost")).to_be_visible()


@pytest.mark.in_firefox_too
async def test_two_tabs_agree(provider, visit):
    more = asyncio.Event()
    script = stream(chunk("one "), more, chunk("two"), finish(), usage(1, 2), DONE)
    provider.scripts = [script, answer("Yes")]
    page = await visit(profile="kept")
    await say(page, "Count")
    await expect(words(page)).to_have_text("one")
    await saved(page, "one ")
    other = await visit(page.url, beside=page)
    await expect(words(other)).to_have_text("one")
    await expect(other.locator(".reconnecting")).to_have_text("Written in another tab")
    more.set()
    await expect(words(other)).to_have_text("one two")
    await expect(other.locator(".cost")).to_contain_text("3 tokens")
    assert len(provider.requests) == 1
    await say(other, "Go on")
    await expect(words(page)).to_have_text("Yes")
    await expect(page.locator(".words")).to_have_text(["Count", "one two", "Go on", "Yes"])
    await choose(other, "Count", "Delete")
    await expect(page.locator("#welcome")).to_be_visible()
    await expect(talks(page)).to_have_count(0)


@pytest.mark.in_firefox_too
@pytest.mark.parametrize("profile", ["balanced", "kept"])
async def test_a_conversation_deleted_while_its_answer_is_written_stays_deleted(provider, visit, profile):
    provider.scripts = [answer("Hello"), forever("one "), forever("one ")]
    page = await visit(profile=profile)
    await say(page, "Hi")
    await expect(page.locator(".cost")).to_be_visible()
    await say(page, "Count")
    await expect(words(page)).to_have_text("one")
    await saved(page, "one ")
    other = await visit(page.url, beside=page)
    await choose(other, "Hi", "Delete")
    await expect(page.locator("#welcome")).to_be_visible()
    await provider.closed(1)  # nobody reads the rest
    await other.reload()
    await expect(other.locator("#list-note")).to_have_text("No conversations yet.")
    await say(page, "Count again")
    await expect(words(page)).to_have_text("one")
    await choose(page, "Count again", "Delete")  # before it is stored
    await provider.closed(2)
    await expect(page.get_by_role("button", name="Undo")).to_be_visible()
    await page.get_by_role("button", name="Undo").click()
    await expect(page.locator(".words").first).to_have_text("Count again")
    await expect(page.locator(".words").last).to_have_text("one")


@pytest.mark.in_firefox_too
async def test_another_tab_continues_the_answer_of_a_closed_tab(provider, visit):
    more, rest = asyncio.Event(), asyncio.Event()
    script = stream(chunk("one "), more, chunk("two "), rest, chunk("three"), finish(), usage(1, 3), DONE)
    provider.scripts = [script]
    page = await visit(profile="kept")
    await say(page, "Count")
    await expect(words(page)).to_have_text("one")
    other = await visit(page.url, beside=page)
    await expect(other.locator(".reconnecting")).to_have_text("Written in another tab")
    more.set()
    await expect(words(other)).to_have_text("one two")  # it has read what the first one stored meanwhile
    await page.close()
    await expect(other.get_by_role("button", name="Stop")).to_be_visible()
    rest.set()
    await expect(words(other)).to_have_text("one two three")
    await expect(other.locator(".cost")).to_contain_text("4 tokens")
    assert len(provider.requests) == 1


@pytest.mark.in_firefox_too
async def test_a_conversation_of_200_turns_opens_at_its_end_and_is_whole(provider, visit):
    page = await visit()
    await page.evaluate("""async () => {
      const store = await import("./store.js");
      const talk = { id: "long", title: "Long", created: 1, updated: 1, head: "m399", profile: "", system: "" };
      const messages = Array.from({ length: 400 }, (_, index) => ({
        id: `m${index}`, talk: "long", parent: index ? `m${index - 1}` : "", created: index,
        role: index % 2 ? "assistant" : "user", content: `Turn ${index}\\n\\n- **a**\\n- b\\n\\n${"word ".repeat(60)}` }));
      await store.write(talk, messages);
    }""")
    await page.goto(page.url.partition("#")[0] + "#long")
    await expect(page.locator(".message")).to_have_count(400)
    await expect(page.locator(".message").last.locator("strong")).to_have_text("a")
    await expect(page.locator(".message").last.locator(".words")).to_be_in_viewport()
    assert await page.locator(".message.assistant").nth(10).locator("strong").count() == 0  # made when it comes near
    await page.locator(".message.assistant").nth(10).scroll_into_view_if_needed()
    await expect(page.locator(".message.assistant").nth(10).locator("strong")).to_have_text("a")


async def test_the_page_works_with_a_note_if_the_browser_stores_nothing(provider, visit):
    provider.scripts = [answer("Yes")]
    page = await visit()
    await page.add_init_script("Object.defineProperty(window, 'indexedDB', { get() { throw new Error('no') } })")
    await page.reload()
    await page.wait_for_selector("html[data-ready]")
    await say(page, "Hi")
    await expect(words(page)).to_have_text("Yes")
    await expect(page.locator("#list-note")).to_have_text(
        "This browser keeps nothing: conversations end with this page."
    )
    await expect(talks(page)).to_have_text(["Hi"])


FULL = """() => {
  IDBObjectStore.prototype.put = () => { throw new DOMException("no room", "QuotaExceededError"); };
}"""


async def test_the_page_works_with_a_note_if_the_device_is_full(provider, visit):
    provider.scripts = [answer("Yes"), answer("No")]
    page = await visit()
    await page.evaluate(FULL)
    await say(page, "Hi")
    await expect(words(page)).to_have_text("Yes")
    await expect(page.locator("#list-note")).to_have_text(
        "This browser has no room left: what comes now ends with this page."
    )
    await say(page, "Again")
    await expect(words(page)).to_have_text("No")
    assert [content for _, content in sent(provider.requests[1])] == ["Hi", "Yes", "Again"]


async def test_a_clock_that_is_set_back_changes_no_order(provider, visit):
    provider.scripts = [answer("First"), answer("Second"), answer("Third")]
    page = await visit()
    await say(page, "Hi")
    await expect(words(page)).to_have_text("First")
    await page.evaluate("{ const now = Date.now; Date.now = () => now() - 3_600_000; }")
    await page.get_by_role("button", name="Write another answer").click()
    await expect(words(page)).to_have_text("Second")
    await expect(page.locator(".branch")).to_contain_text("2 of 2")
    await page.get_by_role("button", name="Write another answer").click()
    await expect(page.locator(".branch")).to_contain_text("3 of 3")


@pytest.mark.in_firefox_too
async def test_a_draft_survives_a_reload_and_another_page(provider, visit, served):
    provider.scripts = [answer("Yes")]
    page = await visit()
    await say(page, "Hi")
    await expect(words(page)).to_have_text("Yes")
    prompt = page.get_by_label("Your message")
    await prompt.fill("not yet\nsent")
    await page.reload()
    await expect(prompt).to_have_value("not yet\nsent")
    await page.locator(".user").hover()
    await page.get_by_role("button", name="Edit message").click()
    await expect(prompt).to_have_value("Hi")
    await page.reload()
    await expect(prompt).to_have_value("not yet\nsent")
    chat = page.url
    await page.goto(f"{served.url}favicon.svg")
    await page.goto(chat)
    await expect(prompt).to_have_value("not yet\nsent")
    await expect(words(page)).to_have_text("Yes")
