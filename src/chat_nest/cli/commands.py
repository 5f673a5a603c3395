"""`chat-nest` and its subcommands. Each command imports its modules when it runs, so that --help is quick.

The file is long because each docstring here is the help of a command.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from chat_nest import __version__
from chat_nest.cli.acts import COMMANDS
from chat_nest.cli.alerts import alerts
from chat_nest.cli.init import init
from chat_nest.cli.keys import keys
from chat_nest.cli.options import CONFIG, CONTEXT, Group, fail, has_color
from chat_nest.cli.sessions import sessions
from chat_nest.cli.store_commands import store
from chat_nest.server.listen import ListenError
from chat_nest.server.logs import LEVELS, escape

if TYPE_CHECKING:
    from chat_nest.server.config.settings import Config


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="chat-nest")
def chat_nest() -> None:
    """A streaming chat endpoint with budgets that hold.

    \b
    chat-nest serve                     a demo model on this machine, no key needed
    OPENAI_API_KEY=... chat-nest serve  OpenAI's models
    chat-nest init                      write a configuration file, after a few questions
    chat-nest check --config chat.toml  check the file, and print its limits
    chat-nest reload --config chat.toml let a running server read it again
    chat-nest usage --by day,model      requests, tokens and dollars of the last days
    chat-nest reconcile openai ...      compare them with what the provider has billed
    chat-nest caller 203.0.113.7        the name of an IP address in the log
    chat-nest keys create ada           an API key for Ada, if callers need one
    chat-nest sessions revoke s_51f0... end a session of your app
    chat-nest alerts test               send one alert, and say whether it arrived
    chat-nest pause --provider openai   refuse its requests, in every server of the store
    """  # noqa: D301 - click's mark for "keep these lines" is a real backspace


for command in (alerts, init, keys, sessions, store, *COMMANDS):
    chat_nest.add_command(command)


@chat_nest.command(context_settings=CONTEXT)
@CONFIG
@click.option(
    "--host", metavar="ADDRESS", help="The address to listen on.  [default: 127.0.0.1; 0.0.0.0 is every interface]"
)
@click.option("--port", type=click.IntRange(0, 65_535), help="The TCP port; 0 takes any free one.  [default: 8000]")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that serve.")
@click.option(
    "--log-level", type=click.Choice(LEVELS), help="The lowest level of log lines.  [default: [log] level, or info]"
)
@click.option("--demo", is_flag=True, help="Without a provider use the demo model, even if a model server runs here.")
@click.option("--access-log", is_flag=True, help="Log every HTTP request too, with its IP address.")
def serve(
    file: str,
    host: str | None,
    port: int | None,
    workers: int,
    log_level: str | None,
    demo: bool,
    access_log: bool,
) -> None:
    """Serve chats on POST /api/chat, and a page to try them on at /.

    Without a key, Ollama or LM Studio answers if it runs on this machine, else the demo model. An environment variable
    can replace every setting of the config file: CHAT_NEST_SERVER_PORT is [server] port, and
    CHAT_NEST_PROFILES_BALANCED_TOKENS_PER_DAY is tokens_per_day of [profiles.balanced]. With a mistake in either the
    server does not start, and prints the place of the mistake.

    \b
    Examples:
      chat-nest serve
      OPENAI_API_KEY=sk-... chat-nest serve --port 8080
      OPENAI_BASE_URL=http://127.0.0.1:11434/v1 CHAT_NEST_MODEL=llama3.2 chat-nest serve
      chat-nest serve --config chat.toml --host 0.0.0.0 --workers 4

    \b
    Try it from another terminal:
      curl -N http://127.0.0.1:8000/api/chat -H 'content-type: application/json' \\
        -d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}]}'
      curl http://127.0.0.1:8000/readyz
    """  # noqa: D301 - as above
    from chat_nest.cli.serve import run  # noqa: PLC0415 - the server's packages load in a tenth of a second
    from chat_nest.server.config.settings import load  # noqa: PLC0415 - as above
    from chat_nest.server.listeners import open_listeners  # noqa: PLC0415 - as above
    from chat_nest.server.local_servers import find_local_server  # noqa: PLC0415 - as above
    from chat_nest.server.socket_activation import take_passed  # noqa: PLC0415 - as above

    find = None if demo else cache(find_local_server)  # a reload keeps what was found at the start

    def again(in_use: str | None) -> Config:
        config = load(file, host=in_use or host, port=port, find_local=find)
        section = config.log
        chosen = replace(section, level=log_level or section.level, requests=access_log or section.requests)
        return replace(config, log=chosen)

    config = _load(file, again)
    try:
        listeners = open_listeners(config, take_passed())
    except ListenError as error:
        fail(str(error), code=1)
    sys.exit(run(config, listeners, again, workers=workers, color=has_color()))


@chat_nest.command(context_settings=CONTEXT)
@CONFIG
def reload(file: str) -> None:
    """Let running servers read their configuration again, without ending an answer.

    Finds this user's servers on this machine that have the same config file (without one: the same working directory).
    Profiles, limits, groups, prices, providers and their keys, the identification of callers, origins and hosts change
    at once. The command names what takes a restart: the address, the store, the number of workers. SIGHUP to the server
    does the same, and the log has the result.

    Exits with 2 if the configuration is wrong, and prints each place and rule: nothing has changed then. Exits with 1
    if there is no such server, or a server could not use the configuration.

    \b
    Examples:
      chat-nest reload --config chat.toml
      systemctl reload chat-nest
    """  # noqa: D301 - as above
    from chat_nest.cli.reload import report  # noqa: PLC0415 - as above

    code, lines = report(file)
    for line in lines:
        click.echo(f"chat-nest: {escape(line)}", err=code != 0)
    sys.exit(code)


@chat_nest.command(context_settings=CONTEXT)
@CONFIG
@click.option("--public", is_flag=True, help="Print instead what is still open to strangers, in order of danger.")
def check(file: str, public: bool) -> None:
    """Check the configuration, and print its limits and the most that a stranger can spend.

    Exits with 2 if something is wrong, and prints its place and the rule; with 1 if the store was emptied, and with
    --public also if nothing bounds what strangers can spend.
    """
    from chat_nest.cli.check import table  # noqa: PLC0415 - as above
    from chat_nest.cli.store import emptied  # noqa: PLC0415 - as above
    from chat_nest.server.config.excerpts import load_stored  # noqa: PLC0415 - as above

    color = has_color()
    if public:
        from chat_nest.cli.public import findings, report  # noqa: PLC0415 - as above

        config = _load(file)
        click.echo(report(config, color=color), color=color)
        sys.exit(int(any(each.danger == "MONEY" for each in findings(config))))
    click.echo(table(_load(file), color=color), color=color)
    if said := emptied(load_stored(file)):
        fail(said, code=1)


@chat_nest.command(context_settings=CONTEXT)
@CONFIG
@click.option("--since", metavar="WHEN", default="7d", show_default=True, help="7d, 24h, a date, or a date and time.")
@click.option("--until", metavar="WHEN", help="The same; a date is included.  [default: now]")
@click.option("--by", metavar="NAMES", default="day", show_default=True, help="day, caller, group, profile, model.")
@click.option("--caller", metavar="KEY", help="Only this caller's requests: 16 hex digits; see `chat-nest caller`.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, with costs in nano-dollars.")
def usage(file: str, since: str, until: str | None, by: str, caller: str | None, as_json: bool) -> None:
    """Show usage: requests, tokens and dollars.

    Reads the store of the configuration, without delay for running servers, and needs no provider's key. SQLite and
    PostgreSQL keep each request for [store] records_days (90). Days are those of [server] time_zone: 7d is seven days
    with today, 24h is a time to the second.

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
      input, output  tokens; with cached and reasoning tokens (--json has these apart)
      cost           of requests with a known price; unpriced counts the others
      errors         ended by an error, or lost with their process; a reader who left or stopped is none
      assumed        their usage is unknown, so their whole hold was charged

    Below the table stand the limits of all callers and of each group, and when they will be used up at the pace so far.

    Exits with 2 if the configuration or an option is wrong, or the store keeps no records; with 1 if the store can't
    be read.
    """  # noqa: D301 - as above
    from chat_nest.cli.usage import Unanswerable, UsageQuestion, answer  # noqa: PLC0415 - as above
    from chat_nest.server.config.excerpts import load_shared_limits, load_store  # noqa: PLC0415 - as above
    from chat_nest.server.config.sources import ConfigError  # noqa: PLC0415 - as above

    try:
        store, zone = load_store(file)
        limits, groups = load_shared_limits(file)
        asked = UsageQuestion(since=since, until=until, by=by, caller=caller, limits=limits, groups=groups)
        click.echo(answer(store, zone, asked, as_json=as_json))
    except ConfigError as error:
        fail(*error.problems, code=2)
    except Unanswerable as error:
        fail(str(error), code=error.code)


@chat_nest.command(context_settings=CONTEXT)
@CONFIG
@click.argument("provider")
@click.option(
    "--admin-key-file",
    "key_file",
    metavar="KEYFILE",
    required=True,
    type=click.Path(path_type=Path),
    help="A file with a key for the provider's administration API.",
)
@click.option(
    "--days", type=click.IntRange(1, 30), default=7, show_default=True, help="Whole UTC days, until yesterday."
)
@click.option(
    "--bound", type=click.FloatRange(0, 100), default=2.0, show_default=True, help="The most drift, in percent."
)
@click.option("--alert", is_flag=True, help="On more drift leave an alert, which a running server delivers.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, with costs in nano-dollars.")
def reconcile(file: str, provider: str, key_file: Path, days: int, bound: float, alert: bool, as_json: bool) -> None:
    """Compare the ledger's records with what a PROVIDER has counted and billed itself, by UTC day and model.

    PROVIDER is a name in [providers], of the kind openai, responses, anthropic or openrouter. The key is an admin key
    of OpenAI or Anthropic, or a management key of OpenRouter. The provider's figures are those of all that its account
    does, also elsewhere.

    \b
    Examples:
      chat-nest reconcile openai --admin-key-file /etc/chat-nest/openai-admin --config chat.toml
      chat-nest reconcile anthropic --admin-key-file admin --days 1 --alert

    Exits with 3 if anything differs by more than the bound, with 2 if the configuration or an option is wrong, and with
    1 if the store or the provider can't be read.
    """  # noqa: D301 - as above
    from chat_nest.cli.reconcile import Impossible, ReconcileQuestion  # noqa: PLC0415 - as above
    from chat_nest.cli.reconcile import reconcile as compared  # noqa: PLC0415 - as above

    asked = ReconcileQuestion(provider=provider, key_file=key_file, days=days, bound=bound, alert=alert)
    try:
        said, code = compared(_load(file), asked, as_json=as_json)
    except Impossible as error:
        fail(str(error), code=error.code)
    click.echo(said)
    sys.exit(code)


@chat_nest.command(context_settings=CONTEXT)
@CONFIG
@click.argument("who")
def caller(file: str, who: str) -> None:
    """Print a caller's names in the log and in `usage`. WHO is an IP address, an id, or the name in usage.

    An id is `user:NAME` for the name in caller_header, `key:NAME` for the caller of an API key, `jwt:NAME` for the
    subject of a token. The name in the log is made with a secret: [server] caller_secret, or the secret kept beside
    the store.

    \b
    Examples:
      chat-nest caller 203.0.113.7
      chat-nest caller user:ada
      grep "caller=$(chat-nest caller 203.0.113.7 | head -n 1 | cut -d ' ' -f 1)" chat-nest.log
    """  # noqa: D301 - as above
    from chat_nest.cli.caller import NO_ID, is_id, names  # noqa: PLC0415 - as above

    if not is_id(who):
        fail(NO_ID, code=2)
    try:
        click.echo(names(_load(file), who))
    except OSError as error:
        fail(f"the secret can't be read: {error.strerror}: set server.caller_secret", code=1)


@chat_nest.command(
    hidden=True,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@CONFIG
@click.argument("command", default="")
@click.argument("rest", nargs=-1)
def parts(file: str, command: str, rest: tuple[str, ...]) -> None:  # noqa: ARG001 - any command's arguments
    """Print the parts of scripts/setup that a command with these arguments needs, for the scripts of a checkout."""
    from chat_nest.server.config.setup_parts import needed_parts  # noqa: PLC0415 - as above
    from chat_nest.server.config.sources import ConfigError  # noqa: PLC0415 - as above

    try:
        click.echo(" ".join(needed_parts(command, file)))
    except ConfigError:
        return  # the command itself reports every problem


def _load(file: str, read: Callable[[str | None], Config] | None = None) -> Config:
    from chat_nest.server.config.settings import load  # noqa: PLC0415 - as above
    from chat_nest.server.config.sources import ConfigError  # noqa: PLC0415 - as above

    try:
        return load(file) if read is None else read(None)
    except ConfigError as error:
        fail(*error.problems, code=2)
