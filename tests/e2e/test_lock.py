"""requirements.lock: it has what pyproject.toml needs, with hashes, and scripts/setup installs nothing else."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pip
import pytest
from packaging.requirements import Requirement

from chat_nest.providers import demo_server

ROOT = Path(__file__).parents[2]
LOCKED = runpy.run_path(str(ROOT / "scripts" / "locked"))
PARTS = LOCKED["parts"]()
ENTRIES = LOCKED["locked"]()
STALE = "requirements.lock is older than pyproject.toml: run scripts/lock"
NAMES = {name for name, _, _ in ENTRIES}
PINS = [re.match(r"\S+==(\S+)", text)[1] for _, text, _ in ENTRIES]


def versions(name):
    return {pin for (entry, _, _), pin in zip(ENTRIES, PINS) if entry == name}


@pytest.mark.parametrize("part", PARTS)
def test_the_lock_has_an_allowed_version_of_each_requirement(part):
    for text in PARTS[part]:
        requirement = Requirement(text)
        locked = versions(LOCKED["name_of"](text))
        assert locked, f"no {requirement.name}: {STALE}"
        assert all(requirement.specifier.contains(each, prereleases=True) for each in locked), f"{text}: {STALE}"


def test_nothing_in_the_lock_is_left_over():
    roots = {LOCKED["name_of"](each) for requirements in PARTS.values() for each in requirements}
    assert not NAMES - LOCKED["needed"](roots, ENTRIES), STALE


def test_each_locked_package_has_hashes():
    for name, text, _ in ENTRIES:
        first, *rest = text.replace("\\\n", "").split("--hash=")
        assert re.fullmatch(r"[\w.-]+==\S+( ; .*)?", first.strip()), first
        assert rest, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", each) for each in rest), name


def test_a_part_brings_what_its_packages_need_and_no_other_part():
    assert {"pyjwt", "cryptography", "cffi"} <= LOCKED["needed"]({"pyjwt"}, ENTRIES) <= NAMES - {"psycopg", "pydantic"}
    assert LOCKED["needed"]({"psycopg"}, ENTRIES) == {"psycopg", "psycopg-binary", "typing-extensions", "tzdata"}


def test_the_demo_is_the_one_that_error_messages_name():
    """In an environment that scripts/setup did not make, they are the command that installs it."""
    assert list(demo_server.WHEELS) == PARTS["demo"]
    assert [demo_server.OPENMP] == PARTS["openmp"]


def test_the_packages_of_javascript_have_hashes():
    import json

    lock = json.loads((ROOT / "tests" / "clients" / "package-lock.json").read_text("utf-8"))
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())


def checkout(folder, *, lock, needs=("made-up>=1",)):
    """A checkout of which each part needs this, with this lock."""
    (folder / "scripts").mkdir(parents=True)
    for script in ("setup", "locked"):
        shutil.copy(ROOT / "scripts" / script, folder / "scripts")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    listed = ", ".join(f'"{each}"' for each in needs)
    (folder / "pyproject.toml").write_text(
        f"[project]\ndependencies = [{listed}]\n[project.optional-dependencies]\nserver = []\ntokens = []\n"
        f"[dependency-groups]\nbuild = []\nfuzz = [{listed}]\n"
    )
    (folder / "requirements.lock").write_text(lock)
    return folder


def made_up(folder):
    """A wheel with one module; return its hash."""
    path = folder / "made_up-1.0-py3-none-any.whl"
    files = {
        "made_up.py": b"",
        "made_up-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n",
        "made_up-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }

    def row(name, data):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        return f"{name},sha256={digest},{len(data)}\n"

    record = "made_up-1.0.dist-info/RECORD"
    files[record] = ("".join(row(*each) for each in files.items()) + f"{record},,\n").encode()
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False)  # a minimal Python has no ensurepip
    [packages] = folder.glob("lib/python*/site-packages")
    shutil.copytree(Path(pip.__file__).parent, packages / "pip")
    return folder


def set_up(folder, environment, wheels):
    """Run `scripts/setup fuzz` with no package to be had but those of a folder; return its code and what it printed."""
    done = subprocess.run(
        [str(folder / "scripts" / "setup"), "fuzz"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "VENV_DIR": str(environment),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_NO_CACHE_DIR": "1",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def installed(environment):
    return bool(list(environment.glob("lib/python*/site-packages/made_up.py")))


def test_setup_installs_only_what_has_the_hash_of_the_lock(environment, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    right = made_up(wheels)
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    lock = "made-up==1.0 \\\n    --hash=sha256:{}\n    # via chat-nest (pyproject.toml)\n"

    code, said = set_up(checkout(tmp_path / "wrong", lock=lock.format(wrong)), environment, wheels)
    assert code == 1
    assert "DO NOT MATCH THE HASHES" in said
    assert not installed(environment)

    code, said = set_up(checkout(tmp_path / "right", lock=lock.format(right)), environment, wheels)
    assert (code, installed(environment)) == (0, True), said


def test_setup_refuses_a_requirement_that_the_lock_lacks(environment, tmp_path):
    stale = checkout(tmp_path, lock="made-up==1.0 --hash=sha256:00\n", needs=("made-up>=1", "added"))
    code, said = set_up(stale, environment, tmp_path)
    assert code == 1
    assert said.splitlines()[-1] == "locked: requirements.lock has no added: run scripts/lock"


def test_an_unknown_part_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "locked", "core", "nothing"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("locked: there is no part nothing: core, server, ")
