"""`chat-nest init`: write a configuration file after a few questions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chat_nest.cli.options import CONTEXT, Command, fail

if TYPE_CHECKING:
    from chat_nest.cli.starter_config import Choices, FoundProvider

FILE = "chat-nest.toml"


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("file", type=click.Path(path_type=Path), default=FILE)
@click.option("--yes", is_flag=True, help="Ask nothing: take what is found, and the defaults.")
@click.option("--provider", metavar="KIND", help="openai, anthropic, ollama, ... or demo.")
@click.option("--model", metavar="NAME", help="The provider's name for the model.")
def init(file: Path, yes: bool, provider: str | None, model: str | None) -> None:
    """Write a configuration file with comments, after a few questions.

    FILE is chat-nest.toml unless you name another one; a file that exists is never replaced. API keys in the
    environment, and Ollama or LM Studio on this machine, are offered as providers. No key is written to the file: it
    names the variable that holds the key.

    \b
    Examples:
      chat-nest init
      chat-nest init --yes
      chat-nest init --yes --provider anthropic --model claude-haiku-4-5 my-chat.toml

    Exits with 2 if an option is wrong, with 1 if the file exists or can't be written.
    """  # noqa: D301 - click's mark for "keep these lines" is a real backspace
    from chat_nest.cli.starter_config import find_providers, starter_config  # noqa: PLC0415 - so that --help is quick
    from chat_nest.server.local_servers import find_local_server  # noqa: PLC0415 - as above

    if file.exists() or file.is_symlink():
        fail(f"{file} exists, and is not replaced: name another file, or remove it", code=1)
    _check_kind(provider)
    choices = _choose(find_providers(os.environ, find_local_server), provider, model, ask=not yes)
    try:
        with file.open("x", encoding="utf-8") as output:
            output.write(starter_config(choices))
    except OSError as error:
        fail(f"{file} can't be written: {error.strerror}", code=1)
    _say_what_is_next(file, choices)


def _check_kind(kind: str | None) -> None:
    from chat_nest.server.config.schema import PROVIDER_KINDS  # noqa: PLC0415 - as above
    from chat_nest.server.config.sources import near  # noqa: PLC0415 - as above

    if kind is not None and kind not in PROVIDER_KINDS:
        fail(f"--provider must be one of {', '.join(PROVIDER_KINDS)}{near(kind, PROVIDER_KINDS)}", code=2)


def _choose(found: list[FoundProvider], provider: str | None, model: str | None, *, ask: bool) -> Choices:
    from chat_nest.cli.starter_config import DEMO, Choices, key_variable, usual_model  # noqa: PLC0415 - as above
    from chat_nest.providers import PRESETS  # noqa: PLC0415 - as above
    from chat_nest.server.config.schema import PROVIDER_KINDS  # noqa: PLC0415 - as above

    best = found[0]
    if ask and provider is None:
        for each in found:
            click.echo(f"  {each.kind:<12} {each.why}")
        provider = click.prompt("Provider", default=best.kind, type=click.Choice(PROVIDER_KINDS), show_choices=False)
    kind = provider or best.kind
    offered = next((each for each in found if each.kind == kind), None)
    url = offered.base_url if offered else ""
    form = PRESETS[kind].url_form if kind in PRESETS else ""
    if form and not url:
        if not ask:
            fail(f"--provider {kind} needs a URL of yours, {form}: run the command without --yes", code=2)
        url = click.prompt(f"Its URL ({form})")
    usual = (offered.model if offered else "") or usual_model(kind)
    if model is None and ask and kind != DEMO:
        model = click.prompt("Model", default=usual or None)
    model = model or usual
    if not model:
        fail(f"--provider {kind} needs --model NAME: it has no usual one", code=2)
    choices = Choices(kind=kind, base_url=url, key_env=key_variable(kind, url), model=model)
    return _ask_the_rest(choices) if ask else choices


def _ask_the_rest(choices: Choices) -> Choices:
    from msgspec.structs import replace  # noqa: PLC0415 - as above

    name = click.prompt(
        "Public host name, if a proxy on this machine is in front", default="", show_default=False
    ).strip()
    positive = click.IntRange(1, 1_000_000_000)
    return replace(
        choices,
        host_name=name,
        tokens_per_day=click.prompt("Tokens a day for each caller", default=50_000, type=positive),
        tokens_in_all=click.prompt("Tokens a day for all callers together", default=1_000_000, type=positive),
        keys=click.confirm("Do callers need an API key?", default=False),
        store=click.prompt("Store of budgets", default="sqlite:///chat-nest.db", value_proc=_store),
    )


def _store(url: str) -> str:
    """Return the URL of a store. Raises UsageError with the rule, and click asks again."""
    from chat_nest.stores.urls import open_store  # noqa: PLC0415 - as above

    try:
        open_store(url)  # opens nothing before its first call
    except (OSError, ValueError) as error:
        raise click.UsageError(str(error).removeprefix("store.url ")) from None
    return url


def _say_what_is_next(file: Path, choices: Choices) -> None:
    """Print the commands that follow, and what the file still lacks."""
    click.echo(f"chat-nest: {file} is written: {choices.kind}:{choices.model}")
    if choices.key_env and not os.environ.get(choices.key_env, "").strip():
        click.echo(f"  export {choices.key_env}=...    the key of {choices.kind}, in each shell that serves")
    if choices.keys:
        click.echo("  export CHAT_NEST_IDENTITY_SECRET=$(openssl rand -hex 32)    keep it: without it, no key works")
        click.echo(f"  chat-nest keys create ada --config {file}")
    click.echo(f"  chat-nest check --config {file}")
    click.echo(f"  chat-nest serve --config {file}")
