"""The documents say what the code does: every key and its default, every example, every link."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jwt.algorithms import RSAAlgorithm
from signing_keys import RSA_KEY

from chat_nest.limits.spec import BUILT_IN_PROFILES, HARD_CAPS
from chat_nest.core.timeouts import Timeouts
from chat_nest.server.config.settings import load
from chat_nest.dialects import DIALECTS
from chat_nest.server.config.front_ends import PATHS
from chat_nest.server.config.schema import SECTIONS, ServerSection, StoreSection

ROOT = Path(__file__).parents[3]
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()


def part(section: str) -> str:
    """The text of one section's heading."""
    for block in CONFIGURATION.split("\n## ")[1:]:
        if block.startswith((f"[{section}]", f"[{section}.NAME]")):
            return block
    pytest.fail(f"docs/configuration.md has no heading for [{section}]")


def cells(section: str, key: str) -> list[str]:
    """The cells of a key's row."""
    found = re.search(rf"^\| `{key}` \|(.*)\|$", part(section), re.MULTILINE)
    assert found, f"[{section}] {key} has no row"
    return [cell.strip().strip("`") for cell in found[1].split("|")]


@pytest.mark.parametrize(("section", "key"), [(section, key) for section, keys in SECTIONS.items() for key in keys])
def test_every_key_is_documented(section: str, key: str) -> None:
    assert f"`{key}`" in part(section)


def test_documented_defaults_are_the_real_ones() -> None:
    server = ServerSection()
    assert cells("server", "port")[0] == str(server.port)
    assert cells("server", "host")[0] == f'"{server.host}"'
    assert cells("server", "max_body_bytes")[0] == str(server.max_body_bytes)
    assert cells("server", "time_zone")[0] == f'"{server.time_zone}"'
    assert cells("store", "url")[0] == f'"{StoreSection().url}"'
    assert float(cells("store", "records_days")[0]) == StoreSection().records_days
    for name, path in PATHS.items():
        assert cells("dialects", name)[0] == ("false" if not DIALECTS[name].facts.is_on else f'"{path}"')
    for key in SECTIONS["timeouts"]:
        assert float(cells("timeouts", key)[0]) == getattr(Timeouts(), key), key
    for key in SECTIONS["profiles"]:
        if key in ("model", "fallbacks", "ladder"):
            continue
        shown = cells("profiles", key)[:3]
        real = [getattr(BUILT_IN_PROFILES[name], key) for name in ("constrained", "balanced", "expanded")]
        assert shown == [{None: "none", True: "true", False: "false"}.get(value, f"{value}") for value in real], key
    for key in SECTIONS["hard_caps"]:
        default = getattr(HARD_CAPS, key)
        assert cells("hard_caps", key)[0] == ("none" if default is None else f"{default:g}"), key


def test_every_toml_example_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("jwks.json").write_text(json.dumps({"keys": [RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True)]}))
    Path("webhook-secret").write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    Path("smtp-password").write_text("correct horse\n")
    examples = [
        (page.name, example)
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        for example in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    assert examples
    steps = ""
    for name, example in examples:
        file = tmp_path / "chat-nest.toml"
        if name == "strangers.md":  # one file in ten steps
            steps = example = f"{steps}\n{example}"
        file.write_text(example)
        load(file, environ={"OPENAI_API_KEY": "sk-of-the-test"})  # type: ignore[arg-type]
        assert name


def test_links_between_documents_lead_somewhere() -> None:
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    for page in [*pages, *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
