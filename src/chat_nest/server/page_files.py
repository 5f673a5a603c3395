"""The page's files, read once when the server starts, and the headers that keep the page harmless."""

from __future__ import annotations

from hashlib import blake2b
from importlib.resources import files

from msgspec import Struct

from chat_nest.asgi.request import Send, header
from chat_nest.protocols import Scope

MEDIA_TYPES = {
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "svg": b"image/svg+xml",
    "png": b"image/png",
}
POLICY = b"; ".join(
    (
        b"default-src 'none'",
        b"script-src 'self'",
        b"style-src 'self'",
        b"connect-src 'self'",
        b"img-src 'self' data:",
        b"base-uri 'none'",
        b"form-action 'none'",
        b"frame-ancestors 'none'",
    )
)
"""What a model writes into the page can load nothing, send nothing and frame nothing."""
HARMLESS = (
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class PageFile(Struct, frozen=True):
    media_type: bytes
    body: bytes
    etag: bytes

    async def serve(self, scope: Scope, send: Send) -> None:
        """Answer GET or HEAD; 304 where the browser has it already."""
        known = header(scope, b"if-none-match") or b""
        fresh = self.etag in (tag.strip().removeprefix(b"W/") for tag in known.split(b","))
        headers = [*HARMLESS, (b"etag", self.etag), (b"cache-control", b"no-cache")]
        if not fresh:
            headers += [(b"content-type", self.media_type), (b"content-length", b"%d" % len(self.body))]
        body = b"" if fresh or scope["method"] == "HEAD" else self.body
        await send({"type": "http.response.start", "status": 304 if fresh else 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def page_file(media_type: bytes, body: bytes) -> PageFile:
    """The file with the tag of what is in it."""
    return PageFile(media_type, body, b'"%s"' % blake2b(body, digest_size=12).hexdigest().encode())


def read_page() -> dict[str, PageFile]:
    """Every file of the package's `page` folder by its path; index.html is `/`."""
    page: dict[str, PageFile] = {}
    for file in files("chat_nest.server").joinpath("page").iterdir():
        media_type = MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is None:
            continue
        page["/" if file.name == "index.html" else f"/{file.name}"] = page_file(media_type, file.read_bytes())
    return page
