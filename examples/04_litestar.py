"""The chat in a Litestar application: `uvicorn 04_litestar:app`."""

from __future__ import annotations

from litestar import Litestar, asgi, get

from chat_nest import create_chat_handler

chat = create_chat_handler()


@get("/hello")
async def hello() -> str:
    return "Hello"


app = Litestar(
    route_handlers=[hello, asgi(["/api/chat", "/api/usage"], copy_scope=True)(chat)],
    lifespan=[chat.lifespan],  # ends and settles what still runs when the server stops
)
