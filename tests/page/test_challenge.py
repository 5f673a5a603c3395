"""The page's challenges: a proof of work in a worker, and the widget of a service in a frame."""

from __future__ import annotations

import asyncio
import json

import pytest
import pytest_asyncio
from page_words import say, words
from playwright.async_api import expect
from ports import free_port
from scripted_provider import ScriptedProvider, answer, http

pytestmark = pytest.mark.asyncio(loop_scope="session")

OTHER_PORT = free_port()
CONFIG = """
[server]
trusted_proxies = ["127.0.0.1"]
[page]
embed_origins = ["http://localhost:{other}"]
[visitors]
secret = "a secret of visitors that is long"
[addresses]
requests_per_day = 100
[challenge]
before = "taste"
after = "meal"
""".replace("{other}", str(OTHER_PORT))
WORK = """
kind = "proof_of_work"
milliseconds = 200
"""
PROFILES = """
[profiles.taste]
open = true
requests_per_day = 1
[profiles.meal]
requests_per_day = 100
"""
SERVICE = """
kind = "turnstile"
site_key = "site"
secret = "the secret of the service"
hostnames = ["127.0.0.1"]
verify_url = "{url}/siteverify"
"""
WIDGET = """
window.turnstile = { render: (place, options) => {
  document.getElementById(place).innerHTML = "<button>I am not a robot</button>";
  document.querySelector("button").onclick = () => options.callback(`token for ${options.cData}`);
} };
ready();
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(shared, serving):
    return await serving(shared, CONFIG + WORK + PROFILES)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def verifier():
    async with ScriptedProvider() as verifier:
        yield verifier


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def with_widget(shared, serving, verifier):
    return await serving(shared, CONFIG + SERVICE.replace("{url}", verifier.url) + PROFILES)


async def test_the_page_has_a_cookie_before_its_first_message(visit):
    page = await visit()
    (cookie,) = await page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("chat-nest", True, "Lax")
    await page.reload()
    assert [kept["value"] for kept in await page.context.cookies()] == [cookie["value"]]


@pytest.mark.in_firefox_too
async def test_a_proof_of_work_is_solved_and_the_message_sent_again(visit, provider):
    provider.scripts = [answer("First. ", 1), answer("Second. ", 1)]
    page = await visit()
    await say(page, "Hello")
    await expect(words(page)).to_have_text("First.")
    shown = asyncio.create_task(
        page.evaluate(
            """() => new Promise((seen) => new MutationObserver(() => {
          const bar = document.querySelector(".notes p.challenge progress");
          if (bar) seen(bar.getAttribute("aria-label"));
        }).observe(document.body, { childList: true, subtree: true }))"""
        )
    )
    async with page.expect_response("**/api/challenge") as solved:
        await say(page, "Again")
    assert (await solved.value).status == 200
    assert "robot" in await shown
    await expect(words(page)).to_have_text("Second.")
    assert await page.locator(".notes p.challenge").count() == 0
    assert len(provider.requests) == 2
    await say(page, "And again")
    await expect(page.locator(".assistant .words")).to_have_count(3)


async def test_a_challenge_is_stopped_with_its_message(visit, provider):
    provider.scripts = [answer("First. ", 1)]
    page = await visit()
    await say(page, "Hello")
    await expect(words(page)).to_have_text("First.")
    await page.route("**/challenge-worker.js", lambda route: route.fulfill(body="", content_type="text/javascript"))
    await say(page, "Again")
    await expect(page.locator(".notes p.challenge")).to_be_visible()
    await page.click("#stop")
    await expect(page.locator(".notes p.challenge")).to_have_count(0)
    assert len(provider.requests) == 1


async def test_a_refused_solution_is_shown_and_can_be_tried_again(visit, provider):
    provider.scripts = [answer("First. ", 1), answer("Second. ", 1)]
    page = await visit()
    await say(page, "Hello")
    await expect(words(page)).to_have_text("First.")
    await page.route(
        "**/api/challenge", lambda route: route.fulfill(status=403, json={"code": "challenge_failed", "error": "No"})
    )
    await say(page, "Again")
    await expect(page.locator(".notes .problem")).to_contain_text("could not be confirmed")
    await page.unroute("**/api/challenge")
    await page.click(".retry")
    await expect(words(page)).to_have_text("Second.")


@pytest.mark.in_firefox_too
async def test_the_widget_of_a_service_is_shown_in_a_separate_frame(browser, with_widget, verifier, provider):
    provider.scripts = [answer("First. ", 1), answer("Second. ", 1)]
    context = await browser.new_context(locale="en-US")
    page = await context.new_page()
    wrong = []
    page.on("console", lambda said: "Content Security Policy" not in said.text or wrong.append(said.text))
    await context.route(
        "https://challenges.cloudflare.com/**",
        lambda route: route.fulfill(body=WIDGET, content_type="text/javascript"),
    )
    await page.goto(with_widget.url)
    await say(page, "Hello")
    await expect(words(page)).to_have_text("First.")
    assert await page.locator("iframe").count() == 0, "nothing of a third party before it is needed"
    async with page.expect_response("**/api/chat") as refused:
        await say(page, "Again")
    challenge = (await (await refused.value).json())["challenge"]
    await expect(page.locator(".notes p.challenge")).to_contain_text("confirm that you are not a robot")
    passes = {"success": True, "hostname": "127.0.0.1", "action": "chat", "cdata": challenge["data"]}
    verifier.scripts = [http(200, json.dumps(passes).encode())]
    await page.frame_locator("iframe.challenge").get_by_text("I am not a robot").click()
    await expect(words(page)).to_have_text("Second.")
    assert await page.locator("iframe").count() == 0
    assert wrong == []
    main = (await page.request.get(with_widget.url)).headers["content-security-policy"]
    assert "cloudflare" not in main
    frame = (await page.request.get(f"{with_widget.url}challenge.html")).headers["content-security-policy"]
    assert "script-src 'self' https://challenges.cloudflare.com;" in frame
    await context.close()


async def test_a_recaptcha_score_is_requested_without_a_checkbox(browser, shared, serving, verifier, provider):
    script = """
    window.grecaptcha = { ready: (then) => then(), execute: async (key, { action }) => `token of ${key} for ${action}` };
    ready();
    """
    service = SERVICE.replace("turnstile", "recaptcha").replace("{url}", verifier.url) + "checkbox = false\n"
    served = await serving(shared, CONFIG + service + PROFILES)
    provider.scripts = [answer("First. ", 1), answer("Second. ", 1)]
    context = await browser.new_context(locale="en-US")
    page = await context.new_page()
    scripts = []

    async def load(route):
        scripts.append(route.request.url)
        await route.fulfill(body=script, content_type="text/javascript")

    await context.route("https://www.google.com/**", load)
    await page.goto(served.url)
    await say(page, "Hello")
    await expect(words(page)).to_have_text("First.")
    verdict = {"success": True, "hostname": "127.0.0.1", "action": "chat"}
    verifier.requests.clear()
    verifier.scripts = [http(200, json.dumps({**verdict, "score": score}).encode()) for score in (0.1, 0.9)]
    await say(page, "Again")
    await expect(page.locator(".notes .problem")).to_contain_text("could not be confirmed")
    await page.click(".retry")
    await expect(words(page)).to_have_text("Second.")
    assert scripts[0] == "https://www.google.com/recaptcha/api.js?render=site&onload=ready&hl=en"
    assert b"response=token+of+site+for+chat" in verifier.requests[0].body
    assert await page.locator("iframe").count() == 0
    await context.close()


async def test_without_a_service_there_is_no_frame(served, browser):
    context = await browser.new_context()
    assert (await context.request.get(f"{served.url}challenge.html")).status == 404
    policy = (await context.request.get(served.url)).headers["content-security-policy"]
    assert "frame-src" not in policy
    await context.close()


@pytest.mark.in_firefox_too
async def test_in_a_frame_of_another_site_the_visitor_has_a_token(browser, served, provider):
    provider.scripts = [answer("First. ", 1)]
    html = f'<!doctype html><iframe src="{served.url}" width=800 height=600></iframe>'.encode()

    async def elsewhere(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\ncontent-type: text/html\r\n\r\n" + html)
        writer.close()

    context = await browser.new_context(locale="en-US")
    page = await context.new_page()
    asked = {}
    page.on("request", lambda request: asked.setdefault(request.url.removeprefix(served.url), request.headers))
    async with await asyncio.start_server(elsewhere, "127.0.0.1", OTHER_PORT):
        await page.goto(f"http://localhost:{OTHER_PORT}/")  # another site than 127.0.0.1
        frame = page.frame_locator("iframe")
        await frame.locator("html[data-ready]").wait_for(state="attached")
        await frame.get_by_label("Your message").fill("Hello")
        send = frame.get_by_role("button", name="Send")
        await send.evaluate("button => button.click()")  # Firefox's driver presses nothing in another site's frame
        await expect(frame.locator(".assistant .words")).to_have_text("First.")
    assert asked["api/chat"]["authorization"].startswith("Bearer cnv1_")
    assert "api/visit" in asked
    await context.close()
