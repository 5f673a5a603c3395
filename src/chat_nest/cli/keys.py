"""`chat-nest keys`: make, list and revoke the API keys of callers."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from chat_nest.cli.options import CONFIG, CONTEXT, Group, fail, has_color

if TYPE_CHECKING:
    from chat_nest.identity.key_file import ApiKey, KeyFile
    from chat_nest.server.config.identity import Identity

COLORS = {"valid": "green", "expired": "yellow", "revoked": "red"}
ID = re.compile(r"[0-9a-f]{1,16}", re.ASCII)
COLUMNS = ("ID", "STATE", "CALLER", "GROUP", "SCOPES", "CREATED", "EXPIRES", "IN USAGE", "NAME")


@click.group(cls=Group, context_settings=CONTEXT)
def keys() -> None:
    """Make, list and revoke the API keys of callers.

    With [identity] keys_file a request needs a key of that file, as "Authorization: Bearer KEY" or "x-api-key: KEY".
    The file holds no keys, only hashes, made with the secret in CHAT_NEST_IDENTITY_SECRET. All keys of one caller share
    that caller's limits.

    \b
    First steps:
      export CHAT_NEST_IDENTITY_KEYS_FILE=keys.json
      export CHAT_NEST_IDENTITY_SECRET=$(openssl rand -hex 32)    keep it: without it, all keys are void
      chat-nest keys create ada
      chat-nest serve

    Every server that reads the file applies a change within a second, without a restart.
    """  # noqa: D301 - click's mark for "keep these lines" is a real backspace


@keys.command(context_settings=CONTEXT)
@click.argument("caller")
@CONFIG
@click.option("--group", metavar="NAME", help="The group whose limits the caller shares: see [groups.NAME].")
@click.option("--name", metavar="TEXT", default="", help="A note to tell the caller's keys apart.")
@click.option(
    "--scopes", metavar="NAMES", default="chat", show_default=True, help="What the key may do: chat, sessions, or both."
)
@click.option("--expires", metavar="WHEN", help="90d, 24h, a date (its last second counts) or a date and time, in UTC.")
def create(caller: str, file: Path | None, group: str | None, name: str, scopes: str, expires: str | None) -> None:
    """Make a key for CALLER, and print it once.

    Standard output is only the key. It is stored nowhere: if a key is lost, revoke it and make another one.

    \b
    Examples:
      chat-nest keys create ada
      chat-nest keys create ada --name laptop --expires 90d
      chat-nest keys create acme-bot --group acme --expires 2027-06-30
      chat-nest keys create ci > key.txt
      chat-nest keys create backend --scopes sessions      makes session tokens for its users

    Exits with 2 if the configuration or an option is wrong, with 1 if the file can't be written.
    """  # noqa: D301 - as above
    from chat_nest.identity.key_file import SCOPES, create_key, is_name  # noqa: PLC0415 - so that --help is quick

    identity, path, groups = _load(file)
    if not all(is_name(text) for text in (caller, "-" if group is None else group, name or "-")):
        fail("CALLER, --group and --name must be 1 to 256 printable characters", code=2)
    if group is not None and groups and group not in groups and "default" not in groups:
        fail(f"there is no [groups.{group}] and no [groups.default]: every request with the key would get 403", code=2)
    if group is not None and not groups:
        click.echo(f"chat-nest: note: the group limits nothing: the configuration has no [groups.{group}]", err=True)
    named = [scope.strip() for scope in scopes.split(",")]
    if not all(scope in SCOPES for scope in named):
        fail(f"--scopes must be some of {', '.join(SCOPES)}, with a comma between two", code=2)
    until = None if expires is None else _moment(expires)
    try:
        made, key = create_key(
            path,
            identity.secret.reveal().encode(),
            caller=caller,
            group=group,
            name=name,
            expires=until,
            scopes=tuple(dict.fromkeys(named)),
        )
    except (OSError, ValueError) as error:
        _fail_with(path, error)
    lasts = f"until {made.expires:%Y-%m-%d %H:%M} UTC" if made.expires else "until it is revoked"
    click.echo(f"Key {made.id} of {caller}, good {lasts}. It is shown this once:", err=True)
    click.echo(click.style(key, bold=True), color=has_color())


@keys.command("list", context_settings=CONTEXT)
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def list_(file: Path | None, as_json: bool) -> None:
    """List the keys by ID, and whether they are valid. The keys themselves are not stored.

    IN USAGE is the caller's name in `chat-nest usage --by caller`. `chat-nest caller` prints its name in the log.

    \b
    Examples:
      chat-nest keys list
      chat-nest keys list --json | jq -r '.[] | select(.state == "valid") | .id'

    Exits with 2 if the configuration is wrong, with 1 if the file can't be read.
    """  # noqa: D301 - as above
    import msgspec  # noqa: PLC0415 - as above

    _, path, _ = _load(file)
    found = _read(path)
    now = datetime.now(UTC)
    if as_json:
        shown = [dict(zip(_JSON, _row(key, now), strict=True)) for key in found.keys]
        click.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
    elif not found.keys:
        click.echo("There are no keys. Make one with `chat-nest keys create CALLER`.")
    else:
        click.echo(_table([_row(key, now) for key in found.keys]), color=has_color())


@keys.command(context_settings=CONTEXT, short_help="Revoke keys by ID.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@CONFIG
def revoke(ids: tuple[str, ...], file: Path | None) -> None:
    """Revoke the keys with these IDs, as `chat-nest keys list` shows them.

    Every server refuses the keys within a second. Running answers go on to their end. An ID is not the key: never write
    a key on a command line.

    \b
    Examples:
      chat-nest keys revoke 1f09c2aa
      chat-nest keys list --json | jq -r '.[] | select(.caller == "ada") | .id' | xargs chat-nest keys revoke

    Exits with 2 if one of the keys does not exist, and then revokes none; with 1 if the file can't be written.
    """  # noqa: D301 - as above
    from chat_nest.identity.key_file import UnknownKey, revoke_keys  # noqa: PLC0415 - as above

    _, path, _ = _load(file)
    try:
        revoked = revoke_keys(path, ids)
    except UnknownKey as error:
        id = str(error)
        said = f"the ID {id}" if ID.fullmatch(id) else "an ID like that"  # not repeated: it may be a key
        fail(f"there is no key with {said}: `chat-nest keys list` shows those that are there", code=2)
    except (OSError, ValueError) as error:
        _fail_with(path, error)
    for key in revoked:
        click.echo(f"Revoked {key.id} of {key.caller}, as of {key.revoked:%Y-%m-%d %H:%M:%S} UTC.")


_JSON = ("id", "state", "caller", "group", "scopes", "created", "expires", "in_usage", "name")


def _row(key: ApiKey, now: datetime) -> tuple[str | None, ...]:
    from chat_nest.core.messages import hashed  # noqa: PLC0415 - as above

    created = f"{key.created:%Y-%m-%dT%H:%MZ}"
    expires = f"{key.expires:%Y-%m-%dT%H:%MZ}" if key.expires else None
    scopes = ",".join(key.scopes)
    return (
        key.id,
        key.state(now),
        key.caller,
        key.group,
        scopes,
        created,
        expires,
        hashed(key.caller_id),
        key.name or None,
    )


def _table(rows: list[tuple[str | None, ...]]) -> str:
    cells = [COLUMNS, *(tuple(cell or "-" for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines: list[str] = []
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if row[1] in COLORS:
            padded[1] = click.style(padded[1], fg=COLORS[row[1]])
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _load(file: Path | None) -> tuple[Identity, Path, frozenset[str]]:
    from chat_nest.server.config.settings import load_identity  # noqa: PLC0415 - as above
    from chat_nest.server.config.sources import ConfigError  # noqa: PLC0415 - as above

    try:
        identity, groups = load_identity(str(file or ""))
    except ConfigError as error:
        fail(*error.problems, code=2)
    return identity, Path(identity.section.keys_file), groups


def _read(path: Path) -> KeyFile:
    from chat_nest.identity.key_file import read_keys  # noqa: PLC0415 - as above

    try:
        return read_keys(path)
    except (OSError, ValueError) as error:
        _fail_with(path, error)


def _moment(text: str) -> datetime:
    """Return when a key expires. A date is valid to its end."""
    now = datetime.now(UTC).replace(microsecond=0)
    short = re.fullmatch(r"([1-9][0-9]{0,4})([dh])", text, re.ASCII)
    try:
        if short is not None:
            until = now + timedelta(**{"d": {"days": int(short[1])}, "h": {"hours": int(short[1])}}[short[2]])
        else:
            given = datetime.fromisoformat(text)
            given += timedelta(days=len(text) == len("2026-11-30"))
            until = given.astimezone(UTC) if given.tzinfo else given.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        fail("--expires must be days or hours (90d, 24h), a date (2027-06-30) or a date and time", code=2)
    if until <= now:
        fail("--expires must be in the future", code=2)
    return until


def _fail_with(path: Path, error: OSError | ValueError) -> NoReturn:
    """Print why the file could not be read or written, and exit."""
    if isinstance(error, FileNotFoundError) and path.parent.is_dir():
        fail(f"{path}: there is no such file: the first `chat-nest keys create CALLER` makes it", code=1)
    if isinstance(error, FileNotFoundError):
        fail(f"{path}: {error.strerror}: make the directory {path.parent}, or correct [identity] keys_file", code=1)
    reason = f"{error.strerror}" if isinstance(error, OSError) else f"{error}"
    fail(f"{path}: {reason}", code=1)
