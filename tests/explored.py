"""`chat-nest serve` under schemathesis, over real sockets: `assert await explore(folder, "--max-examples", "5") == []`.

schemathesis reads the server's own OpenAPI document, sends what it allows and what it forbids, and holds each answer
against it. All wire formats are on, and no limit is in the way but those that a request names itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from raw_client import settled
from scripted_provider import ScriptedProvider, answer
from serve_command import command

from chat_nest.server.config.front_ends import make_dialects, PATHS

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
)
REFUSED = '[checks]\nnegative_data_rejection.expected-statuses = ["4xx", "204"]\n'
"""Statuses for what the document forbids. 204: an EventSource that asks again is sent away whatever it asks."""
CHATS = [
    route.path
    for made in make_dialects(PATHS, blog_get=False)
    for route in made.routes
    if route.models is route.count is None and not route.kept
]
MOST = 10**12
NO_LIMIT = f"requests_per_minute = 1000000\ntokens_per_day = {MOST}\ntokens_per_request = {MOST}\n"
PROFILE = f'{NO_LIMIT}open = true\nallow_tools = true\nallow_system_prompt = true\non_disconnect = "finish"\n'
CONFIG = f"""\
[dialects]
blog = true
blog_get = true
[hard_caps]
{NO_LIMIT}
[profiles.constrained]
{PROFILE}
[profiles.balanced]
{PROFILE}
[profiles.expanded]
{PROFILE}
"""


async def explore(folder: Path, *options: str, quiet: bool = True) -> list[str]:
    """What was wrong: what schemathesis says, and what is left behind. `options` are those of `schemathesis run`."""
    (folder / "chat-nest.toml").write_text(CONFIG)
    (folder / "schemathesis.toml").write_text(REFUSED)
    async with ScriptedProvider(answer("Hello ", 3)) as provider:
        async with command(folder, provider.url, "sk-explored", "--config", "chat-nest.toml") as served:
            code, said = await _run(folder, served.port, options, quiet=quiet)
            wrong = [said or f"schemathesis ended with {code}"] if code else []
            await settled(served.port)
            wrong += _unsettled(folder)
            if b"Traceback" in served.said:
                wrong.append(served.said.decode())
        return wrong + _unlike(_answers(folder), len(provider.requests), _records(folder))


async def _run(folder: Path, port: int, options: Sequence[str], *, quiet: bool) -> tuple[int, str]:
    arguments = ["--checks", ",".join(CHECKS), "--warnings", "off"]
    process = await asyncio.create_subprocess_exec(
        *(str(SCHEMATHESIS), "--no-color", "run", f"http://127.0.0.1:{port}/openapi.json", *arguments, *options),
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
            "EXPLORED": str(folder / "explored.jsonl"),
        },
        stdout=PIPE if quiet else None,
        stderr=STDOUT,
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, (said or b"").decode()


def _answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "explored.jsonl").read_text().splitlines()]


def _ask(folder: Path, question: str) -> int:
    with closing(sqlite3.connect(folder / "chat-nest.db")) as store:
        return store.execute(question).fetchone()[0]


def _records(folder: Path) -> int:
    return _ask(folder, "SELECT count(*) FROM requests")


def _unsettled(folder: Path) -> list[str]:
    counts = {
        "open reservations": _ask(folder, "SELECT count(*) FROM reservations WHERE state = 'open'"),
        "counters that hold something": _ask(folder, "SELECT count(*) FROM counters WHERE held > 0"),
        "reservations that nobody settled": _ask(folder, "SELECT count(*) FROM reservations WHERE source = 'assumed'"),
    }
    return [f"{count} {what}" for what, count in counts.items() if count]


def _unlike(answers: Sequence[Mapping[str, Any]], called: int, recorded: int) -> list[str]:
    """Each chat that was answered is one call of the provider and one record; no refused one is any."""
    chats = [each for each in answers if each["path"] in CHATS]
    generated = [each for each in chats if each["status"] == 200 and not each["replayed"]]
    silent = [path for path in CHATS if not any(each["path"] == path for each in generated)]
    wrong = [f"no chat was answered at {path}" for path in silent]
    if not len(generated) == called == recorded:
        wrong.append(
            f"{len(generated)} chats were answered, {called} times was the provider called, {recorded} recorded"
        )
    return wrong
