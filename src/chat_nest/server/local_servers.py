"""Find a model server on this machine, for `chat-nest serve` without a configured provider."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from chat_nest.core.errors import UpstreamError
from chat_nest.providers import PRESETS
from chat_nest.providers.http import HTTPSession
from chat_nest.providers.model_list import listed_names
from chat_nest.providers.presets import Preset

SECONDS: Final = 0.3
"""Seconds for all servers together. If nothing listens, the answer comes at once."""
LIST_LIMIT: Final = 1 << 20
LOCAL: Final[Mapping[str, Preset]] = {kind: PRESETS[kind] for kind in ("ollama", "lmstudio")}
"""In order of preference, each at its usual port."""
_NO_CHAT = re.compile(r"embed|minilm|rerank|\bbge\b", re.IGNORECASE)


class LocalServer(Struct, frozen=True):
    kind: str
    """A name in PRESETS."""
    base_url: str
    model: str
    """The server's first model for chats."""


def find_local_server(presets: Mapping[str, Preset] = LOCAL) -> LocalServer | None:
    """Request each server's list of models, without a key; return the first server with a model for chats, else None.

    Takes 0.3 s at most. Must not be called from a running event loop.
    """
    log = logging.getLogger("chat_nest.providers")
    before, log.disabled = log.disabled, True  # no warning if nothing listens
    try:
        return asyncio.run(_find(presets))
    finally:
        log.disabled = before


async def _find(presets: Mapping[str, Preset]) -> LocalServer | None:
    lists = await asyncio.gather(*(_models(preset) for preset in presets.values()))
    for (kind, preset), models in zip(presets.items(), lists, strict=True):
        for model in models:
            if not _NO_CHAT.search(model):
                return LocalServer(kind, preset.base_url, model)
    return None


async def _models(preset: Preset) -> Sequence[str]:
    session = HTTPSession(preset.base_url)
    try:
        async with (
            asyncio.timeout(SECONDS),
            session.request("GET", preset.check_path, headers={}, connect_timeout=SECONDS) as answer,
        ):
            return listed_names(await answer.read_body(LIST_LIMIT)) if answer.status == 200 else ()
    except (TimeoutError, UpstreamError):
        return ()
    finally:
        await session.aclose()
