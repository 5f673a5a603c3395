"""The files of both pages: other people's are as they published them, and the first load is small."""

from __future__ import annotations

import gzip
import json
import re
from hashlib import sha256
from pathlib import Path

import pytest
from chat_nest.server.admin.page import SHARED

PAGE = Path(__file__).parents[3] / "src/chat_nest/server/page"
ADMIN = PAGE.with_name("admin_page")
WORDS = {
    (folder.name, file.stem): json.loads(file.read_text())
    for folder in (PAGE, ADMIN)
    for file in (folder / "words").glob("*.json")
}
OWN = {file.name for file in PAGE.glob("*.js")}


@pytest.mark.parametrize("folder", [PAGE, ADMIN], ids=["page", "admin_page"])
def test_every_file_of_a_library_is_the_one_that_its_authors_published(folder):
    listed = {"libraries.json"}
    for library in json.loads((folder / "lib/libraries.json").read_text()):
        assert library["package"].endswith("@" + library["folder"].rpartition("-")[2])  # the version is in the path
        assert {"LICENSE"} < set(library["sha256"])
        for name, digest in library["sha256"].items():
            path = f"{library['folder']}/{name}"
            assert sha256((folder / "lib" / path).read_bytes()).hexdigest() == digest, path
            listed.add(path)
    there = {str(file.relative_to(folder / "lib")) for file in (folder / "lib").rglob("*") if file.is_file()}
    assert there == listed


def place(name: str) -> Path:
    """Where a file is: the operators' page has its own, and some of the chat's."""
    return ADMIN / name if (ADMIN / name).exists() and not (PAGE / name).exists() else PAGE / name


def imported(name: str) -> set[str]:
    """The modules that a module cannot do without, itself among them."""
    text = place(name).read_text()
    found = {name}
    for path in re.findall(r'^(?:import|export) [^;]*?"\./([^"]+)";', text, re.MULTILINE):
        found |= imported(path)
    return found


def squeezed(names) -> int:
    return sum(len(gzip.compress(place(name).read_bytes(), 9)) for name in names)


def test_the_first_load_is_at_most_60_kilobytes():
    first = {"index.html", "parts.css", "chat.css", "words/en.json", "favicon.svg", "start.js"} | imported("chat.js")
    assert not any(name.startswith("lib/") for name in first)
    assert squeezed(first) < 60_000
    assert squeezed(first | imported("markdown.js")) < 90_000  # with what the first answer needs


def test_every_module_of_the_start_is_preloaded():
    """And none later, when the one that needs it has come; but none before the first paint, which start.js waits for."""
    index = (PAGE / "index.html").read_text()
    (later,) = re.findall(r'<template id="modules">(.*?)</template>', index, re.DOTALL)
    asked = re.findall(r'rel="modulepreload" href="([^"]+)"', later)
    assert asked == sorted(imported("chat.js"))
    assert index.count("modulepreload") == len(asked)


def test_the_icons_of_the_first_paint_are_drawn_as_those_that_come_later():
    """The page has them in its HTML, because the first paint comes before any code."""
    later = dict(re.findall(r'^  (\w+): "([^"]+)",$', (PAGE / "dom.js").read_text(), re.MULTILINE))
    drawing = r'<svg class="drawing (\w+)" viewBox="0 0 24 24" aria-hidden="true"><path d="([^"]+)"/></svg>'
    first = re.findall(drawing, index := (PAGE / "index.html").read_text())
    assert len(first) == index.count("<svg")
    assert set(first) <= set(later.items())


def test_the_operators_page_loads_less_than_50_kilobytes_and_every_file_of_it_is_used():
    modules = imported("operator.js")
    assert not any(name.startswith("lib/") for name in modules)
    assert (
        squeezed(modules)
        + sum(
            len(gzip.compress((ADMIN / name).read_bytes(), 9))
            for name in ("index.html", "operator.css", "words/en.json")
        )
        + squeezed({"parts.css", "favicon.svg"})
        < 50_000
    )
    assert {file.name for file in ADMIN.glob("*.js")} <= modules
    assert {name for name in modules if (PAGE / name).exists()} <= set(SHARED)
    assert not {file.name for file in ADMIN.glob("*.*")} & OWN, "a copy of a file of the chat's page"
    for name in modules:
        assert len(place(name).read_text().splitlines()) < 400, name


def test_every_module_of_the_page_is_small_and_used():
    used = (
        imported("chat.js")
        | imported("markdown.js")
        | {
            "start.js",
            "code-worker.js",
            "maths-worker.js",
            "embed.js",
            "visitor.js",
            "challenge-worker.js",
            "challenge-frame.js",
        }
    )
    assert used & OWN == OWN
    for name in OWN:
        assert len((PAGE / name).read_text().splitlines()) < 400, name


@pytest.mark.parametrize(("folder", "language"), sorted(WORDS))
def test_every_language_has_every_word_with_its_values(folder, language):
    english, words = WORDS[folder, "en"], WORDS[folder, language]
    assert set(words) == set(english)
    for name, text in words.items():
        forms = text.values() if isinstance(text, dict) else [text]
        sample = english[name] if isinstance(english[name], str) else english[name]["other"]
        wanted = set(re.findall(r"\{\w+\}", sample))
        assert wanted >= set(re.findall(r"\{\w+\}", " ".join(forms))), name
        assert not isinstance(text, dict) or "other" in text, name
        for form in forms:
            assert form.strip(), name
            assert set(re.findall(r"\{\w+\}", form)) >= wanted - {"{count}"}, name


@pytest.mark.parametrize("folder", [PAGE, ADMIN], ids=["page", "admin_page"])
def test_every_word_that_a_page_uses_is_there(folder):
    text = "".join(file.read_text() for file in folder.glob("*.js")) + (folder / "index.html").read_text()
    used = set(re.findall(r'\bword\("([\w.]+)"', text)) | set(
        re.findall(r'data-(?:word|label|placeholder)="([\w.]+)"', text)
    )
    assert len(used) > 60
    assert used <= set(WORDS[folder.name, "en"])


@pytest.mark.parametrize("folder", [PAGE, ADMIN], ids=["page", "admin_page"])
def test_a_page_itself_is_in_english_until_its_words_are_there(folder):
    text, english = (folder / "index.html").read_text(), WORDS[folder.name, "en"]
    shown = re.findall(r'data-word="([\w.]+)"[^>]*>([^<]*)<', text)
    assert len(shown) > 15
    for name, words in shown:
        assert words == english[name]
    for kind, attribute in (("label", "aria-label"), ("placeholder", "placeholder")):
        for name, words in re.findall(rf'data-{kind}="([\w.]+)" {attribute}="([^"]*)"', text):
            assert words == english[name]
