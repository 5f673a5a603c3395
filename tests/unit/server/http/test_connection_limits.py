"""Places for connections."""

from __future__ import annotations

import pytest

from chat_nest.server.http.connection_limits import MOST_REFUSED, SPARE_FILES, ConnectionLimits


async def test_room_for_connections_and_for_files(caplog: pytest.LogCaptureFixture) -> None:
    limits = ConnectionLimits(max_connections=2, max_files=100)
    assert not limits.admit(100 - SPARE_FILES + 1)
    assert limits.admit(100 - SPARE_FILES)
    assert limits.admit(5)
    assert not limits.admit(6)
    assert not limits.admit(6)
    limits.release(None)
    assert limits.admit(6)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "file descriptors run out",
        "max_connections is reached",
    ]


class Extra:
    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True
        del self._limits.extra[self]


def test_the_oldest_of_too_many_that_are_to_be_refused_is_dropped() -> None:
    limits = ConnectionLimits()
    extra = [Extra(limits) for _ in range(MOST_REFUSED + 2)]
    for each in extra:
        limits.refuse_later(each)
    assert [each.dropped for each in extra] == [True, True] + [False] * MOST_REFUSED
