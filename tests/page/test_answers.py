"""An answer on the page, in a real browser, before the real server; only the provider is scripted."""

from __future__ import annotations

import asyncio
import re

import pytest
from page_words import PHONE, forever, say, sent, words
from playwright.async_api import expect
from scripted_provider import CLOSE, DONE, HANG, answer, chunk, finish, stream, usage

pytestmark = pytest.mark.asyncio(loop_scope="session")

STOPPED = re.compile(r"^Stopped · about \d+ tokens charged \(estimated\)$")


@pytest.mark.in_firefox_too
async def test_the_answer_appears_as_it_is_written_then_its_cost_and_what_is_left(provider, visit):
    more = asyncio.Event()
    provider.scripts = [stream(chunk("Hel"), more, chunk("lo  you\n  there"), finish(), usage(1200, 34), DONE)]
    page = await visit()
    await expect(page.locator("#left-text")).to_have_text("200,000 of 200,000 tokens left today")
    await say(page, "Hi")
    await expect(words(page)).to_have_text("Hel")
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    assert await page.locator(".assistant").get_attribute("aria-busy") == "true"
    more.set()
    await expect(page.locator(".cost")).to_have_text("1,234 tokens (1,200 in, 34 out) · $0.0013")
    assert await words(page).inner_text() == "Hello you\nthere"
    await expect(page.locator("#left-text")).to_have_text("198,766 of 200,000 tokens left today")
    await expect(page.get_by_role("button", name="Send")).to_be_visible()
    await expect(page.get_by_role("status").first).to_have_text("Answer: Hello  you\n  there")
    assert await page.locator(".assistant").get_attribute("aria-busy") is None
    await expect(page.locator("#demo")).to_be_hidden()
    await expect(page.locator("#model")).to_have_text("scripted")


async def test_dollars_are_shown_where_they_run_out_first(provider, visit):
    provider.scripts = [answer("Hi", input_tokens=500, output_tokens=250)]
    page = await visit(profile="dollars")
    await say(page, "Hi")
    await expect(page.locator("#left-text")).to_have_text("$0.001 of $0.002 left today")
    assert "again in full at" in await page.locator("#left").get_attribute("title")


@pytest.mark.in_firefox_too
async def test_stop_ends_the_providers_stream_and_shows_the_charge(provider, visit):
    provider.scripts = [forever("one ", "two ", "three"), answer("Yes")]
    page = await visit()
    await say(page, "Count")
    await expect(words(page)).to_have_text("one two three")
    await page.get_by_role("button", name="Stop").click()
    await provider.closed(0)
    cost = page.locator(".cost")
    await expect(cost).to_have_text(STOPPED)
    charged = int(re.search(r"\d+", await cost.inner_text())[0])
    await expect(page.locator("#left-text")).to_have_text(f"{200_000 - charged:,} of 200,000 tokens left today")
    assert 3 < charged < 60
    await expect(page.get_by_role("status").first).to_have_text("Stopped")
    await say(page, "Go on")
    await expect(words(page)).to_have_text("Yes")
    assert sent(await provider.request(1)) == [("user", "Count"), ("assistant", "one two three"), ("user", "Go on")]


async def test_the_chat_continues_after_a_stop_before_the_first_word(provider, visit):
    provider.scripts = [forever(), answer("Yes")]
    page = await visit()
    await say(page, "Count")
    await provider.request(0)
    await page.keyboard.press("Escape")
    await provider.closed(0)
    await expect(page.locator(".cost")).to_contain_text("Stopped")
    await say(page, "Go on")
    await expect(words(page)).to_have_text("Yes")


@pytest.mark.in_firefox_too
async def test_the_keyboard_alone_is_enough(provider, visit):
    provider.scripts = [forever("one"), answer("Yes")]
    page = await visit()
    prompt = page.get_by_label("Your message")
    await expect(prompt).to_be_focused()
    await page.keyboard.type("first line")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("second line")
    await page.keyboard.press("Enter")
    assert sent(await provider.request(0))[-1] == ("user", "first line\nsecond line")
    await expect(words(page)).to_have_text("one")
    await page.keyboard.type("next")
    await page.keyboard.press("Enter")  # not now: the answer is being written
    await expect(prompt).to_have_value("next")
    await page.keyboard.press("Tab")
    stop = page.get_by_role("button", name="Stop", exact=True)
    await expect(stop).to_be_focused()
    assert await stop.evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
    await page.keyboard.press("Enter")
    await provider.closed(0)
    await expect(prompt).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(words(page)).to_have_text("Yes")
    reached = set()
    for _ in range(22):
        await page.keyboard.press("Tab")
        reached.add(await page.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))
    assert {"new", "search", "open-settings", "menu", "profile", "scroller", "prompt", "send"} <= reached
    assert {"Copy message", "Write another answer", "Edit message", "Actions for “first line”"} <= reached


@pytest.mark.in_firefox_too
async def test_enter_while_a_word_is_composed_sends_nothing(provider, visit):
    """As with an input method for Chinese, where Enter takes a word. Safari says so by the code 229 only."""
    provider.scripts = [answer("好")]
    page = await visit()
    prompt = page.get_by_label("Your message")
    await prompt.fill("你好")
    press = """([part, value]) => document.getElementById("prompt").dispatchEvent(
        new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true, [part]: value }))"""
    for part in (["isComposing", True], ["keyCode", 229]):
        assert await page.evaluate(press, part), "the browser has the key"
        await expect(prompt).to_have_value("你好")
    assert not await page.evaluate(press, ["keyCode", 13])
    await expect(words(page)).to_have_text("好")
    assert len(provider.requests) == 1


async def test_enter_that_takes_a_composed_word_sends_nothing_and_the_next_one_sends_it(provider, visit):
    """With Chromium's own composition, as an input method starts it."""
    provider.scripts = [answer("好")]
    page = await visit()
    prompt = page.get_by_label("Your message")
    await expect(prompt).to_be_focused()
    method = await page.context.new_cdp_session(page)
    await method.send("Input.imeSetComposition", {"text": "nihao", "selectionStart": 5, "selectionEnd": 5})
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
    for kind in ("rawKeyDown", "keyUp"):  # without its character: the input method takes that
        await method.send("Input.dispatchKeyEvent", {"type": kind, **enter})
    await expect(prompt).to_have_value("nihao")
    await method.send("Input.insertText", {"text": "你好"})
    await expect(prompt).to_have_value("你好")
    await page.keyboard.press("Enter")
    await expect(words(page)).to_have_text("好")
    assert [sent(request)[-1] for request in provider.requests] == [("user", "你好")]


@pytest.mark.in_firefox_too
async def test_a_message_during_an_answer_waits_in_the_box_and_can_stop_the_answer(provider, visit):
    more = asyncio.Event()
    provider.scripts = [
        stream(chunk("one "), more, chunk("two"), finish(), usage(1, 2), DONE),
        forever("three"),
        answer("Yes"),
    ]
    page = await visit()
    await say(page, "Count")
    await expect(words(page)).to_have_text("one")
    note = page.get_by_text("The answer is still being written.")
    await expect(note).to_be_hidden()
    await page.keyboard.type("next")
    await page.keyboard.press("Enter")
    await expect(note).to_be_visible()
    await expect(page.get_by_label("Your message")).to_have_value("next")
    more.set()
    await expect(page.locator(".cost")).to_contain_text("3 tokens")
    await expect(note).to_be_hidden()
    await expect(page.get_by_label("Your message")).to_have_value("next")
    await page.keyboard.press("Enter")
    await expect(words(page)).to_have_text("three")
    await page.keyboard.type("last")
    await page.keyboard.press("Enter")
    await page.get_by_role("button", name="Stop it and send").click()
    await provider.closed(1)
    await expect(words(page)).to_have_text("Yes")
    await expect(page.locator(".user .words")).to_have_text(["Count", "next", "last"])
    await expect(page.get_by_label("Your message")).to_have_value("")
    assert len(provider.requests) == 3


@pytest.mark.in_firefox_too
async def test_shortcuts_search_and_start_a_chat_and_the_settings_list_them(provider, visit):
    provider.scripts = [answer("Yes")]
    page = await visit()
    await say(page, "Hi")
    await expect(page.locator(".cost")).to_be_visible()
    await page.keyboard.press("Control+k")
    await expect(page.get_by_label("Search conversations")).to_be_focused()
    await page.keyboard.press("Control+Shift+O")
    await expect(page.locator("#welcome")).to_be_visible()
    await expect(page.get_by_label("Your message")).to_be_focused()
    await page.get_by_role("button", name="Settings").click()
    await expect(page.locator(".shortcuts")).to_contain_text("Ctrl K searches conversations")


async def test_escape_in_the_list_does_not_stop_the_answer(provider, visit):
    more = asyncio.Event()
    provider.scripts = [stream(chunk("one "), more, chunk("two"), finish(), usage(1, 2), DONE)]
    page = await visit()
    await say(page, "Count")
    await expect(words(page)).to_have_text("one")
    await page.get_by_label("Search conversations").fill("x")
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    more.set()
    await expect(words(page)).to_have_text("one two")
    await expect(page.locator(".cost")).to_contain_text("3 tokens")


@pytest.mark.in_firefox_too
async def test_a_long_text_is_pasted_whole_and_sent_whole_or_comes_back_whole(provider, visit):
    provider.scripts = [answer("Long")]
    page = await visit(profile="large")
    text = "a line of words that was copied from a book\n" * 1_000
    await say(page, text)
    await expect(words(page)).to_have_text("Long")
    assert sent(provider.requests[0]) == [("user", text)]
    shown = page.locator(".user .words")
    assert await shown.evaluate("node => node.clientHeight < innerHeight / 2")
    await page.get_by_role("button", name="Show all").click()
    assert await shown.evaluate("node => node.clientHeight > innerHeight")
    await expect(page.get_by_role("button", name="Show less")).to_have_attribute("aria-expanded", "true")
    too_long = text * 7
    await page.evaluate("text => { document.getElementById('prompt').value = text }", too_long)
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator(".problem")).to_have_text("This message is too long. You can shorten it below.")
    assert await page.get_by_label("Your message").input_value() == too_long


async def test_a_used_up_budget_is_named_with_the_time_at_which_it_is_renewed(provider, visit):
    provider.scripts = [answer("Hello", input_tokens=500, output_tokens=400)]
    page = await visit(profile="small_day")
    await say(page, "Hi")
    await expect(page.locator("#left-text")).to_have_text("0 of 700 tokens left today")
    another = page.get_by_role("button", name="Write another answer")
    await say(page, "Again")
    problem = page.locator(".problem")
    await expect(problem).to_have_text(
        re.compile(r"Your tokens for today are used up. You can ask again from .*\d\d:\d\d")
    )
    await expect(page.get_by_role("status").first).to_contain_text("used up")
    await expect(page.get_by_role("button", name="Retry")).to_have_count(0)
    for button in (another.first, another.last):
        await expect(button).to_be_disabled()
        await expect(button).to_have_attribute("title", re.compile("^Your tokens for today are used up"))
    await page.select_option("#profile", "balanced")
    await expect(page.get_by_role("button", name="Write another answer", exact=True).last).to_be_enabled()
    assert len(provider.requests) == 1


async def test_a_budget_that_is_too_small_for_any_message_offers_no_other_answer(provider, visit):
    provider.scripts = [answer("Hello", input_tokens=400, output_tokens=260)]
    page = await visit(profile="small_day")
    await say(page, "Hi")
    await expect(page.locator("#left-text")).to_have_text("40 of 700 tokens left today")
    await expect(page.get_by_role("button", name="Write another answer", exact=True)).to_be_enabled()
    await say(page, "Again, and at some length")
    await expect(page.locator(".problem")).to_contain_text(
        "Your tokens for today are nearly used up. The rest, 40 tokens, is too little for even a short message."
    )
    await expect(page.get_by_role("button", name="Write another answer")).to_have_count(2)
    for button in await page.get_by_role("button", name="Write another answer").all():
        await expect(button).to_be_disabled()


async def test_a_used_up_budget_of_dollars_is_named(provider, visit):
    provider.scripts = [answer("Hello", input_tokens=1000, output_tokens=600)]
    page = await visit(profile="dollars")
    await say(page, "Hi")
    await expect(page.locator(".cost")).to_be_visible()
    await say(page, "Again")
    await expect(page.locator(".problem")).to_contain_text("Your dollars for today are used up.")


async def test_too_many_requests_offer_a_retry_after_the_time_the_server_gives(provider, visit):
    provider.scripts = [answer("Hello")]
    page = await visit(profile="one_a_minute")
    await page.clock.install()
    await say(page, "Hi")
    await expect(page.locator(".cost")).to_be_visible()
    await say(page, "Again")
    await expect(page.locator(".problem")).to_have_text(
        "That was too fast: this chat takes only so many messages a minute."
    )
    retry = page.locator(".retry")
    await expect(retry).to_be_disabled()
    first = int(re.fullmatch(r"Retry in (\d+) s", await retry.inner_text())[1])
    assert 50 <= first <= 60
    await page.clock.run_for(10_000)
    await expect(retry).to_have_text(re.compile(rf"Retry in {first - 10}|{first - 11} s"))
    await page.clock.run_for(first * 1000)
    await expect(retry).to_be_enabled()
    await expect(retry).to_have_text("Retry")


async def test_a_message_that_is_too_large_comes_back_to_be_shortened(provider, visit):
    provider.scripts = [answer("Hello")]
    page = await visit(profile="small_request")
    text = "word " * 1000
    await say(page, text)
    await expect(page.locator(".problem")).to_contain_text("This message is too long.")
    await expect(page.get_by_label("Your message")).to_have_value(text)
    assert await page.locator(".user").count() == 0
    await expect(page.locator("#list .talk")).to_have_count(0)
    async with page.expect_request("**/api/chat") as request:
        await say(page, "Hi")
    assert (await request.value).post_data_json["messages"] == [{"role": "user", "content": "Hi"}]
    await expect(words(page)).to_have_text("Hello")
    await expect(page.locator(".problem")).to_have_count(0)
    await expect(page.locator("#list .talk")).to_have_text(["Hi"])


async def test_a_message_too_large_for_what_is_left_today_comes_back_to_be_shortened(provider, visit):
    provider.scripts = [answer("Hello", input_tokens=173, output_tokens=400), answer("Hello")]
    page = await visit(profile="small_day")
    await say(page, "Hi")
    await expect(page.locator("#left-text")).to_have_text("127 of 700 tokens left today")
    text = "word " * 80
    await say(page, text)
    problem = page.locator(".problem")
    await expect(problem).to_contain_text(
        re.compile(r"127 tokens are left, and this needs \d+ tokens. A shorter message")
    )
    await expect(page.get_by_label("Your message")).to_have_value(text)
    await expect(page.locator(".message.assistant")).to_have_count(1)  # the one before
    assert len(provider.requests) == 1


@pytest.mark.in_firefox_too
async def test_a_truncated_answer_is_marked_and_can_be_requested_again(provider, visit):
    provider.scripts = [stream(chunk("Hel"), CLOSE), answer("Hello")]
    page = await visit()
    await say(page, "Hi")
    problem = page.locator(".problem")
    await expect(problem).to_have_text("The model stopped in the middle of its answer.")
    await expect(words(page)).to_have_text("Hel")
    await page.get_by_role("button", name="Retry").click()
    await expect(page.locator(".cost")).to_be_visible()
    await expect(words(page)).to_have_text("Hello")
    await expect(problem).to_have_count(0)
    assert sent(provider.requests[1]) == [("user", "Hi")]


async def test_an_end_without_its_event_is_not_taken_for_the_whole_answer(visit):
    """As behind a proxy that lost the server."""
    page = await visit()
    cut = 'event: start\ndata: {}\n\nevent: token\ndata: "Hel"\n\n'
    await page.route("**/api/chat", lambda route: route.fulfill(content_type="text/event-stream", body=cut))
    await say(page, "Hi")
    await expect(page.locator(".problem")).to_have_text("The connection was lost before the answer was complete.")
    await expect(words(page)).to_have_text("Hel")
    await expect(page.get_by_role("button", name="Retry")).to_be_visible()


@pytest.mark.in_firefox_too
async def test_without_a_network_nothing_typed_is_lost(provider, visit):
    provider.scripts = [answer("Hello")]
    page = await visit()
    await page.context.set_offline(True)
    await say(page, "Hi")
    await expect(page.locator(".problem")).to_have_text("The server can't be reached. Is this device online?")
    await page.get_by_label("Your message").fill("the next one")
    await page.context.set_offline(False)
    await page.get_by_role("button", name="Retry").click()
    await expect(words(page)).to_have_text("Hello")
    await expect(page.get_by_label("Your message")).to_have_value("the next one")
    assert sent(provider.requests[0]) == [("user", "Hi")]


async def test_a_connection_that_has_gone_silent_is_given_up_after_45_seconds(provider, visit):
    more = asyncio.Event()
    provider.scripts = [stream(chunk("one "), more, chunk("two"), HANG)]
    page = await visit()
    await page.clock.install()
    await say(page, "Hi")
    await page.clock.run_for(100)
    await expect(words(page)).to_have_text("one")
    await page.clock.run_for(40_000)
    more.set()  # any event counts from the start again
    await page.wait_for_function("performance.now()")
    for _ in range(50):
        await page.clock.run_for(20)
    await expect(words(page)).to_have_text("one two")
    await page.clock.run_for(40_000)
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    await page.clock.run_for(6_000)
    await expect(page.locator(".problem")).to_contain_text("The connection was lost")
    await expect(page.get_by_role("button", name="Retry")).to_be_visible()
    await provider.closed(0)


@pytest.mark.in_firefox_too
async def test_the_second_click_of_a_double_click_does_not_stop(provider, visit):
    provider.scripts = [forever("one")]
    page = await visit()
    await page.get_by_label("Your message").fill("Hi")
    box = await page.get_by_role("button", name="Send").bounding_box()
    await page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    await expect(words(page)).to_have_text("one")
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()


async def test_a_long_conversation_is_cut_to_fit_one_body_with_a_note(provider, visit):
    """However long the chat grows: the server refuses bodies over 256 KiB."""
    provider.scripts = [answer("é" * 19_000)]
    page = await visit(profile="large")
    for number in range(8):
        await say(page, f"{number} " + "é" * 19_000)
        await expect(page.locator(".cost")).to_have_count(number + 1)
    assert len(provider.requests) == 8
    assert await page.locator(".problem").count() == 0
    await expect(page.locator(".dropped").last).to_have_text(re.compile(r"^The \d+ oldest messages no longer fit"))


async def test_an_answer_that_comes_at_once_is_followed_to_its_end(provider, visit):
    provider.scripts = [answer("\n\n".join(f"Line {number}" for number in range(60)))]
    page = await visit()
    await say(page, "Count")
    await expect(page.locator(".cost")).to_be_visible()
    await page.evaluate(
        "() => new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(next))))"
    )
    await expect(page.locator(".cost")).to_be_in_viewport(ratio=1)
    await expect(page.get_by_role("button", name="To the end")).to_be_hidden()


async def test_only_what_is_near_of_a_long_answer_is_laid_out_and_all_of_it_is_found_and_printed(provider, visit):
    """While it is written, too: the work of a token does not grow with the answer."""
    lines = [chunk(f"Line {number} of many\n\n") for number in range(450)]
    items = [chunk(f"{number}. Item {number} of a list\n") for number in range(7, 607)]
    provider.scripts = [stream(*lines, *items, HANG)]
    page = await visit(profile="large", **PHONE)
    await say(page, "Count")
    paragraphs, listed = words(page).locator("p"), words(page).locator("ol > li")
    await expect(listed).to_have_count(600)
    await page.evaluate("new Promise((next) => requestAnimationFrame(() => setTimeout(next)))")
    is_laid_out = "node => node.checkVisibility({ contentVisibilityAuto: true })"
    assert await listed.last.evaluate(is_laid_out)
    assert (
        await listed.last.evaluate("item => item.parentNode.start + [...item.parentNode.children].indexOf(item)") == 606
    )
    for first in (paragraphs.first, listed.first):
        assert not await first.evaluate(is_laid_out)
    for text in ("Line 3 of many", "Item 9 of a list"):
        assert await page.evaluate("text => find(text, true, false, true)", text)
    await page.emulate_media(media="print")
    assert await paragraphs.first.evaluate(is_laid_out)


async def test_it_follows_the_answer_only_while_its_end_is_in_sight(provider, visit):
    first, more, last = asyncio.Event(), asyncio.Event(), asyncio.Event()
    line = chunk("line\n")
    provider.scripts = [stream(*[line] * 5, first, *[line] * 95, more, *[line] * 100, last, *[line] * 100, HANG)]
    page = await visit(**PHONE)
    await say(page, "long\n" * 30)
    scroller = page.locator("#scroller")
    rest = "node => node.scrollHeight - node.scrollTop - node.clientHeight"
    lines = "more => document.querySelector('.assistant .words').textContent.split('line').length > more"
    await page.wait_for_function(lines, arg=5)
    assert await scroller.evaluate(rest) < 5
    await page.get_by_label("Your message").fill("the next one\n" * 4)  # the composer takes room from the log
    assert await scroller.evaluate(rest) < 5
    first.set()
    await page.wait_for_function(lines, arg=100)
    await page.evaluate("new Promise(requestAnimationFrame)")
    assert await scroller.evaluate(rest) < 5
    await scroller.evaluate("node => node.scrollTop = 200")
    await page.evaluate("new Promise(requestAnimationFrame)")
    await expect(page.locator("#to-end")).to_be_visible()
    more.set()
    await page.wait_for_function(lines, arg=200)
    assert await scroller.evaluate("node => node.scrollTop") == 200
    await page.locator("#to-end").click()
    await page.evaluate("new Promise(requestAnimationFrame)")
    last.set()
    await page.wait_for_function(lines, arg=300)
    await page.evaluate("new Promise(requestAnimationFrame)")
    assert await scroller.evaluate(rest) < 5


class Cable:
    """Between the browser and the server: it can be pulled out."""

    def __init__(self, port):
        self.port = port
        self.plugged = True
        self._writers = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    async def __aexit__(self, *_):
        self.pull()
        self._server.close()

    def pull(self):
        self.plugged = False
        for writer in self._writers:
            writer.transport.abort()

    async def _connect(self, reader, writer):
        if not self.plugged:
            writer.transport.abort()
            return
        theirs, to_server = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers |= {writer, to_server}
        try:
            await asyncio.gather(self._copy(reader, to_server), self._copy(theirs, writer))
        except ConnectionError:
            pass
        finally:
            self._writers -= {writer, to_server}
            writer.close()
            to_server.close()

    async def _copy(self, reader, writer):
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()
        writer.close()


@pytest.mark.in_firefox_too
async def test_a_lost_connection_is_made_again_and_seen_to_be(provider, visit, served):
    more = asyncio.Event()
    provider.scripts = [stream(chunk("one "), more, chunk("two"), finish(), usage(9, 2), DONE)]
    cable = Cable(served.port)
    async with cable as port:
        page = await visit(f"http://127.0.0.1:{port}/", profile="kept")
        await say(page, "Count")
        await expect(words(page)).to_have_text("one")
        cable.pull()
        await expect(page.locator(".reconnecting")).to_have_text("Reconnecting…")
        await expect(page.get_by_role("status").first).to_have_text("Reconnecting")
        cable.plugged = True
        more.set()
        await expect(words(page)).to_have_text("one two", timeout=15_000)
        await expect(page.locator(".reconnecting")).to_have_count(0)
        await expect(page.locator(".cost")).to_contain_text("11 tokens (9 in, 2 out)")
        assert len(provider.requests) == 1


async def test_reconnecting_is_given_up_after_a_while_and_retry_finds_the_same_answer(provider, visit, served):
    more = asyncio.Event()
    provider.scripts = [stream(chunk("one "), more, chunk("two"), finish(), usage(9, 2), DONE)]
    cable = Cable(served.port)
    async with cable as port:
        page = await visit(f"http://127.0.0.1:{port}/", profile="kept")
        await say(page, "Count")
        await expect(words(page)).to_have_text("one")
        cable.pull()
        problem = page.locator(".problem")
        await expect(problem).to_have_text("The connection was lost before the answer was complete.", timeout=30_000)
        await expect(page.get_by_role("button", name="Send")).to_be_visible()
        cable.plugged = True
        more.set()
        await page.get_by_role("button", name="Retry").click()
        await expect(words(page)).to_have_text("one two")
        assert len(provider.requests) == 1


async def test_a_message_explains_that_an_answer_is_no_longer_kept(provider, visit):
    provider.scripts = [forever("one two"), answer("again")]
    page = await visit(profile="kept")
    await say(page, "Count")
    await expect(words(page)).to_have_text("one two")
    await page.route("**/api/chat/*/stream", lambda route: route.fulfill(status=404, body="{}"))
    await page.reload()
    await expect(page.locator(".problem")).to_have_text(
        "This answer is not kept any more, so the rest of it can't be shown."
    )
    await page.get_by_role("button", name="Retry").click()
    await expect(words(page)).to_have_text("again")


@pytest.mark.in_firefox_too
async def test_a_killed_server_is_shown_and_the_chat_continues_after_the_restart(provider, visit, serving):
    provider.scripts = [forever("one"), answer("Yes")]
    served = await serving(provider)
    page = await visit(served.url)
    await say(page, "Count")
    await expect(words(page)).to_have_text("one")
    await served.kill()
    await expect(page.locator(".problem")).to_have_text("The connection was lost before the answer was complete.")
    await say(page, "Hello?")
    await expect(page.locator(".problem").last).to_have_text("The server can't be reached. Is this device online?")
    await served.start(served.port)
    await page.get_by_role("button", name="Retry").click()
    await expect(words(page)).to_have_text("Yes")
