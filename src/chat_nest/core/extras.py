"""Commands that install a missing package in this environment, for error messages.

Also a program for scripts/setup: `python extras.py libgomp.so.1` prints the command for a shared library. It needs
nothing but the standard library.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

DISTRIBUTION = "chat-nest"
CHECKOUT = Path(__file__).resolve().parents[3]

_EXTRA = re.compile(r"""\s*(?:and\s+)?extra\s*==\s*["']([\w-]+)["']""")
_MISSING_LIBRARY = re.compile(
    r"([\w.+-]+\.so(?:\.\d+)*): cannot open shared object file"  # glibc
    r"|Error loading shared library ([\w.+-]+\.so(?:\.\d+)*)"  # musl
)


def requirements(extra: str) -> tuple[str, ...]:
    """Return the requirements of the extra, such as `hiredis>=3`, from the metadata of the installed package."""
    from importlib.metadata import PackageNotFoundError, requires  # noqa: PLC0415 - slow to load, and seldom needed

    try:
        known = requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # imported from a folder of sources
        known = []
    found: list[str] = []
    for requirement in known:
        name, _, marker = requirement.partition(";")
        if extra in _EXTRA.findall(marker):
            rest = _EXTRA.sub("", marker).strip().strip("()")
            found.append(f"{name.strip()}; {rest}" if rest else name.strip())
    return tuple(found) or (f"{DISTRIBUTION}[{extra}]",)


def install(extra: str) -> str:
    """Return the command that installs an extra here. `chat-nest[...]` works only if an index has the package."""
    return setup_command(extra) or pip_command(requirements(extra))


def setup_command(part: str) -> str:
    """Return the command of scripts/setup for a part; "" unless this is a checkout in its own environment."""
    script = CHECKOUT / "scripts" / "setup"
    venv = os.environ.get("VENV_DIR") or CHECKOUT / ".venv"
    if not script.is_file() or not (CHECKOUT / "pyproject.toml").is_file() or Path(venv).resolve() != _prefix():
        return ""
    return shlex.join([str(script), part])


def pip_command(requirements: Iterable[str], *options: str) -> str:
    """Return the command that installs the requirements into this interpreter's environment."""
    own = sys.prefix != sys.base_prefix
    managed = not own and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()  # PEP 668
    forced = ("--break-system-packages",) if managed else ()
    pip = [sys.executable, "-m", "pip", "install"]
    if find_spec("pip") is None and shutil.which("uv"):
        pip = ["uv", "pip", "install", "--python", sys.executable]
    return shlex.join([*pip, *forced, *options, *requirements])


def missing_library(text: str) -> str:
    """Return the shared library that the text of an ImportError names, such as `libgomp.so.1`, or ""."""
    found = _MISSING_LIBRARY.search(text)
    return (found[1] or found[2]) if found else ""


def explain(need: str, extra: str, error: ImportError) -> str:
    """Return why a package of an extra can't be imported, and the remedy. `need` begins the sentence: `Redis needs`."""
    reason = " ".join(str(error).split())
    if library := missing_library(reason):
        return f"{need} {library}, which is missing: {library_remedy(library)}"
    if isinstance(error, ModuleNotFoundError) or "No module named" in reason:  # psycopg tries several modules
        return f"{need} a package that is not installed: run: {install(extra)}"
    return f"{need} a package that can't be loaded: {reason}"


def library_remedy(library: str) -> str:
    """Return the instruction for the operator to install a shared library."""
    command = library_command(library)
    return f"run: {command}" if command else f"install the package of this system that has {library}"


def library_command(library: str) -> str:
    """Return the command that installs a shared library from this system's packages, or "" if it is unknown."""
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    for manager, *arguments in (
        ("apt-get", "install", "-y", debian_package(library)),
        ("dnf", "install", "-y", f"{library}()(64bit)"),
        ("zypper", "install", "-y", f"{library}()(64bit)"),
        ("apk", "add", f"so:{library}"),
    ):
        if shutil.which(manager):
            return shlex.join([*sudo, manager, *arguments])
    return ""


def debian_package(library: str) -> str:
    """Return the package that has a shared library, by Debian's naming rule (Policy, section 8.1).

    libgomp.so.1 is in libgomp1, libgcc_s.so.1 in libgcc-s1, libfoo2.so.3 in libfoo2-3.
    """
    name, _, version = library.partition(".so")
    version = version.removeprefix(".")
    hyphen = "-" if name[-1:].isdigit() and version else ""
    return f"{name}{hyphen}{version}".lower().replace("_", "-")


def _prefix() -> Path:
    return Path(sys.prefix).resolve()


if __name__ == "__main__":
    sys.stdout.write(f"{library_command(sys.argv[1])}\n")
