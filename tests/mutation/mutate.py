"""Changes the code in one small place at a time, and names the changes that no test notices: `python mutate.py [NAME ...]`.

Each change is a mutant. mutmut makes those of a module of modules.toml; those of by_hand.toml are written there, for SQL,
Lua and what mutmut leaves alone (decorated functions). A mutant that survives its tests is an error, unless explained.toml
says why it changes nothing that matters. Of a module with many mutants a sample is drawn, the same each time, of the size
that modules.toml has or MUTATE_SAMPLE (0 is all). Everything happens in a copy, below build/mutate.
"""

from __future__ import annotations

import ast
import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "mutate"
COPIED = ("src", "tests", "docs", "examples", "scripts", "README.md", "pyproject.toml")
KILLED = {1, 3, -24, 24, 36, 152, 255, -11, -9}  # exit codes: a test failed, or it never ended, or crashed
PROCESSES = os.environ.get("MUTATE_PROCESSES", "2")
CONFIG = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = [{file!r}]
also_copy = ["docs", "examples", "scripts", "README.md"]
pytest_add_cli_args_test_selection = {tests!r}
do_not_mutate_patterns = ['\\blog\\.(error|warning|info|debug)\\(']  # what a log says is tested where it matters
use_git_change_detection = false
timeout_multiplier = 3.0
"""


class Survivor(NamedTuple):
    file: str
    line: int
    was: str
    becomes: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}\n  - {self.was}\n  + {self.becomes}"


class Result(NamedTuple):
    """What became of the mutants of a module: how many were tried, and those that no test noticed."""

    mutants: int
    survivors: Sequence[Survivor]
    all: int
    """How many there are, of which `mutants` were tried."""


def read(name: str) -> dict:
    return tomllib.loads((HERE / name).read_text("utf-8"))


def say(text: str) -> None:
    print(f"mutate: {text}", flush=True)


def fresh_copy(name: str) -> Path:
    folder = BUILD / name.replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for each in COPIED:
        source = ROOT / each
        if source.is_dir():
            shutil.copytree(source, folder / each, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
        else:
            shutil.copy(source, folder / each)
    return folder


def by_tool(name: str, module: dict) -> Result:
    folder = fresh_copy(name)
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(CONFIG.format(file=module["file"], tests=module["tests"]))
    names = names_of(folder, module["file"])
    size = int(os.environ.get("MUTATE_SAMPLE") or module.get("sample", 0))
    chosen = sorted(random.Random(0).sample(names, size)) if 0 < size < len(names) else []
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", PROCESSES, *chosen]
    environment = {**os.environ, "TEST_EXAMPLES": "few"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        said = show_progress(name, run)
    if run.returncode:
        raise SystemExit(f"mutate: {name}: its tests fail, or mutmut does:\n{said[-4_000:]}")
    return results(folder, module["file"])


def names_of(folder: Path, file: str) -> list[str]:
    """What mutmut calls the mutants of a file."""
    from mutmut.configuration import reset_config
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    with contextlib.chdir(folder):
        reset_config()
        names = mutate_file_contents(file, Path(file).read_text("utf-8"), None, None).mutant_names
        return [get_mutant_name(Path(file), name) for name in names]


def show_progress(name: str, run: subprocess.Popen[bytes]) -> str:
    assert run.stdout is not None
    said, shown = b"", 0
    while piece := os.read(run.stdout.fileno(), 65_536):
        said += piece
        counts = re.findall(rb"(\d+)/(\d+) ", said[-400:])
        if counts:
            done, total = map(int, counts[-1])
            if done * 10 // max(total, 1) > shown:
                shown = done * 10 // total
                say(f"{name}: {done} of {total}")
    return said.decode(errors="replace")


def results(folder: Path, file: str) -> Result:
    from mutmut.configuration import reset_config
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    with contextlib.chdir(folder):
        reset_config()
        data = SourceFileMutationData(path=Path(file))
        data.load()
        tried = {mutant: code for mutant, code in data.exit_code_by_key.items() if code is not None}
        survivors = [
            survivor(folder, file, mutant, get_diff_for_mutant(mutant, path=Path(file)))
            for mutant, code in tried.items()
            if code not in KILLED
        ]
    return Result(len(tried), survivors, len(data.exit_code_by_key))


def survivor(folder: Path, file: str, mutant: str, diff: str) -> Survivor:
    lines = diff.splitlines()[2:]
    was = " ".join(line[1:].strip() for line in lines if line.startswith("-"))
    becomes = " ".join(line[1:].strip() for line in lines if line.startswith("+"))
    hunk = next(number for number, line in enumerate(lines) if line.startswith("@@"))
    first = int(re.match(r"@@ -(\d+)", lines[hunk])[1])
    before = next(number for number, line in enumerate(lines[hunk + 1 :]) if line[0] in "-+")
    return Survivor(file, place_of(folder / file, mutant) + first - 1 + before, was, becomes)


def place_of(file: Path, mutant: str) -> int:
    """The line of the mutated function; mutmut calls it `module.x_function` or `module.xǁClassǁmethod`."""
    *owner, name = re.sub(r"__mutmut_\d+$", "", mutant.rpartition(".")[2]).removeprefix("x").lstrip("ǁ").split("ǁ")
    scope: ast.AST = ast.parse(file.read_text("utf-8"))
    for wanted in [*owner, name if owner else name.removeprefix("_")]:
        scope = next(each for each in ast.iter_child_nodes(scope) if getattr(each, "name", None) == wanted)
    return scope.lineno


def by_hand(name: str, mutants: Sequence[dict]) -> Result:
    folder = fresh_copy(name)
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "TEST_EXAMPLES": "few"}

    def passes(tests: Sequence[str]) -> bool:
        command = [sys.executable, "-m", "pytest", "-q", "-x", *tests]
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if run.returncode not in (0, 1):
            raise SystemExit(f"mutate: {name}: the tests {tests} can't run:\n{run.stdout[-4_000:]}")
        return run.returncode == 0

    survivors = []
    for tests in sorted({tuple(mutant["tests"]) for mutant in mutants}):
        if not passes(tests):
            raise SystemExit(f"mutate: {name}: the tests {tests} fail without a mutant")
    for number, mutant in enumerate(mutants, 1):
        path = folder / mutant["file"]
        text = path.read_text("utf-8")
        if text.count(mutant["was"]) != 1:
            raise SystemExit(f"mutate: {name}: not exactly once in {mutant['file']}: {mutant['was']}")
        path.write_text(text.replace(mutant["was"], mutant["becomes"]), "utf-8")
        if survived := passes(mutant["tests"]):
            line = text[: text.index(mutant["was"])].count("\n") + 1
            survivors.append(Survivor(mutant["file"], line, mutant["was"].strip(), mutant["becomes"].strip()))
        path.write_text(text, "utf-8")
        say(f"{name}: {number} of {len(mutants)}{' survived' if survived else ''}")
    return Result(len(mutants), survivors, len(mutants))


def unexplained(survivors: Sequence[Survivor], explained: Counter[tuple[str, str, str]]) -> Iterator[Survivor]:
    left = Counter(explained)
    for each in survivors:
        place = (each.file, each.was, each.becomes)
        if left[place] <= 0:
            yield each
        left[place] -= 1


def main(names: Sequence[str]) -> int:
    modules, hand = read("modules.toml"), read("by_hand.toml")
    if wrong := set(names) - modules.keys() - hand.keys():
        raise SystemExit(f"mutate: there is no {', '.join(sorted(wrong))}: {', '.join([*modules, *hand])}")
    explained = Counter((each["file"], each["was"], each["becomes"]) for each in read("explained.toml")["survivor"])
    left = 0
    for name in names or [*modules, *hand]:
        began = time.monotonic()
        result = by_tool(name, modules[name]) if name in modules else by_hand(name, hand[name])
        unknown = list(unexplained(result.survivors, explained))
        for each in unknown:
            print(each)
        left += len(unknown)
        say(
            f"{name}: {result.mutants}{f' of {result.all}' if result.mutants < result.all else ''} mutants, {result.mutants - len(result.survivors)} killed, "
            f"{len(result.survivors) - len(unknown)} survivors explained, {len(unknown)} not, "
            f"{time.monotonic() - began:.0f} s"
        )
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
