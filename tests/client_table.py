"""The tables of docs/clients.md, printed from what the tests of the clients prove: `.venv/bin/python tests/client_table.py`."""

from __future__ import annotations

import json
from pathlib import Path

from client_drivers import AGENTS, CLIENTS, DRIVERS, HEAVY, IMAGE, REASONING, SCHEMA, TOOLS, Client

HEAD = """\
| client | version | format | reasoning | tools and results | JSON by a schema | image |
|---|---|---|---|---|---|---|
"""
HEAVY_HEAD = """\
| client | version | format | tools and results | JSON by a schema | image |
|---|---|---|---|---|---|
"""


def table() -> str:
    """Return the table in Markdown, with a row for each client and format."""
    return HEAD + "".join(_row(client) for client in DRIVERS.values())


def heavy_table() -> str:
    """Return the table of the clients that scripts/heavy-clients runs."""
    return HEAVY_HEAD + "".join(_row(client, (TOOLS, SCHEMA, IMAGE)) for client in HEAVY.values())


def _row(client: Client, columns: tuple[str, ...] = (REASONING, TOOLS, SCHEMA, IMAGE)) -> str:
    able = ["yes" if what in client.able else "" for what in columns]
    return f"| {' | '.join((client.package, _version(client), client.format, *able))} |\n".replace("  ", " ")


def _version(client: Client) -> str:
    """Return the locked version."""
    if client in AGENTS.values():
        return _locked(CLIENTS / "agents/requirements.lock", client.package)
    if client in HEAVY.values():
        folder = CLIENTS / client.file.partition("/")[0]
        if (pinned := folder / "requirements.txt").exists():
            return pinned.read_text("utf-8").partition(f"{client.package}==")[2].split()[0]
        package = json.loads((folder / "package.json").read_text("utf-8"))
        return str(package["dependencies"][client.package])
    if client.file.endswith(".py"):
        name = client.package.removesuffix(" (py)").replace("pydantic-ai", "pydantic-ai-slim")
        return _locked(CLIENTS.parents[1] / "requirements.lock", name)
    name = client.own.get("package") or client.package.removesuffix(" (js)")
    packages = json.loads((CLIENTS / "package-lock.json").read_text("utf-8"))["packages"]
    return str(packages[f"node_modules/{name}"]["version"])


def _locked(lock: Path, name: str) -> str:
    lines = lock.read_text("utf-8").splitlines()
    return next(line.split("==")[1].split()[0] for line in lines if line.startswith(f"{name}=="))


if __name__ == "__main__":
    print(table(), heavy_table(), sep="\n", end="")
