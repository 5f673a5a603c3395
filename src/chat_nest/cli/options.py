"""What all commands share: the option --config, colors for a terminal only, and the output of a failure."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from chat_nest.server.logs import escape

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
CONFIG = click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(),
    default="",
    envvar="CHAT_NEST_CONFIG",
    help="The TOML file with providers, profiles and limits.  [env: CHAT_NEST_CONFIG]",
)


class Command(click.Command):
    """A command that suggests --config if its argument is a configuration file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        files = [each for each in args if each.endswith(".toml") and not each.startswith("-")]
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if not files or "extra argument" not in error.message:
                raise
            raise click.UsageError(
                f"{error.message}: to use this configuration, write --config {files[-1]}", ctx
            ) from None


class Group(click.Group):
    """A group of these commands."""

    command_class = Command
    group_class = type


def has_color() -> bool:
    """Return whether standard output is a terminal, and NO_COLOR (no-color.org) is not set."""
    return is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def is_terminal() -> bool:
    return sys.stdout.isatty()


def progress(text: str) -> None:
    """Tell the user why it takes longer."""
    click.echo(f"chat-nest: {text}", err=True)


def fail(*problems: str, code: int) -> NoReturn:
    """Print the problems, a line each, and exit."""
    for problem in problems:
        click.echo(f"chat-nest: {escape(problem)}", err=True)
    sys.exit(code)
