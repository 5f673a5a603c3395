"""The page's files, read once at the start, and the headers that restrict the page."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import blake2b, sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from chat_nest.asgi.request import Send
from chat_nest.core import header_fields
from chat_nest.core.protocols import Scope

MEDIA_TYPES = {
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "json": b"application/json",
    "svg": b"image/svg+xml",
    "png": b"image/png",
    "webp": b"image/webp",
    "jpg": b"image/jpeg",
    "jpeg": b"image/jpeg",
    "woff2": b"font/woff2",
}
LIBRARIES = "lib/"
"""The folder of third-party files: each path has its version in it, so a browser may keep it for a year."""
FOR_OTHER_SITES = ("embed.js", "visitor.js")
"""The scripts that pages of other origins may load."""
COMPRESSED = (b"text/", b"application/json", b"image/svg+xml")


CONFIG = b'<script id="config" type="application/json">{}</script>'
"""In index.html. A data block never runs, so the policy does not forbid it."""
STYLES = re.compile(rb' *<link rel="stylesheet" href="([\w.]+)">\n')
"""In index.html, each on its own line."""
START = b'<script type="module" src="start.js"></script>'
"""In index.html."""


def policy(
    frame_ancestors: Sequence[str] = (),
    *,
    frames: bool = False,
    images: bool = False,
    trusted_types: str = "dompurify chat-nest",
    styles: bytes = b"",
    script: bytes = b"",
) -> bytes:
    """Return the Content-Security-Policy: what a model writes into the page can load nothing and send nothing.

    Only pages of `frame_ancestors` may show the page in a frame. Trusted Types keep text from becoming markup, except
    through the policies named in `trusted_types`. With `frames`, the page may show pages of this server in a frame;
    with `images`, the images that its visitor chose. `styles` and `script` are the only ones that may stand in the page
    itself.
    """
    ancestors = ("'self'", *frame_ancestors) if frame_ancestors else ("'none'",)
    shown = (b"frame-src 'self'",) if frames else ()
    return b"; ".join(
        (
            b"default-src 'none'",
            b"script-src 'self'" + _only(script),
            b"worker-src 'self'",
            b"style-src 'self'" + _only(styles),
            b"font-src 'self'",
            b"connect-src 'self'",
            b"img-src 'self' data:" + b" blob:" * images,
            *shown,
            b"base-uri 'none'",
            b"form-action 'none'",
            b"require-trusted-types-for 'script'",
            b"trusted-types " + trusted_types.encode(),
            b"frame-ancestors " + " ".join(ancestors).encode(),
        )
    )


def _only(inside: bytes) -> bytes:
    """Return the source that allows this text in the page, if there is one."""
    return b" 'sha256-%b'" % b64encode(sha256(inside).digest()) if inside else b""


def challenge_policy(sources: Sequence[str], frame_ancestors: Sequence[str]) -> bytes:
    """Return the policy of the frame with a service's challenge: scripts and frames of these sources, and no others."""
    theirs = " ".join(("'self'", *sources)).encode()
    return b"; ".join(
        (
            b"default-src 'none'",
            b"script-src " + theirs,
            b"frame-src " + theirs,
            b"connect-src " + theirs,
            b"img-src data: " + theirs,
            b"style-src 'unsafe-inline' " + theirs,
            b"base-uri 'none'",
            b"form-action 'none'",
            b"frame-ancestors " + " ".join(("'self'", *frame_ancestors)).encode(),
        )
    )


class PageFile(Struct, frozen=True):
    media_type: bytes
    body: bytes
    etag: bytes
    policy: bytes = policy()
    cache_control: bytes = b"no-cache"
    """The browser may keep it, but must revalidate it."""
    other_sites: bool = False
    """Whether pages of other origins may load it as a script."""
    cookie: Callable[[Scope], bytes] | None = None
    """Returns the value of Set-Cookie for a request, or nothing."""

    async def serve(self, scope: Scope, send: Send) -> None:
        """Answer GET or HEAD, compressed if the client accepts gzip; 304 if it has the file already."""
        squeezes = self.media_type.startswith(COMPRESSED)
        squeezed = squeezes and b"gzip" in (header_fields.value(scope, b"accept-encoding") or b"")
        etag = b'"%s-gzip"' % self.etag if squeezed else b'"%s"' % self.etag
        known = header_fields.value(scope, b"if-none-match") or b""
        fresh = etag in (header_fields.trim(tag).removeprefix(b"W/") for tag in known.split(b","))
        headers = [
            (b"content-security-policy", self.policy),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cross-origin-resource-policy", b"cross-origin" if self.other_sites else b"same-origin"),
            (b"etag", etag),
            (b"cache-control", self.cache_control),
        ]
        if self.cookie is not None and (cookie := self.cookie(scope)):
            headers.append((b"set-cookie", cookie))
        if squeezes:
            headers.append((b"vary", b"accept-encoding"))
        body = b"" if fresh else _squeezed(self.body) if squeezed else self.body
        if not fresh:
            headers += [(b"content-type", self.media_type), (b"content-length", b"%d" % len(body))]
        if squeezed and not fresh:
            headers.append((b"content-encoding", b"gzip"))
        await send({"type": "http.response.start", "status": 304 if fresh else 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


@cache
def _squeezed(body: bytes) -> bytes:
    """Compress a file. Takes at most 10 ms for the largest one, once in a process."""
    return gzip.compress(body, 9, mtime=0)


def page_file(name: str, body: bytes) -> PageFile:
    """Return the file, with the media type of its extension. Raises KeyError for an unknown extension."""
    return PageFile(
        MEDIA_TYPES[name.rpartition(".")[2]],
        body,
        blake2b(body, digest_size=12).hexdigest().encode(),
        cache_control=b"public, max-age=31536000, immutable" if name.startswith(LIBRARIES) else b"no-cache",
    )


def with_config(index: bytes, config: Mapping[str, Any]) -> bytes:
    """Return the page with its settings in it, where words.js reads them."""
    block = json.dumps(config, ensure_ascii=False).replace("<", "\\u003c").encode()
    return index.replace(CONFIG, CONFIG.replace(b"{}", block))


def with_styles(index: bytes, sheets: Mapping[str, bytes]) -> tuple[bytes, bytes]:
    """Return the page with its style sheets in it, and these styles: its first paint then waits for one response."""
    names = [name.decode() for name in STYLES.findall(index)]
    styles = b"".join(sheets[name] for name in names)
    first = b"<style>%b</style>\n" % styles
    return STYLES.sub(b"", index).replace(b"</title>\n", b"</title>\n" + first, 1), styles


def with_start(index: bytes, script: bytes) -> bytes:
    """Return the page with the code of its start in it: the modules then wait for one response less."""
    return index.replace(START, b'<script type="module">%b</script>' % script)


@cache
def packaged() -> dict[str, PageFile]:
    """Return every file of the chat's page by its path below `/`."""
    found = files_of("page")
    return {**found, **{name: replace(found[name], other_sites=True) for name in FOR_OTHER_SITES}}


def files_of(folder: str) -> dict[str, PageFile]:
    """Return every file of a folder of this package by its path in it."""
    return dict(_below(files("chat_nest.server").joinpath(folder), ""))


def _below(folder: Traversable, path: str) -> Iterator[tuple[str, PageFile]]:
    for entry in folder.iterdir():
        name = path + entry.name
        if entry.is_dir():
            yield from _below(entry, f"{name}/")
        elif entry.name.rpartition(".")[2] in MEDIA_TYPES:
            yield name, page_file(name, entry.read_bytes())
