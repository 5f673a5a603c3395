"""How the page looks and whether everybody can use it: small and large windows, colours, directions, assistive technology."""

from __future__ import annotations

import asyncio
import contextlib
import re
import zlib
from pathlib import Path

import pytest
from page_words import PHONE, forever, say, words
from playwright.async_api import expect
from scripted_provider import CLOSE, answer, chunk, stream

pytestmark = pytest.mark.asyncio(loop_scope="session")

AXE = Path(__file__).parents[1] / "clients/node_modules/axe-core/axe.min.js"
RICH = "# Title\n\nText with `code` and [a link](https://example.com).\n\n```python\nx = 1  # one\n```\n\n| a | b |\n|--|--|\n| 1 | 2 |\n\n- one\n- two\n\n$x^2$"
LONG = (
    "https://example.com/"
    + "a" * 300
    + "\n"
    + "\n".join(f"{number} words" for number in range(60))
    + "\n\n```\n"
    + "x" * 300
    + "\n```"
)


async def findings(page):
    """What axe-core finds, of all its rules for WCAG 2.2 A and AA and its best practices."""
    await page.context.new_cdp_session(page)
    await page.evaluate(AXE.read_text())
    found = await page.evaluate(
        "axe.run(document).then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes.map(({ html, failureSummary }) => html.slice(0, 200) + failureSummary)]))"
    )
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(provider, visit, scheme):
    if not AXE.exists():
        pytest.skip("axe-core is not installed: scripts/setup clients")
    provider.scripts = [answer(RICH), stream(chunk("Hel"), CLOSE), forever("one")]
    page = await visit(color_scheme=scheme)
    assert await findings(page) == []
    await say(page, "Rich")
    await expect(page.locator(".cost")).to_be_visible()
    await expect(page.locator(".katex")).to_have_count(1)
    await say(page, "Cut")
    await expect(page.locator(".problem")).to_be_visible()
    assert await findings(page) == []
    await page.get_by_role("button", name="Actions for “Rich”").click()
    assert await findings(page) == []
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Settings").click()
    assert await findings(page) == []
    await page.keyboard.press("Escape")
    await say(page, "Writing")
    await expect(words(page)).to_have_text("one")
    assert await findings(page) == []


async def stays_inside(page, width):
    sizes = "[document.documentElement, document.getElementById('scroller')].map((node) => node.scrollWidth - node.clientWidth)"
    assert await page.evaluate(sizes) == [0, 0]
    assert await page.evaluate("document.documentElement.scrollHeight - innerHeight") <= 0
    for button in await page.locator(".chat button:visible, .chat select:visible").all():
        box = await button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


@pytest.mark.in_firefox_too
@pytest.mark.parametrize("width", [360, 1280])
async def test_the_first_paint_waits_for_no_code_and_an_early_message_is_sent_later(provider, visit, held, width):
    provider.scripts = [answer("Yes")]
    opened: asyncio.Future = asyncio.get_running_loop().create_future()

    async def before(page):
        await held.hold("**/chat.js")(page)
        opened.set_result(page)

    opening = asyncio.create_task(visit(before=before, viewport={"width": width, "height": 740}))
    page = await opened
    await expect(page.locator("#greeting")).to_be_visible()
    for place in ("#menu", "#send"):
        await expect(page.locator(f"{place} path")).to_have_attribute("d", re.compile("^M"))
    await expect(page.locator("#side")).to_be_visible(visible=width == 1280)
    await page.locator("#prompt").fill("Hi")
    await (page.locator("#prompt").press("Enter") if width == 1280 else page.locator("#send").click())
    held.release.set()
    await opening
    await expect(page.locator("#side")).to_be_visible(visible=width == 1280)
    await expect(words(page)).to_have_text("Yes")
    assert [request.json()["messages"][-1]["content"] for request in provider.requests] == ["Hi"]


@pytest.mark.in_firefox_too
async def test_nothing_sticks_out_on_a_phone_and_the_composer_stays_in_sight(provider, visit):
    provider.scripts = [answer(LONG)]
    page = await visit(**PHONE)
    welcome = "document.getElementById('scroller').scrollHeight - document.getElementById('scroller').clientHeight"
    assert await page.evaluate(welcome) == 0, "there is nothing to scroll"
    title = page.locator("h1 span")
    assert await title.evaluate("node => node.scrollWidth - node.clientWidth") == 0, "the name is there as a whole"
    for text in (None, LONG):
        if text is not None:
            await say(page, text)
            await expect(page.locator(".cost")).to_be_visible()
        await stays_inside(page, 360)
        for button in await page.locator(".chat button:visible").all():
            assert (await button.bounding_box())["height"] >= 40  # fingers
    await page.get_by_role("button", name="Conversations").click()
    side = page.locator("#side")
    await expect(side).to_be_visible()
    await expect(page.get_by_label("Search conversations")).to_be_focused()
    await page.get_by_role("button", name="Actions for").click()
    await page.keyboard.press("Escape")  # closes the menu, and not the list
    await expect(page.locator("#item-menu")).to_be_hidden()
    await expect(side).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(side).to_be_hidden()
    await expect(page.locator("#menu")).to_be_focused()
    await page.set_viewport_size({"width": 360, "height": 320})  # as with a keyboard on the screen
    box = await page.get_by_label("Your message").bounding_box()
    assert box["y"] + box["height"] <= 320


@pytest.mark.in_firefox_too
async def test_at_200_percent_everything_is_there(provider, visit):
    """A window of 1280 px at 200 % is one of 640 CSS pixels; WCAG 1.4.10 asks for 320 px."""
    provider.scripts = [answer(RICH)]
    for width in (640, 320):
        page = await visit(viewport={"width": width, "height": 400}, device_scale_factor=2)
        await say(page, "Rich")
        await expect(page.locator(".cost")).to_be_visible()
        await stays_inside(page, width)


async def test_on_a_phone_enter_starts_a_new_line_and_the_button_sends(provider, visit):
    provider.scripts = [answer("Yes")]
    page = await visit(**PHONE)
    await page.get_by_label("Your message").fill("one")
    await page.keyboard.press("Enter")
    await page.keyboard.type("two")
    await expect(page.get_by_label("Your message")).to_have_value("one\ntwo")
    await page.get_by_role("button", name="Send").tap()
    await expect(words(page)).to_have_text("Yes")
    assert provider.requests[0].json()["messages"][0]["content"] == "one\ntwo"


@pytest.mark.parametrize("size", [(640, 400), (740, 320)], ids=["at 200 percent", "a phone on its side"])
async def test_in_a_low_window_the_header_and_what_is_left_are_there(visit, size):
    """Only a keyboard on the screen leaves less: a header that is away takes the choice of the profile with it."""
    page = await visit(viewport=dict(zip(("width", "height"), size, strict=True)), profile="kept")
    for place in ("#profile", "#menu", "#greeting", "#left-text", "#prompt"):
        await expect(page.locator(place)).to_be_in_viewport(ratio=1)


@pytest.mark.in_firefox_too
async def test_each_paragraph_has_the_direction_of_its_text(provider, visit):
    provider.scripts = [answer("مرحبا بكم.\n\nHello there.\n\n1. واحد\n2. two")]
    page = await visit()
    await say(page, "Hello\nمرحبا")
    await expect(page.locator(".cost")).to_be_visible()
    edges = """node => { const range = document.createRange(); range.selectNodeContents(node);
        const [text, box] = [range.getBoundingClientRect(), node.parentElement.getBoundingClientRect()];
        return text.left - box.left < box.right - text.right ? "left" : "right"; }"""
    paragraphs = words(page).locator("p")
    assert await paragraphs.nth(0).evaluate(edges) == "right"
    assert await paragraphs.nth(1).evaluate(edges) == "left"


@pytest.mark.in_firefox_too
async def test_everything_is_distinguishable_with_forced_colours(provider, visit):
    provider.scripts = [answer(RICH)]
    page = await visit(forced_colors="active")
    assert await page.evaluate("matchMedia('(forced-colors: active)').matches")
    await say(page, "Rich")
    await expect(page.locator(".cost")).to_be_visible()
    for place in (".user .words", "#send", ".code", ".talk[aria-current]", "#meter"):
        assert await page.locator(place).first.evaluate("node => getComputedStyle(node).borderTopStyle") == "solid"


@pytest.mark.in_firefox_too
async def test_motion_is_reduced_if_the_system_prefers_it(provider, visit):
    provider.scripts = [forever("one")]
    page = await visit(reduced_motion="reduce")
    await say(page, "Hi")
    await expect(words(page)).to_have_text("one")
    assert (
        await page.locator(".notes").last.evaluate("node => getComputedStyle(node, '::before').animationName") == "none"
    )


@pytest.mark.in_firefox_too
async def test_arabic_runs_from_right_to_left_and_its_code_does_not(provider, visit):
    provider.scripts = [answer("مرحبا\n\n```python\nx = 1\n```")]
    page = await visit(locale="ar-EG", viewport={"width": 1000, "height": 700})
    assert await page.evaluate("[document.documentElement.lang, document.documentElement.dir]") == ["ar", "rtl"]
    await page.get_by_label("رسالتك").fill("سؤال")
    await page.keyboard.press("Enter")
    await expect(page.locator(".cost")).to_contain_text("رمز")
    await expect(page.locator(".cost")).not_to_contain_text("US")  # "US$" would be shown as "$US"
    side, chat = await page.locator("#side").bounding_box(), await page.locator(".chat").bounding_box()
    assert side["x"] > chat["x"]
    assert await page.locator("pre").evaluate("node => getComputedStyle(node).direction") == "ltr"
    assert await page.locator(".assistant .words p").evaluate("node => getComputedStyle(node).textAlign") in (
        "start",
        "right",
    )
    await stays_inside(page, 1000)


@pytest.mark.in_firefox_too
async def test_every_language_can_be_chosen_and_is_remembered(visit):
    page = await visit(locale="fr-FR")
    assert await page.evaluate("document.documentElement.lang") == "en"
    for tag, name in (("de", "Neues Gespräch"), ("es", "Nueva conversación"), ("zh", "新对话"), ("ar", "محادثة جديدة")):
        await page.locator("#open-settings").click()
        await page.select_option("#language", tag)
        await page.locator("#settings-form button[value=save]").click()
        await expect(page.locator("#new")).to_have_text(name)
    await page.reload()
    await page.wait_for_selector("html[data-ready]")
    await expect(page.locator("#new")).to_have_text("محادثة جديدة")


@pytest.mark.in_firefox_too
async def test_in_the_dark_the_page_is_dark(provider, visit):
    provider.scripts = [answer(RICH)]
    page = await visit(color_scheme="dark")
    await say(page, "Rich")
    await expect(page.locator(".cost")).to_be_visible()
    light = "node => getComputedStyle(node).{}.match(/\\d+/g).reduce((sum, part) => sum + Number(part), 0) / 765"
    assert await page.locator("body").evaluate(light.format("backgroundColor")) < 0.2
    for place in (".assistant p >> nth=0", ".user .words", ".code-head", "#prompt"):
        assert await page.locator(place).evaluate(light.format("color")) > 0.5, place


@pytest.mark.in_firefox_too
async def test_on_paper_there_is_the_conversation_only_and_all_of_it(provider, visit, browser):
    provider.scripts = [answer("long line\n\n" * 200)]
    page = await visit()
    await say(page, "Hi")
    await expect(page.locator(".cost")).to_be_visible()
    assert pages(await page.pdf(format="A4")) >= 4
    if browser.browser_type.name == "firefox":  # its driver can't show the page as it is printed
        return
    await page.emulate_media(media="print")
    for place in ("#side", "#composer", ".actions >> nth=0"):
        await expect(page.locator(place)).to_be_hidden()


def pages(pdf: bytes) -> int:
    """How many pages a document has. Firefox writes compressed objects."""
    whole = pdf
    for found in re.finditer(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        with contextlib.suppress(zlib.error):
            whole += zlib.decompress(found[1])
    return len(re.findall(rb"/Type\s*/Page\b", whole))
