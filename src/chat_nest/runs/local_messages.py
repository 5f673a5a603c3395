"""The messages between the processes of one machine about their runs: questions, and the answers to them."""

from __future__ import annotations

from msgspec import Struct

from chat_nest.core.protocols import Finale
from chat_nest.runs.codec import Ended, Said, reader


class Find(Struct, frozen=True, array_like=True, tag="find"):
    name: str


class Stop(Struct, frozen=True, array_like=True, tag="stop"):
    name: str
    owner: str


class Forget(Struct, frozen=True, array_like=True, tag="forget"):
    id: str
    owner: str


class Follow(Struct, frozen=True, array_like=True, tag="follow"):
    id: str
    after: int


class FoundRun(Struct, frozen=True, array_like=True, tag="found"):
    id: str
    owner: str
    model: str
    finale: Finale | None


class Done(Struct, frozen=True, array_like=True, tag="done"):
    """The run was stopped or forgotten."""


class Nothing(Struct, frozen=True, array_like=True, tag="nothing"):
    """The run is not here, or no longer here."""


read_question = reader(Find | Stop | Forget | Follow)
read_answer = reader(FoundRun | Done | Nothing | Said | Ended)
