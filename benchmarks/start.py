"""How long the import and the start take, and what an installation brings.

    scripts/bench start [--quick] [--runs N] [--sizes] [--json FILE]

Import: a fresh interpreter each time, its files in the page cache; the clock around `import chat_nest` alone. Ready:
from the start of the process until /readyz answers 200; the provider is the stand-in. `--sizes` installs the package,
plain and with each extra, into new environments, which takes minutes. Exit code 1 means that something failed, and that
there is no table; 2 that something is missing.
"""

from __future__ import annotations

import argparse
import http.client
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import msgspec

from benchmarks.processes import Failed, Missing, Server, free_port
from benchmarks.programs import BUILD, StandIn, compile_programs
from benchmarks.report import machine
from benchmarks.stacks import chat_nest

ROOT = Path(__file__).parent.parent
READY_MOST, IMPORT_MOST = 1.0, 0.3
"""Seconds: the goals."""
IMPORT = """
import sys, time
before = set(sys.modules)
began = time.perf_counter()
import chat_nest
took = time.perf_counter() - began
new = set(sys.modules) - before
others = sorted({name.partition(".")[0] for name in new} - set(sys.stdlib_module_names) - {"chat_nest"})
print(took, len(new), sum(name.partition(".")[0] == "chat_nest" for name in new), *others)
"""


Measured = TypeVar("Measured")


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    seconds: float
    modules: int
    own: int
    others: list[str]
    """Packages that are neither ours nor the standard library's."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    distributions: list[str]
    megabytes: float
    """All of the environment but pip's and uv's own files."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench start", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three runs; for a first look")
    parser.add_argument("--runs", type=int, metavar="N", help="default 15, or 3 with --quick")
    parser.add_argument(
        "--bin", type=Path, metavar="DIR", default=Path(sys.executable).parent,
        help="that of another environment; what is installed beside the package may be imported",
    )  # fmt: skip
    parser.add_argument("--sizes", action="store_true", help="also what the package and its extras install")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every run")
    asked = parser.parse_args()
    programs = asked.bin.absolute()
    runs = asked.runs or (3 if asked.quick else 15)
    try:
        compile_programs()
        imports = repeated(runs, lambda: imported(programs))
        ready = {store: repeated(runs, lambda store=store: seconds_to_ready(store, programs)) for store in STORES}
        sizes = {name: installed(extras) for name, extras in variants().items()} if asked.sizes else {}
    except Missing as e:
        print(e, file=sys.stderr)
        return 2
    except Failed as e:
        print(f"FAILED: {e}", file=sys.stderr)
        return 1
    print(f"Medians of {runs} runs, in {programs}.")
    print(markdown(imports, ready))
    if sizes:
        print("\n" + markdown_of_sizes(sizes))
    if asked.json:
        whole = {"machine": machine(), "import": imports, "ready": ready, "sizes": sizes}
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(whole)))
    return 0


STORES = {"memory": "memory://", "sqlite": "sqlite:///chat-nest.db"}


def repeated(runs: int, measure: Callable[[], Measured]) -> list[Measured]:
    """The first one warms the page cache and writes the byte code; it does not count."""
    return [measure() for _ in range(runs + 1)][1:]


def imported(programs: Path) -> Imported:
    """Raises Failed where the import does."""
    done = subprocess.run([programs / "python", "-c", IMPORT], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"import chat_nest failed.\n{done.stderr}")
    seconds, modules, own, *others = done.stdout.split()
    return Imported(seconds=float(seconds), modules=int(modules), own=int(own), others=others)


def seconds_to_ready(store: str, programs: Path) -> float:
    """Raises Failed where the server is not ready in 15 seconds."""
    directory = Path(tempfile.mkdtemp(prefix="start-", dir=BUILD))
    standin, port = StandIn(), free_port()
    command = chat_nest(STORES[store], programs)(directory, port, standin.url())
    began = time.perf_counter()
    server = Server(f"chat-nest {store}", command, port=port, core=None, directory=directory)
    try:
        while readyz(port) != 200:
            if time.perf_counter() - began > 15 or (server.process and server.process.poll() is not None):
                raise Failed(f"{server.name} is not ready.\n{server.last_words()}")
            time.sleep(0.002)
        return time.perf_counter() - began
    finally:
        server.stop()
        standin.stop()
        shutil.rmtree(directory)


def readyz(port: int) -> int | None:
    """The status, or None while nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def variants() -> dict[str, list[str]]:
    """The extras that are installed, by how the table names them: none, each alone, all of them."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = list(tomllib.load(file)["project"]["optional-dependencies"])
    return {"plain": [], **{f"[{name}]": [name] for name in extras}, "all extras": extras}


def installed(extras: list[str]) -> Size:
    """Install a wheel of this checkout into a new environment. Raises Failed if that fails."""
    own_pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(prefix="sizes-", dir=BUILD) as place:
        run(sys.executable, "-m", "venv", place)
        run(*own_pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", f"{place}/own", ROOT)
        needed = Path(place, "requirements.txt")
        needed.write_text(run(sys.executable, ROOT / "scripts" / "locked", "core", *extras), "utf-8")
        pip = [f"{place}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        install = [*pip, "install", "--quiet", "--no-compile"]
        run(*install, "--require-hashes", "--only-binary", ":all:", "-r", needed)
        run(*install, "--no-deps", "--no-index", "--find-links", f"{place}/own", "chat-nest")
        listed = run(*pip, "list", "--format=freeze")
        names = [line.partition("==")[0] for line in listed.split()]
        own = {"pip", "setuptools", "wheel"}
        packages = next(Path(place).glob("lib/python*/site-packages"))
        total = sum(
            path.stat().st_size
            for path in packages.rglob("*")
            if path.is_file() and path.relative_to(packages).parts[0].partition("-")[0] not in {*own, "pkg_resources"}
        )
    return Size(distributions=sorted(set(names) - own), megabytes=total / 1e6)


def run(*command: str | Path) -> str:
    """What the command prints. Raises Failed where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))} failed.\n{done.stderr}")
    return done.stdout


def markdown(imports: list[Imported], ready: dict[str, list[float]]) -> str:
    first = imports[0]
    what = f"import chat_nest: {first.modules} modules, {first.own} of them ours, and {', '.join(first.others)}"
    rows = ["| | at most, s | median, s | least to greatest | |", "| --- | ---: | ---: | ---: | --- |"]
    measured = {what: (IMPORT_MOST, [one.seconds for one in imports])}
    measured |= {f"start to ready, {store}": (READY_MOST, seconds) for store, seconds in ready.items()}
    for name, (most, seconds) in measured.items():
        verdict = "met" if median(seconds) <= most else "not met"
        cells: list[Any] = [name, f"{most:g}", f"{median(seconds):.3f}", f"{min(seconds):.3f} - {max(seconds):.3f}"]
        rows.append(f"| {' | '.join(cells)} | {verdict} |")
    return "\n".join(rows)


def markdown_of_sizes(sizes: dict[str, Size]) -> str:
    rows = ["| installed | distributions | MB | what |", "| --- | ---: | ---: | --- |"]
    for name, size in sizes.items():
        rows.append(f"| {name} | {len(size.distributions)} | {size.megabytes:.1f} | {', '.join(size.distributions)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
