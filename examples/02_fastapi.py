"""The chat in a FastAPI application: `uvicorn 02_fastapi:app`."""

from __future__ import annotations

from fastapi import FastAPI

from chat_nest import create_chat_handler

chat = create_chat_handler()
app = FastAPI(lifespan=chat.lifespan)  # ends and settles what still runs when the server stops


@app.get("/hello")
async def hello() -> str:
    return "Hello"


# Last, because a mount at "/" takes every path that no route above it took: /api/chat and /api/usage are the chat's.
app.mount("/", chat)
