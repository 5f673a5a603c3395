"""Model families, identified by a model's name, and the tokens that each family makes of a text and of a chat.

The numbers are bounds over o200k's count. o200k is OpenAI's newest tokenizer, works offline and counts fast.
`benchmarks/counting.py` measures the bounds against the families' own tokenizers; docs/ledger.md has the result.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

Encoding = Literal["o200k_base", "cl100k_base"]

_O200K = re.compile(r"(?:gpt-(?:4o|4\.1|4\.5|5)|chatgpt-4o|o[134](?:-|$))")
_CL100K = re.compile(r"gpt-(?:4(?:-|$)|3\.5)")
_REASONING = re.compile(
    r"o[1-9]\d?(?![a-z0-9])|gpt-(?:[5-9]|1\d)(?!\d)(?!.*-chat)|gpt-oss"  # gpt-35 is Azure's 3.5
    r"|claude-(?!(?:[123]|instant|(?:opus|sonnet|haiku)-4)(?![a-z\d]))|gemini-(?:2\.5|[3-9])"
)


class ModelFamily(Struct, frozen=True, kw_only=True):
    """How a family counts. `text` and `schema` are in hundredths of a token for each o200k token."""

    text: int
    other: int = 0
    """Hundredths of a token more for each byte of a text beyond its number of characters: other scripts, emoji."""
    digits: bool = False
    """True if each digit is a token; o200k puts three in one."""
    byte_level: bool = True
    """True if a text never has more tokens than bytes."""
    message: int = 8
    """Tokens that the chat template adds to one message."""
    chat: int = 32
    """Tokens that it adds once to a chat: the start of the answer, a default system text."""
    tools: int = 200
    """Tokens that it adds once to a chat with tools."""
    schema: int = 160
    """As `text`, for a tool's JSON, which most templates write with spaces and line breaks."""


UNKNOWN: Final = ModelFamily(text=145, other=50, digits=True, tools=300)
_CLAUDE: Final = ModelFamily(text=142, other=35, byte_level=False, message=6, chat=10, tools=355, schema=140)
# Its tokenizer since Opus 4.7 makes about 30 % more tokens, up to 35 %.
_CLAUDE_NEWER: Final = ModelFamily(text=190, other=25, byte_level=False, message=6, chat=14, tools=474, schema=190)

# The first match in a model's name counts: a distilled model is named after two families, and has the tokenizer of the
# one that it was made from. Claude's tokens for tools are Anthropic's own figures, at the most expensive tool_choice.
_FAMILIES: Final[tuple[tuple[str, ModelFamily], ...]] = (
    (r"gpt-?oss", ModelFamily(text=105, message=6, chat=84, tools=64, schema=130)),
    (r"claude.*opus-4[.-]7(?!\d)", replace(_CLAUDE_NEWER, tools=804)),
    (r"claude.*(?:opus|sonnet|haiku)-4[.-](?:[56])(?!\d)", replace(_CLAUDE, tools=589)),
    (r"claude-3-opus|claude-2|claude-instant", replace(_CLAUDE, tools=530)),
    (r"claude(?:-v\d|-3|.*(?:opus|sonnet|haiku)-4(?![.-](?:[5-9]|\d\d)(?!\d)))", _CLAUDE),
    (r"claude|anthropic", _CLAUDE_NEWER),
    (r"smollm", ModelFamily(text=140, other=70, digits=True, message=6, chat=36)),
    (
        r"gemini|gemma|learnlm",
        ModelFamily(text=125, other=10, digits=True, message=6, chat=12, schema=125),
    ),
    (r"qwen|qwq|qvq|deepseek-r1:(?!671)", ModelFamily(text=121, other=15, digits=True, message=6, chat=36)),
    (r"llama-?[34]|hermes-?3", ModelFamily(text=121, other=30, message=6, chat=48)),
    (
        r"llama-?2|llama-7|codellama|tinyllama|vicuna|zephyr|mistral|mixtral|codestral|ministral|magistral|devstral|pixtral",
        ModelFamily(text=140, other=60, digits=True, message=8, chat=16, schema=150),
    ),
    (r"deepseek", ModelFamily(text=125, other=8, message=4, chat=8, tools=300)),
)
_PATTERNS: Final = tuple((re.compile(pattern), family) for pattern, family in _FAMILIES)


def family_of(model: str) -> ModelFamily:
    """Return the family of `model`, the provider's own name for it; UNKNOWN if no pattern matches."""
    name = base_name(model)
    return next((family for pattern, family in _PATTERNS if pattern.search(name)), UNKNOWN)


def encoding_of(model: str) -> Encoding | None:
    """Return OpenAI's encoding that `model` uses; None for another vendor's model."""
    name = base_name(model)
    if _O200K.match(name):
        return "o200k_base"
    return "cl100k_base" if _CL100K.match(name) else None


@lru_cache(256)
def is_reasoning_model(model: str) -> bool:
    """Return whether `model` bills hidden reasoning tokens, so that its output can't be counted."""
    return _REASONING.match(base_name(model)) is not None


@lru_cache(256)  # a request needs that of its model six times
def base_name(model: str) -> str:
    """Return the name without a router's prefix or a fine-tuning mark: `openrouter/openai/o3-mini` is `o3-mini`."""
    return model.rpartition("/")[2].lower().removeprefix("ft:")
