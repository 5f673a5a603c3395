#!/usr/bin/env python3
"""A stand-in for systemctl in a system without systemd: it starts and stops chat-nest as its unit says, nginx, and
Prometheus.

It does what the unit says of the user, the state directory, credentials and variables, and of rights only the absence
of capabilities; systemd-analyze and the tests check the rest.
"""

import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

UNIT = Path("/etc/systemd/system/chat-nest.service")
PID = Path("/run/chat-nest.pid")


def setting(name):
    """All values of a key of the unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def unprivileged(*command):
    """The command as the service's user, without capabilities."""
    [user] = setting("User")
    return [
        "setpriv",
        f"--reuid={user}",
        f"--regid={user}",
        "--init-groups",
        "--no-new-privs",
        "--bounding-set=-all",
        *command,
    ]


def start():
    [user] = setting("User")
    entry = pwd.getpwnam(user)
    [state] = setting("StateDirectory")
    folder = Path("/var/lib") / state
    folder.mkdir(exist_ok=True)
    folder.chmod(int(setting("StateDirectoryMode")[0], 8))
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    credentials = Path("/run/credentials/chat-nest.service")
    shutil.rmtree(credentials, ignore_errors=True)
    credentials.mkdir(parents=True)
    for each in setting("LoadCredential"):
        name, _, source = each.partition(":")
        for path in Path(source).iterdir():
            to = credentials / f"{name}_{path.name}"
            shutil.copy(path, to)
            to.chmod(0o400)
            os.chown(to, entry.pw_uid, entry.pw_gid)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    lines = setting("Environment")
    for each in setting("EnvironmentFile"):
        path = Path(each.removeprefix("-"))
        if path.exists() or not each.startswith("-"):
            lines += path.read_text().splitlines()
    environment.update(line.partition("=")[::2] for line in lines if "=" in line)
    [command] = setting("ExecStart")
    command = re.sub(r"\$\{(\w+)\}", lambda found: environment[found[1]], command)
    log = open("/var/log/chat-nest.log", "ab")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0chat-nest-stand-in")
        environment["NOTIFY_SOCKET"] = "@chat-nest-stand-in"
        process = subprocess.Popen(
            unprivileged(*shlex.split(command)),
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        PID.write_text(str(process.pid))
        manager.settimeout(90)
        while b"READY=1" not in manager.recv(4_096):
            pass


def stop():
    if PID.exists():
        pid = int(PID.read_text())
        os.kill(pid, signal.SIGTERM)
        while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.05)
        PID.unlink()


def start_prometheus():
    """Start Prometheus as its package's unit does; one that the package has started itself is ended before."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == "prometheus":
                os.kill(int(path.parent.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass
    log = open("/var/log/prometheus.log", "ab")
    options = ("--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/var/lib/prometheus/metrics2/")
    subprocess.Popen(
        ["setpriv", "--reuid=prometheus", "--regid=prometheus", "--init-groups", "/usr/bin/prometheus", *options],
        cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip


def main(verb, *given):
    names = [name.removesuffix(".service") for name in given if not name.startswith("-")]
    match verb, names:
        case "restart", [name, *more] if more:
            main(verb, name)
            main(verb, *more)
        case "restart", ["prometheus"]:
            start_prometheus()
        case "daemon-reload", []:
            assert UNIT.exists()
        case "enable" | "start", ["chat-nest"]:
            start()
        case "restart", ["chat-nest"]:
            stop()
            start()
        case "reload", ["chat-nest"]:
            [command] = setting("ExecReload")
            subprocess.run(unprivileged(*shlex.split(command)), cwd="/var/lib/chat-nest", check=True)
        case "stop", ["chat-nest"]:
            stop()
        case "reload-or-restart", ["nginx"]:
            if subprocess.run(["nginx", "-s", "reload"], stderr=subprocess.DEVNULL).returncode:
                subprocess.run(["nginx"], check=True)
        case _:
            sys.exit(f"systemctl: this stand-in does not know: {verb} {' '.join(names)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
