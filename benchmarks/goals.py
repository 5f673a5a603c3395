"""What a token, a request and a stream may cost, and whether they do: every goal is a figure of one run."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from benchmarks.peers import EXPRESS_NAME, LITELLM_NAME
from benchmarks.stacks import FLOOR

OURS = "chat-nest memory"


class Goal(msgspec.Struct, frozen=True):
    """`figure` of ours, or its ratio or difference to that of another stack in the same round, at most `most`."""

    text: str
    figure: str
    of: Literal["value", "ratio", "difference"]
    most: float
    stretch: float | None = None
    against: str | None = None


GOALS = (
    Goal("CPU a paced token, against nginx", "paced: us a token", "ratio", 2.0, 1.5, FLOOR),
    Goal("CPU a request of 1 token, against Express", "burst 1: us a request", "ratio", 0.15, 0.08, EXPRESS_NAME),
    Goal("CPU a request of 200 tokens, against Express", "burst 200: us a request", "ratio", 0.15, 0.1, EXPRESS_NAME),
    Goal("CPU a paced token, against LiteLLM", "paced: us a token", "ratio", 0.06, None, LITELLM_NAME),
    Goal("CPU a request of 1 token, against LiteLLM", "burst 1: us a request", "ratio", 0.02, None, LITELLM_NAME),
    Goal("first token p50, ms more than nginx", "first token p50, ms", "difference", 0.5, None, FLOOR),
    Goal("first token p99, ms more than nginx", "first token p99, ms", "difference", 2.0, None, FLOOR),
    Goal("memory, kB a held stream", "memory: kB a held stream", "value", 40.0, 25.0),
    Goal("disconnect mid-stream p99, ms", "disconnect mid-stream p99, ms", "value", 50.0, 5.0),
)


def markdown(table: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> str:
    """The goals as rows; nothing where none was measured. `table` has a summary by the stack that it is compared to."""
    rows = ["| goal | at most | stretch | figure | |", "| --- | ---: | ---: | ---: | --- |"]
    for goal in GOALS:
        cell = table.get(goal.against or FLOOR, {}).get(goal.figure, {}).get(OURS, {})
        value = cell.get("median" if goal.of == "value" else goal.of)
        if value is None:
            continue
        verdict = "met" if value <= goal.most else "not met"
        if goal.stretch is not None and value <= goal.stretch:
            verdict = "stretch met"
        unit = " x" if goal.of == "ratio" else ""
        stretch = f"{goal.stretch:g}{unit}" if goal.stretch is not None else ""
        rows.append(f"| {goal.text} | {goal.most:g}{unit} | {stretch} | {value:.3g}{unit} | {verdict} |")
    return "\n".join(rows) if len(rows) > 2 else ""
