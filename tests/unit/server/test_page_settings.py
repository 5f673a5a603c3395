"""The operator's colours on the chat's page."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_nest.server.page_settings import DARK_SURFACE, lightened, luminance

CSS = Path(__file__).parents[3] / "src/chat_nest/server/page/parts.css"


@pytest.mark.parametrize("colour", ["#7c2d12", "#000000", "#0000ff", "#0f766e"])
def test_a_dark_colour_is_lightened_just_until_it_can_be_read_in_the_dark(colour: str) -> None:
    light = lightened(colour)
    assert 4.5 <= (luminance(light) + 0.05) / (luminance(DARK_SURFACE) + 0.05) < 5


def test_a_colour_that_can_be_read_in_the_dark_stays_as_it_is() -> None:
    assert lightened("#fdba74") == "#fdba74"
    assert lightened("") == ""


def test_the_dark_surface_is_the_one_of_the_style_sheet() -> None:
    dark = CSS.read_text().partition("prefers-color-scheme: dark")[2]
    assert f"--surface: {DARK_SURFACE};" in dark
