"""The entry point of the command `chat-nest`."""

from __future__ import annotations

import sys

from chat_nest.core.extras import install

SERVER_EXTRA = ("click", "httptools", "uvloop")


def main() -> None:
    """Run the command. If packages are missing, print how to install them."""
    try:
        from chat_nest.cli.commands import chat_nest  # noqa: PLC0415 - fails where the extra is not installed
    except ModuleNotFoundError as error:
        if error.name not in SERVER_EXTRA:
            raise
        sys.exit(f"chat-nest needs the package {error.name}, which is not installed: run: {install('server')}")
    chat_nest()


if __name__ == "__main__":
    main()
