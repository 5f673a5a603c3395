"""Check the settings of the store, its journal, the logs of runs and degraded mode."""

from __future__ import annotations

import shlex

from chat_nest.core.limits import Limits
from chat_nest.ledger.allowance import check_allowance
from chat_nest.ledger.journal import Journal
from chat_nest.limits.spec import Allowance
from chat_nest.runs.urls import open_runs
from chat_nest.server.config.schema import RunsSection, StoreSection
from chat_nest.server.config.sources import Sources
from chat_nest.stores.epochs import ACCEPT
from chat_nest.stores.urls import keeps_records, open_store

DEFAULT_JOURNAL = "chat-nest-journal"

NO_JOURNAL = "off"


def check_runs(sources: Sources, runs: RunsSection) -> None:
    try:
        open_runs(runs.url or "memory://", runs.keep_seconds)
    except ValueError as error:
        sources.refused(("runs", "url"), error)


def check_store(sources: Sources, store: StoreSection) -> None:
    try:
        open_store(store.url)  # opens nothing before its first call
    except (OSError, ValueError) as error:
        sources.refused(("store", "url"), error)
    days = ("store", "records_days")
    if not keeps_records(store.url) and "records_days" in sources.values.get("store", {}):
        scheme = store.url.partition(":")[0]
        sources.notes.append(f"{sources.where(days)}: has no effect: a store of {scheme}:// keeps no records")


def journal_directory(sources: Sources, store: StoreSection) -> str | None:
    """Return the journal's directory. There is a default one for stores that can be down while the server runs."""
    named = store.journal
    if named == NO_JOURNAL or (not named and store.url.startswith(("memory:", "sqlite:"))):
        return None
    try:
        Journal(named or DEFAULT_JOURNAL)  # creates nothing before it is needed
    except ValueError as error:
        if named:
            sources.problem(("store", "journal"), str(error))
            return None
        sources.notes.append(f"no journal: {error}; name another with store.journal, or turn it {NO_JOURNAL}")
        return None
    return named or DEFAULT_JOURNAL


def state_directory(sources: Sources, store: StoreSection, journal: str | None) -> str | None:
    """Return the directory with the note that the store was seen. SQLite keeps the note beside its file."""
    if store.state == NO_JOURNAL or (not store.state and store.url.startswith(("memory:", "sqlite:"))):
        return None
    directory = store.state or journal
    if directory is None:
        sources.notes.append(
            "nothing remembers the store: if it is emptied while no server runs, all budgets start from zero; name a "
            f"directory with store.state, or turn it {NO_JOURNAL}"
        )
    elif store.state:
        try:
            Journal(directory)  # the rules for a directory are the same
        except ValueError as error:
            sources.problem(("store", "state"), str(error).replace("the journal", "what is remembered of the store"))
    return directory


def accept_command(file: str) -> str:
    """Return the command that accepts an emptied store, with the config file."""
    return f"{ACCEPT} --config {shlex.quote(file)}" if file else ACCEPT


def check_degraded(sources: Sources, allowance: Allowance, limits: Limits, url: str) -> None:
    if url == "memory://":
        sources.problem(("degraded",), "memory:// is never down: leave it out")
    try:
        check_allowance(allowance, limits)
    except ValueError as error:
        place, _, rule = str(error).partition(" ")
        sources.problem(tuple(place.split(".")), rule)
