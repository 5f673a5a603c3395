"""The values of [page]: its logo, its words and the pages that may show it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from chat_nest.asgi.cors import Cors
from chat_nest.server.config.schema import PageSection
from chat_nest.server.config.sources import Sources, is_table
from chat_nest.server.page_files import packaged

LOGO_TYPES = ("svg", "png", "webp", "jpg", "jpeg")
MAX_LOGO_BYTES = 262_144
LANGUAGE_FILE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})?\.json")


def check_page(sources: Sources, page: PageSection) -> None:
    """Note problems of [page]: a logo or a folder of words that can't be read, and invalid origins."""
    for origin in page.embed_origins:
        if origin == "*" or _is_no_source(origin):
            said = "must be origins such as https://example.com, without a path"
            sources.problem(("page", "embed_origins"), said)
    if page.logo:
        problem = _logo_problem(Path(page.logo))
        if problem:
            sources.problem(("page", "logo"), problem)
    if page.words_folder:
        for problem in _words_problems(Path(page.words_folder)):
            sources.problem(("page", "words_folder"), problem)
    if page.language and not sources.problems and f"{page.language}.json" not in words_files(page):
        known = ", ".join(sorted(name.removesuffix(".json") for name in words_files(page)))
        sources.problem(("page", "language"), f"must be one of {known}, or have a file in words_folder")


def words_files(page: PageSection) -> dict[str, dict[str, Any]]:
    """Return the page's words by file name, LANGUAGE.json: the package's words, overridden by the operator's."""
    shipped = {name.removeprefix("words/"): file.body for name, file in packaged().items() if name.startswith("words/")}
    words: dict[str, dict[str, Any]] = {name: json.loads(body) for name, body in shipped.items()}
    if page.words_folder:
        for file in sorted(Path(page.words_folder).glob("*.json")):
            words[file.name] = {**words.get(file.name, {}), **json.loads(file.read_bytes())}
    return words


def _is_no_source(origin: str) -> bool:
    """Return whether the text is no origin, or has a character that would end a directive of the policy."""
    try:
        Cors((origin,))
    except ValueError:
        return True
    return not re.fullmatch(r"https?://[A-Za-z0-9.\[\]:-]+", origin)


def _logo_problem(file: Path) -> str:
    if file.suffix[1:].lower() not in LOGO_TYPES:
        return f"must be a file that ends in {', '.join(LOGO_TYPES)}"
    try:
        size = file.stat().st_size
    except OSError as error:
        return f"can't be read: {error.strerror}"
    return f"must be at most {MAX_LOGO_BYTES} bytes" if size > MAX_LOGO_BYTES else ""


def _words_problems(folder: Path) -> list[str]:
    if not folder.is_dir():
        return ["must be a folder of files such as de.json"]
    problems: list[str] = []
    known = json.loads(packaged()["words/en.json"].body)
    for file in sorted(folder.glob("*.json")):
        try:
            words = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            problems.append(f"{file.name} can't be read: {error}")
            continue
        if not LANGUAGE_FILE.fullmatch(file.name):
            problems.append(f"{file.name} must be named by its language, such as de.json")
        elif not is_table(words) or not all(name in known for name in words):
            problems.append(f"{file.name} must be an object with the names of words/en.json only")
    return problems
