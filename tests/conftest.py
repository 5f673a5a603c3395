"""Makes the tools beside this file importable by name in every test: `from scripted_provider import ScriptedProvider`."""

import asyncio

from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("chat-nest", deadline=None)
settings.load_profile("chat-nest")


def pytest_configure() -> None:
    """Say that there is no event loop yet: pytest-asyncio asks for one, and would be given a new one that nobody closes."""
    asyncio.set_event_loop(None)
