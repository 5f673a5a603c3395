"""What a visitor does on the page, and where its parts are."""

from __future__ import annotations

from playwright.async_api import expect
from scripted_provider import HANG, chunk, stream

PHONE = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}


async def say(page, text):
    """Write and send it, once the answer before it is complete: until then, the page sends nothing."""
    await expect(page.locator("#stop")).to_be_hidden()
    await page.get_by_label("Your message").fill(text)
    if await page.evaluate("matchMedia('(pointer: coarse)').matches"):
        await page.get_by_role("button", name="Send").click()
    else:
        await page.keyboard.press("Enter")


def words(page):
    """The text of the last answer."""
    return page.locator(".assistant .words").last


def forever(*first):
    """A stream that goes on until it is left."""
    return stream(*(chunk(text) for text in first), HANG)


def sent(request):
    """What a request to the provider says, as (role, content)."""
    return [(message["role"], message["content"]) for message in request.json()["messages"]]
