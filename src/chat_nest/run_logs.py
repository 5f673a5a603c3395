"""Where runs are kept, by a URL, as the config file names it."""

from __future__ import annotations

from chat_nest.extras import explain
from chat_nest.local_runs import LocalRuns
from chat_nest.protocols import RunLogs
from chat_nest.stream_log import MemoryRuns

REDIS = ("redis://", "rediss://", "redis+", "rediss+")
LOCAL = "local://"
_FORMS = "memory://, local:///DIRECTORY, or begin with redis://, rediss://, redis+cluster:// or redis+sentinel://"


def open_runs(url: str, keep_seconds: float = 300.0) -> RunLogs:
    """Return the log that the URL names; nothing is opened before its first call.

    `memory://` is for one process, `local:///DIRECTORY` for those of one machine and user, which alone may enter the
    directory, and for Redis see `redis_servers.read_url`. Raises ValueError for another form, for such a directory
    that is not there or that others may enter, or where the extra that the form needs is not installed.
    """
    if url == "memory://":
        return MemoryRuns(keep=keep_seconds)
    if url.startswith(REDIS):
        return _open_redis(url, keep_seconds)
    folder = url.removeprefix(LOCAL)
    if folder == url or not folder.startswith("/"):
        raise ValueError(f"runs.url must be {_FORMS}")
    return LocalRuns(folder, keep=keep_seconds)


def _open_redis(url: str, keep_seconds: float) -> RunLogs:
    try:
        from chat_nest.stores.redis_runs import RedisRuns  # noqa: PLC0415 - an extra
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "hiredis":
            raise
        raise ValueError(f"runs.url: {explain('Redis needs', 'redis', error)}") from None
    try:
        return RedisRuns(url, keep=keep_seconds)
    except ValueError as error:
        raise ValueError(str(error).replace("store.url", "runs.url")) from None
