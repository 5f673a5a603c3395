"""No step of a request with images keeps the event loop for long: the work is done in slices, which are counted."""

from __future__ import annotations

import asyncio
import json
import zlib
from typing import Any

import pytest
from pictures import base64, pdf, png, url

from chat_nest.asgi.request import TURN, read_json_body
from chat_nest.core import held_text
from chat_nest.core.errors import BodyTooLarge
from chat_nest.core.held_text import HeldBody, Uploads

UPLOADS = Uploads(number=9, size=1 << 25, most=1 << 26)


def scope(**headers: str) -> Any:
    fields = {"content-type": "application/json", **headers}
    return {
        "type": "http",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()],
    }


def receiving(body: bytes) -> Any:
    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


BODY = json.dumps({"a": [url(png(padding=9_000_000)), url(pdf(3, between=b" " * 900_000))]}).encode()


async def turns_while_reading(body: bytes, **headers: str) -> tuple[bytes, int]:
    """The body as it was read, and how often another task had a turn meanwhile."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    try:
        return await read_json_body(scope(**headers), receiving(body), 4_096, UPLOADS), turns
    finally:
        task.cancel()


@pytest.mark.parametrize("zipped", [False, True])
async def test_others_have_their_turns_while_a_long_body_is_read(zipped: bool) -> None:
    sent = zlib.compress(BODY, 1, 31) if zipped else BODY
    read, turns = await turns_while_reading(sent, **({"content_encoding": "gzip"} if zipped else {}))
    assert isinstance(read, HeldBody)
    assert len(read) < 4_096
    assert turns >= len(BODY) // TURN
    assert read.held[1].page_bound == 3


async def test_no_scan_is_longer_than_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0

    class Watched(held_text.Lifter):
        def _take(self, window: bytes, *, last: bool = False) -> None:
            nonlocal longest
            longest = max(longest, len(window))
            super()._take(window, last=last)

    monkeypatch.setattr("chat_nest.asgi.request.Lifter", Watched)
    await turns_while_reading(BODY)
    assert 0 < longest <= held_text.WINDOW


async def test_a_body_that_is_longer_than_any_may_be_is_not_read() -> None:
    with pytest.raises(BodyTooLarge):
        await read_json_body(scope(content_length="99999999"), receiving(b""), 4_096, UPLOADS)
    with pytest.raises(BodyTooLarge):
        await read_json_body(scope(), receiving(b"x" * 99), 50, Uploads(number=1, size=9, most=90))


async def test_small_bodies_and_small_images_are_read_as_ever() -> None:
    body = json.dumps({"a": base64(png())}).encode()
    assert await read_json_body(scope(content_length=str(len(body))), receiving(body), 4_096, UPLOADS) == body
