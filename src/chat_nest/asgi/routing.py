"""Routes: the dialect for a path and method, by look-up in a dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from msgspec import Struct

from chat_nest.core import header_fields
from chat_nest.core.protocols import Dialect, Route, Scope


class Found(Struct, frozen=True):
    """The routes at one path, by method. `below` is the part of the path after the route's own path, if any."""

    methods: Mapping[str, tuple[Dialect, Route]]
    below: str = ""
    marked: tuple[Dialect, Route] | None = None
    """The route that replaces these if the request has that route's header."""

    def chosen(self, scope: Scope) -> Found:
        """Return the routes for this request."""
        if self.marked is None or header_fields.value(scope, self.marked[1].header) is None:
            return self
        return Found({self.marked[1].method: self.marked, **self._others(self.marked[1].method)}, self.below)

    def _others(self, method: str) -> Mapping[str, tuple[Dialect, Route]]:
        return {name: answer for name, answer in self.methods.items() if name != method}

    @property
    def dialect(self) -> Dialect:
        """The dialect of this path, which refuses other methods."""
        return next(iter(self.methods.values()))[0]

    @property
    def is_kept(self) -> bool:
        return any(route.kept for _, route in self.methods.values())

    @property
    def allow(self) -> str:
        """The value of Allow. HEAD is allowed for a list of models, never for a chat."""
        names = list(self.methods)
        if self.of("HEAD") is not None:
            names.append("HEAD")
        return ", ".join([*names, "OPTIONS"])

    def of(self, method: str) -> tuple[Dialect, Route] | None:
        """Return the dialect and the route for this method. HEAD gets the route of GET if it generates nothing."""
        if method != "HEAD":
            return self.methods.get(method)
        got = self.methods.get("GET")
        return got if got is not None and got[1].models is not None else None


class Routes:
    """The routes of all dialects. Raises ValueError if two have the same path, ignoring case, and method."""

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        """Index every route. It is long because each index is made from the ones before it."""
        self._dialects = dialects
        paths: dict[str, dict[str, tuple[Dialect, Route]]] = {}
        taken: set[tuple[str, str]] = set()
        self._marked = {
            _lookup(route.path): (dialect, route) for dialect in dialects for route in dialect.routes if route.header
        }
        for dialect in dialects:
            for route in dialect.routes:
                if route.kept or route.header:
                    continue
                methods = paths.setdefault(_lookup(route.path), {})
                wanted = _lookup(route.path).lower(), route.method
                if wanted in taken:
                    msg = f"two dialects answer {route.method} {route.path}: give one of them another path"
                    raise ValueError(msg)
                taken.add(wanted)
                methods[route.method] = (dialect, route)
        for path, answer in self._marked.items():
            paths.setdefault(path, {}).setdefault(answer[1].method, answer)
        shown = [
            f"{route.method} {route.path}{'/ID' if route.kept else ''}"
            for dialect in dialects
            for route in dialect.routes
        ]
        self.shown = ", ".join(dict.fromkeys(shown))
        """Every method and path, for a client at another path."""
        if len(dialects) == 1:
            paths.setdefault("/", paths[_lookup(dialects[0].routes[0].path)])
        self._found = {path: Found(methods, marked=self._marked.get(path)) for path, methods in paths.items()}
        self._any_case = {
            path.lower(): self._found[path]
            for path, methods in paths.items()
            if any(r.any_case for _, r in methods.values())
        }
        self._above = {
            f"{path}/": {method: answer}
            for path, methods in paths.items()
            for method, answer in methods.items()
            if answer[1].models is not None
        }
        self._above |= {
            f"{_lookup(route.path)}/": {route.method: (dialect, route)}
            for dialect in dialects
            for route in dialect.routes
            if route.kept
        }

    def nearest(self, path: str) -> Dialect:
        """Return the dialect for refusals at another path: the one whose path shares the most segments from the start.

        If no path shares any, return the dialect with the same last segments (`/messages` for `/v1/messages`), or the
        first.
        """
        wanted = path.lower().strip("/").split("/")
        best: tuple[int, int] = (0, 0)
        nearest = self._dialects[0]
        for dialect in self._dialects:
            for route in dialect.routes:
                words = route.path.lower().strip("/").split("/")
                shared = _shared(wanted, words), _shared(wanted[::-1], words[::-1])
                if shared > best:
                    best, nearest = shared, dialect
        return nearest

    def exactly(self, path: str) -> Found | None:
        """Return the routes of exactly this path, with the same case."""
        return self._found.get(path)

    def find(self, path: str) -> Found | None:
        """Return the routes for `path`, as `relative_path` returns it.

        Case matters, except for routes with Route.any_case.
        """
        found = self._found.get(path)
        if found is None and path.isascii():
            found = self._any_case.get(path.lower())
        if found is not None:
            return found
        for above, methods in self._above.items():
            if path.startswith(above):
                return Found(methods, path[len(above) :], self._marked.get(above[:-1]))
        return None


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many segments two paths share from the start."""
    return next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def relative_path(scope: Scope) -> str:
    """Return the path below the mount point, without a trailing slash.

    A path with an empty segment (`//`) is returned unchanged: no route has it.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root):
        path = path[len(root) :]
    if "//" in path:
        return path
    return "/" + path.strip("/")  # Litestar removes the first slash under a mount at "/"


def is_literal(scope: Scope, fixed: str) -> bool:
    """Return whether the target of the request spells the decoded path `fixed` without needless percent-encoding.

    A proxy's rule for a path may compare the raw target, so `/%61pi/chat` must not pass for `/api/chat`.
    """
    raw: bytes = scope.get("raw_path") or b""
    if b"%" not in raw:
        return True
    written = quote(fixed.strip("/"), safe="/!$&'()*+,;=:@~").encode("ascii")
    return f"/{raw.decode('latin-1')}/".find(f"/{written.decode('ascii')}/") >= 0


def _lookup(path: str) -> str:
    return "/" + path.strip("/")
