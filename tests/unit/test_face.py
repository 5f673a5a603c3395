"""What a user's program imports: `chat_nest` itself, or a room's own face, never a module inside one."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

import chat_nest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*.py"))]
IMPORT = re.compile(r"^from (chat_nest\S*) import (.+)$", re.MULTILINE)
FACES = [
    "chat_nest",
    "chat_nest.dialects",
    "chat_nest.metrics",
    "chat_nest.providers",
    "chat_nest.traces",
    "chat_nest.server.openapi",
    "chat_nest.testing",
]


def test_no_page_and_no_example_imports_from_inside_a_room() -> None:
    found = [(page.name, module) for page in PAGES for module, _ in IMPORT.findall(page.read_text(encoding="utf-8"))]
    assert len(found) > 10
    rooms = re.compile(r"chat_nest(\.(dialects|metrics|providers|testing|traces|server\.openapi|stores\.\w+))?")
    assert [each for each in found if not rooms.fullmatch(each[1])] == []


@pytest.mark.parametrize("name", FACES)
def test_a_face_has_what_it_lists(name: str) -> None:
    face = import_module(name)
    listed = getattr(face, "__all__", ())
    assert [each for each in listed if not hasattr(face, each)] == []
    assert len(set(listed)) == len(listed)


def test_every_protocol_of_a_part_is_on_the_face() -> None:
    assert {"Dialect", "Identify", "Observer", "Provider", "RunLogs", "Scope", "Store"} <= set(chat_nest.__all__)
