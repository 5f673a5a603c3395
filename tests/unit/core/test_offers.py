"""`offers` answers as isinstance does, for every Protocol of a part."""

from __future__ import annotations

from typing import Any

import pytest

from chat_nest.core import protocols
from chat_nest.core.parts import offers

ABILITIES = [
    each for each in vars(protocols).values() if isinstance(each, type) and getattr(each, "_is_runtime_protocol", False)
]


def members(ability: type) -> list[str]:
    return [name for name in vars(ability) if name == "__call__" or not name.startswith("_")]


def nothing(*_: object) -> None:
    """A member."""


class Nothing:
    """Has no member at all."""


@pytest.mark.parametrize("ability", ABILITIES)
def test_a_part_with_all_members_offers_the_ability_and_one_with_fewer_does_not(ability: Any) -> None:
    names = members(ability)
    assert names
    complete = type("Complete", (), dict.fromkeys(names, nothing))()
    assert offers(complete, ability) is isinstance(complete, ability) is True
    for missing in names:
        lacking = type("Lacking", (), {name: nothing for name in names if name != missing})()
        assert offers(lacking, ability) is isinstance(lacking, ability) is False


def test_a_member_may_be_an_attribute_of_the_instance() -> None:
    part = Nothing()
    assert not offers(part, protocols.BillsAborts)
    part.abort_bills = "stops"  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    assert offers(part, protocols.BillsAborts)
