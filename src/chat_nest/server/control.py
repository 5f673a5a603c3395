"""The control socket of a running server: `chat-nest reload` connects to it and reads the outcome.

A connection is a request for a reload. The server sends nothing but the outcome, as JSON, and closes. The sockets are
in a folder that only their user can enter, each named by the configuration of its server and by its process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

log = logging.getLogger("chat_nest.server")

BACKLOG = 16
ROOT = Path("/tmp")  # noqa: S108 - not TMPDIR, which a shell and a service do not share; the folder's owner is checked


class ControlSocket:
    """A listening control socket. `listener` is None where there can't be one: SIGHUP and POST still reload."""

    def __init__(self, file: str) -> None:
        self.listener: socket.socket | None = None
        self._path: Path | None = None
        if not hasattr(socket, "AF_UNIX"):
            return
        try:
            path = _folder() / f"{_name(file)}-{os.getpid()}.sock"
            path.unlink(missing_ok=True)  # of a dead process that had this id
            listener = socket.socket(socket.AF_UNIX)
            try:
                listener.bind(str(path))
                listener.listen(BACKLOG)
                listener.setblocking(False)
            except OSError:
                listener.close()
                raise
        except OSError as error:
            log.info("`chat-nest reload` can't reach this server (%s: %s); SIGHUP can", ROOT, error.strerror or error)
        else:
            self.listener, self._path = listener, path

    def close(self) -> None:
        """Close and remove the socket."""
        if self.listener is not None:
            self.listener.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def find(file: str) -> Sequence[Path]:
    """Return the sockets of this user's servers with this config file, or without one in the working directory."""
    if not hasattr(socket, "AF_UNIX"):
        return ()
    try:
        return sorted(_folder().glob(f"{_name(file)}-*.sock"))
    except OSError:
        return ()


def _folder() -> Path:
    """Return the folder of this user's sockets, which is made if missing. Raises OSError if it is not safe."""
    path = ROOT / f"chat-nest-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(0, f"{path} must be a folder that only this user can enter")
    return path


def _name(file: str) -> str:
    place = os.path.realpath(file) if file else f"no file, in {Path.cwd()}"
    return blake2b(place.encode(), digest_size=8).hexdigest()
