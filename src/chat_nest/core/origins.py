"""Origins of pages (RFC 6454), compared as bytes."""

from __future__ import annotations

_PORTS = {b"http": b":80", b"https": b":443"}


def normal_origin(text: str) -> bytes:
    """Return an origin as browsers send it: in lower case, without the scheme's own port.

    Raises ValueError, which does not repeat the text, for anything but an origin.
    """
    if not text.isascii():
        raise ValueError("must name the host as browsers do, in ASCII: xn--..., not the name with its own letters")
    scheme, separator, authority = text.lower().partition("://")
    if not separator or not scheme or not authority or set(authority) & set("/?#@ *\\,"):
        raise ValueError("must be an origin such as https://example.com, without a path")
    port = _PORTS.get(scheme.encode(), b"")
    return f"{scheme}://".encode() + (authority.encode().removesuffix(port) if port else authority.encode())


def is_same_host(origin: bytes, host: bytes) -> bool:
    """Return whether a page of this origin came from this Host. The scheme is unknown here: a proxy may end TLS."""
    scheme, separator, authority = origin.lower().partition(b"://")
    port = _PORTS.get(scheme)
    if not separator or port is None:
        return False
    return bool(authority) and authority.removesuffix(port) == host.lower().removesuffix(port)
