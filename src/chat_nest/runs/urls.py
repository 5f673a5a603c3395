"""Run logs by URL, as in the configuration file."""

from __future__ import annotations

from chat_nest.core.extras import explain
from chat_nest.core.protocols import RunLogs
from chat_nest.runs.local import LocalRuns
from chat_nest.runs.memory import MemoryRuns

REDIS = ("redis://", "rediss://", "redis+", "rediss+")
LOCAL = "local://"
_FORMS = "memory://, local:///DIRECTORY, or begin with redis://, rediss://, redis+cluster:// or redis+sentinel://"


def open_runs(url: str, keep_seconds: float = 300.0) -> RunLogs:
    """Return the log that the URL names; nothing is opened before its first call.

    `memory://` is for one process. `local:///DIRECTORY` is for the processes of one machine and user, and only that
    user may enter the directory. For Redis see `stores.redis.topology.read_url`. Raises ValueError for another form,
    for a directory that is missing or open to others, or if the extra that the form needs is not installed.
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
        from chat_nest.runs.redis import RedisRuns  # noqa: PLC0415 - an extra
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "hiredis":
            raise
        raise ValueError(f"runs.url: {explain('Redis needs', 'redis', error)}") from None
    try:
        return RedisRuns(url, keep=keep_seconds)
    except ValueError as error:
        raise ValueError(str(error).replace("store.url", "runs.url")) from None
