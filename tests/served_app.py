"""The application that tests run under real ASGI servers: `uvicorn served_app:app`.

OPENAI_BASE_URL names its provider; see below for the rest of its environment. GET /tasks answers how many tasks run.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, cast

from chat_nest import HardCaps, Profile, Timeouts, create_chat_handler

chat = create_chat_handler(
    api_key="sk-served",
    profiles={
        "balanced": Profile(
            model=f"openai:{os.environ.get('MODEL', 'scripted')}",
            max_output_tokens=int(os.environ.get("MAX_OUTPUT_TOKENS", 2**30)),
            min_output_tokens=int(os.environ.get("MIN_OUTPUT_TOKENS", "16")),
            tokens_per_request=None,
            tokens_per_day=int(os.environ.get("TOKENS_PER_DAY", 2**40)),
            requests_per_minute=None,
            on_disconnect=cast("Any", os.environ.get("ON_DISCONNECT", "cancel")),
            grace_seconds=float(os.environ.get("GRACE_SECONDS", "30")),
        )
    },
    hard_caps=HardCaps(
        max_output_tokens=2**30, tokens_per_day=2**50, tokens_per_request=2**50, requests_per_minute=10**6
    ),
    timeouts=Timeouts(heartbeat=0.1, commit=0.5),
    store=os.environ.get("STORE", "memory://"),
)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope.get("path") != "/tasks":
        await chat(scope, receive, send)
        return
    body = str(len(asyncio.all_tasks())).encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})
