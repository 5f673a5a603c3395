"""The commands in error messages: each works in the environment that the error comes from."""

from __future__ import annotations

import shlex
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

from chat_nest.core import extras


NO_FILE = ": cannot open shared object file: No such file or directory"


def run_python(code, **variables):
    """What a process of this interpreter prints, with these variables alone."""
    return subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    ).stdout


def test_every_extra_has_its_requirements():
    known = metadata("chat-nest").get_all("Provides-Extra")
    assert {"redis", "postgres", "jwt", "prices", "tokens", "server"} <= set(known)  # type: ignore[arg-type]
    assert extras.requirements("redis") == ("hiredis>=3",)
    assert extras.requirements("jwt") == ("pyjwt[crypto]>=2.10",)
    for extra in known:
        assert all("extra" not in each for each in extras.requirements(extra)), extra


def test_a_requirement_keeps_its_other_marker():
    [uvloop] = [each for each in extras.requirements("server") if each.startswith("uvloop")]
    name, marker = uvloop.split("; ")
    assert name == "uvloop>=0.21"
    assert marker.replace('"', "'") == "sys_platform != 'win32'"


def test_pip_accepts_the_command():
    command = shlex.split(extras.pip_command(extras.requirements("server")))
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    done = subprocess.run([*command, "--dry-run", "--no-deps", "--no-index"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # everything is installed: pip has read each requirement, and its marker


def test_without_metadata_it_names_the_extra(monkeypatch):
    def unknown(_name):
        raise PackageNotFoundError

    monkeypatch.setattr("importlib.metadata.requires", unknown)
    assert extras.requirements("redis") == ("chat-nest[redis]",)


def test_in_the_environment_of_a_checkout_the_remedy_is_scripts_setup(monkeypatch):
    monkeypatch.setenv("VENV_DIR", sys.prefix)
    assert extras.install("redis") == shlex.join([str(extras.CHECKOUT / "scripts/setup"), "redis"])
    monkeypatch.setenv("VENV_DIR", "/elsewhere")
    assert extras.install("redis") == shlex.join([sys.executable, "-m", "pip", "install", "hiredis>=3"])


def test_an_installed_package_has_no_scripts(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "CHECKOUT", tmp_path)
    assert extras.install("jwt").endswith("-m pip install 'pyjwt[crypto]>=2.10'")


def test_the_python_of_the_system_needs_the_flag_of_pep_668(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    assert "--break-system-packages" not in extras.pip_command(["a"])
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    assert extras.pip_command(["a"]).endswith("install --break-system-packages a")


def test_without_pip_uv_installs_into_the_same_environment(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda _name: None)
    monkeypatch.setattr(extras.shutil, "which", lambda name: f"/bin/{name}")
    assert extras.pip_command(["a"]) == f"uv pip install --python {shlex.quote(sys.executable)} a"


@pytest.mark.parametrize(
    ("text", "library"),
    [
        ("libgomp.so.1: cannot open shared object file: No such file or directory", "libgomp.so.1"),
        ("Error loading shared library libgomp.so.1: No such file or directory (needed by /x.so)", "libgomp.so.1"),
        ("libstdc++.so.6: cannot open shared object file: No such file or directory", "libstdc++.so.6"),
        ("/lib/libc.so.6: version `GLIBC_2.38' not found", ""),
        ("No module named 'xllamacpp'", ""),
    ],
)
def test_the_library_that_an_import_error_names(text, library):
    assert extras.missing_library(text) == library


def test_it_parses_the_real_messages_of_the_loader():
    code = "import ctypes\ntry: ctypes.CDLL('libnone-2.so.7')\nexcept OSError as error: print(error)"
    assert extras.missing_library(run_python(code)) == "libnone-2.so.7"


@pytest.mark.parametrize(
    ("library", "package"),
    [
        ("libgomp.so.1", "libgomp1"),
        ("libstdc++.so.6", "libstdc++6"),
        ("libgcc_s.so.1", "libgcc-s1"),
        ("libatomic.so.1", "libatomic1"),
        ("libQt5.so.3", "libqt5-3"),
    ],
)
def test_debian_s_package_of_a_library(library, package):
    assert extras.debian_package(library) == package


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt-get", "apt-get install -y libgomp1"),
        ("dnf", "dnf install -y 'libgomp.so.1()(64bit)'"),
        ("apk", "apk add so:libgomp.so.1"),
    ],
)
@pytest.mark.parametrize("user", [0, 1000])
def test_each_system_has_its_command(monkeypatch, manager, command, user):
    monkeypatch.setattr(extras.shutil, "which", lambda name: name if name == manager else None)
    monkeypatch.setattr(extras.os, "geteuid", lambda: user)
    sudo = "sudo " if user else ""
    assert extras.library_command("libgomp.so.1") == f"{sudo}{command}"
    assert extras.library_remedy("libgomp.so.1") == f"run: {sudo}{command}"


def test_on_an_unknown_system_the_remedy_is_no_command(monkeypatch):
    monkeypatch.setattr(extras.shutil, "which", lambda _name: None)
    assert extras.library_command("libgomp.so.1") == ""
    assert extras.library_remedy("libgomp.so.1") == "install the package of this system that has libgomp.so.1"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'psycopg'"), "a package that is not installed: run: INSTALL"),
        (
            ImportError("no pq wrapper.\n- 'binary': No module named 'b'"),
            "a package that is not installed: run: INSTALL",
        ),
        (ImportError(f"libnone.so.1{NO_FILE}"), "libnone.so.1, which is missing: REMEDY"),
        (ImportError(f"no pq wrapper.\n- 'c': No module named 'c'\n- libnone.so.1{NO_FILE}"), "libnone.so.1, which is"),
        (ImportError("built for another\nmachine"), "a package that can't be loaded: built for another machine"),
    ],
)
def test_a_package_that_can_not_be_imported_has_a_specific_remedy(error, reason):
    reason = reason.replace("INSTALL", extras.install("postgres"))
    reason = reason.replace("REMEDY", extras.library_remedy("libnone.so.1"))
    assert extras.explain("PostgreSQL needs", "postgres", error).startswith(f"PostgreSQL needs {reason}")


def test_scripts_setup_runs_it_without_the_package():
    file = Path(extras.__file__)
    done = subprocess.run([sys.executable, "-I", "-S", file, "libgomp.so.1"], capture_output=True, text=True)
    assert done.stdout == f"{extras.library_command('libgomp.so.1')}\n"
