"""Upper bounds of the tokens of an image or a PDF, by the model's family: reserved before the provider counts.

The rules are the vendors' own, with their sources. If an image's pixels are unknown, the rule's maximum counts.
"""

from __future__ import annotations

import re
from functools import lru_cache
from math import ceil
from typing import Final, Literal

from msgspec import Struct

from chat_nest.core.messages import Attachment
from chat_nest.counting.families import base_name

ImageFormula = Literal["tiles", "patches", "crops", "fixed"]


class ImageRule(Struct, frozen=True, kw_only=True):
    """How a family counts images. `most` bounds one image; `page` is one page of a PDF, its text and its picture."""

    rule: ImageFormula = "fixed"
    most: int = 6_500
    """Llama 3.2 makes four tiles of 1,601 tokens; no open model that we know uses more for an image by default."""
    page: int = 9_500
    patch: int = 0
    """Pixels of a patch's side."""
    patches: int = 0
    """The maximum of patches: larger images are scaled down first."""
    factor: float = 1.0
    base: int = 0
    tile: int = 0


UNKNOWN_IMAGES: Final = ImageRule()

_USEFUL_PIXELS: Final = 4 * 1_024 * 1_024
"""Of a model without a stated maximum: more than any of them needs to read a page of text."""

_TEXT_OF_PAGE: Final = 3_000
"""https://platform.claude.com/docs/en/build-with-claude/pdf-support: 1,500 to 3,000 tokens, and the page's picture."""


def _tiles(base: int, tile: int) -> ImageRule:
    most = base + 8 * tile  # 768 by 2048 pixels
    return ImageRule(rule="tiles", base=base, tile=tile, most=most, page=_TEXT_OF_PAGE + most)


def _patches(patch: int, patches: int, factor: float, beside: int = 0) -> ImageRule:
    most = ceil(patches * factor) + beside
    page = _TEXT_OF_PAGE + most
    return ImageRule(rule="patches", patch=patch, patches=patches, factor=factor, base=beside, most=most, page=page)


# The first match in a model's name counts.
_RULES: Final[tuple[tuple[str, ImageRule], ...]] = (
    # https://platform.openai.com/docs/guides/images-vision#calculating-costs
    (r"gpt-4o-mini", _tiles(2_833, 5_667)),
    (r"gpt-4\.1-mini|gpt-5(?:\.\d+)?-mini", _patches(32, 1_536, 1.62)),
    (r"gpt-4\.1-nano|gpt-5(?:\.\d+)?-nano", _patches(32, 1_536, 2.46)),
    (r"o4-mini|codex-mini", _patches(32, 1_536, 1.72)),
    # 1.2 is what is billed: https://community.openai.com/t/1377015
    (r"gpt-5\.[2-9]|gpt-[6-9]", _patches(32, 2_500, 1.2)),
    (r"gpt-|chatgpt|^o[1-9]", _tiles(85, 170)),
    # https://platform.claude.com/docs/en/build-with-claude/vision
    (
        r"claude.*(?:opus|sonnet|haiku)-4(?![.-](?:[7-9]|\d\d)(?!\d))|claude-(?:v\d|[1-3](?!\d)|instant)",
        _patches(28, 1_600, 1.0, 8),
    ),
    (r"claude|anthropic", _patches(28, 4_784, 1.0, 8)),
    # https://ai.google.dev/gemini-api/docs/media-resolution: 1,120 unless the request sets another resolution
    (r"gemini-(?:[3-9]|\d\d)", ImageRule(rule="crops", base=1_120, most=16 * 1_120, page=1_120)),
    # https://ai.google.dev/gemini-api/docs/image-understanding
    (r"gemini|gemma|learnlm", ImageRule(rule="crops", base=258, most=64 * 258, page=258)),
    # https://github.com/QwenLM/Qwen2.5-VL: at most 16,384 patches of 28 pixels
    (r"qwen|qvq", _patches(28, 16_384, 1.0, 8)),
)
_PATTERNS: Final = tuple((re.compile(pattern), rule) for pattern, rule in _RULES)

_TEXT_ONLY: Final = re.compile(
    r"gpt-3\.5|gpt-4(?:$|-0[0-9]|-32k)|o1-(?:mini|preview)|o3-mini|gpt-oss|claude-(?:v?2|instant)|deepseek(?!.*(?:vl|ocr))"
    r"|smollm|codestral|codellama|mixtral|llama-?2|llama-?3(?:$|:|-|\.[13])(?!.*vision)|tinyllama|text-|babbage|davinci"
)


def image_rule(model: str) -> ImageRule:
    """Return how `model`, the provider's own name for it, counts images; the fixed bound for an unknown model."""
    name = base_name(model)
    return next((rule for pattern, rule in _PATTERNS if pattern.search(name)), UNKNOWN_IMAGES)


@lru_cache(256)
def is_text_only(model: str) -> bool:
    """Return whether `model` is known to accept no images. For an unknown model the operator's profile decides."""
    return _TEXT_ONLY.match(base_name(model)) is not None


def useful_pixels(model: str) -> int:
    """Return the pixels of the largest image that `model` sees whole: a larger one is scaled down before it looks."""
    rule = image_rule(model)
    if rule.rule == "tiles":
        return 768 * 2_048
    return rule.patches * rule.patch**2 if rule.rule == "patches" else _USEFUL_PIXELS


def attachment_bound(attachment: Attachment, rule: ImageRule) -> int:
    """Return an upper bound of the input tokens that a provider will bill for one image or PDF."""
    if attachment.is_file:
        return max(attachment.pages, 1) * rule.page
    width, height = attachment.width, attachment.height
    if width < 1 or height < 1 or rule.rule == "fixed":
        return rule.most
    if rule.rule == "tiles":
        return rule.base if attachment.detail == "low" else rule.base + rule.tile * _squares(width, height)
    if rule.rule == "crops":
        return min(rule.most, max(rule.base, 258 * _crops(width, height)))
    if attachment.detail == "original":
        return 4 * rule.most  # 10,000 patches instead of 2,500
    patches = ceil(width / rule.patch) * ceil(height / rule.patch)
    return min(rule.most, ceil(patches * rule.factor) + rule.base)


def _squares(width: int, height: int) -> int:
    """Return the squares of 512 pixels, after scaling the image to fit 2048 by 2048, and its shorter side to 768."""
    scale = min(1.0, 2_048 / max(width, height))
    scale *= min(1.0, 768 / (scale * min(width, height)))
    return ceil(round(scale * width, 3) / 512) * ceil(round(scale * height, 3) / 512)


def _crops(width: int, height: int) -> int:
    if width <= 384 and height <= 384:
        return 1
    side = min(max(min(width, height) // 1.5, 256), 768)
    return ceil(width / side) * ceil(height / side)
