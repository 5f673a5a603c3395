"""Batches in, bytes out: what counts as output, and where it is cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from chat_nest.deltas import Batch, FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from chat_nest.errors import UpstreamTruncated
from chat_nest.ledger import Reservation
from chat_nest.limits import Claim, Granted
from chat_nest.relay import Pulse, relay
from chat_nest.tokens import ByteCounter, OutputMeter
from chat_nest.usage import Usage


class Lines:
    """An encoder that shows what it was given, and a sink that keeps it."""

    def __init__(self) -> None:
        self.written: list[Batch] = []

    def encode(self, batch: Batch) -> bytes:
        self.written.append(batch)
        return b"x"

    async def write(self, data: bytes) -> None:
        assert data == b"x"


def held(cap: int) -> Reservation:
    claim = Claim(id="a", fingerprint="f", lines=(), max_output_tokens=cap)
    reservation = Reservation(claim, Granted(output_tokens=cap, room=()), 10)
    reservation.meter = OutputMeter(ByteCounter(), cap)
    reservation.asked, reservation.abort_bills = True, "stops"
    return reservation


async def run(batches: Sequence[Batch], reservation: Reservation) -> tuple[str, list[Batch]]:
    async def provider() -> AsyncIterator[Batch]:
        for batch in batches:
            yield batch

    lines = Lines()
    reason = await relay(provider(), lines, lines, reservation, Pulse(0.0), lambda: 1.0)
    return reason, lines.written


CALL = [ToolCallDelta(0, "", "call_1", "weather"), ToolCallDelta(0, '{"city":'), ToolCallDelta(0, '"Paris"}')]


async def test_a_call_of_a_tool_is_output() -> None:
    reservation = held(100)
    reason, written = await run([CALL, [FinishDelta("tool_calls")]], reservation)
    assert (reason, written) == ("tool_calls", [CALL, [FinishDelta("tool_calls")]])
    assert reservation.spent() == (Usage(input_tokens=10, output_tokens=len('weather{"city":"Paris"}')), "estimated")


@pytest.mark.parametrize("delta", [TextDelta("ab"), ReasoningDelta("ab"), ToolCallDelta(0, "ab")])
async def test_whatever_the_model_writes_is_cut_at_the_cap(delta: TextDelta) -> None:
    reason, written = await run([[delta]] * 9, held(3))
    assert (reason, written) == ("length", [[delta]] * 4)
    reason, written = await run([[delta] * 9], held(3))
    assert (reason, written) == ("length", [[delta] * 4]), "the rest of the same read is counted, not relayed"


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
        ([[usage(7, 1)], [TextDelta("abc")], [FinishDelta("stop"), usage(0, 0)]], (0, 0, "reported")),
    ],
)
async def test_row_39_a_count_that_more_output_followed_is_not_the_last_word(batches, spent) -> None:
    reservation = held(100)
    await run(batches, reservation)
    used, source = reservation.spent()
    assert (used.input_tokens, used.output_tokens, source) == spent


async def test_a_stream_without_a_finish_is_truncated() -> None:
    with pytest.raises(UpstreamTruncated):
        await run([[TextDelta("a")], [UsageDelta(Usage())]], held(9))
