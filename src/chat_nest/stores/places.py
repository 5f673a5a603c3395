"""Locations of stores, and what an operator checks when one fails: for logs, /readyz and the command line."""

from __future__ import annotations

from collections.abc import Iterable

from chat_nest.core.parts import part_name
from chat_nest.core.protocols import HasRemedy, Located, Store


def place_of(store: Store) -> str:
    """Return the store's `place`, such as `the Redis store at 127.0.0.1:6379`, without a login; else its class."""
    return (store.place if isinstance(store, Located) else "") or part_name(store)


def remedy_of(store: Store) -> str:
    """Return what to check when the store fails, as the rest of a sentence."""
    return (store.remedy if isinstance(store, HasRemedy) else "") or "see the log of that store"


def addresses(found: Iterable[tuple[str, int | str]]) -> str:
    """Return `host:port,[::1]:6379`."""
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in found)


def sentence(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def kind_of_store(store: Store) -> str:
    """Return `memory`, `sqlite`, `postgres` or `redis`; the class of another store."""
    kind = type(store)
    return kind.__name__.removesuffix("Store").lower() if kind.__module__.startswith("chat_nest.") else kind.__name__
