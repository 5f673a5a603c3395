"""[page]: the operator's title, words, colours and logo in the page's files."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from chat_nest.core.protocols import Scope
from chat_nest.server.config.page import words_files
from chat_nest.server.config.schema import PageSection
from chat_nest.server.page_files import (
    FOR_OTHER_SITES,
    PageFile,
    challenge_policy,
    packaged,
    page_file,
    policy,
    with_config,
    with_start,
    with_styles,
)

NAME = "Chat Nest"
DARK_SURFACE = "#1a2120"
"""The lightest surface of the dark theme: see parts.css."""


class OfferedImages(Struct, frozen=True):
    """What the page may send with a request: it scales larger images down, and leaves out older ones."""

    most: int
    bytes: int
    """Of each image, decoded."""
    pixels: int
    """Of each image."""


class OfferedProfile(Struct, frozen=True):
    """A profile that a visitor may choose on the page."""

    name: str
    model: str
    system_prompt: bool
    resumable: bool
    signed_turns: bool = False
    images: OfferedImages | None = None
    """None if the profile or its model takes none."""


class PageFacts(Struct, frozen=True):
    """The server's settings that the page needs. `wants_key`: whether callers need a key or a token."""

    demo: bool
    wants_key: bool
    profiles: Sequence[OfferedProfile]
    """The first is the default."""
    cookie: Callable[[Scope], bytes] | None = None
    """Returns the cookie for a visitor without one; None if visitors have no cookies."""
    challenge: str = ""
    """The service of the challenge that the page may show."""
    max_upload_bytes: int = 0
    """Of a request with its images."""

    @property
    def images(self) -> bool:
        return any(profile.images is not None for profile in self.profiles)


SOURCES = {
    "turnstile": ("https://challenges.cloudflare.com",),
    "hcaptcha": ("https://hcaptcha.com", "https://*.hcaptcha.com"),
    "recaptcha": ("https://www.google.com/recaptcha/", "https://www.gstatic.com/recaptcha/"),
}
"""The places that a service's script loads from, as the service documents them."""
FRAME = ("challenge.html", "challenge-frame.js")


def page_files(page: PageSection, facts: PageFacts) -> dict[str, PageFile]:
    """Return every file of the page by its path, with the operator's settings.

    Raises OSError if a file can't be read.
    """
    packed = packaged()
    words = words_files(page)
    logo = f"logo.{page.logo.rpartition('.')[2].lower()}" if page.logo else "favicon.svg"
    title = page.title or NAME
    made = {f"words/{name}": json.dumps(found, ensure_ascii=False).encode() for name, found in words.items()}
    if page.logo:
        made[logo] = Path(page.logo).read_bytes()
    if page.accent:
        made["embed.js"] = _coloured(packed["embed.js"].body, page.accent)
    sheets = {name: packed[name].body for name in ("parts.css", "chat.css")} | {"theme.css": _theme(page).encode()}
    shipped, styles = with_styles(packed["index.html"].body, sheets)
    script = packed["start.js"].body
    allowed = policy(
        page.embed_origins, frames=bool(facts.challenge), images=facts.images, styles=styles, script=script
    )
    config = {**_config(page, facts), "title": title, "logo": logo, **_words(words)}
    index = page_file("index.html", _index(with_start(shipped, script), title, logo, config))
    files = {
        **{name: file for name, file in packed.items() if name not in FRAME},
        **{name: replace(page_file(name, body), other_sites=name in FOR_OTHER_SITES) for name, body in made.items()},
        "index.html": replace(index, policy=allowed),
    }
    if facts.challenge:
        theirs = challenge_policy(SOURCES[facts.challenge], page.embed_origins)
        files |= {name: replace(packed[name], policy=theirs) for name in FRAME}
    if facts.cookie is not None:  # kept in no shared cache: each visitor gets a cookie of its own
        files["index.html"] = replace(files["index.html"], cookie=facts.cookie, cache_control=b"private, no-cache")
    return {"/" if name == "index.html" else f"/{name}": file for name, file in files.items()}


def _config(page: PageSection, facts: PageFacts) -> dict[str, Any]:
    """Return what the scripts of the page read about the server."""
    return {
        "greeting": page.greeting,
        "suggestions": page.suggestions,
        "notice": page.notice,
        "language": page.language,
        "demo": facts.demo,
        "wants_key": facts.wants_key,
        "visitors": facts.cookie is not None,
        "profiles": to_builtins(facts.profiles),
        "max_upload_bytes": facts.max_upload_bytes,
    }


def _words(files: Mapping[str, Any]) -> dict[str, Any]:
    """Return the languages that there are, and the words of English."""
    return {"languages": sorted(name.removesuffix(".json") for name in files), "words": files["en.json"]}


def _index(shipped: bytes, title: str, logo: str, config: dict[str, Any]) -> bytes:
    named = shipped.replace(NAME.encode(), html.escape(title).encode())
    return with_config(named.replace(b'"favicon.svg"', f'"{logo}"'.encode()), config)


def _coloured(script: bytes, accent: str) -> bytes:
    """Return embed.js with the operator's colour of its button."""
    return script.replace(b"#0f766e", accent.encode()).replace(b"#ffffff", _ink(accent).encode())


def _theme(page: PageSection) -> str:
    """Return the operator's colours, with black or white text on them, whichever is easier to read."""
    rules = ""
    if page.accent:
        rules += f":root {{ {_accent(page.accent)} }}\n"
    if dark := page.accent_dark or lightened(page.accent):
        rules += f"@media (prefers-color-scheme: dark) {{ :root {{ {_accent(dark)} }} }}\n"
    return rules


def _accent(colour: str) -> str:
    return f"--accent: {colour}; --accent-ink: {_ink(colour)};"


def _ink(colour: str) -> str:
    light = luminance(colour)
    return "#ffffff" if 1.05 / (light + 0.05) >= (light + 0.05) / 0.05 else "#000000"


def lightened(colour: str) -> str:
    """Return the colour with as much white as a link in the dark theme needs: a contrast of 4.5 to 1 (WCAG 2.2)."""
    least = 4.5 * (luminance(DARK_SURFACE) + 0.05) - 0.05
    parts = [int(colour[place : place + 2], 16) for place in (1, 3, 5)] if colour else []
    for white in range(101):
        mixed = "#" + "".join(f"{part + (255 - part) * white // 100:02x}" for part in parts)
        if parts and luminance(mixed) >= least:
            return mixed
    return ""


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb, from 0 to 1 (WCAG 2.2)."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
