"""Images of a message: chosen, pasted, dropped, scaled down, sent, kept, exported, and refused."""

from __future__ import annotations

import base64
import json

import pytest
from page_words import say, words
from playwright.async_api import expect
from scripted_provider import answer, failure

pytestmark = pytest.mark.asyncio(loop_scope="session")

MADE = """async ([width, height, type, noise]) => {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.fillStyle = "#0a7";
  context.fillRect(0, 0, width, height / 2);
  if (noise) {
    const data = context.createImageData(width, height);
    let state = 1;
    for (let at = 0; at < data.data.length; at += 1) data.data[at] = at % 4 === 3 ? 255 : (state = (state * 48271) % 2147483647) % 256;
    context.putImageData(data, 0, 0);
  }
  const blob = await canvas.convertToBlob({ type });
  const bytes = new Uint8Array(await blob.arrayBuffer());
  return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
}"""


async def image(page, name="red.png", width=40, height=30, *, kind="image/png", noise=False):
    data = await page.evaluate(MADE, [width, height, kind, noise])
    return {"name": name, "mimeType": kind, "buffer": base64.b64decode(data)}


async def attach(page, *files):
    await page.locator("#files").set_input_files(list(files))
    await expect(page.locator("#attached .unread")).to_have_count(0)


def parts(request, at=-1):
    return request.json()["messages"][at]["content"]


def shown(page):
    """The pictures of the last message, with their pixels as the browser read them."""
    return page.locator(".user .picture img")


async def sizes(page, part):
    """The type and pixels of an image as it was sent."""
    url = part["image_url"]["url"]
    script = "async (url) => { const image = new Image(); image.src = url; await image.decode(); return [image.naturalWidth, image.naturalHeight]; }"
    return url.partition(";")[0], *await page.evaluate(script, url)


@pytest.mark.in_firefox_too
async def test_a_chosen_image_is_shown_sent_kept_and_sent_again(provider, visit):
    provider.scripts = [answer("A flag"), answer("Green"), answer("Still green")]
    page = await visit(profile="seeing")
    await expect(page.get_by_role("button", name="Add images")).to_be_visible()
    await attach(page, await image(page, "flag.png"))
    await expect(page.get_by_alt_text("Image: flag.png")).to_be_visible()
    await say(page, "What is this?")
    await expect(words(page)).to_have_text("A flag")
    await expect(page.locator("#attached")).to_be_hidden()
    picture, text = parts(provider.requests[0])
    assert await sizes(page, picture) == ("data:image/png", 40, 30)
    assert text == {"type": "text", "text": "What is this?"}
    await page.reload()
    await expect(shown(page)).to_have_js_property("naturalWidth", 40)
    await expect(shown(page)).to_have_attribute("alt", "Image: flag.png")
    await say(page, "Which colour?")
    await expect(words(page)).to_have_text("Green")
    assert parts(provider.requests[1], 0) == [picture, text], "the image of an earlier turn goes with it"
    await page.get_by_role("button", name="Image: flag.png").click()
    await expect(page.locator("#picture img")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.locator("#picture")).to_be_hidden()
    await page.get_by_role("button", name="Write another answer").last.click()
    await expect(words(page)).to_have_text("Still green")
    assert parts(provider.requests[2], 0) == [picture, text]


async def test_an_image_alone_is_a_message_and_has_a_title(provider, visit):
    provider.scripts = [answer("A flag")]
    page = await visit(profile="seeing")
    await attach(page, await image(page))
    await page.get_by_role("button", name="Send").click()
    await expect(words(page)).to_have_text("A flag")
    [picture] = parts(provider.requests[0])
    assert picture["type"] == "image_url"
    await expect(page.locator("#list .talk")).to_have_text(["Image"])


async def test_a_large_image_is_scaled_to_the_servers_limit_without_camera_metadata(provider, visit):
    provider.scripts = [answer("Noise")]
    page = await visit(profile="seeing")
    photo = await image(page, "photo.jpg", 4000, 3000, kind="image/jpeg")
    place = b"Exif\0\0somewhere at home"
    head, rest = photo["buffer"][:2], photo["buffer"][2:]
    photo["buffer"] = head + b"\xff\xe1" + (len(place) + 2).to_bytes(2, "big") + place + rest
    loud = await image(page, "loud.png", 1200, 1000, noise=True)  # as a PNG more bytes than are allowed
    await attach(page, photo, loud)
    await say(page, "Compare")
    await expect(words(page)).to_have_text("Noise")
    first, second, _ = parts(provider.requests[0])
    kind, width, height = await sizes(page, first)
    pixels = 4 * 1024 * 1024
    assert kind == "data:image/jpeg"
    assert pixels * 0.99 < width * height <= pixels
    assert abs(width / height - 4 / 3) < 0.01
    assert b"home" not in base64.b64decode(first["image_url"]["url"].partition(",")[2])
    assert (await sizes(page, second))[0] == "data:image/jpeg"
    assert len(base64.b64decode(second["image_url"]["url"].partition(",")[2])) <= 600_000


@pytest.mark.in_firefox_too
async def test_images_are_pasted_and_dropped_and_removed(provider, visit):
    provider.scripts = [answer("Two")]
    page = await visit(profile="seeing")
    give = """([name, data, type, kind]) => {
      const bytes = Uint8Array.from(atob(data), (mark) => mark.charCodeAt(0));
      const given = new DataTransfer();
      given.items.add(new File([bytes], name, { type: "image/png" }));
      if (kind === "cells") given.setData("text/plain", "1\\t2");
      const place = document.getElementById("prompt");
      const event = type === "paste" ? new ClipboardEvent(type, { bubbles: true, cancelable: true })
        : new DragEvent(type, { dataTransfer: given, bubbles: true, cancelable: true });
      if (type === "paste") Object.defineProperty(event, "clipboardData", { value: given }); // Firefox takes none when it is made
      return !place.dispatchEvent(event);
    }"""
    picture = base64.b64encode((await image(page))["buffer"]).decode()
    taken = page.locator("#attached li:not(.unread)")
    assert await page.evaluate(give, ["pasted.png", picture, "paste", ""])
    await expect(taken).to_have_count(1)
    assert not await page.evaluate(give, ["cells.png", picture, "paste", "cells"]), "its text is pasted"
    assert await page.evaluate(give, ["dropped.png", picture, "dragover", ""])
    await expect(page.locator("body.dropping")).to_have_count(1)
    assert await page.evaluate(give, ["dropped.png", picture, "drop", ""])
    await expect(taken).to_have_count(2)
    await expect(page.locator("body.dropping")).to_have_count(0)
    await page.get_by_role("button", name="Remove pasted.png").click()
    await expect(taken).to_have_count(1)
    await say(page, "One is left")
    await expect(words(page)).to_have_text("Two")
    assert len(parts(provider.requests[0])) == 2
    await page.select_option("#profile", "balanced")
    assert await page.evaluate(give, ["dropped.png", picture, "drop", ""]), "the browser does not leave the chat for it"
    await expect(page.get_by_role("alert")).to_have_text("This model takes no images.")
    await expect(page.get_by_role("button", name="Add images")).to_be_hidden()


async def test_a_file_that_is_no_image_and_one_image_too_many_are_refused_with_a_message(provider, visit):
    page = await visit(profile="seeing")
    note = page.get_by_role("alert")
    await attach(page, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    await expect(note).to_have_text("“notes.txt” is not an image that this browser can open.")
    drawing = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert(1)</script></svg>"
    await attach(page, {"name": "drawing.svg", "mimeType": "image/svg+xml", "buffer": drawing})
    await expect(note).to_have_text("“drawing.svg” is not an image that this browser can open.")
    await attach(page, *[await image(page, f"{number}.png") for number in range(4)])
    await expect(note).to_have_text("At most 3 images can be sent.")
    await expect(page.locator("#attached li")).to_have_count(3)
    await page.get_by_label("Your message").fill("Look")
    await page.select_option("#profile", "balanced")
    await page.get_by_role("button", name="Send").click()
    await expect(note).to_have_text("This model takes no images.")
    await expect(page.get_by_label("Your message")).to_have_value("Look")
    assert provider.requests == []


async def test_the_newest_images_are_sent_and_text_replaces_the_others(provider, visit):
    provider.scripts = [answer("One"), answer("Two"), answer("Three"), answer("Four")]
    page = await visit(profile="seeing")
    for number in range(2):
        await attach(page, *[await image(page, f"{number}-{each}.png", 40 + number, 30) for each in range(2)])
        await say(page, f"Pair {number}")
        await expect(page.locator(".cost")).to_have_count(number + 1)
        await expect(page.locator(".cost").last).to_be_in_viewport()
        await page.evaluate("document.getElementById('scroller').scrollTop = 0")
    first = parts(provider.requests[1], 0)
    assert first[0] == {"type": "text", "text": "[An image stood here. It was left out.]"}
    assert first[1]["type"] == "image_url"
    await page.select_option("#profile", "balanced")
    await say(page, "And now?")
    await expect(page.locator(".cost")).to_have_count(3)
    assert "image_url" not in json.dumps(provider.requests[2].json())


async def test_a_refused_question_and_a_changed_one_have_their_images_in_the_box(provider, visit):
    provider.scripts = [
        failure(400, "This model's maximum context length is 10 tokens", "context_length_exceeded"),
        answer("Yes"),
        answer("No"),
    ]
    page = await visit(profile="seeing")
    await attach(page, await image(page, "flag.png"))
    await say(page, "What is this?")
    await expect(page.locator(".problem")).to_contain_text("too long for this model")
    await expect(page.get_by_role("button", name="Remove flag.png")).to_be_visible()
    await say(page, "What?")
    await expect(words(page)).to_have_text("Yes")
    await page.locator(".user").hover()
    await page.get_by_role("button", name="Edit message").click()
    await page.get_by_role("button", name="Remove flag.png").click()
    await say(page, "What then?")
    await expect(words(page)).to_have_text("No")
    assert parts(provider.requests[2]) == "What then?"


async def test_an_export_has_the_images_and_undo_brings_them_back(provider, visit):
    provider.scripts = [answer("A flag")]
    page = await visit(profile="seeing")
    await attach(page, await image(page, "my_flag.png"))
    await say(page, "What is this?")
    await expect(page.locator(".cost")).to_be_visible()
    exported = {}
    for kind in ("Markdown", "JSON"):
        await page.get_by_role("button", name="Actions for").click()
        async with page.expect_download() as download:
            await page.get_by_role("menuitem", name=f"Export as {kind}").click()
        exported[kind] = (await (await download.value).path()).read_text()
    assert "## You\n\n*Image: my\\_flag.png*\n\nWhat is this?\n" in exported["Markdown"]
    [conversation] = json.loads(exported["JSON"])["conversations"]
    [picture] = next(message["images"] for message in conversation["messages"] if message["role"] == "user")
    assert (picture["name"], picture["width"], picture["height"]) == ("my_flag.png", 40, 30)
    assert picture["url"] == parts(provider.requests[0])[0]["image_url"]["url"]
    await page.get_by_role("button", name="Actions for").click()
    await page.get_by_role("menuitem", name="Delete").click()
    await page.get_by_role("button", name="Undo").click()
    await expect(shown(page)).to_have_js_property("naturalWidth", 40)


async def test_the_policy_allows_no_images_if_no_profile_accepts_them(provider, serving, visit):
    served = await serving(provider, "[profiles.balanced]\n[providers.openai]\n")
    page = await visit(served.url)
    policy = (await page.request.get(served.url)).headers["content-security-policy"]
    assert "img-src 'self' data:;" in policy
    await expect(page.get_by_role("button", name="Add images")).to_be_hidden()
