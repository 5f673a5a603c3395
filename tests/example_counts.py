"""How many examples a Hypothesis test draws: all on one Python, a tenth on the others, where TEST_EXAMPLES is `few`.

What Hypothesis looks for lies in the code, and seldom in the interpreter.
"""

from __future__ import annotations

import os

FEW = os.environ.get("TEST_EXAMPLES") == "few"


def examples(most: int = 100) -> int:
    """Return how many of `most` examples to draw here."""
    return max(5, most // 10) if FEW else most
