"""Batches in, bytes out: what counts as output, and where it is cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from itertools import cycle, product

import pytest

from chat_nest.core.claims import Claim, Granted
from chat_nest.core.deltas import Batch, FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.core.errors import UpstreamTruncated
from chat_nest.core.usage import Usage
from chat_nest.counting.meter import OutputMeter
from chat_nest.counting.tokens import ByteCounter, ExactCounter, TokenCounter, counter_for
from chat_nest.ledger.reservation import Reservation
from chat_nest.pipeline.relay import Pulse, relay

BYTES = ByteCounter()


class Lines:
    """An encoder that shows what it was given, and a sink that keeps it; `takes`: what it says to a push, in turn."""

    def __init__(self, takes: Sequence[bool]) -> None:
        self.written: list[Batch] = []
        self.sent = 0
        self._takes = cycle(takes)
        self.push = self._push if takes else None

    def _push(self, data: bytes) -> bool:
        taken = next(self._takes)
        self.sent += taken
        return taken

    def encode(self, batch: Batch) -> bytes:
        self.written.append(batch)
        return b"x"

    async def write(self, data: bytes) -> None:
        assert data == b"x"
        self.sent += 1


class Straight:
    """Batches that are passed on, as those of our own providers."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = iter(batches)

    async def pass_on(self, take: Callable[[Batch], bool]) -> bool:
        return not all(take(batch) for batch in self._batches)


def held(cap: int, counter: TokenCounter) -> Reservation:
    claim = Claim(id="a", fingerprint="f", lines=(), max_output_tokens=cap)
    reservation = Reservation(claim, Granted(output_tokens=cap, room=()), 10)
    reservation.meter = OutputMeter(counter, cap)
    reservation.asked, reservation.abort_bills = True, "stops"
    return reservation


async def run(
    batches: Sequence[Batch], cap: int, counter: TokenCounter = BYTES
) -> tuple[str, list[Batch], Reservation]:
    """Relay them in every way there is, and check that it comes to the same."""
    found: list[tuple[str, list[Batch], Reservation]] = []
    for straight, takes in product((False, True), ((), (True,), (False,), (True, False), (False, True))):
        if takes or not straight:
            reservation = held(cap, counter)
            found.append((*await relayed(batches, reservation, takes, straight=straight), reservation))
    first = found[0]
    assert all(other[:2] == first[:2] and other[2].spent() == first[2].spent() for other in found)
    return first


async def relayed(
    batches: Sequence[Batch], reservation: Reservation, takes: Sequence[bool], *, straight: bool
) -> tuple[str, list[Batch]]:
    async def provider() -> AsyncIterator[Batch]:
        for batch in batches:
            yield batch

    lines = Lines(takes)
    source = Straight(batches) if straight else provider()
    try:
        reason = await relay(source, lines, lines, reservation, Pulse(0.0), lambda: 1.0)  # type: ignore[arg-type]
    finally:
        assert lines.sent == len(lines.written), "every batch is sent once"
    return reason, lines.written


CALL = [ToolCallDelta(0, "", "call_1", "weather"), ToolCallDelta(0, '{"city":'), ToolCallDelta(0, '"Paris"}')]


async def test_a_call_of_a_tool_is_output() -> None:
    reason, written, reservation = await run([CALL, [FinishDelta("tool_calls")]], 100)
    assert (reason, written) == ("tool_calls", [CALL, [FinishDelta("tool_calls")]])
    assert reservation.spent() == (Usage(input_tokens=10, output_tokens=len('weather{"city":"Paris"}')), "estimated")


@pytest.mark.parametrize("delta", [TextDelta(" ab"), ReasoningDelta(" ab"), ToolCallDelta(0, " ab")])
async def test_any_text_of_the_model_is_cut_at_the_cap(delta: TextDelta) -> None:
    reason, written, _ = await run([[delta]] * 9, 3, ExactCounter("o200k_base"))
    assert (reason, written) == ("length", [[delta]] * 4)
    reason, written, _ = await run([[delta] * 9], 3, ExactCounter("o200k_base"))
    assert (reason, written) == ("length", [[delta] * 4]), "the rest of the same read is counted, not relayed"


COUNTERS = [ByteCounter(), counter_for("a-model-of-our-own"), counter_for("claude-sonnet-4")]


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("piece", ["x", "7", "字"])
async def test_a_piece_is_not_a_token(counter: TokenCounter, piece: str) -> None:
    batches = [*[[TextDelta(piece)]] * 600, [FinishDelta("stop"), usage(9, 101)]]
    reason, written, reservation = await run(batches, 400, counter)  # type: ignore[arg-type]
    assert (reason, written) == ("stop", batches)
    assert reservation.spent() == (Usage(input_tokens=9, output_tokens=101), "reported")


@pytest.mark.parametrize("counter", [*COUNTERS, ExactCounter("o200k_base")])
@pytest.mark.parametrize("reads", [1, 2_000])
async def test_tokens_received_beyond_the_cap_are_charged(counter: TokenCounter, reads: int) -> None:
    pieces = [TextDelta(" token")] * 2_000
    size = len(pieces) // reads
    batches = [pieces[start : start + size] for start in range(0, 2_000, size)]
    reason, written, reservation = await run([*batches, [FinishDelta("stop")]], 100, counter)
    used, source = reservation.spent()
    sent = sum(len(batch) for batch in written)
    assert source == "estimated"
    if reads == 1:
        assert used.output_tokens >= 2_000, "all of the read that passed the cap"
    if not isinstance(counter, ByteCounter):  # of which a token may have 128
        assert (reason, 100 < sent <= 600) == ("length", True)
    assert used.output_tokens >= sent


def usage(input_tokens: int, output_tokens: int) -> UsageDelta:
    return UsageDelta(Usage(input_tokens=input_tokens, output_tokens=output_tokens))


@pytest.mark.parametrize(
    ("batches", "spent"),
    [
        ([[TextDelta("abc")], [FinishDelta("stop")]], (10, 3, "estimated")),
        ([[TextDelta("abc")], [FinishDelta("stop")], [usage(7, 2)]], (7, 2, "reported")),
        ([[TextDelta("abc")], [usage(7, 2), FinishDelta("stop")]], (7, 2, "reported")),
        ([[usage(7, 0)], [TextDelta("abc")], [usage(7, 2), FinishDelta("stop")]], (7, 2, "reported")),
        ([[usage(7, 0)], [TextDelta("abc")], [FinishDelta("stop")]], (7, 3, "estimated")),
        ([[usage(7, 1)], [TextDelta("abc")], [FinishDelta("stop")]], (7, 4, "estimated")),
        ([[TextDelta("abc")], [usage(7, 2)], [FinishDelta("stop"), usage(0, 0)]], (7, 2, "reported")),
        ([[TextDelta("abc")], [usage(7, 2)], [FinishDelta("stop"), usage(9, 1)]], (9, 2, "reported")),
        ([[TextDelta("abc")], [FinishDelta("stop"), usage(0, 0)]], (10, 3, "estimated")),
        ([[usage(7, 1)], [TextDelta("abc")], [FinishDelta("stop"), usage(0, 0)]], (7, 4, "estimated")),
    ],
)
async def test_row_39_a_count_that_more_output_followed_is_not_the_last_word(batches, spent) -> None:
    _, _, reservation = await run(batches, 100)
    used, source = reservation.spent()
    assert (used.input_tokens, used.output_tokens, source) == spent


async def test_a_stream_without_a_finish_is_truncated() -> None:
    with pytest.raises(UpstreamTruncated):
        await run([[TextDelta("a")], [UsageDelta(Usage())]], 9)
