"""The operators' page: its own files, the parts that it shares with the chat's page, and its words."""

from __future__ import annotations

import json
from functools import cache
from typing import Final

from msgspec.structs import replace

from chat_nest.server.page_files import PageFile, files_of, packaged, page_file, policy, with_config

FOLDER: Final = "admin_page"
SHARED: Final = ("parts.css", "dom.js", "words.js", "event-stream.js", "tab-storage.js", "toast.js", "favicon.svg")
"""The files of the chat's page that are files of this one, too."""
POLICY: Final = policy(trusted_types="'none'")


@cache
def operator_files() -> dict[str, PageFile]:
    """Return every file of the page by its path. They are the same for everybody, and hold nothing of the server."""
    own = files_of(FOLDER)
    found = {name: packaged()[name] for name in SHARED} | own
    words = {name: file.body for name, file in own.items() if name.startswith("words/")}
    config = {
        "language": "",
        "languages": sorted(name.removeprefix("words/").removesuffix(".json") for name in words),
        "words": json.loads(words["words/en.json"]),
    }
    found["index.html"] = page_file("index.html", with_config(own["index.html"].body, config))
    return {"/" if name == "index.html" else f"/{name}": replace(file, policy=POLICY) for name, file in found.items()}
