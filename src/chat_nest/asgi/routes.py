"""Which dialect answers at which path and method: a look-up in a dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from chat_nest.protocols import Dialect, Route, Scope


class Found(Struct, frozen=True):
    """What answers at one path, by method; `below` is what the path has more than the route's own, if anything."""

    methods: Mapping[str, tuple[Dialect, Route]]
    below: str = ""

    @property
    def dialect(self) -> Dialect:
        """Whose path it is: the one that says no to another method."""
        return next(iter(self.methods.values()))[0]

    @property
    def allow(self) -> str:
        """The value of Allow. A list of models can be asked for by HEAD, a chat never."""
        names = list(self.methods)
        if self.of("HEAD") is not None:
            names.append("HEAD")
        return ", ".join([*names, "OPTIONS"])

    def of(self, method: str) -> tuple[Dialect, Route] | None:
        """The dialect and the route for this method; GET's for HEAD where nothing is generated."""
        if method != "HEAD":
            return self.methods.get(method)
        got = self.methods.get("GET")
        return got if got is not None and got[1].models is not None else None


class Routes:
    """The routes of all dialects. Raises ValueError where two of them want the same path and method."""

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        paths: dict[str, dict[str, tuple[Dialect, Route]]] = {}
        for dialect in dialects:
            for route in dialect.routes:
                methods = paths.setdefault(_lookup(route.path), {})
                if route.method in methods:
                    msg = f"two dialects answer {route.method} {route.path}: give one of them another path"
                    raise ValueError(msg)
                methods[route.method] = (dialect, route)
        self.shown = ", ".join(f"{route.method} {route.path}" for dialect in dialects for route in dialect.routes)
        """Every method and path, for a client at another one."""
        if len(dialects) == 1:
            paths.setdefault("/", paths[_lookup(dialects[0].routes[0].path)])
        self._found = {path: Found(methods) for path, methods in paths.items()}
        self._above = {
            f"{path}/": {method: answer}
            for path, methods in paths.items()
            for method, answer in methods.items()
            if answer[1].models is not None
        }

    def find(self, path: str) -> Found | None:
        """`path` as `relative_path` gives it."""
        lowered = path.lower()
        found = self._found.get(lowered)
        if found is not None:
            return found
        for above, methods in self._above.items():
            if lowered.startswith(above):
                return Found(methods, path[len(above) :])
        return None


def relative_path(scope: Scope) -> str:
    """The path below the mount point, without a slash at its end. Paths are compared in lower case, as Express did."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root):
        path = path[len(root) :]
    return "/" + path.strip("/")  # Litestar takes the first slash away with a mount at "/"


def _lookup(path: str) -> str:
    return "/" + path.strip("/").lower()
