"""`chat-nest store`, and the check of `chat-nest check` for a store that was emptied."""

from __future__ import annotations

import asyncio
from typing import Any

from chat_nest.cli.options import progress
from chat_nest.core.errors import LimiterUnavailable, StoreEmptied, failure_name
from chat_nest.core.protocols import Store
from chat_nest.stores.places import place_of, remedy_of, sentence
from chat_nest.stores.starting import reach


class Unaccepted(Exception):
    """The reason why the command failed, for its user."""


def emptied(store: Store) -> str:
    """Return what to do if the store does not have its remembered epoch, else an empty string.

    A store without a remembered epoch is not checked. A store that does not answer counts as not emptied.
    """
    return asyncio.run(_emptied(store))


def accept_empty(store: Store) -> tuple[str, bool]:
    """Accept the store as it is for all processes; return what was done, and if there was need. Raises Unaccepted."""
    return asyncio.run(_accept(store))


async def _emptied(store: Store) -> str:
    try:
        if await asyncio.to_thread(_remembers, store):
            await store.ping()
    except StoreEmptied as error:
        return f"{sentence(place_of(store))}: {error.advice}"
    except (LimiterUnavailable, OSError, ValueError):
        return ""
    finally:
        await store.aclose()
    return ""


def _remembers(store: Store) -> bool:
    epochs = getattr(store, "epochs", None)
    return epochs is not None and epochs.remembers()


async def _accept(store: Store) -> tuple[str, bool]:
    accept: Any = getattr(store, "accept", None)
    if accept is None:
        raise Unaccepted(f"{place_of(store)} ends with its process: there is nothing to accept")
    place = sentence(place_of(store))
    try:
        try:
            if await asyncio.to_thread(_remembers, store):
                await reach(store, progress)
                return f"{place} was not emptied: nothing is changed", False
        except StoreEmptied:
            pass
        await accept()
    except LimiterUnavailable as error:
        why = failure_name(error.__cause__ or error)
        raise Unaccepted(f"{place} can't be used: {why}: {remedy_of(store)}") from None
    finally:
        await store.aclose()
    said = f"{place} is used as it is from now on, by the servers that run, too: what was spent before is forgotten"
    return said, True
