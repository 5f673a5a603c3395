"""Every code has its error, and every error that a caller can see a code of its own."""

from __future__ import annotations

import pytest

from chat_nest.core import errors
from chat_nest.core.errors import KINDS, ChatError, by_code

VARIANTS = {"StoreEmptied", "UpstreamForbidden", "UpstreamPaused", "UpstreamNotStarted"}
"""Errors that share the code of the kind they are: clients can't tell them apart."""


def defined() -> dict[str, type[ChatError]]:
    here = vars(errors).items()
    return {name: kind for name, kind in here if isinstance(kind, type) and issubclass(kind, ChatError)}


def test_the_table_has_every_error_once() -> None:
    assert {kind.__name__ for kind in KINDS} == set(defined()) - VARIANTS
    assert len({kind.code for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_leads_back_to_its_error(kind: type[ChatError]) -> None:
    assert type(by_code(kind.code)) is kind


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_variant_has_the_code_of_its_kind(name: str) -> None:
    kind = defined()[name]
    assert type(by_code(kind.code)) is kind.__base__


def test_an_unknown_code_is_a_plain_error() -> None:
    assert type(by_code("nosuch")) is ChatError
