"""The page as an operator has it: words, colours, logo, a key, and inside other pages."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from page_words import say, words
from playwright.async_api import expect
from scripted_provider import answer

from chat_nest.identity.api_key import Rights
from chat_nest.identity.key_file import create_key
from chat_nest.server.config.settings import load
from chat_nest.server.config.sources import ConfigError

pytestmark = pytest.mark.asyncio(loop_scope="session")

LOGO = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><script>alert(1)</script><rect width="9" height="9" fill="red"/></svg>'
YOURS = """
[server]
trusted_proxies = ["127.0.0.1"]

[page]
title = "Bakery <b>help</b>"
greeting = "What shall we bake?"
suggestions = ["Bread", "Cake </script><b>"]
notice = "Answers are <i>not</i> advice."
accent = "#7c2d12"
accent_dark = "#fdba74"
logo = "logo.svg"
language = "de"
words_folder = "words"
embed_origins = ["http://127.0.0.1:{port}"]

[profiles.balanced]
"""


class Site:
    """Another site, whose pages show the chat."""

    def __init__(self):
        self.body = ""

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _answer(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = f"<!doctype html><title>Site</title><h1>Site</h1>{self.body}".encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        await writer.drain()
        writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site():
    async with Site() as site:
        yield site


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(shared, serving, site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("yours")
    (folder / "logo.svg").write_text(LOGO)
    (folder / "words").mkdir()
    (folder / "words/de.json").write_text('{"new_chat": "Noch ein Rezept"}')
    (folder / "words/fr.json").write_text('{"new_chat": "Nouvelle recette"}')
    config = (
        YOURS.replace("{port}", str(site.port))
        .replace('"logo.svg"', f'"{folder}/logo.svg"')
        .replace('"words"', f'"{folder}/words"')
    )
    return await serving(shared, config)


async def test_title_greeting_suggestions_notice_logo_and_words_are_the_operators(provider, visit):
    provider.scripts = [answer("Brot")]
    page = await visit()
    assert await page.title() == "Bakery <b>help</b>"
    await expect(page.locator("h1")).to_have_text("Bakery <b>help</b>")
    await expect(page.locator("#greeting")).to_have_text("What shall we bake?")
    await expect(page.locator("#suggestions button")).to_have_text(["Bread", "Cake </script><b>"])
    await expect(page.locator("#notice")).to_have_text("Answers are <i>not</i> advice.")
    await expect(page.locator("#new")).to_have_text("Noch ein Rezept")
    await expect(page.locator("#open-settings")).to_have_text("Einstellungen")
    assert await page.locator("h1 img").evaluate("image => image.complete && image.naturalWidth > 0")
    assert await page.locator("h1 img").get_attribute("src") == "logo.svg"
    assert await page.locator("#send").evaluate("node => getComputedStyle(node).backgroundColor") == "rgb(124, 45, 18)"
    await page.emulate_media(color_scheme="dark")
    assert await page.locator("#send").evaluate("node => getComputedStyle(node).color") == "rgb(0, 0, 0)"
    await page.get_by_role("button", name="Bread").click()
    await expect(words(page)).to_have_text("Brot")
    assert provider.requests[0].json()["messages"][0]["content"] == "Bread"


@pytest.mark.in_firefox_too
async def test_an_allowed_site_shows_the_chat_in_a_frame_and_by_a_script(provider, visit, served, site, browser):
    provider.scripts = [answer("Brot")]
    context = await browser.new_context()
    page = await context.new_page()
    site.body = f'<iframe src="{served.url}" width="500" height="600"></iframe>'
    await page.goto(f"http://127.0.0.1:{site.port}/")
    frame = page.frame_locator("iframe")
    await frame.locator("#prompt").fill("Bread")
    await frame.locator("#prompt").press("Enter")
    await expect(frame.locator(".assistant .words")).to_have_text("Brot")
    site.body = f'<script src="{served.url}embed.js" data-label="Ask us" async></script>'
    await page.goto(f"http://127.0.0.1:{site.port}/")
    button = page.get_by_role("button", name="Ask us")
    await expect(button).to_have_attribute("aria-expanded", "false")
    assert len(page.frames) == 2 and page.frames[1].url in ("", "about:blank")  # nothing is loaded before it is wanted
    assert await button.evaluate("node => getComputedStyle(node).backgroundColor") == "rgb(124, 45, 18)"
    await button.click()
    await expect(frame.locator("#greeting")).to_have_text("What shall we bake?")
    await expect(button).to_have_text("✕")
    await button.click()
    await expect(page.locator("iframe")).to_be_hidden()
    await expect(button).to_have_text("Ask us")
    await context.close()


@pytest.mark.in_firefox_too
async def test_no_other_site_shows_the_chat(served, browser):
    async with Site() as stranger:
        stranger.body = f'<iframe src="{served.url}"></iframe>'
        context = await browser.new_context()
        page = await context.new_page()
        refused = []
        page.on("console", lambda said: refused.append(said.text))
        await page.goto(f"http://127.0.0.1:{stranger.port}/")
        assert await page.frame_locator("iframe").locator("#prompt").count() == 0
        if browser.browser_type.name == "chromium":  # Firefox logs no reason
            assert any("frame-ancestors" in text or "frame because" in text for text in refused), refused
        await context.close()


@pytest.mark.in_firefox_too
async def test_the_page_prompts_for_a_required_key_and_keeps_it_for_the_tab(visit, shared, serving, tmp_path):
    file = tmp_path / "keys.json"
    _, secret = create_key(file, b"x" * 32, Rights(caller="ada"))
    environ = {"CHAT_NEST_IDENTITY_KEYS_FILE": str(file), "CHAT_NEST_IDENTITY_SECRET": "x" * 32}
    served = await serving(shared, "", **environ)
    shared.scripts, shared.requests[:] = [answer("Hello")], []
    page = await visit(served.url)
    await say(page, "Hi")
    await expect(page.locator(".problem")).to_have_text("This chat needs a key or a token that is valid.")
    await page.get_by_role("button", name="Enter a key").click()
    await expect(page.get_by_label("Key or token")).to_be_focused()
    await page.keyboard.type(secret)
    await page.keyboard.press("Enter")
    await expect(words(page)).to_have_text("Hello")
    assert shared.requests[0].headers["authorization"] == "Bearer sk-test"
    await page.reload()
    await page.wait_for_selector("html[data-ready]")
    await say(page, "Again")
    await expect(words(page)).to_have_text("Hello")
    assert await page.evaluate("JSON.stringify({ ...localStorage })") == "{}"
    other = await visit(page.url, beside=page)
    assert await other.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('accent = "red"', "page.accent: must be a colour such as #0f766e"),
        ('logo = "gone.svg"', "page.logo: can't be read: No such file or directory"),
        ('logo = "logo.gif"', "page.logo: must be a file that ends in svg, png, webp, jpg, jpeg"),
        ('embed_origins = ["*"]', "page.embed_origins: must be origins such as https://example.com"),
        ('embed_origins = ["https://a.example; script-src *"]', "page.embed_origins: must be origins"),
        ('language = "xx"', "page.language: must be one of ar, de, en, es, zh"),
        ('words_folder = "gone"', "page.words_folder: must be a folder of files such as de.json"),
        ('suggestions = ["a", 1]', "page.suggestions: must be a list of strings"),
    ],
)
async def test_a_contradictory_configuration_does_not_start(tmp_path, line, said):
    file = tmp_path / "chat-nest.toml"
    file.write_text(f"[page]\n{line}\n")
    with pytest.raises(ConfigError) as error:
        load(str(file), environ={"OPENAI_API_KEY": "sk"})
    assert said.partition(": ")[2] in str(error.value)
    assert said.partition(": ")[0] in str(error.value).replace("[page] ", "page.")
