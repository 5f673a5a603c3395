"""`chat-nest keys`: make, list, rotate and revoke the API keys of callers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chat_nest.cli.options import CONFIG, CONTEXT, Group, fail, has_color

if TYPE_CHECKING:
    from chat_nest.identity.api_key import ApiKey
    from chat_nest.identity.key_issuers import Issued

EXPIRES = click.option(
    "--expires", metavar="WHEN", help="90d, 24h, a date (its last second counts) or a date and time, in UTC."
)
REASON = click.option("--reason", metavar="TEXT", default="", help="Why; for the audit trail.")


@click.group(cls=Group, context_settings=CONTEXT)
def keys() -> None:
    """Make, list, rotate and revoke the API keys of callers.

    With [identity] keys_file, or keys = "store", a request needs a key, as "Authorization: Bearer KEY" or
    "x-api-key: KEY". Only hashes of keys are kept, made with the secret in CHAT_NEST_IDENTITY_SECRET. All keys of one
    caller share that caller's limits; a key can also have its own limits.

    \b
    First steps:
      export CHAT_NEST_IDENTITY_KEYS_FILE=keys.json               on one machine; in a fleet
                                                                  CHAT_NEST_IDENTITY_KEYS=store
      export CHAT_NEST_IDENTITY_SECRET=$(openssl rand -hex 32)    keep it: without it, all keys are void
      chat-nest keys create ada
      chat-nest serve

    Every server of the file or store applies a change within a second, without a restart.
    """  # noqa: D301 - click's mark for "keep these lines" is a real backspace


@keys.command(context_settings=CONTEXT)
@click.argument("caller")
@CONFIG
@click.option("--group", metavar="NAME", help="The caller's group, which shares the limits of [groups.NAME].")
@click.option("--name", metavar="TEXT", default="", help="A note to tell the caller's keys apart.")
@click.option(
    "--scope",
    "--scopes",
    "scopes",
    metavar="NAME",
    multiple=True,
    default=["chat"],
    show_default=True,
    help="What the key may do: chat, sessions or admin. Repeatable; admin stands alone.",
)
@click.option(
    "--profile",
    "profiles",
    metavar="NAME",
    multiple=True,
    help="A profile that the key may choose, also a closed one. Repeatable; the first is the default.  "
    "[default: the open ones]",
)
@click.option(
    "--limit",
    "limits",
    metavar="NAME=NUMBER",
    multiple=True,
    help="A limit of the key alone, such as tokens_per_day=50000. Repeatable.",
)
@EXPIRES
@REASON
def create(
    caller: str,
    file: str,
    group: str | None,
    name: str,
    scopes: tuple[str, ...],
    profiles: tuple[str, ...],
    limits: tuple[str, ...],
    expires: str | None,
    reason: str,
) -> None:
    """Make a key for CALLER, and print it once.

    Standard output is only the key. It is stored nowhere: if a key is lost, revoke it and make another one. Its limits
    hold beside those of the profile, the group and all callers: the tightest one decides.

    \b
    Examples:
      chat-nest keys create ada
      chat-nest keys create ada --name laptop --expires 90d
      chat-nest keys create acme-bot --group acme --profile expanded --limit usd_per_month=20
      chat-nest keys create ci > key.txt
      chat-nest keys create backend --scope sessions       makes session tokens for its users
      chat-nest keys create ops --scope admin              for the operators' listener

    Exits with 2 if the configuration or an option is wrong, with 1 if the file or the store can't be written.
    """  # noqa: D301 - as above
    from chat_nest.cli.issued import issue, refuse, settings_of  # noqa: PLC0415 - so that --help is quick
    from chat_nest.identity.api_key import Rights, present_second  # noqa: PLC0415 - as above
    from chat_nest.server.issuing import check_rights, moment_of  # noqa: PLC0415 - as above
    from chat_nest.server.operator import Rejected  # noqa: PLC0415 - as above

    settings = settings_of(file)
    try:
        rights = Rights(
            caller=caller,
            group=group,
            name=name,
            scopes=tuple(each.strip() for text in scopes for each in text.split(",")),
            profiles=tuple(each.strip() for each in profiles),
            limits=dict(map(_limit, limits)),
            expires=None if expires is None else moment_of(expires, present_second()),
        )
        check_rights(rights, settings.profiles, settings.groups)
    except Rejected as error:
        refuse(error)
    if group is not None and not settings.groups:
        click.echo(f"chat-nest: note: the group limits nothing: the configuration has no [groups.{group}]", err=True)
    _show(issue(file, settings, lambda issuer: issuer.create(rights, reason)))


@keys.command("list", context_settings=CONTEXT)
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def list_(file: str, as_json: bool) -> None:
    """List the keys by ID, with their rights and their state. The keys themselves are not stored.

    IN USAGE is the caller's name in `chat-nest usage --by caller`. `chat-nest caller` prints its name in the log.

    \b
    Examples:
      chat-nest keys list
      chat-nest keys list --json | jq -r '.[] | select(.state == "valid") | .id'

    Exits with 2 if the configuration is wrong, with 1 if the file or the store can't be read.
    """  # noqa: D301 - as above
    import msgspec  # noqa: PLC0415 - as above

    from chat_nest.cli.issued import issue, row, settings_of, table  # noqa: PLC0415 - as above
    from chat_nest.identity.api_key import present_second  # noqa: PLC0415 - as above

    found = issue(file, settings_of(file), lambda issuer: issuer.keys())
    now = present_second()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode([row(key, now) for key in found])).decode())
    elif not found:
        click.echo("There are no keys. Make one with `chat-nest keys create CALLER`.")
    else:
        click.echo(table(found, now), color=has_color())


@keys.command(context_settings=CONTEXT, short_help="Replace a key by a new one.")
@click.argument("id")
@CONFIG
@click.option(
    "--overlap",
    metavar="TIME",
    default="24h",
    show_default=True,
    help="For how long the old key stays valid: 0h, 30m, 24h, 7d; at most 30d.",
)
@EXPIRES
@REASON
def rotate(id: str, file: str, overlap: str, expires: str | None, reason: str) -> None:
    """Replace the key with this ID by a new one with the same rights, and print the new one once.

    Both work during the overlap, and draw on the same limits; then the old one expires. What was used stays used. The
    new key ends when the old one would have, unless --expires. If the old key has leaked, use --overlap 0h.

    \b
    Examples:
      chat-nest keys rotate 1f09c2aa53be
      chat-nest keys rotate 1f09c2aa53be --overlap 7d --expires 90d > key.txt

    Exits with 2 if the configuration or an option is wrong, or there is no such valid key; with 1 if the file or the
    store can't be written.
    """  # noqa: D301 - as above
    from chat_nest.cli.issued import issue, refuse, settings_of  # noqa: PLC0415 - as above
    from chat_nest.identity.api_key import present_second  # noqa: PLC0415 - as above
    from chat_nest.server.issuing import moment_of, overlap_of  # noqa: PLC0415 - as above
    from chat_nest.server.operator import Rejected  # noqa: PLC0415 - as above

    settings = settings_of(file)
    try:
        lasts = overlap_of(overlap)
        until = None if expires is None else moment_of(expires, present_second())
    except Rejected as error:
        refuse(error)
    _show(issue(file, settings, lambda issuer: issuer.rotate(id, lasts, until, reason)))


@keys.command(context_settings=CONTEXT, short_help="Revoke keys by ID.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@CONFIG
@REASON
def revoke(ids: tuple[str, ...], file: str, reason: str) -> None:
    """Revoke the keys with these IDs, as `chat-nest keys list` shows them.

    Every server of the store refuses the keys, and the session tokens that were made with them, within a second, and
    ends their running answers; each is charged for its tokens so far. It can't be undone. An ID is not the key: never
    write a key on a command line.

    \b
    Examples:
      chat-nest keys revoke 1f09c2aa53be
      chat-nest keys list --json | jq -r '.[] | select(.caller == "ada") | .id' | xargs chat-nest keys revoke

    Exits with 2 if one of the keys does not exist, and then revokes none; with 1 if the file or the store can't be
    written.
    """  # noqa: D301 - as above
    from chat_nest.cli.issued import issue, settings_of  # noqa: PLC0415 - as above

    for key in issue(file, settings_of(file), lambda issuer: issuer.revoke(ids, reason)):
        click.echo(f"Revoked {key.id} of {key.caller}, as of {key.revoked:%Y-%m-%d %H:%M:%S} UTC.")


def _limit(text: str) -> tuple[str, float]:
    """Return the name and the number of NAME=NUMBER. Exits with 2 for another text."""
    name, _, number = text.partition("=")
    try:
        return name.strip(), float(number) if "." in number or "e" in number else int(number.replace("_", ""))
    except ValueError:
        fail("--limit must be NAME=NUMBER, such as tokens_per_day=50000 or usd_per_month=2.5", code=2)


def _show(issued: Issued) -> None:
    """Print a new key: on standard output only the key itself."""
    key = issued.key
    if issued.replaces is not None:
        click.echo(f"Key {issued.replaces.id} of {key.caller} is good {_lasts(issued.replaces)}.", err=True)
    click.echo(f"Key {key.id} of {key.caller}, good {_lasts(key)}. It is shown this once:", err=True)
    click.echo(click.style(issued.text, bold=True), color=has_color())


def _lasts(key: ApiKey) -> str:
    return f"until {key.expires:%Y-%m-%d %H:%M} UTC" if key.expires else "until it is revoked"
