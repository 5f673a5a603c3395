"""The commands by which an operator acts while servers run: pause, block, stop, reset, grant, withdraw; and what was
done.

The file is long because each docstring here is the help of a command.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import click

from chat_nest.cli.options import CONFIG, CONTEXT, fail
from chat_nest.server.logs import escape

Result = TypeVar("Result")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])

REASON = click.option("--reason", metavar="TEXT", default="", help="Why; for the audit trail.")
FOR = click.option("--for", "span", metavar="TIME", help="How long: 90s, 30m, 2h, 7d.  [default: until it is ended]")
STOP = click.option(
    "--stop-running", is_flag=True, help="Also stop the running answers; each is charged for its tokens so far."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Write JSON.")
CALLER = click.option("--caller", metavar="WHO", help="An IP address, an id (key:ada), or the name in `usage`.")
GROUP = click.option("--group", metavar="NAME", help="The callers of a group.")


def _scopes(command: Decorated) -> Decorated:
    for option in (
        click.option("--profile", metavar="NAME", help="The requests under a profile."),
        CALLER,
        GROUP,
        click.option("--model", metavar="PROVIDER:MODEL", help="One model; its profiles use their fallbacks."),
        click.option("--provider", metavar="NAME", help="A provider's models; profiles use their fallbacks elsewhere."),
        click.option("--all", "everything", is_flag=True, help="Every request."),
    ):
        command = option(command)
    return command


@click.command(context_settings=CONTEXT)
@CONFIG
@_scopes
@FOR
@STOP
@REASON
def pause(file: str, span: str | None, stop_running: bool, reason: str, **scopes: Any) -> None:
    """Refuse new requests: all of them, or those of a provider, model, group, caller or profile.

    Every server that uses the store obeys within a second. A refused request gets 503 `paused` with Retry-After, before
    anything is reserved. Running answers go on, unless --stop-running. Without a scope: list pauses and blocks.

    \b
    Examples:
      chat-nest pause                                          what is in force
      chat-nest pause --all --reason "bill too high"           until `chat-nest resume --all`
      chat-nest pause --provider openai --for 30m
      chat-nest pause --model openai:gpt-4o --stop-running
      chat-nest pause --caller 203.0.113.7 --for 1d --reason "warned before"

    Exits with 2 for a wrong option, with 1 if the store can't be used.
    """  # noqa: D301 - click's mark for "keep these lines" is a real backspace
    from chat_nest.cli.operate import act, check_known, in_force  # noqa: PLC0415 - so that --help is quick
    from chat_nest.server.operator import pause_name, seconds_of  # noqa: PLC0415 - as above

    given = _scope(scopes)
    if given is None:
        lines = act(file, in_force)
        click.echo("\n".join(map(escape, lines)) or "nothing is paused or blocked")
        return
    check_known(file, *given)
    name, seconds = _checked(lambda: pause_name(*given)), None if span is None else _checked(lambda: seconds_of(span))
    act(file, lambda operator, _: operator.pause(name, reason=reason, seconds=seconds, stop_running=stop_running))
    option = f"--{given[0]} {shlex.quote(given[1])}" if given[1] else f"--{given[0]}"
    click.echo(f"chat-nest: paused: {escape(name)}; end it with `chat-nest resume {escape(option)}`")


@click.command(context_settings=CONTEXT)
@CONFIG
@_scopes
@REASON
def resume(file: str, reason: str, **scopes: Any) -> None:
    """End a pause, with the same scope as in `chat-nest pause`. --all ends only the pause of everything.

    \b
    Examples:
      chat-nest resume --all
      chat-nest resume --provider openai --reason "they fixed it"
    """  # noqa: D301 - as above
    from chat_nest.cli.operate import act  # noqa: PLC0415 - as above
    from chat_nest.server.operator import pause_name  # noqa: PLC0415 - as above

    given = _scope(scopes)
    if given is None:
        fail("name what to resume: --all, --provider, --model, --group, --caller or --profile", code=2)
    name = _checked(lambda: pause_name(*given))
    act(file, lambda operator, _: operator.resume(name, reason=reason))
    click.echo(f"chat-nest: not paused any more: {escape(name)}")


@click.command(context_settings=CONTEXT)
@CONFIG
@CALLER
@click.option("--address", metavar="ADDRESS", help="An IP address, or a network such as 203.0.113.0/24.")
@FOR
@STOP
@REASON
def block(
    file: str, caller: str | None, address: str | None, span: str | None, stop_running: bool, reason: str
) -> None:
    """Refuse every request of a caller, an IP address or a network: 403 `blocked`.

    --caller blocks one caller, however it is identified. --address blocks a network for all callers, also those with
    keys. The store keeps the network as it is, until it is unblocked.

    \b
    Examples:
      chat-nest block --caller key:ada --reason "leaked key" --stop-running
      chat-nest block --address 203.0.113.0/24 --for 1d --reason "scripted abuse"
    """  # noqa: D301 - as above
    from chat_nest.cli.operate import act  # noqa: PLC0415 - as above
    from chat_nest.server.operator import seconds_of  # noqa: PLC0415 - as above

    name, seconds = _blocked(caller, address), None if span is None else _checked(lambda: seconds_of(span))
    act(file, lambda operator, _: operator.block(name, reason=reason, seconds=seconds, stop_running=stop_running))
    click.echo(f"chat-nest: blocked: {name}")


@click.command(context_settings=CONTEXT)
@CONFIG
@CALLER
@click.option("--address", metavar="ADDRESS", help="The IP address or network, as it was blocked.")
@REASON
def unblock(file: str, caller: str | None, address: str | None, reason: str) -> None:
    """End a block, with the same caller or network as in `chat-nest block`."""
    from chat_nest.cli.operate import act  # noqa: PLC0415 - as above

    name = _blocked(caller, address)
    act(file, lambda operator, _: operator.unblock(name, reason=reason))
    click.echo(f"chat-nest: not blocked any more: {name}")


@click.command(context_settings=CONTEXT)
@CONFIG
@click.option("--all", "everything", is_flag=True, help="The limits of all callers together.")
@CALLER
@GROUP
@click.option("--limit", metavar="NAME", help="Only this limit, such as tokens_per_day.  [default: every window]")
@REASON
def reset(file: str, limit: str | None, reason: str, **scopes: Any) -> None:
    """Give a caller, a group or all callers together their present windows again, from now on.

    What was used stays in `chat-nest usage` and in the counters; it does not count for this hour, day and month any
    more. An answer that is running now counts for the new budget.

    \b
    Examples:
      chat-nest reset --caller 0f3c9a52d81be647
      chat-nest reset --group acme --limit usd_per_day --reason "support case"
    """  # noqa: D301 - as above
    from chat_nest.cli.operate import act  # noqa: PLC0415 - as above

    owner = _owner(scopes, "name the owner of the budget: --caller, --group or --all")
    lines = act(file, lambda operator, _: operator.reset(owner, limit=limit, reason=reason))
    click.echo(f"chat-nest: reset: {', '.join(line.name for line in lines) or 'nothing had been used'}")


@click.command(context_settings=CONTEXT)
@CONFIG
@click.option("--all", "everything", is_flag=True, help="The limits of all callers together.")
@CALLER
@GROUP
@click.option("--tokens", metavar="N", help="How many tokens more.")
@click.option("--requests", metavar="N", help="How many requests more.")
@click.option("--usd", metavar="X", help="How many dollars more.")
@click.option(
    "--per", type=click.Choice(["hour", "day", "month"]), default="day", show_default=True, help="The window."
)
@REASON
def grant(
    file: str, tokens: str | None, requests: str | None, usd: str | None, per: str, reason: str, **scopes: Any
) -> None:
    """Raise a limit once, until its present hour, day or month ends. What was spent stays as it is.

    It raises a limit that there is; without one it has no effect. Several grants add up. Without an option: list the
    grants and resets in force.

    \b
    Examples:
      chat-nest grant                                          what is in force
      chat-nest grant --caller key:ada --tokens 50000 --reason "demo today"
      chat-nest grant --group acme --usd 20 --per month
    """  # noqa: D301 - as above
    from chat_nest.cli.operate import act, grants_in_force, windows  # noqa: PLC0415 - as above
    from chat_nest.server.operator import amount_of, line_of  # noqa: PLC0415 - as above

    amounts = {unit: text for unit, text in (("tokens", tokens), ("requests", requests), ("usd", usd)) if text}
    if not amounts and _scope(scopes) is None:
        lines = act(file, grants_in_force)
        click.echo("\n".join(map(escape, lines)) or "nothing is granted")
        return
    both = "name one of --caller, --group and --all, and one of --tokens, --requests and --usd"
    if len(amounts) != 1:
        fail(both, code=2)
    [(unit, text)] = amounts.items()
    owner, amount = _owner(scopes, both), _checked(lambda: amount_of(unit, text))
    line = _checked(lambda: line_of(windows(file, owner), f"{unit}_per_{per}"))
    act(file, lambda operator, _: operator.grant(line, amount, reason=reason))
    click.echo(f"chat-nest: granted: {text} {unit} more on {line.name} of {owner}; end it with `chat-nest withdraw`")


@click.command(context_settings=CONTEXT)
@CONFIG
@click.option("--all", "everything", is_flag=True, help="What was granted to all callers together.")
@CALLER
@GROUP
@click.option("--limit", metavar="NAME", help="Only this limit, such as tokens_per_day.  [default: every window]")
@REASON
def withdraw(file: str, limit: str | None, reason: str, **scopes: Any) -> None:
    """End the grants and resets of a caller, a group or all callers together. What was used of them stays spent.

    `chat-nest grant` lists what is in force.

    \b
    Examples:
      chat-nest withdraw --caller key:ada --reason "the demo is over"
      chat-nest withdraw --group acme --limit usd_per_month

    Exits with 1 if there is nothing to withdraw.
    """  # noqa: D301 - as above
    from chat_nest.cli.operate import act  # noqa: PLC0415 - as above
    from chat_nest.cli.operate import withdraw as end  # noqa: PLC0415 - as above

    owner = _owner(scopes, "name the owner of the grants: --caller, --group or --all")
    ended = act(file, lambda operator, _: end(operator, owner, limit, reason))
    if not ended:
        fail("there is no such grant in force: `chat-nest grant` lists them", code=1)
    for line in ended:
        click.echo(f"chat-nest: withdrawn: {escape(line)}")


@click.command(context_settings=CONTEXT)
@CONFIG
@click.option("-n", "most", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many, at most.")
@JSON
def audit(file: str, most: int, as_json: bool) -> None:
    """Show what operators did: when, who, what, to whom, and why; the newest first."""
    from chat_nest.cli.operate import act, acts_as_json, acts_as_text  # noqa: PLC0415 - as above

    found = act(file, lambda operator, _: operator.controls.acts(most))
    click.echo(acts_as_json(found) if as_json else escape_lines(acts_as_text(found)))


@click.command(context_settings=CONTEXT)
@CONFIG
@JSON
def running(file: str, as_json: bool) -> None:
    """List the answers that run in any server of the store: id, age, caller, group, profile, model."""
    from chat_nest.cli.operate import act, records_as_json, running_as_text  # noqa: PLC0415 - as above
    from chat_nest.server.running import running as find  # noqa: PLC0415 - as above

    found = act(file, lambda _, store: find(store))
    click.echo(records_as_json(found) if as_json else escape_lines(running_as_text(found)))


@click.command(context_settings=CONTEXT)
@CONFIG
@click.argument("run")
@REASON
def stop(file: str, run: str, reason: str) -> None:
    """Stop the running answer with the id RUN, in whichever server it runs. It is charged for its tokens so far.

    \b
    Example:
      chat-nest stop 9f1c2ab34d5e6f708192a3b4 --reason "endless loop"

    Exits with 1 if it still runs after three seconds.
    """  # noqa: D301 - as above
    from chat_nest.cli.operate import act  # noqa: PLC0415 - as above
    from chat_nest.server.running import stop as end  # noqa: PLC0415 - as above

    if not act(file, lambda operator, store: end(operator, store, run, reason)):
        fail("the answer still runs: its server does not reach the store, or is stalled", code=1)
    click.echo("chat-nest: stopped")


COMMANDS = (pause, resume, block, unblock, reset, grant, withdraw, audit, running, stop)


def escape_lines(text: str) -> str:
    """Escape what could move a terminal's cursor, line by line."""
    return "\n".join(map(escape, text.split("\n")))


def _scope(scopes: dict[str, Any]) -> tuple[str, str] | None:
    """Return the one scope that is given, and its name. Exits with 2 for several."""
    given = [(scope, str(name)) for scope, name in scopes.items() if name and scope != "everything"]
    if scopes.get("everything"):
        given.append(("all", ""))
    if len(given) > 1:
        fail(f"give one of --{' and --'.join(scope for scope, _ in given)}, not both", code=2)
    return given[0] if given else None


def _owner(scopes: dict[str, Any], missing: str) -> str:
    """Return the owner of the one scope that is given. Exits with 2 without one, with the text `missing`."""
    from chat_nest.server.operator import owner_key  # noqa: PLC0415 - as above

    given = _scope(scopes)
    if given is None:
        fail(missing, code=2)
    return _checked(lambda: owner_key(*given))


def _blocked(caller: str | None, address: str | None) -> str:
    from chat_nest.server.operator import caller_key, network_name  # noqa: PLC0415 - as above

    if (caller is None) == (address is None):
        fail("give --caller or --address", code=2)
    if caller is not None:
        return f"caller:{_checked(lambda: caller_key(caller))}"
    return _checked(lambda: network_name(address or ""))


def _checked(make: Callable[[], Result]) -> Result:
    """Return what `make` returns. Exits with 2 if it raises Rejected."""
    from chat_nest.server.operator import Rejected  # noqa: PLC0415 - as above

    try:
        return make()
    except Rejected as error:
        fail(f"--{error.field} {error}", code=2)
