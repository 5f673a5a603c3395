"""The page at `/`, in a real browser, before the real server; only the provider is scripted."""

from __future__ import annotations

import asyncio
import itertools
import re

import pytest
from playwright.async_api import expect
from scripted_provider import CLOSE, DONE, HANG, ScriptedProvider, answer, chunk, finish, stream, usage

from chat_nest.identity.key_file import create_key


PHONE = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}


async def say(page, text):
    await page.get_by_label("Your message").fill(text)
    await page.keyboard.press("Enter")


def words(page):
    """The text of the last answer."""
    return page.locator(".assistant .words").last


def forever(*first):
    """A stream that goes on until it is left."""
    return stream(*(chunk(text) for text in first), HANG)


async def test_the_answer_appears_as_it_is_written_then_its_cost_and_what_is_left(serve, visit):
    more = asyncio.Event()
    script = stream(chunk("Hel"), more, chunk("lo  you\n  there"), finish(), usage(1200, 34), DONE)
    async with ScriptedProvider(script) as provider:
        page = await visit(await serve(provider))
        await expect(page.locator("#left-text")).to_have_text("70,000 of 70,000 tokens left today")
        await say(page, "Hi")
        await expect(words(page)).to_have_text("Hel")
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        assert await page.locator(".assistant").get_attribute("aria-busy") == "true"
        more.set()
        await expect(page.locator(".cost")).to_have_text("1,234 tokens (1,200 in, 34 out)")
        assert await words(page).inner_text() == "Hello  you\n  there"
        await expect(page.locator("#left-text")).to_have_text("68,766 of 70,000 tokens left today")
        await expect(page.get_by_role("button", name="Send")).to_be_visible()
        await expect(page.get_by_role("status")).to_have_text("Answer: Hello  you\n  there")
        assert await page.locator(".assistant").get_attribute("aria-busy") is None
        await expect(page.locator("#demo")).to_be_hidden()
        await expect(page.locator("#model")).to_have_text("scripted")


async def test_a_known_price_is_told_beside_the_tokens(serve, visit, tmp_path):
    (tmp_path / "prices.toml").write_text('[prices."openai:*"]\ninput = 1\noutput = 2\n')
    async with ScriptedProvider(stream(chunk("Hi"), finish(), usage(1200, 34), DONE)) as provider:
        page = await visit(await serve(provider, CHAT_NEST_CONFIG=str(tmp_path / "prices.toml")))
        await say(page, "Hi")
        await expect(page.locator(".cost")).to_have_text("1,234 tokens (1,200 in, 34 out) · $0.0013")


async def test_stop_ends_the_providers_stream_and_tells_what_was_charged(serve, visit):
    async with ScriptedProvider(forever("one ", "two ", "three"), answer("Yes")) as provider:
        page = await visit(await serve(provider))
        await say(page, "Count")
        await expect(words(page)).to_have_text("one two three")
        await page.get_by_role("button", name="Stop").click()
        await provider.closed(0)
        cost = page.locator(".cost")
        await expect(cost).to_have_text(re.compile(r"^Stopped · about \d+ tokens charged \(estimated\)$"))
        charged = int(re.search(r"\d+", await cost.inner_text())[0])
        await expect(page.locator("#left-text")).to_have_text(f"{70_000 - charged:,} of 70,000 tokens left today")
        assert 3 < charged < 60
        await expect(page.get_by_role("status")).to_have_text("Stopped")
        await say(page, "Go on")
        await expect(words(page)).to_have_text("Yes")
        assert (await provider.request(1)).json()["messages"] == [
            {"role": "user", "content": "Count"},
            {"role": "assistant", "content": "one two three"},
            {"role": "user", "content": "Go on"},
        ]


async def test_stopped_before_the_first_word_the_chat_goes_on(serve, visit):
    async with ScriptedProvider(forever(), answer("Yes")) as provider:
        page = await visit(await serve(provider))
        await say(page, "Count")
        await provider.request(0)
        await page.keyboard.press("Escape")
        await provider.closed(0)
        await expect(page.locator(".cost")).to_contain_text("Stopped")
        await say(page, "Go on")
        await expect(words(page)).to_have_text("Yes")


async def test_the_keyboard_alone_is_enough(serve, visit):
    async with ScriptedProvider(forever("one"), answer("Yes")) as provider:
        page = await visit(await serve(provider))
        prompt = page.get_by_label("Your message")
        await expect(prompt).to_be_focused()
        await page.keyboard.type("first line")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("second line")
        await page.keyboard.press("Enter")
        assert (await provider.request(0)).json()["messages"][-1]["content"] == "first line\nsecond line"
        await expect(words(page)).to_have_text("one")
        await page.keyboard.type("next")
        await page.keyboard.press("Enter")  # not now: the answer is being written
        await expect(prompt).to_have_value("next")
        await page.keyboard.press("Tab")
        stop = page.get_by_role("button", name="Stop")
        await expect(stop).to_be_focused()
        assert await stop.evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
        await page.keyboard.press("Enter")
        await provider.closed(0)
        await expect(prompt).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(words(page)).to_have_text("Yes")
        reached = set()
        for _ in range(6):
            await page.keyboard.press("Tab")
            reached.add(await page.evaluate("document.activeElement.id"))
        assert {"new", "scroller", "prompt", "send"} <= reached


HOSTILE = (
    '<img src="x" onerror="alert(1)"><script>alert(1)</script><svg/onload=alert(1)>'
    '<style>body{display:none}</style><meta http-equiv="refresh" content="0;url=javascript:alert(1)">'
    "[click](javascript:alert(1)) **bold** <!-- \u2028 \u0000 &lt;b&gt; </textarea></article>"
)


async def test_html_scripts_and_markdown_in_an_answer_stay_text(serve, visit):
    async with ScriptedProvider(answer(HOSTILE)) as provider:
        page = await visit(await serve(provider))
        asked = HOSTILE.replace("\0", "")  # the server accepts no NUL
        await say(page, asked)
        await expect(page.locator(".cost")).to_be_visible()
        for who, text in (("user", asked), ("assistant", HOSTILE)):
            shown = page.locator(f".{who} .words")
            assert await shown.evaluate("node => node.childElementCount") == 0
            assert await shown.evaluate("node => node.textContent") == text
        assert await page.locator("script").count() == 1
        assert await page.locator("img").count() == 1
    # Dialogs, foreign requests and violations of the policy fail every test: see `visit`.


async def test_a_used_up_budget_is_shown_with_the_time_at_which_it_is_renewed(serve, visit):
    async with ScriptedProvider(answer("Hello", input_tokens=500, output_tokens=400)) as provider:
        page = await visit(await serve(provider, CHAT_NEST_PROFILES_BALANCED_TOKENS_PER_DAY="600"))
        await say(page, "Hi")
        await expect(page.locator("#left-text")).to_have_text("0 of 600 tokens left today")
        await say(page, "Again")
        problem = page.locator(".problem")
        await expect(problem).to_contain_text("Daily AI budget exceeded. Try again tomorrow.")
        await expect(page.get_by_role("status")).to_contain_text("Daily AI budget exceeded")
        assert len(provider.requests) == 1


async def test_too_many_requests_offer_a_retry_after_the_time_the_server_gives(serve, visit, browser):
    async with ScriptedProvider(answer("Hello")) as provider:
        url = await serve(provider, CHAT_NEST_PROFILES_BALANCED_REQUESTS_PER_MINUTE="1")
        page = await visit(url)
        await page.clock.install()
        await say(page, "Hi")
        await expect(page.locator(".cost")).to_be_visible()
        await say(page, "Again")
        await expect(page.locator(".problem")).to_have_text("Rate limit exceeded. Please slow down.")
        retry = page.locator(".retry")
        await expect(retry).to_be_disabled()
        first = int(re.fullmatch(r"Retry in (\d+) s", await retry.inner_text())[1])
        assert 50 <= first <= 60
        await page.clock.run_for(10_000)
        await expect(retry).to_have_text(re.compile(rf"Retry in {first - 10}|{first - 11} s"))
        await page.clock.run_for(first * 1000)
        await expect(retry).to_be_enabled()
        await expect(retry).to_have_text("Retry")


async def test_a_message_that_is_too_large_comes_back_to_be_shortened(serve, visit):
    async with ScriptedProvider(answer("Hello")) as provider:
        page = await visit(await serve(provider, CHAT_NEST_PROFILES_BALANCED_TOKENS_PER_REQUEST="500"))
        text = "word " * 1000
        await say(page, text)
        await expect(page.locator(".problem")).to_contain_text("Request too large. Please shorten your message.")
        await expect(page.get_by_label("Your message")).to_have_value(text)
        assert await page.locator(".user").count() == 0
        async with page.expect_request("**/api/chat") as request:
            await say(page, "Hi")
        assert (await request.value).post_data_json == {"messages": [{"role": "user", "content": "Hi"}]}
        await expect(words(page)).to_have_text("Hello")


async def test_where_a_key_is_asked_for_the_page_says_that_it_has_none(serve, visit, tmp_path):
    file = tmp_path / "keys.json"
    create_key(file, b"x" * 32, caller="ada", group=None, name="", expires=None)
    environ = {"CHAT_NEST_IDENTITY_KEYS_FILE": str(file), "CHAT_NEST_IDENTITY_SECRET": "x" * 32}
    async with ScriptedProvider(answer("x")) as provider:
        page = await visit(await serve(provider, **environ))
        await say(page, "Hi")
        await expect(page.locator(".problem")).to_have_text(
            "Authentication is required. This server asks for a key, which this page does not have: "
            "use a client that sends one."
        )
        await expect(page.get_by_role("button", name="Retry")).to_have_count(0)
        assert provider.requests == []


async def test_an_answer_that_was_cut_says_so_and_can_be_asked_again(serve, visit):
    async with ScriptedProvider(stream(chunk("Hel"), CLOSE), answer("Hello")) as provider:
        page = await visit(await serve(provider))
        await say(page, "Hi")
        problem = page.locator(".problem")
        await expect(problem).to_have_text("The model provider's answer ended too early.")
        await expect(words(page)).to_have_text("Hel")
        await page.get_by_role("button", name="Retry").click()
        await expect(page.locator(".cost")).to_be_visible()
        await expect(words(page)).to_have_text("Hello")
        await expect(problem).to_have_count(0)
        assert provider.requests[1].json()["messages"] == [{"role": "user", "content": "Hi"}]


async def test_an_end_without_its_event_is_not_taken_for_the_whole_answer(serve, visit):
    """As behind a proxy that lost the server."""
    async with ScriptedProvider() as provider:
        page = await visit(await serve(provider))
        cut = 'event: start\ndata: {}\n\nevent: token\ndata: "Hel"\n\n'
        await page.route("**/api/chat", lambda route: route.fulfill(content_type="text/event-stream", body=cut))
        await say(page, "Hi")
        await expect(page.locator(".problem")).to_have_text("The connection was lost before the answer was complete.")
        await expect(words(page)).to_have_text("Hel")
        await expect(page.get_by_role("button", name="Retry")).to_be_visible()


async def test_without_a_network_nothing_typed_is_lost(serve, visit):
    async with ScriptedProvider(answer("Hello")) as provider:
        page = await visit(await serve(provider))
        await page.context.set_offline(True)
        await say(page, "Hi")
        await expect(page.locator(".problem")).to_have_text("The server can't be reached.")
        await page.get_by_label("Your message").fill("the next one")
        await page.context.set_offline(False)
        await page.get_by_role("button", name="Retry").click()
        await expect(words(page)).to_have_text("Hello")
        await expect(page.get_by_label("Your message")).to_have_value("the next one")
        assert provider.requests[0].json()["messages"] == [{"role": "user", "content": "Hi"}]


async def test_a_connection_that_has_gone_silent_is_given_up_after_45_seconds(serve, visit):
    more = asyncio.Event()
    async with ScriptedProvider(stream(chunk("one "), more, chunk("two"), HANG)) as provider:
        page = await visit(await serve(provider))
        await page.clock.install()
        await say(page, "Hi")
        await expect(words(page)).to_have_text("one")
        await page.clock.run_for(40_000)
        more.set()  # any event counts from the start again
        await page.clock.run_for(100)
        await expect(words(page)).to_have_text("one two")
        await page.clock.run_for(40_000)
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        await page.clock.run_for(6_000)
        await expect(page.locator(".problem")).to_contain_text("The connection was lost")
        await expect(page.get_by_role("button", name="Retry")).to_be_visible()
        await provider.closed(0)


async def test_a_new_chat_ends_the_answer_and_forgets_the_conversation(serve, visit):
    async with ScriptedProvider(forever("one"), answer("Yes")) as provider:
        page = await visit(await serve(provider))
        await say(page, "Count")
        await expect(words(page)).to_have_text("one")
        await page.get_by_role("button", name="New chat").click()
        await provider.closed(0)
        await expect(page.locator(".message")).to_have_count(0)
        await page.get_by_role("button", name="Why is the sky blue?").click()
        await expect(words(page)).to_have_text("Yes")
        assert provider.requests[1].json()["messages"] == [{"role": "user", "content": "Why is the sky blue?"}]


async def test_it_follows_the_answer_only_while_its_end_is_in_sight(serve, visit):
    first, more, last = asyncio.Event(), asyncio.Event(), asyncio.Event()
    line = chunk("line\n")
    script = stream(*[line] * 5, first, *[line] * 95, more, *[line] * 100, last, *[line] * 100, HANG)
    async with ScriptedProvider(script) as provider:
        page = await visit(await serve(provider), **PHONE)
        await say(page, "long\n" * 30)
        scroller = page.locator("#scroller")
        rest = "node => node.scrollHeight - node.scrollTop - node.clientHeight"
        lines = "more => document.querySelector('.assistant .words').textContent.split('\\n').length > more"
        await page.wait_for_function(lines, arg=5)
        assert await scroller.evaluate(rest) < 5
        await page.get_by_label("Your message").fill("the next one\n" * 4)  # the composer takes room from the log
        assert await scroller.evaluate(rest) < 5
        first.set()
        await page.wait_for_function(lines, arg=100)
        assert await scroller.evaluate(rest) < 5
        await scroller.evaluate("node => node.scrollTop = 200")
        await page.evaluate("new Promise(requestAnimationFrame)")
        more.set()
        await page.wait_for_function(lines, arg=200)
        assert await scroller.evaluate("node => node.scrollTop") == 200
        await scroller.evaluate("node => node.scrollTop = node.scrollHeight")
        await page.evaluate("new Promise(requestAnimationFrame)")
        last.set()
        await page.wait_for_function(lines, arg=300)
        assert await scroller.evaluate(rest) < 5


async def test_nothing_sticks_out_on_a_phone_and_the_composer_stays_in_sight(serve, visit):
    long = "https://example.com/" + "a" * 300 + "\n" + "\n".join(f"{number} words" for number in range(60))
    async with ScriptedProvider(answer(long)) as provider:
        page = await visit(await serve(provider), **PHONE)
        for text in (None, long):
            if text is not None:
                await say(page, text)
                await expect(page.locator(".cost")).to_be_visible()
            sizes = "[document.documentElement, document.getElementById('scroller')].map(n => n.scrollWidth - n.clientWidth)"
            assert await page.evaluate(sizes) == [0, 0]
            assert await page.evaluate("document.documentElement.scrollHeight - innerHeight") == 0
            for button in await page.locator("button:visible").all():
                box = await button.bounding_box()
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= 360
                assert box["height"] >= 40  # fingers
        await page.set_viewport_size({"width": 360, "height": 320})  # as with a keyboard on the screen
        box = await page.get_by_label("Your message").bounding_box()
        assert box["y"] + box["height"] <= 320


CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (color) => {
    const [r, g, b] = color.map((value) => value / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color[3] === 255) return color;
    }
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = walker.nextNode()); ) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility() || node.closest(".unseen")) continue;
    const [a, b] = [rgb(getComputedStyle(node).color), ground(node)].map(luminance);
    found.push([text.data.slice(0, 20), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_has_the_contrast_that_wcag_aa_asks_for(serve, visit, scheme):
    async with ScriptedProvider(stream(chunk("Hel"), CLOSE), answer("Hello"), forever("one")) as provider:
        page = await visit(await serve(provider), color_scheme=scheme)
        await page.locator("#demo").evaluate("node => node.hidden = false")
        found = await page.evaluate(CONTRASTS)
        await say(page, "cut")
        await expect(page.locator(".retry")).to_be_visible()
        found += await page.evaluate(CONTRASTS)
        await say(page, "whole")
        await expect(page.locator(".cost")).to_be_visible()
        await say(page, "writing")
        await expect(words(page)).to_have_text("one")
        found += await page.evaluate(CONTRASTS)
        texts = {text for text, _ in found}
        assert {"Chat Nest", "Demo model", "Hel", "Retry", "Stop", "Send", "cut", "New chat"} <= texts
        assert [pair for pair in found if pair[1] < 4.5] == []


async def test_the_second_click_of_a_double_click_does_not_stop(serve, visit):
    async with ScriptedProvider(forever("one")) as provider:
        page = await visit(await serve(provider))
        await page.get_by_label("Your message").fill("Hi")
        box = await page.get_by_role("button", name="Send").bounding_box()
        await page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        await expect(words(page)).to_have_text("one")
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()


async def test_the_conversation_that_is_sent_keeps_within_one_body(serve, visit):
    """However long the chat grows: the server refuses bodies over 256 KiB."""
    scripts = itertools.repeat(answer("é" * 19_000), 9)
    async with ScriptedProvider(*scripts) as provider:
        limits = {f"CHAT_NEST_PROFILES_BALANCED_{name}": "1000000" for name in ("TOKENS_PER_DAY", "TOKENS_PER_REQUEST")}
        page = await visit(await serve(provider, **limits, CHAT_NEST_HARD_CAPS_TOKENS_PER_REQUEST="1000000"))
        for number in range(8):
            await say(page, f"{number} " + "é" * 19_000)
            await expect(page.locator(".cost")).to_have_count(number + 1)
        assert len(provider.requests) == 8
        assert await page.locator(".problem").count() == 0


# Where the server keeps answers whose reader is away.

KEPT = {"CHAT_NEST_PROFILES_BALANCED_ON_DISCONNECT": "finish"}


async def test_a_reload_in_the_middle_of_an_answer_loses_and_doubles_nothing(serve, visit):
    more, rest = asyncio.Event(), asyncio.Event()
    script = stream(
        chunk("one "), chunk("two "), more, chunk("three "), rest, chunk("four"), finish(), usage(9, 4), DONE
    )
    async with ScriptedProvider(answer("Hello"), script, answer("Yes")) as provider:
        page = await visit(await serve(provider, **KEPT))
        await expect(page.locator("#model")).to_be_visible()  # it has read what the server can do
        await say(page, "First")
        await expect(words(page)).to_have_text("Hello")
        await expect(page.get_by_role("button", name="Send")).to_be_visible()
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
        await expect(page.locator(".cost")).to_have_text("13 tokens (9 in, 4 out)")
        await expect(page.locator(".reconnecting")).to_have_count(0)
        assert await page.locator(".words").all_inner_texts() == ["First", "Hello", "Count", "one two three four"]
        await page.reload()  # and when it has ended
        assert await page.locator(".words").all_inner_texts() == ["First", "Hello", "Count", "one two three four"]
        await expect(page.get_by_label("Your message")).to_be_focused()
        await say(page, "Go on")
        await expect(words(page)).to_have_text("Yes")
        assert [message["content"] for message in (await provider.request(2)).json()["messages"]] == [
            "First", "Hello", "Count", "one two three four", "Go on",
        ]  # fmt: skip
        assert len(provider.requests) == 3


async def test_a_reload_before_the_first_word_asks_nothing_twice(serve, visit):
    begin = asyncio.Event()
    script = [begin, *answer("late")]
    async with ScriptedProvider(script) as provider:
        page = await visit(await serve(provider, **KEPT, CHAT_NEST_TIMEOUTS_COMMIT="60"))
        await expect(page.locator("#model")).to_be_visible()
        await say(page, "Hi")
        await provider.request(0)
        await page.reload()
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        begin.set()
        await expect(words(page)).to_have_text("late")
        await expect(page.locator(".cost")).to_contain_text("tokens")
        assert len(provider.requests) == 1


async def test_stop_after_a_reload_ends_it_where_it_runs(serve, visit):
    async with ScriptedProvider(forever("one ", "two "), answer("Yes")) as provider:
        page = await visit(await serve(provider, **KEPT), **PHONE)
        await expect(page.locator("#model")).to_be_visible()
        await say(page, "Count")
        await expect(words(page)).to_have_text("one two")
        await page.reload()
        await expect(words(page)).to_have_text("one two")
        await page.get_by_role("button", name="Stop").click()
        await provider.requests[0].connection.closed
        await expect(page.locator(".cost")).to_have_text(
            re.compile(r"^Stopped · about \d+ tokens charged \(estimated\)$")
        )
        await page.reload()
        await expect(page.get_by_role("button", name="Send")).to_be_visible()
        await expect(words(page)).to_have_text("one two")
        await say(page, "Go on")
        await expect(words(page)).to_have_text("Yes")


async def test_stop_before_the_first_word_ends_what_would_go_on_without_a_reader(serve, visit):
    async with ScriptedProvider(forever(), answer("Yes")) as provider:
        page = await visit(await serve(provider, **KEPT))
        await expect(page.locator("#model")).to_be_visible()
        await say(page, "Count")
        await provider.request(0)
        await page.keyboard.press("Escape")
        await provider.requests[0].connection.closed
        await expect(page.locator(".cost")).to_contain_text("Stopped")
        await say(page, "Go on")
        await expect(words(page)).to_have_text("Yes")


async def test_an_answer_that_is_not_kept_any_more_is_told_plainly(serve, visit):
    rest = asyncio.Event()
    script = stream(chunk("one "), chunk("two "), rest, chunk("three"), finish(), usage(9, 3), DONE)
    async with ScriptedProvider(script, answer("again")) as provider:
        url = await serve(provider, **KEPT, CHAT_NEST_RUNS_KEEP_SECONDS="0.01")
        page = await visit(url)
        await expect(page.locator("#model")).to_be_visible()
        await say(page, "Count")
        await expect(words(page)).to_have_text("one two")
        await page.goto(url + "healthz")  # away
        rest.set()
        run = await page.evaluate("JSON.parse(sessionStorage.getItem('chat-nest')).kept.id")
        while await page.evaluate("async (run) => (await fetch(`api/chat/${run}/stream`)).status", run) != 404:
            pass
        await page.goto(url)
        await expect(page.locator(".problem")).to_have_text(
            "This answer is not kept any more, so the rest of it can't be shown."
        )
        await expect(words(page)).to_have_text("one two")
        await page.get_by_role("button", name="Retry").click()
        await expect(words(page)).to_have_text("again")


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


async def test_a_lost_connection_is_made_again_and_seen_to_be(serve, visit):
    more = asyncio.Event()
    script = stream(chunk("one "), more, chunk("two"), finish(), usage(9, 2), DONE)
    async with ScriptedProvider(script) as provider:
        cable = Cable(int((await serve(provider, **KEPT)).rstrip("/").rpartition(":")[2]))
        async with cable as port:
            page = await visit(f"http://127.0.0.1:{port}/")
            await expect(page.locator("#model")).to_be_visible()
            await say(page, "Count")
            await expect(words(page)).to_have_text("one")
            cable.pull()
            await expect(page.locator(".reconnecting")).to_have_text("Reconnecting…")
            await expect(page.get_by_role("status")).to_have_text("Reconnecting")
            cable.plugged = True
            more.set()
            await expect(words(page)).to_have_text("one two", timeout=15_000)
            await expect(page.locator(".reconnecting")).to_have_count(0)
            await expect(page.locator(".cost")).to_have_text("11 tokens (9 in, 2 out)")
            assert len(provider.requests) == 1


async def test_reconnecting_is_given_up_after_a_while(serve, visit):
    more = asyncio.Event()
    script = stream(chunk("one "), more, chunk("two"), finish(), usage(9, 2), DONE)
    async with ScriptedProvider(script) as provider:
        cable = Cable(int((await serve(provider, **KEPT)).rstrip("/").rpartition(":")[2]))
        async with cable as port:
            page = await visit(f"http://127.0.0.1:{port}/")
            await expect(page.locator("#model")).to_be_visible()
            await say(page, "Count")
            await expect(words(page)).to_have_text("one")
            cable.pull()
            problem = page.locator(".problem")
            await expect(problem).to_have_text(
                "The connection was lost before the answer was complete.", timeout=30_000
            )
            await expect(page.get_by_role("button", name="Send")).to_be_visible()
            cable.plugged = True
            more.set()
            await page.get_by_role("button", name="Retry").click()
            await expect(words(page)).to_have_text("one two")
            assert len(provider.requests) == 1


async def test_where_answers_are_not_kept_nothing_is_kept_by_the_page(serve, visit):
    async with ScriptedProvider(forever("one")) as provider:
        page = await visit(await serve(provider))
        await expect(page.locator("#model")).to_be_visible()
        await say(page, "Count")
        await expect(words(page)).to_have_text("one")
        assert "idempotency-key" not in (await provider.request(0)).headers
        await page.reload()
        await provider.closed(0)
        await expect(page.locator("#welcome")).to_be_visible()
        assert await page.evaluate("sessionStorage.length") == 0
