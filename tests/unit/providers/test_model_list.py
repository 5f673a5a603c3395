"""The four forms of a list of models, and advice about a name that it does not hold."""

from __future__ import annotations

import pytest

from chat_nest.providers.model_list import model_names, unlisted

LISTED = frozenset({"gpt-4o", "gpt-4o-mini", "GPT-OSS-20B", "claude-sonnet-4-20250514", "llama3:latest"})


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"object":"list","data":[{"id":"gpt-4o","object":"model"},{"id":"o3"}]}', {"gpt-4o", "o3"}),
        (b'{"data":[{"type":"model","id":"claude-x","display_name":"X"}],"has_more":false}', {"claude-x"}),
        (b'{"models":[{"name":"models/gemini-pro","version":"1"}]}', {"gemini-pro"}),
        (b'{"models":[{"name":"llama3:latest","model":"llama3:latest"}]}', {"llama3:latest"}),
        (b'{"data":[{"id":5},{"id":null},{}]}', set()),
        (b'{"data":"x"}', set()),
        (b"[]", set()),
        (b"", set()),
        (b'{"data":[{"id":"cut', set()),
        (b"\xff", set()),
        (b'{"x":' * 10_000, set()),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, bytes) else "names",
)
def test_lists(body: bytes, names: set[str]) -> None:
    assert model_names(body) == names


@pytest.mark.parametrize(
    "model", ["gpt-4o", "llama3", "llama3:latest", "claude-sonnet-4-0", "claude-sonnet-4-latest", "claude-sonnet-4"]
)
def test_a_name_that_is_listed_or_an_alias(model: str) -> None:
    assert unlisted([model], LISTED) == ""


@pytest.mark.parametrize(
    ("model", "near"),
    [("gpt-4o-mni", "gpt-4o-mini or gpt-4o"), ("gpt-oss-2b", "GPT-OSS-20B"), ("lama3", "llama3:latest")],
)
def test_a_name_that_is_not(model: str, near: str) -> None:
    assert unlisted([model, model], LISTED) == (
        f"The provider's list of models does not have {model}. Did you mean {near}?"
    )


def test_without_a_similar_name_there_is_no_hint() -> None:
    assert unlisted(["qqq"], LISTED) == "The provider's list of models does not have qqq."


def test_without_a_list_nothing_is_missing() -> None:
    assert unlisted(["gpt-4o-mni"], frozenset()) == ""
