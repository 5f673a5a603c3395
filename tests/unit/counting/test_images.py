"""The pixels that a model sees of an image."""

from __future__ import annotations

import re
from math import isqrt
from pathlib import Path

import pytest

from chat_nest.core.messages import Attachment
from chat_nest.counting.images import attachment_bound, image_rule, useful_pixels


def bound(model: str, width: int, height: int) -> int:
    return attachment_bound(Attachment(at=0, media_type="image/png", width=width, height=height), image_rule(model))


@pytest.mark.parametrize(
    "model", ["gpt-4o", "gpt-5-mini", "gpt-5.2", "claude-sonnet-4-5", "claude-opus-4-8", "qwen2.5-vl"]
)
def test_an_image_of_the_useful_pixels_costs_the_most_and_half_of_them_less(model):
    width, height = (2_048, 768) if model == "gpt-4o" else (isqrt(useful_pixels(model)),) * 2
    assert width * height <= useful_pixels(model)
    whole = bound(model, width, height)
    assert bound(model, 4 * width, 4 * height) <= whole * 1.02
    assert bound(model, width // 2, height // 2) < whole / 2


def test_of_a_model_without_a_stated_maximum_a_page_of_text_is_useful():
    assert useful_pixels("somebody/unknown") == useful_pixels("gemini-3-pro") == 4 * 1_024 * 1_024


LARGE = {
    "Claude up to 4.6": ["claude-sonnet-4-5", "claude-opus-4-6"],
    "newer Claude models": ["claude-opus-4-7", "claude-sonnet-5"],
    "GPT-4o, GPT-4.1, GPT-5": ["gpt-4o", "gpt-4.1", "gpt-5"],
    "GPT-5.2 and newer": ["gpt-5.2"],
    "the mini and nano models of GPT-4.1 and GPT-5": ["gpt-4.1-mini", "gpt-5-nano"],
    "an unknown model": ["llava"],
}


def test_the_documented_tokens_of_a_large_image_are_those_that_are_counted() -> None:
    document = (Path(__file__).parents[3] / "docs/clients.md").read_text("utf-8")
    documented = dict(re.findall(r"^\| ([^|]+?) \| ([\d,]+(?: to [\d,]+)?) \|$", document, re.MULTILINE))
    for name, models in LARGE.items():
        bounds = sorted({image_rule(model).most for model in models})
        assert documented[name] == " to ".join(f"{bound:,}" for bound in bounds)
