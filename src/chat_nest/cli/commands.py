"""`chat-nest` and its subcommands; each imports what it needs only when it runs, so that --help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chat_nest import __version__
from chat_nest.cli.keys import keys
from chat_nest.cli.options import CONFIG, CONTEXT, fail, has_color
from chat_nest.server.listen import ListenError, listen
from chat_nest.server.logs import LEVELS

if TYPE_CHECKING:
    from chat_nest.server.config import Config


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="chat-nest")
def chat_nest() -> None:
    """A streaming chat endpoint with budgets that hold.

    \b
    chat-nest serve                     a demo model on this machine, no key needed
    OPENAI_API_KEY=... chat-nest serve  OpenAI's models
    chat-nest check --config chat.toml  is the file right, and what does it allow?
    chat-nest usage --by day,model      what was used, and what did it cost?
    chat-nest keys create ada           a key for Ada, where callers need one
    """  # noqa: D301 - click's mark for "keep these lines" is a real backspace


chat_nest.add_command(keys)


@chat_nest.command(context_settings=CONTEXT)
@CONFIG
@click.option("--host", metavar="ADDRESS", help="Where to listen.  [default: 127.0.0.1; 0.0.0.0 is every interface]")
@click.option("--port", type=click.IntRange(0, 65_535), help="The TCP port; 0 takes any free one.  [default: 8000]")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that serve.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="Of chat_nest's lines.")
@click.option("--access-log", is_flag=True, help="Log every HTTP request too, with its address and path.")
def serve(
    file: Path | None, host: str | None, port: int | None, workers: int, log_level: str, access_log: bool
) -> None:
    """Serve chats on POST /api/chat, and a page to try them on at /.

    Without a key the demo model answers. Every setting of the config file can also be set by an environment variable:
    [server] port by CHAT_NEST_SERVER_PORT, [profiles.balanced] tokens_per_day by
    CHAT_NEST_PROFILES_BALANCED_TOKENS_PER_DAY. A mistake in either refuses to start, and says where it is.

    \b
    Examples:
      chat-nest serve
      OPENAI_API_KEY=sk-... chat-nest serve --port 8080
      OPENAI_BASE_URL=http://127.0.0.1:11434/v1 CHAT_NEST_MODEL=llama3.2 chat-nest serve
      chat-nest serve --config chat.toml --host 0.0.0.0 --workers 4

    \b
    Once it runs:
      curl -N http://127.0.0.1:8000/api/chat -H 'content-type: application/json' \\
        -d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}]}'
      curl http://127.0.0.1:8000/readyz
    """  # noqa: D301 - as above
    from chat_nest.cli.serve import run  # noqa: PLC0415 - the server's packages load in a tenth of a second

    config = _load(file, host, port)
    try:
        listener = listen(config.server.host, config.server.port)
    except ListenError as error:
        fail(str(error), code=1)
    sys.exit(run(config, listener, workers=workers, log_level=log_level, access_log=access_log, color=has_color()))


@chat_nest.command(context_settings=CONTEXT)
@CONFIG
def check(file: Path | None) -> None:
    """Check the configuration, and print what it allows, without serving.

    Exits with 2 where something is wrong, and says where it is and what the rule is.
    """
    from chat_nest.cli.check import table  # noqa: PLC0415 - as above

    click.echo(table(_load(file)))


@chat_nest.command(context_settings=CONTEXT)
@CONFIG
@click.option("--since", metavar="WHEN", default="7d", show_default=True, help="7d, 24h, a date, or a date and time.")
@click.option("--until", metavar="WHEN", help="The same; a date is included.  [default: now]")
@click.option("--by", metavar="NAMES", default="day", show_default=True, help="day, caller, group, profile, model.")
@click.option("--caller", metavar="KEY", help="Only this caller's requests: 16 hex digits, as in the logs.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, with costs in nano-dollars.")
def usage(file: Path | None, since: str, until: str | None, by: str, caller: str | None, as_json: bool) -> None:
    """Show what was used: requests, tokens and dollars.

    Reads the store of the configuration, and holds no server up; no provider's key is needed. SQLite and PostgreSQL
    keep each request for [store] records_days (90). Days are those of [server] time_zone: 7d is seven of them, today
    included; 24h is a time to the second.

    \b
    Examples:
      chat-nest usage
      chat-nest usage --since 30d --by model
      chat-nest usage --since 2026-11-01 --until 2026-11-30 --by caller,model
      chat-nest usage --since 14d --until 7d         the seven days before the last seven
      chat-nest usage --by day --caller 0f3c9a52d81be647
      chat-nest usage --since 24h --json | jq .total.cost_nanousd

    \b
    Columns:
      input, output  tokens; those cached and those of reasoning are among them (--json tells them apart)
      cost           of the requests whose price is known; how many are not, says unpriced
      errors         ended by an error, or lost with their process; a reader who left or stopped is none
      assumed        nobody knows what they used: their whole hold was charged

    Exits with 2 where the configuration or an option is wrong, or the store keeps no records; with 1 where the store
    can't be read.
    """  # noqa: D301 - as above
    from chat_nest.cli.usage import Asked, Unanswerable, answer  # noqa: PLC0415 - as above
    from chat_nest.server.config import load_store  # noqa: PLC0415 - as above
    from chat_nest.server.sources import ConfigError  # noqa: PLC0415 - as above

    try:
        store, zone = load_store(str(file or ""))
        click.echo(answer(store, zone, Asked(since=since, until=until, by=by, caller=caller), as_json=as_json))
    except ConfigError as error:
        fail(*error.problems, code=2)
    except Unanswerable as error:
        fail(str(error), code=error.code)


@chat_nest.command(
    hidden=True,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@CONFIG
@click.argument("command", default="")
@click.argument("rest", nargs=-1)
def parts(file: Path | None, command: str, rest: tuple[str, ...]) -> None:  # noqa: ARG001 - any command's arguments
    """Print the parts of scripts/setup that a command with these arguments needs, for the scripts of a checkout."""
    from chat_nest.server.setup_parts import needed_parts  # noqa: PLC0415 - as above
    from chat_nest.server.sources import ConfigError  # noqa: PLC0415 - as above

    try:
        click.echo(" ".join(needed_parts(command, str(file or ""))))
    except ConfigError:
        return  # the command itself reports every problem


def _load(file: Path | None, host: str | None = None, port: int | None = None) -> Config:
    from chat_nest.server.config import load  # noqa: PLC0415 - as above
    from chat_nest.server.sources import ConfigError  # noqa: PLC0415 - as above

    try:
        return load(str(file or ""), host=host, port=port)
    except ConfigError as error:
        fail(*error.problems, code=2)
