"""The signing secrets of a section: in the section, its variable, or a file with one secret in each line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chat_nest.identity.api_key import checked_secret
from chat_nest.server.config.sources import Sources


def signing_secrets(sources: Sources, name: str, secrets: Sequence[str], file: str, advice: str) -> Sequence[str]:
    """Return the secrets of the section `name`; its variable overrides the file of secrets.

    Notes a file that can't be read, and a secret that is guessable; `advice` says how to make one.
    """
    here, found = (name, "secrets"), secrets
    if file and here not in sources.variables:
        if found:
            sources.problem((name, "secrets_file"), "give either secrets or secrets_file, not both")
        here = (name, "secrets_file")
        try:
            lines = Path(file).read_text("utf-8").splitlines()
        except OSError as error:
            sources.problem(here, f"can't be read: {error.strerror}")
            return ()
        except UnicodeDecodeError:
            sources.problem(here, "must be UTF-8 text, with a secret in each line")
            return ()
        found = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
        if not found:
            sources.problem(here, f"needs a secret: {advice}")
    for index, secret in enumerate(found, 1):
        try:
            checked_secret(secret)
        except ValueError as error:
            sources.problem(here, f"secret {index}: {error}; {advice}")
            break
    return found
