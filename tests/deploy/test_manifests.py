"""The unit, the image's configuration, the compose file and the manifests of deploy/: what they name is what the server reads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from webhook_receiver import SECRET

from chat_nest.cli.commands import chat_nest
from chat_nest.server.config.settings import load
from chat_nest.server.workers import GRACE_SECONDS

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = (DEPLOY / "systemd" / "chat-nest.service").read_text()
SOCKET = (DEPLOY / "systemd" / "chat-nest.socket").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "container" / "compose.yaml").read_text())
MANIFESTS = {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes" / "chat-nest.yaml").read_text())}
POD = MANIFESTS["StatefulSet"]["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
OPERATORS = {"keys_admin": "a" * 64 + "\n", "keys_webhook": f"{SECRET}\n"}
"""The files that docs/install.md makes for operators, as systemd hands them on."""


def drained_in(config) -> float:
    """The most seconds from SIGTERM to the end of the last process."""
    return config.server.drain_seconds + config.timeouts.write + GRACE_SECONDS


@pytest.fixture
def written(tmp_path):
    """Write a configuration of deploy/ with paths that exist here; return its path."""
    (tmp_path / "keys_openai").write_text("sk-a\nsk-b\n")
    for name, text in OPERATORS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)

    def write(text: str) -> str:
        for folder in ("/run/credentials/chat-nest.service/keys_", "/etc/chat-nest-keys/", "/run/secrets/"):
            text = text.replace(f"{folder}openai", f"{tmp_path}/keys_openai")
            for name in OPERATORS:
                text = text.replace(f"{folder}{name.removeprefix('keys_')}", f"{tmp_path}/{name}")
        text = text.replace("/var/lib/chat-nest/", f"{tmp_path}/")
        (tmp_path / "chat.toml").write_text(text)
        return str(tmp_path / "chat.toml")

    return write


def run(*arguments: str, **environ: str) -> str:
    clean = {name: None for name in os.environ if name.startswith(("CHAT_NEST_", "OPENAI_"))}
    result = CliRunner().invoke(chat_nest, arguments, env={**clean, **environ})
    assert result.exit_code == 0, result.output
    return result.output


def checked(file: str, **environ: str) -> str:
    return run("check", "--config", file, **environ)


def test_the_sample_configuration_passes_check_and_limits_strangers(written) -> None:
    output = checked(written((DEPLOY / "chat-nest.toml").read_text()))
    assert "2 keys in" in output
    assert "unlimited" not in output
    assert "Note" not in output


def test_each_commented_line_of_the_sample_is_right_too(written) -> None:
    text = re.sub(r"^# (?=\[|\w+ = )", "", (DEPLOY / "chat-nest.toml").read_text(), flags=re.MULTILINE)
    file, secret = written(text), {"CHAT_NEST_IDENTITY_SECRET": "s" * 64}
    run("keys", "create", "ada", "--config", file, **secret)
    assert "keys.json" in checked(file, **secret)


def test_the_image_listens_outside_itself_with_any_key_of_its_environment(written) -> None:
    output = checked(written((DEPLOY / "container" / "chat-nest.toml").read_text()), OPENAI_API_KEY="sk-x")
    assert "0.0.0.0 port 8000" in output


def test_the_compose_file_sets_what_the_server_knows(tmp_path) -> None:
    chat = COMPOSE["services"]["chat"]
    (tmp_path / "openai").write_text("sk-a\n")
    environ = {
        name: value.replace("/run/secrets/openai", f"{tmp_path}/openai").replace("/var/lib/chat-nest", str(tmp_path))
        for name, value in chat["environment"].items()
    }
    config = load(str(DEPLOY / "container" / "chat-nest.toml"), {**environ, "CHAT_NEST_STORE_URL": "memory://"})
    assert config.limits.tokens_per_day
    assert int(chat["stop_grace_period"].removesuffix("s")) >= drained_in(config)
    assert environ["CHAT_NEST_STORE_URL"].startswith("redis://redis:")


def test_the_pods_have_time_to_drain_and_a_configuration_that_passes_check(written) -> None:
    file = written(MANIFESTS["ConfigMap"]["data"]["chat-nest.toml"])
    secrets = {"CHAT_NEST_STORE_URL": "memory://", "CHAT_NEST_SERVER_CALLER_SECRET": "s" * 64}
    assert {each["name"] for each in CONTAINER["env"]} == set(secrets)
    config = load(file, secrets)
    [pause] = re.findall(r"time\.sleep\((\d+)\)", CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert POD["terminationGracePeriodSeconds"] >= int(pause) + drained_in(config)
    assert [CONTAINER["ports"][0]["containerPort"], config.server.host] == [config.server.port, "0.0.0.0"]


def test_service_variables_of_kubernetes_are_switched_off() -> None:
    """A Service named chat-nest makes CHAT_NEST_PORT, and an unknown CHAT_NEST_ variable is refused."""
    assert MANIFESTS["Service"]["metadata"]["name"] == "chat-nest"
    assert POD["enableServiceLinks"] is False


def test_a_pod_has_no_rights_and_each_volume_is_there() -> None:
    rights = CONTAINER["securityContext"]
    assert (rights["allowPrivilegeEscalation"], rights["readOnlyRootFilesystem"]) == (False, True)
    assert (rights["capabilities"], POD["securityContext"]["runAsNonRoot"]) == ({"drop": ["ALL"]}, True)
    claims = MANIFESTS["StatefulSet"]["spec"]["volumeClaimTemplates"]
    there = {each["name"] for each in POD["volumes"]} | {each["metadata"]["name"] for each in claims}
    assert {each["name"] for each in CONTAINER["volumeMounts"]} == there


def test_the_unit_waits_for_the_drain(written) -> None:
    config = load(written((DEPLOY / "chat-nest.toml").read_text()), {})
    [seconds] = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert int(seconds) >= drained_in(config)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        assert not os.environ.get("CI"), "systemd-analyze is missing, and in CI no test may be left out"
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True)


def test_the_unit_is_exposed_by_at_most_two_of_ten(tmp_path) -> None:
    done = analyze("security", "--offline=true", "--threshold=20", str(DEPLOY / "systemd" / "chat-nest.service"))
    assert done.returncode == 0, done.stdout
    [exposure] = re.findall(r"Overall exposure level for chat-nest\.service: ([\d.]+)", done.stdout)
    assert float(exposure) <= 2.0


@pytest.mark.parametrize("name", ["chat-nest.service", "chat-nest.socket"])
def test_systemd_finds_nothing_wrong_in_the_units(tmp_path, name) -> None:
    (tmp_path / "chat-nest.service").write_text(UNIT.replace("/opt/chat-nest/bin/chat-nest", "/bin/true"))  # must exist
    (tmp_path / "chat-nest.socket").write_text(SOCKET)
    done = analyze("verify", "--man=no", str(tmp_path / name))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_socket_is_at_the_address_of_the_sample_configuration(written) -> None:
    config = load(written((DEPLOY / "chat-nest.toml").read_text()), {})
    assert re.findall(r"^ListenStream=(.+)$", SOCKET, re.MULTILINE) == [f"{config.server.host}:{config.server.port}"]
