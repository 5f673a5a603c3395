"""A release: the same bytes each time, the version of the package in all of it, and an SBOM that CycloneDX's schema accepts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import jsonschema_rs
import pytest

import chat_nest

ROOT = Path(__file__).parents[2]
VERSION = chat_nest.__version__
PARTS = ("core", "server", "tokens", "redis", "postgres", "jwt", "prices")


def built(folder: Path, mode: int) -> dict[str, bytes]:
    """Build the wheel and the sdist from a copy of what they are made of; return their bytes by name."""
    (folder / "source").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder / "source")
    shutil.copytree(ROOT / "src", folder / "source" / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder / "source").rglob("*"):
        os.utime(path, (mode, mode))  # another checkout has other times and rights
        path.chmod(path.stat().st_mode & ~0o077 if mode % 2 else path.stat().st_mode)
    done = subprocess.run(
        [Path(sys.executable).with_name("hatchling"), "build", "-t", "wheel", "-t", "sdist", "-d", folder / "out"],
        cwd=folder / "source",
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


def test_two_builds_of_the_same_source_are_equal_and_whole(tmp_path) -> None:
    first, second = built(tmp_path / "a", 1_500_000_000), built(tmp_path / "b" / "deeper", 1_600_000_001)
    wheel, sdist = f"chat_nest-{VERSION}-py3-none-any.whl", f"chat_nest-{VERSION}.tar.gz"
    assert set(first) == {wheel, sdist}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in first.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in second.items()
    }
    with zipfile.ZipFile(tmp_path / "a" / "out" / wheel) as archive:
        names = set(archive.namelist())
        assert f"Version: {VERSION}\n" in archive.read(f"chat_nest-{VERSION}.dist-info/METADATA").decode()
    there = {
        str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/chat_nest").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip
    assert there <= names, "each file of the package: SQL, Lua and the page, too"
    with tarfile.open(tmp_path / "a" / "out" / sdist) as archive:
        assert f"chat_nest-{VERSION}/src/chat_nest/__init__.py" in archive.getnames()


def test_the_version_is_written_in_one_place() -> None:
    places = [
        path
        for path in (*ROOT.glob("*.toml"), *ROOT.glob("src/**/*.py"), *ROOT.glob("scripts/*"))
        if re.search(rf"(?<![\d.]){re.escape(VERSION)}(?![\d.])", path.read_text("utf-8"))
    ]
    assert places == [ROOT / "src" / "chat_nest" / "__init__.py"]


@pytest.fixture(scope="module")
def requirements(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("release") / "requirements.txt"
    done = subprocess.run([sys.executable, ROOT / "scripts" / "locked", *PARTS], capture_output=True, check=True)
    path.write_bytes(done.stdout)
    return path


def sbom(requirements: Path) -> bytes:
    command = [sys.executable, ROOT / "scripts" / "sbom", requirements, VERSION, "c" * 40, "1700000000"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_the_sbom_is_valid_repeatable_and_has_each_locked_package_with_its_hashes(requirements) -> None:
    import cyclonedx.schema

    first = sbom(requirements)
    assert first == sbom(requirements)
    document = json.loads(first)
    schemas = Path(cyclonedx.schema.__file__).parent / "_res"
    load = lambda name: json.loads((schemas / name).read_text())
    registry = jsonschema_rs.Registry(
        [
            (f"http://cyclonedx.org/schema/{name}", load(name))
            for name in ("spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json")
        ]
    )
    jsonschema_rs.validator_for(load("bom-1.6.SNAPSHOT.schema.json"), registry=registry).validate(document)
    locked = runpy.run_path(str(ROOT / "scripts" / "locked"))
    entries = locked["locked"]()
    roots = {locked["name_of"](each) for part in PARTS for each in locked["parts"]()[part]}
    wanted = locked["needed"](roots, entries)
    listed = {locked["name_of"](each["name"]) for each in document["components"]}
    assert listed == wanted
    assert len(document["components"]) == sum(name in wanted for name, _, _ in entries)
    assert all(each["hashes"] and each["purl"].startswith("pkg:pypi/") for each in document["components"])
    assert (document["metadata"]["component"]["name"], document["metadata"]["component"]["version"]) == (
        "chat-nest",
        VERSION,
    )
