"""The harnesses of fuzz_harnesses under Hypothesis, bounded."""

from __future__ import annotations

import pytest
from fuzz_harnesses import BODIES, CUTS, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

RUNS = settings(max_examples=100, derandomize=True, deadline=None, database=None)


def mutated(data: st.DataObject, name: str) -> bytes:
    """A seed, some of which was replaced, doubled or left out; or anything at all."""
    body = data.draw(st.one_of(st.sampled_from(seeds(name)), st.binary(max_size=600)))
    for _ in range(data.draw(st.integers(0, 3))):
        at, to = sorted(data.draw(st.tuples(st.integers(0, len(body)), st.integers(0, len(body)))))
        body = body[:at] + data.draw(st.one_of(st.binary(max_size=8), st.just(body[at:to] * 2))) + body[to:]
    return body


@pytest.mark.parametrize("name", BODIES)
@RUNS
@given(data=st.data())
def test_no_body_is_more_than_a_bad_request(name: str, data: st.DataObject) -> None:
    BODIES[name](mutated(data, name))


@pytest.mark.parametrize("name", CUTS)
@RUNS
@given(data=st.data())
def test_bytes_cut_anywhere_mean_the_same(name: str, data: st.DataObject) -> None:
    CUTS[name](mutated(data, name))
