"""Chat Nest mounted in a FastAPI application, as docs/embedding.md shows it: `uvicorn benchmarks.embedded:app`.

STANDIN names the provider. Only the limits are too high to refuse.
"""

from __future__ import annotations

import os

from fastapi import FastAPI
from msgspec.structs import replace

from chat_nest import create_chat_handler
from chat_nest.limits.spec import BALANCED, EXPANDED, HardCaps

HIGH = {"tokens_per_request": 1_000_000, "tokens_per_day": 10**15, "requests_per_minute": 100_000_000}

chat = create_chat_handler(
    api_key="none",
    base_url=f"{os.environ['STANDIN']}/v1",
    profiles={
        "balanced": replace(BALANCED, model="openai:gpt-4o-mini", max_output_tokens=400, **HIGH),
        "expanded": replace(EXPANDED, open=True, model="openai:gpt-4o-mini", max_output_tokens=4_096, **HIGH),
    },
    hard_caps=HardCaps(**HIGH),
)
app = FastAPI(lifespan=chat.lifespan)
app.mount("/", chat)
