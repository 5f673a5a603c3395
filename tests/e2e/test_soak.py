"""A short soak: after some 1,500 mixed requests and aborts the server is as it was before. `scripts/soak` runs longer."""

from __future__ import annotations

from soak import soak


async def test_row50_mixed_requests_and_aborts_leave_nothing_behind(tmp_path):
    assert await soak(tmp_path, requests=1_200) == []
