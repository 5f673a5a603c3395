"""A store that is broken while a process is killed, drained or stopped: some pairs; `scripts/soak --faults` has all.

Of a store, a fault of it, what happens to a process, what an operator does, and whether there is an allowance for
outages, each two come together at least once: about 30 rounds instead of 435.
FAULT_PAIRS_SEED chooses others, and another order of what happens in each.
"""

from __future__ import annotations

import os
import random

import pytest
from fault_pairs import covering, run

SEED = os.environ.get("FAULT_PAIRS_SEED", "1")


@pytest.mark.timeout(600)
async def test_the_ledger_has_the_providers_output_after_any_pair_of_faults(tmp_path):
    assert await run(covering(random.Random(SEED)), tmp_path, SEED) == []
