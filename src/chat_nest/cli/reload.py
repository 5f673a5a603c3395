"""The output of `chat-nest reload`: the result of each running server."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from chat_nest.cli.operate import note
from chat_nest.server.control import find
from chat_nest.server.reload import FAILED, ReloadOutcome

SECONDS = 60.0
"""Longer than a server waits for its workers."""
NOBODY = (
    "no running server of this user has this configuration; a server of another user, in another container or on "
    "Windows is reloaded by SIGHUP (`systemctl reload`) or POST /admin/v1/reload"
)


def report(file: str) -> tuple[int, Sequence[str]]:
    """Reload every server with this config file; return the exit code and the lines to print."""
    answers = [(path, answer) for path in find(file) if (answer := _ask(path)) is not None]
    if not answers:
        return FAILED, [NOBODY]
    lines: list[str] = []
    adopted = [outcome for _, outcome in answers if outcome.adopted]
    for path, outcome in answers:
        pid = path.stem.rpartition("-")[2]
        begin = f"server {pid}: " if len(answers) > 1 else ""
        lines += [f"{begin}{line}" for line in lines_of(outcome)]
    if adopted and (why := _note(file, adopted)):
        lines.append(f"note: this is not in the audit trail: {why}")
    return max(outcome.code for _, outcome in answers), lines


def _note(file: str, adopted: Sequence[ReloadOutcome]) -> str:
    """Note the reload in the audit trail of the servers' store; return why that failed, or an empty string."""
    if any(name.startswith("store") for outcome in adopted for name in outcome.kept):
        return "the servers use another store than the configuration has now, until they are restarted"
    changed = list(dict.fromkeys(name for outcome in adopted for name in outcome.changed))
    return note(file, lambda operator: operator.reloaded(changed))


def lines_of(outcome: ReloadOutcome) -> list[str]:
    """Return the outcome for people."""
    if not outcome.adopted:
        return [*outcome.problems, "nothing has changed"]
    changed = f"in force: {', '.join(outcome.changed)}" if outcome.changed else "nothing has changed"
    kept = [f"a restart is needed for {', '.join(outcome.kept)}"] if outcome.kept else []
    return [changed, *kept, *(f"note: {note}" for note in outcome.notes)]


def _ask(path: Path) -> ReloadOutcome | None:
    """Return the answer of the server at this socket; None if it has ended."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:  # left by a server that was killed
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        except OSError:
            return None
        said = b""
        try:
            while piece := client.recv(65_536):
                said += piece
            return msgspec.json.decode(said, type=ReloadOutcome)
        except (OSError, ValueError):
            return ReloadOutcome(adopted=False, problems=("the server has not answered: see its log",), code=FAILED)
