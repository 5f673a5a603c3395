"""What grants and resets do to a line: the arithmetic, beside tests/wire/test_controls.py."""

from __future__ import annotations

from msgspec.structs import replace

from chat_nest.controls.grants import BudgetGrant, Grants, grant_row
from chat_nest.controls.live import LiveControls
from chat_nest.controls.memory import MemoryControls
from chat_nest.core.claims import MAX_AMOUNT, Line, Standing
from chat_nest.core.controls import Control
from chat_nest.testing import FakeClock

CLOCK = FakeClock()
DAY = Line(
    name="tokens_per_day", scope="caller", key="caller:ada:tokens_per_day:2026", unit="tokens", kind="window",
    limit=100, fixed=1, resets_at=CLOCK() + 1_000,
)  # fmt: skip
OTHER = replace(DAY, key="caller:ada:tokens_per_day:2027")
RATE = replace(DAY, kind="rate", period=60)


def standing(used: int) -> Standing:
    return Standing(used=used, held=0, room=0, resets_at=DAY.resets_at)


async def test_grants_of_a_window_add_up_and_a_reset_frees_what_was_used() -> None:
    controls = MemoryControls(CLOCK)
    grants = Grants(LiveControls(controls, CLOCK))
    assert grants.raised([DAY, OTHER]) == [DAY, OTHER]
    await controls.change([grant_row(DAY, BudgetGrant(amount=10, kind="grant"), "a", "why")])
    await controls.change([grant_row(DAY, BudgetGrant(amount=5, kind="grant"), "b", "")])
    await controls.change([grant_row(DAY, BudgetGrant(amount=60, kind="reset"), "reset", "")])
    assert [line.limit for line in grants.raised([DAY, OTHER, RATE])] == [175, 100, 100]
    assert grants.shown(replace(DAY, limit=175), standing(90)) == (replace(DAY, limit=115), standing(30))
    assert grants.shown(replace(DAY, limit=175), standing(50)) == (replace(DAY, limit=115), standing(0))
    assert grants.shown(OTHER, standing(90)) == (OTHER, standing(90))
    assert grants.shown(RATE, standing(90)) == (RATE, standing(90))
    await controls.change([grant_row(DAY, BudgetGrant(amount=70, kind="reset"), "reset", "")])  # it replaces the first
    assert [line.limit for line in grants.raised([DAY])] == [185]
    [row] = [row for row in controls.snapshot().rows if row.name.endswith(" a")]
    assert (row.kind, row.name, row.expires, row.reason) == ("grant", f"{DAY.key} a", DAY.resets_at, "why")


async def test_a_grant_lowers_nothing_and_raises_nothing_past_what_stores_can_count() -> None:
    controls = MemoryControls(CLOCK)
    grants = Grants(LiveControls(controls, CLOCK))
    await controls.change([grant_row(DAY, BudgetGrant(amount=-50, kind="grant"), "a", "")])
    await controls.change([Control(kind="grant", name=f"{DAY.key} b", value="{", expires=DAY.resets_at)])
    await controls.change([Control(kind="grant", name=f"{DAY.key} c", value='{"amount": "9", "kind": "grant"}')])
    assert [line.limit for line in grants.raised([DAY])] == [100]
    await controls.change([grant_row(DAY, BudgetGrant(amount=7, kind="reset"), "d", "")])
    assert [line.limit for line in grants.raised([DAY])] == [107]
    await controls.change([grant_row(DAY, BudgetGrant(amount=MAX_AMOUNT, kind="grant"), "e", "")])
    assert [line.limit for line in grants.raised([DAY])] == [MAX_AMOUNT]
    await controls.change(remove=[("grant", "")])
    assert grants.raised([DAY]) == [DAY]


async def test_the_grants_that_were_there_before_are_in_force() -> None:
    controls = MemoryControls(CLOCK)
    await controls.change([grant_row(DAY, BudgetGrant(amount=10, kind="grant"), "a", "")])
    assert [line.limit for line in Grants(LiveControls(controls, CLOCK)).raised([DAY])] == [110]
