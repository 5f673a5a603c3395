"""The pixels that a model sees of an image."""

from __future__ import annotations

from math import isqrt

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
