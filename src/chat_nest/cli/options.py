"""What all commands have in common: the option --config, colors for a terminal only, and how a failure is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from chat_nest.server.logs import escape

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
CONFIG = click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    envvar="CHAT_NEST_CONFIG",
    help="The TOML file with providers, profiles and limits.  [env: CHAT_NEST_CONFIG]",
)


def has_color() -> bool:
    """Whether standard output is a terminal whose user did not set NO_COLOR (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def fail(*problems: str, code: int) -> NoReturn:
    """Say what is wrong, a line each, and exit."""
    for problem in problems:
        click.echo(f"chat-nest: {escape(problem)}", err=True)
    sys.exit(code)
