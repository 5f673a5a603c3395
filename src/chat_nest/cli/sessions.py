"""`chat-nest sessions`: revoke session tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from chat_nest.cli.options import CONFIG, CONTEXT, Group, fail, progress

if TYPE_CHECKING:
    from chat_nest.core.controls import Act, Control
    from chat_nest.core.protocols import Store


@click.group(cls=Group, context_settings=CONTEXT)
def sessions() -> None:
    """Revoke session tokens, which your app's backend makes for its users.

    \b
    First steps:
      export CHAT_NEST_SESSIONS_SECRETS=$(openssl rand -hex 32)    the same on all servers
      chat-nest keys create backend --scope sessions              the key with which your backend makes sessions
      chat-nest serve
    """  # noqa: D301 - click's mark for "keep these lines" is a real backspace


@sessions.command(context_settings=CONTEXT, short_help="Revoke sessions by ID.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@CONFIG
@click.option("--reason", metavar="TEXT", default="", help="A note for the trail of operators' acts.")
def revoke(ids: tuple[str, ...], file: str, reason: str) -> None:
    """Revoke the sessions with these IDs: `session` in the answer of POST /api/sessions.

    Every server of the store refuses their tokens within a second, and ends their running answers. An ID is not the
    token: never write a token on a command line.

    \b
    Examples:
      chat-nest sessions revoke s_51f0c92ab3d4e5f60718293a
      chat-nest sessions revoke s_51f0c92ab3d4e5f60718293a --reason "left the company"

    Exits with 2 if the configuration or an ID is wrong, and then revokes none; with 1 if the store can't be used.
    """  # noqa: D301 - as above
    from chat_nest.cli.operate import user  # noqa: PLC0415 - so that --help is quick
    from chat_nest.identity.sessions import revocation  # noqa: PLC0415 - as above
    from chat_nest.server.config.excerpts import load_stored  # noqa: PLC0415 - as above
    from chat_nest.server.config.sources import ConfigError  # noqa: PLC0415 - as above

    try:
        rows = [revocation(id, time.time(), f"cli:{user()}", reason) for id in ids]
    except ValueError as error:
        fail(str(error), code=2)
    try:
        store = load_stored(file)
    except ConfigError as error:
        fail(*error.problems, code=2)
    if said := asyncio.run(_revoke(store, rows)):
        fail(said, code=1)
    for row, _ in rows:
        click.echo(f"Revoked {row.name}.")


async def _revoke(store: Store, rows: Sequence[tuple[Control, Act]]) -> str:
    """Revoke the sessions; return why that failed, or an empty string."""
    from chat_nest.core.errors import LimiterUnavailable, failure_name  # noqa: PLC0415 - as above
    from chat_nest.core.protocols import HasControls  # noqa: PLC0415 - as above
    from chat_nest.stores.memory import MemoryStore  # noqa: PLC0415 - as above
    from chat_nest.stores.places import place_of, remedy_of, sentence  # noqa: PLC0415 - as above
    from chat_nest.stores.starting import reach  # noqa: PLC0415 - as above

    try:
        if isinstance(store, MemoryStore) or not isinstance(store, HasControls):
            return f"{sentence(place_of(store))} can't be reached from here: use DELETE /api/sessions/ID"
        await reach(store, progress)
        for row, act in rows:
            await store.controls.change(put=[row], act=act)
    except (LimiterUnavailable, OSError) as error:
        why = failure_name(error.__cause__ or error)
        return f"{sentence(place_of(store))} can't be used: {why}: {remedy_of(store)}"
    finally:
        await store.aclose()
    return ""
