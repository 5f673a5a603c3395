"""What else people put between a page and a provider. Installed only for `--peers`, each in a place of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import Missing
from benchmarks.programs import BUILD
from benchmarks.stacks import NATIVE, OPENAI, Stack

HERE = Path(__file__).parent
LITELLM = "litellm[proxy]==1.106.12"
EXPRESS_NAME = "Express + openai SDK"
LITELLM_NAME = "LiteLLM proxy"
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


def install() -> None:
    """Raises Missing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        raise Missing("The peer on Express needs Node 20 or newer, with npm.")
    if not (HERE / "express/node_modules").exists():
        subprocess.run([npm, "ci", "--no-progress"], cwd=HERE / "express", check=True, stdout=sys.stderr)
    stamp = BUILD / "litellm" / LITELLM
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", BUILD / "litellm"], check=True)
        pip = [BUILD / "litellm/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, LITELLM], check=True, stdout=sys.stderr)
        stamp.touch()


def _express(_directory: Path, port: int, provider: str) -> list[str]:
    return [shutil.which("node") or "node", str(HERE / "express/server.js"), str(port), f"{provider}/v1"]


def _litellm(directory: Path, port: int, provider: str) -> list[str]:
    (directory / "config.yaml").write_text(LITELLM_CONFIG.format(provider=provider))
    program = BUILD / "litellm/bin/litellm"
    return [str(program), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


PEERS = (
    Stack(name=EXPRESS_NAME, prepare=_express, scenarios=COST_ONLY, **NATIVE),
    Stack(
        name=LITELLM_NAME,
        prepare=_litellm,
        scenarios=COST_ONLY,
        start_seconds=90.0,
        **OPENAI | {"mark": '"content":"', "one_event_a_token": False},
    ),
)
