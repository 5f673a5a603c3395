"""`chat-nest store`: back up the store of budgets, restore it, and accept one that was emptied."""

from __future__ import annotations

from pathlib import Path

import click

from chat_nest.cli.options import CONFIG, CONTEXT, Group, fail


@click.group(cls=Group, context_settings=CONTEXT)
def store() -> None:
    """Manage the store of budgets."""


@store.command(context_settings=CONTEXT)
@click.argument("to", metavar="FILE", type=click.Path(path_type=Path))
@CONFIG
def backup(to: Path, file: str) -> None:
    """Copy an SQLite store to a new FILE, while servers write to it.

    The copy is of one moment, one file, and checked. It has budgets, reservations and usage records; the file of API
    keys and the caller secret are files of their own. PostgreSQL and Redis are copied by their own tools.

    \b
    Examples:
      chat-nest store backup --config chat.toml /backup/chat-nest.db
      chat-nest store backup /backup/chat-nest-$(date +%F).db

    Exits with 2 if the configuration is wrong, with 1 if the copy could not be made. It replaces no file.
    """  # noqa: D301 - click's mark for "keep these lines" is a real backspace
    from chat_nest.cli.copies import back_up  # noqa: PLC0415 - so that --help is quick
    from chat_nest.server.config.excerpts import load_stored  # noqa: PLC0415 - as above
    from chat_nest.server.config.sources import ConfigError  # noqa: PLC0415 - as above
    from chat_nest.stores.sqlite.copies import CopyFailed  # noqa: PLC0415 - as above

    try:
        click.echo(f"chat-nest: {back_up(load_stored(file), to)}")
    except ConfigError as error:
        fail(*error.problems, code=2)
    except CopyFailed as error:
        fail(str(error), code=1)


@store.command(context_settings=CONTEXT)
@click.argument("backup_file", metavar="FILE", type=click.Path(path_type=Path))
@CONFIG
@click.option("--accept-loss", is_flag=True, help="Restore even if callers can then spend the same amounts again.")
def restore(backup_file: Path, file: str, accept_loss: bool) -> None:
    """Replace an SQLite store by a backup. Stop all servers first.

    The replaced file is renamed, not deleted. If it can be read, what it counted since the backup is kept: a restore
    gives nothing back that was spent. If it is missing or damaged, the spending since the backup is unknown, and the
    command refuses unless you accept that with --accept-loss. Answers that ran at the time of the backup are charged in
    full.

    \b
    Example:
      systemctl stop chat-nest
      sudo -u chat-nest chat-nest store restore --config chat.toml /backup/chat-nest.db
      systemctl start chat-nest

    Exits with 2 if the configuration is wrong, with 1 if nothing was restored.
    """  # noqa: D301 - as above
    from chat_nest.cli.copies import restore as put_back  # noqa: PLC0415 - as above
    from chat_nest.server.config.excerpts import load_stored  # noqa: PLC0415 - as above
    from chat_nest.server.config.sources import ConfigError  # noqa: PLC0415 - as above
    from chat_nest.stores.sqlite.copies import CopyFailed  # noqa: PLC0415 - as above

    try:
        for line in put_back(load_stored(file), backup_file, accept_loss=accept_loss):
            click.echo(f"chat-nest: {line}")
        _note(file, "restore", "accepted the loss of what was spent since" if accept_loss else "")
    except ConfigError as error:
        fail(*error.problems, code=2)
    except CopyFailed as error:
        fail(str(error), code=1)


@store.command(name="accept-empty", context_settings=CONTEXT)
@CONFIG
def accept_empty(file: str) -> None:
    """Accept a store that was emptied or replaced.

    When a store has lost its counters, the servers refuse all chats: otherwise every budget would start again from
    zero. Restore the store's data, and the servers continue by themselves. Or run this command once, with the
    configuration of the servers. They need no restart.
    """
    from chat_nest.cli.store import Unaccepted  # noqa: PLC0415 - as above
    from chat_nest.cli.store import accept_empty as accept  # noqa: PLC0415 - as above
    from chat_nest.server.config.excerpts import load_stored  # noqa: PLC0415 - as above
    from chat_nest.server.config.sources import ConfigError  # noqa: PLC0415 - as above

    try:
        said, accepted = accept(load_stored(file))
        click.echo(f"chat-nest: {said}")
        if accepted:
            _note(file, "accept_empty")
    except ConfigError as error:
        fail(*error.problems, code=2)
    except Unaccepted as error:
        fail(str(error), code=1)


def _note(file: str, act: str, detail: str = "") -> None:
    """Note in the store's audit trail what was done to the store."""
    from chat_nest.cli.operate import note  # noqa: PLC0415 - as above

    if why := note(file, lambda operator: operator.note(act, "store", detail)):
        click.echo(f"chat-nest: note: this is not in the audit trail: {why}", err=True)
