"""Read the configuration of a running server again: what it changes, and the answer to the operator."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from chat_nest.ledger.allowance import check_allowance
from chat_nest.server.config.changes import Changes, changes_of
from chat_nest.server.config.settings import Config
from chat_nest.server.config.sources import ConfigError

log = logging.getLogger("chat_nest.server")

WRONG, FAILED = 2, 1
"""Exit codes of `chat-nest reload`: the configuration is wrong, or the server could not use it."""
DRAINING = "the server is about to end"
UNNOTED = "not in the audit trail: the store does not answer"


class ReloadOutcome(Struct, frozen=True, omit_defaults=True):
    """The answer to a reload. Without `adopted` nothing has changed, and `problems` has the reasons, a line each."""

    adopted: bool
    changed: tuple[str, ...] = ()
    """The tables and keys with new values, such as `profiles.balanced`."""
    kept: tuple[str, ...] = ()
    """Those with new values that take a restart."""
    notes: tuple[str, ...] = ()
    """Settings that work, but perhaps not as the operator expects."""
    problems: tuple[str, ...] = ()
    code: int = 0
    """The exit code of `chat-nest reload`."""

    def body(self) -> bytes:
        """Return the answer as JSON."""
        return msgspec.json.encode(self)


Reload = Callable[[], Awaitable[ReloadOutcome]]
"""Read the configuration again, in all workers, and return the outcome. Concurrent calls share one reading."""
Load = Callable[[str | None], Config]
"""Read the configuration, for this host if one is given. Raises ConfigError."""


class ConfigSource:
    """The configuration in force, and how to read it again.

    `load` reads it. `adapt` makes of it what the workers get, and raises ConfigError if that takes a restart.
    """

    def __init__(self, config: Config, load: Load, adapt: Callable[[Config], Config] = lambda config: config) -> None:
        self._config = config
        self._load = load
        self._adapt = adapt

    def read(self) -> tuple[Changes, Config]:
        """Return the changes, and the configuration for the workers. Raises ConfigError."""
        found = self._load(None)
        host = self._config.server.host
        changes = changes_of(self._config, found)
        if found.server.host != host:  # the defaults of hosts and origins are those of the address in use
            again = changes_of(self._config, self._load(host))
            changes = replace(again, kept=("server.host", *again.kept))
        _check(changes.config)
        return changes, self._adapt(changes.config)

    def adopted(self, changes: Changes) -> None:
        """Note that these changes are in force."""
        self._config = changes.config


def _check(config: Config) -> None:
    """Raise ConfigError if new values don't fit the old ones that stay in force."""
    try:
        config.rules()
        if config.degraded is not None:
            check_allowance(config.degraded, config.limits)
    except ValueError as error:
        raise ConfigError([f"{config.file or 'the configuration'}: {error}; a restart may be needed"]) from None


def outcome_of(changes: Changes) -> ReloadOutcome:
    """Return the outcome of changes that are in force."""
    return ReloadOutcome(adopted=True, changed=changes.changed, kept=changes.kept, notes=changes.config.notes)


def refused(problems: tuple[str, ...], code: int) -> ReloadOutcome:
    """Return the outcome of a reload that changed nothing."""
    return ReloadOutcome(adopted=False, problems=problems, code=code)


def log_outcome(outcome: ReloadOutcome) -> None:
    """Log what a reload changed, or why it changed nothing."""
    for problem in outcome.problems:
        log.error("reload: %s", problem)
    if not outcome.adopted:
        log.error("reload: the configuration in force has not changed")
        return
    log.info("reload: %s", f"changed {', '.join(outcome.changed)}" if outcome.changed else "nothing has changed")
    for note in outcome.notes:
        log.warning("reload: %s", note)
    if outcome.kept:
        log.warning("reload: a restart is needed for %s", ", ".join(outcome.kept))
