"""Reported token counts: which can be true, and what is charged. Only this module decides it.

A codec reads a provider's JSON with `read_usage`, the ledger keeps the newest with `newest`, and `charge` settles.
docs/ledger.md has a table of the cases.
"""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from chat_nest.core.claims import MAX_AMOUNT
from chat_nest.core.usage import Source, Usage

Part = Literal["inside", "outside"]
"""Whether a count includes one of its parts, such as the reasoning in the output."""


def read_count(value: object) -> int | None:
    """Return a JSON value as a number of tokens; None unless it is an integer from 0 to 2**50.

    Floats, numeric strings, booleans, negative and larger numbers are not counts.
    """
    return value if type(value) is int and 0 <= value <= MAX_AMOUNT else None


def read_usage(
    input: object,
    output: object,
    *,
    total: object = None,
    reasoning: object = None,
    cached: object = None,
    cache_write: object = None,
    reasoning_is: Part = "inside",
    cache_is: Part = "inside",
    known: Usage | None = None,
) -> Usage | None:
    """Return the usage that a provider reports; each argument is the JSON value as it came, None if it was missing.

    `input` and `output` are tokens in all. `cached` and `cache_write` are parts of the input, `reasoning` is a part of
    the output. Pass `cache_is="outside"` (Anthropic) or `reasoning_is="outside"` (Gemini) if the API does not include
    them. `total` is the provider's own sum. `known` is the earlier report of the same answer: it fills what is missing,
    and a lower count is ignored. Without it a missing input is the rest of the total, else 0, which `charge` replaces.
    Returns None while nothing is known of the output.

    Reasoning that exceeds the output is outside of it, and so is the excess of a higher `total`: input 32, output 9,
    reasoning 94, total 135 are 32 and 103. A total above the sum is accepted, and its excess is output; a total below
    the sum is ignored. A cached part that exceeds the input is outside of it if `total` holds both, else cut to it.
    """
    before = known or Usage()
    prompt, answer = read_count(input), read_count(output)
    hit, written, thought = read_count(cached) or 0, read_count(cache_write) or 0, read_count(reasoning) or 0
    whole = read_count(total) or 0
    if known is None and not answer and (prompt is None or (answer is None and whole <= prompt)):
        return None
    answer = answer or 0
    outside = hit + written > (prompt or 0) and whole >= (prompt or 0) + hit + written + answer
    if reasoning_is == "outside" or thought > answer:
        answer += thought
    if prompt is None:
        prompt = 0 if before.input_tokens else max(0, whole - answer)
    elif cache_is == "outside" or outside:
        prompt += hit + written
    # The excess of a total is output: output costs more, and reasoning is what servers leave out.
    answer = max(answer, whole - max(prompt, before.input_tokens))
    hit = min(hit, prompt)
    usage = Usage(
        input_tokens=prompt,
        output_tokens=answer,
        cached_input_tokens=hit,
        cache_write_tokens=min(written, prompt - hit),
        reasoning_tokens=thought,
    )
    return usage if known is None else newest(known, usage)


def newest(known: Usage, usage: Usage) -> Usage:
    """Return what is known after `usage` came; a count lower than the one before is ignored.

    The cached parts belong to the input that they came with.
    """
    lower_input = usage.input_tokens < known.input_tokens
    if not (lower_input or usage.output_tokens < known.output_tokens):
        return usage
    of_input, of_output = known if lower_input else usage, max(known, usage, key=lambda each: each.output_tokens)
    return replace(of_input, output_tokens=of_output.output_tokens, reasoning_tokens=of_output.reasoning_tokens)


def charge(
    reported: Usage | None,
    *,
    input_bound: int,
    produced: int,
    since: int = 0,
    final: bool = True,
    held_output: int | None = None,
) -> tuple[Usage, Source]:
    """Return what a request is charged, and the source of the counts.

    `reported` is the provider's newest report; None without one. We counted at most `input_bound` tokens of prompt and
    `produced` tokens of output; `since` of them came after the report. `final` is True if the report is the provider's
    last. `held_output` is the minimum charge for an unknown output: the answer was cut off at a provider that may bill
    all of it, or had hidden reasoning. It is None if counting is enough.

    A zero beside a real answer is not a count: our own takes its place. Counts over 2**50 are charged as 2**50.
    """
    source: Source = "reported" if reported is not None and final else "estimated"
    usage = reported or Usage(input_tokens=input_bound)
    if usage.input_tokens <= 0 and (usage.output_tokens or produced):
        usage = replace(usage, input_tokens=input_bound, cached_input_tokens=0, cache_write_tokens=0)
        source = "estimated"
    output = usage.output_tokens if reported is not None and final else usage.output_tokens + since
    unknown = reported is None or not final
    if output <= 0 < produced:
        output, unknown, source = produced, True, "estimated"
    if unknown and held_output is not None:
        output, source = max(output, held_output), "assumed"
    return _clamped(replace(usage, output_tokens=output)), source


def is_absurd(usage: Usage) -> bool:
    """Return whether a count exceeds 2**50, the maximum of a store: it is clamped, which deserves an alarm."""
    return max(usage.input_tokens, usage.output_tokens) > MAX_AMOUNT


def _clamped(usage: Usage) -> Usage:
    if not is_absurd(usage):
        return usage
    prompt, answer = min(usage.input_tokens, MAX_AMOUNT), min(usage.output_tokens, MAX_AMOUNT)
    hit = min(usage.cached_input_tokens, prompt)
    return Usage(
        input_tokens=prompt,
        output_tokens=answer,
        cached_input_tokens=hit,
        cache_write_tokens=min(usage.cache_write_tokens, prompt - hit),
        reasoning_tokens=min(usage.reasoning_tokens, answer),
    )
