from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.core.messages import Message, Role
from chat_nest.counting.bounds import prompt_bound
from chat_nest.counting.tokens import ByteCounter
from chat_nest.counting.trim import trim

LETTERS: dict[str, Role] = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}
BYTES = ByteCounter()


def chat(roles: str, size: int = 10) -> tuple[Message, ...]:
    """A letter a message; each content is its own and `size` bytes long."""
    return tuple(Message(role=LETTERS[role], content=f"{index:0{size}}") for index, role in enumerate(roles))


def letters(messages: tuple[Message, ...]) -> str:
    return "".join(message.role[0] for message in messages)


@pytest.mark.parametrize(
    ("before", "max_messages", "after"),
    [
        ("u", 6, "u"),
        ("uauau", 5, "uauau"),
        ("uauau", 4, "uau"),
        ("uauau", 3, "uau"),
        ("uauau", 2, "u"),
        ("uauau", 1, "u"),
        ("suauau", 3, "suau"),
        ("sduau", 1, "sdu"),
        ("usau", 1, "su"),
        ("auau", 4, "auau"),
        ("auau", 3, "uau"),
        ("uuuu", 2, "uu"),
        ("uaau", 3, "u"),
        ("uatatau", 6, "u"),
        ("uuatatau", 7, "uatatau"),
        ("uauatat", 3, "uatat"),
        ("s", 1, "s"),
        ("a", 1, "a"),
        ("", 1, ""),
    ],
)
def test_the_oldest_turns_go_first_and_whole(before: str, max_messages: int, after: str) -> None:
    messages = chat(before)
    trimmed = trim(messages, max_messages, None, BYTES)
    assert letters(trimmed.messages) == after
    assert trimmed.dropped == len(before) - len(after)
    assert [m for m in messages if m in trimmed.messages] == list(trimmed.messages), "in the old order"


def test_turns_are_dropped_until_the_tokens_fit() -> None:
    messages = chat("uauau", size=100)
    whole = 32 + 5 * 108
    assert trim(messages, 20, whole, BYTES).messages == messages
    assert trim(messages, 20, whole - 1, BYTES).messages == messages[2:]
    assert trim(messages, 20, 32 + 3 * 108 - 1, BYTES).messages == messages[4:]


def test_the_latest_turn_stays_even_if_it_does_not_fit() -> None:
    trimmed = trim(chat("sauau", size=1_000), 20, 100, BYTES)
    assert letters(trimmed.messages) == "su"
    assert trimmed.tokens == 32 + 2 * 1_008
    assert trimmed.dropped == 3


def test_an_old_message_that_is_dropped_is_not_counted() -> None:
    class Refuses:
        exact = False

        def count(self, text: str) -> int:
            assert text != "old"
            return len(text)

    old = Message(role="user", content="old")
    assert trim((old, old, *chat("uau")), 3, 1_000, Refuses()).dropped == 2


roles = st.lists(st.sampled_from("uuuaaatsd"), max_size=30).map("".join)


@given(roles, st.integers(1, 30), st.one_of(st.none(), st.integers(1, 1_000)))
def test_what_is_kept(before: str, max_messages: int, max_tokens: int | None) -> None:
    messages = chat(before)
    trimmed = trim(messages, max_messages, max_tokens, BYTES)
    kept = trimmed.messages
    spoken = [m for m in messages if m.role not in ("system", "developer")]
    kept_spoken = [m for m in kept if m.role not in ("system", "developer")]
    last_turn = spoken[max((i for i, m in enumerate(spoken) if m.role == "user"), default=0) :]

    assert trimmed.tokens == prompt_bound(kept, BYTES)
    assert trimmed.dropped == len(messages) - len(kept)
    assert [m for m in messages if m in kept] == list(kept), "nothing is reordered"
    assert [m for m in kept if m not in kept_spoken] == [m for m in messages if m not in spoken], "system stays"
    assert spoken[len(spoken) - len(kept_spoken) :] == kept_spoken, "the recent end of the chat"
    assert kept_spoken[len(kept_spoken) - len(last_turn) :] == last_turn, "the latest turn stays"
    if len(kept_spoken) < len(spoken):
        assert kept_spoken[0].role == "user", "no answer without its question"

    def fits(of: list[Message]) -> bool:
        tokens = prompt_bound([m for m in messages if m in of or m not in spoken], BYTES)
        return len(of) <= max_messages and (max_tokens is None or tokens <= max_tokens)

    assert fits(kept_spoken) or kept_spoken == last_turn
    starts = [i for i, m in enumerate(spoken) if m.role == "user" or i == 0]
    longer = [spoken[i:] for i in starts if len(spoken) - i > len(kept_spoken)]
    assert not any(fits(more) for more in longer), "as much as fits is kept"
