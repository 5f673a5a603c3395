"""The chat in a Starlette application: `uvicorn 03_starlette:app`."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Route

from chat_nest import create_chat_handler

chat = create_chat_handler()

# An ASGI application is an endpoint as it stands: it answers every method itself, OPTIONS and 405 too.
app = Starlette(
    routes=[Route("/api/chat", chat), Route("/api/usage", chat)],
    lifespan=chat.lifespan,  # ends and settles what still runs when the server stops
)
