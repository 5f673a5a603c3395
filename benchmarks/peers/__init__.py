"""What else people put between a page and a provider. Installed only for `--peers`, each in a place of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from benchmarks.processes import Missing, free_port
from benchmarks.programs import BUILD
from benchmarks.stacks import NATIVE, OPENAI, Stack

HERE = Path(__file__).parent
LITELLM = "litellm[proxy]==1.106.12"
SMG = "smg==1.13.0"
ROUTER = "vllm-router==0.1.17"
EXPRESS_NAME = "Express + openai SDK"
LITELLM_NAME = "LiteLLM proxy"
SMG_NAME = "SMG"
ROUTER_NAME = "vllm-router"
COST_ONLY = frozenset(("burst-1", "burst-200", "paced"))
"""What is measured of a peer: a token and a request."""

LITELLM_CONFIG = """\
model_list:
  - model_name: gpt-4o-mini
    litellm_params:
      model: openai/gpt-4o-mini
      api_base: {provider}/v1
      api_key: none
litellm_settings:
  telemetry: false
  num_retries: 0
general_settings:
  # On loopback, for as long as it is measured.
  dangerously_permit_weak_or_unset_master_key: true
"""


LITELLM_BUDGET = """\
router_settings:
  provider_budget_config:
    openai:
      budget_limit: {dollars:.6f}
      time_period: 1d
"""


def install() -> None:
    """Raises Missing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        raise Missing("The peer on Express needs Node 20 or newer, with npm.")
    if not (HERE / "express/node_modules").exists():
        subprocess.run([npm, "ci", "--no-progress"], cwd=HERE / "express", check=True, stdout=sys.stderr)
    install_litellm()
    for place, package in (("smg", SMG), ("vllm-router", ROUTER)):
        _install_from_index(place, package)


def install_litellm() -> None:
    _install_from_index("litellm", LITELLM)


def _install_from_index(place: str, package: str) -> None:
    stamp = BUILD / place / package
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", BUILD / place], check=True)
        pip = [BUILD / place / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, package], check=True, stdout=sys.stderr)
        stamp.touch()


def _express(_directory: Path, port: int, provider: str) -> list[str]:
    return [shutil.which("node") or "node", str(HERE / "express/server.js"), str(port), f"{provider}/v1"]


def _litellm(directory: Path, port: int, provider: str) -> list[str]:
    (directory / "config.yaml").write_text(LITELLM_CONFIG.format(provider=provider))
    program = ["env", "LITELLM_LOCAL_MODEL_COST_MAP=True", str(BUILD / "litellm/bin/litellm")]  # it fetches one if not
    return [*program, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def litellm_with_budget(dollars: float) -> Stack:
    """LiteLLM that may spend so much a day at the provider: a budget that it keeps without a database."""

    def prepare(directory: Path, port: int, provider: str) -> list[str]:
        command = _litellm(directory, port, provider)
        with (directory / "config.yaml").open("a") as config:
            config.write(LITELLM_BUDGET.format(dollars=dollars))
        return command

    [litellm] = [stack for stack in PEERS if stack.name == LITELLM_NAME]
    return msgspec.structs.replace(litellm, prepare=prepare)


def _smg(_directory: Path, port: int, provider: str) -> list[str]:
    """Of its defaults only what costs it something here is off: its log lines, its history, its checks."""
    serve = ["launch", "--backend", "openai", "--worker-urls", provider, "--host", "127.0.0.1", "--port", str(port)]
    quiet = ["--log-level", "error", "--history-backend", "none", "--disable-health-check"]
    return [str(BUILD / "smg/bin/smg"), *serve, *quiet, "--prometheus-port", str(free_port())]


def _router(_directory: Path, port: int, provider: str) -> list[str]:
    serve = ["--worker-urls", provider, "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    return [
        str(BUILD / "vllm-router/bin/vllm-router"),
        *serve,
        "--log-level",
        "error",
        "--prometheus-port",
        str(free_port()),
    ]


PEERS = (
    Stack(name=SMG_NAME, prepare=_smg, scenarios=COST_ONLY, start_seconds=60.0, **OPENAI),
    Stack(name=ROUTER_NAME, prepare=_router, scenarios=COST_ONLY, start_seconds=60.0, **OPENAI),
    Stack(name=EXPRESS_NAME, prepare=_express, scenarios=COST_ONLY, **NATIVE),
    Stack(
        name=LITELLM_NAME,
        prepare=_litellm,
        scenarios=COST_ONLY,
        start_seconds=600.0,  # with a load of 20; else 15
        **OPENAI | {"mark": '"content":"', "one_event_a_token": False},
    ),
)
