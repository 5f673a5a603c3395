from __future__ import annotations

import pytest
from stores_under_test import STORES, Clock


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=STORES)
async def store(request, clock):
    async with STORES[request.param](clock) as opened:
        yield opened
