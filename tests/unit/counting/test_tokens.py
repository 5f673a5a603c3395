from __future__ import annotations

import sys
from random import Random
from string import ascii_letters, ascii_lowercase, digits, punctuation

from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from chat_nest.core.messages import Message, Tool
from chat_nest.counting import tokens
from chat_nest.counting.bounds import prompt_bound
from chat_nest.counting.meter import OutputMeter
from chat_nest.counting.tokens import (
    ByteCounter,
    ExactCounter,
    FamilyCounter,
    TokenCounters,
    counter_for,
    is_reasoning_model,
)

CL100K = ExactCounter("cl100k_base")
O200K = ExactCounter("o200k_base")

awkward = st.text(
    alphabet=st.one_of(
        st.sampled_from(" \t\n\r'’sdlmtv.,:;!?-=/#_09aZé。，、日本한ก\u0301\u200d\u00a0\u2028\u0085\x00🎉"),
        st.characters(exclude_categories=["Cs"]),
    )
)


# What a text counts.


@given(st.text())
@example("\x00\x7f\x80߿ࠀ\uffff\U00010000\U0010ffff")
def test_bytes_are_the_bound_without_a_tokenizer(text: str) -> None:
    assert ByteCounter().count(text) == len(text.encode())


@given(awkward)
def test_an_exact_count_is_never_over_the_bytes(text: str) -> None:
    for counter in (CL100K, O200K):
        assert counter.count(text) <= ByteCounter().count(text)
        assert (counter.count(text) > 0) == bool(text)


@pytest.mark.parametrize(
    ("text", "cl100k", "o200k"),
    [  # as tiktoken 0.14 counts them
        ("", 0, 0),
        ("hello world", 2, 2),
        ("日本語のテキスト。", 9, 7),
        ("🎉👩\u200d👩\u200d👧", 16, 10),
        ("1 2 3 4 5 6 7 8 9 0", 19, 19),
        ("don't I'LL", 5, 3),
        ("\r\n\r\n \t x", 3, 3),
        ("é\u0301\u200d", 4, 3),
        (" " * 300, 3, 3),
        ("def f(x):\n    return x**2\n", 10, 10),
        ("\x00\x7f\ufffd", 3, 3),
        ("नमस्ते दुनिया", 13, 5),
        ("-" * 100, 2, 2),
        ("3.14159265358979", 7, 7),
    ],
)
def test_exact_counts_equal_those_of_the_model(text: str, cl100k: int, o200k: int) -> None:
    assert (CL100K.count(text), O200K.count(text)) == (cl100k, o200k)


@pytest.mark.parametrize("text", ["<|endoftext|>", "<|im_start|>system", "<|endofprompt|>"])
def test_special_tokens_are_ordinary_text(text: str) -> None:
    assert CL100K.count(text) > 1
    assert O200K.count(text) > 1


@pytest.mark.parametrize("counter", [ByteCounter(), CL100K, O200K])
def test_half_of_a_surrogate_pair_counts_as_its_bytes(counter: tokens.TokenCounter) -> None:
    assert counter.count("a\ud800b") == 5


@pytest.mark.parametrize("mark", ["-", "=", "/", "#", "*"])
def test_a_run_that_the_tokenizer_is_slow_on_counts_as_its_bytes(mark: str) -> None:
    run = mark * 262_144
    assert O200K.count(run) == 262_144
    assert O200K.count(f"{run[:80]}\n" * 150) < 2_000, "short runs are counted"
    assert O200K.count(run[:4_000]) < 200, "a little of it is counted"


class Counted(ExactCounter):
    """Remembers how much its tokenizer was given."""

    def __init__(self, encoding) -> None:
        super().__init__(encoding)
        self.given = 0

    def _tokens(self, text: str) -> int:
        self.given += len(text.encode())
        return super()._tokens(text)


RANDOM = Random(7)
SLOW = {  # shapes of which a kilobyte takes 20 to 500 us
    "letters": "".join(RANDOM.choices(ascii_lowercase, k=8_000)),
    "made-up words": " ".join("".join(RANDOM.choices(ascii_lowercase, k=12)) for _ in range(700)),
    "marks": "".join(RANDOM.choices(punctuation, k=8_000)),
    "ideographs": "".join(chr(RANDOM.randint(0x4E00, 0x9FFF)) for _ in range(8_000)),
    "beyond the plane": "".join(chr(RANDOM.randint(0x10000, 0x1FFFF)) for _ in range(8_000)),
    "tabs": "\t" * 8_000,
    "underscores": f"{'_' * 95}a " * 80,
    "dashes": "-" * 8_000,
    "base64": "".join(RANDOM.choices(ascii_letters + digits + "+/", k=8_000)),
}


@pytest.mark.parametrize("shape", SLOW)
def test_of_a_long_text_that_is_slow_to_count_only_a_little_is_tokenized(shape: str) -> None:
    text = SLOW[shape] * 40
    counter = Counted("o200k_base")
    count = counter.count(text)
    assert counter.given <= 96 * 1_024
    assert O200K._tokens(SLOW[shape]) * 30 < count <= len(text.encode()), "the rest counts as its bytes"


ORDINARY = {
    "prose": "The quick brown fox jumps over the lazy dog, and nobody knows why. " * 120,
    "code": "def add(first: int, second: int) -> int:\n    return first + second\n\n\n" * 120,
    "numbers": "".join(f"{n * 7919 % 100_003},{n * 31},{n / 7:.4f}\n" for n in range(400)),
    "json": "".join(f'{{"id": {n}, "name": "item {n}", "ok": true}}, ' for n in range(200)),
    "Japanese": "私は東京で働いています。今日は天気がいいですね。" * 120,
}


@pytest.mark.parametrize("shape", ORDINARY)
def test_a_long_ordinary_text_is_counted_exactly_slice_by_slice(shape: str) -> None:
    text = ORDINARY[shape] * 10
    assert O200K.count(text) == O200K._tokens(text)


def test_a_long_text_is_counted_exactly() -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 5_000
    assert O200K.count(text) == 50_001


# Which counter a model gets.


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4o-2024-08-06", "o200k_base"),
        ("chatgpt-4o-latest", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("gpt-5", "o200k_base"),
        ("gpt-5.1-chat-latest", "o200k_base"),
        ("o1", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("o4-mini-2025-04-16", "o200k_base"),
        ("openai/gpt-4o", "o200k_base"),
        ("ft:gpt-4o-mini-2024-07-18:org::id", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-4-1106-preview", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("gpt-4x", None),
        ("gpt-oss-20b", None),
        ("o100", None),
        ("mygpt-4o", None),
        ("claude-sonnet-4", None),
        ("llama3.2", None),
        ("", None),
    ],
)
def test_the_counter_of_a_model(model: str, encoding: Literal["o200k_base", "cl100k_base"] | None) -> None:
    counter = counter_for(model)
    only_in_o200k = " есептеу"  # 2 tokens in o200k_base, 5 in cl100k_base
    assert counter.exact == (encoding is not None)
    if encoding is None:
        assert 2 < counter.count(only_in_o200k) <= len(only_in_o200k.encode())
    else:
        assert counter.count(only_in_o200k) == ExactCounter(encoding).count(only_in_o200k)
    assert CL100K.count(only_in_o200k) != O200K.count(only_in_o200k)


def test_without_the_extra_every_model_counts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens._exact.cache_clear()
    counter_for.cache_clear()
    monkeypatch.setitem(sys.modules, "toktok", None)
    try:
        with pytest.raises(ImportError):
            ExactCounter("o200k_base")
        assert not counter_for("gpt-4o").exact
        assert counter_for("gpt-4o").count("hello world") == 11
        assert counter_for("claude-sonnet-4").count("hello world") == 11
    finally:
        tokens._exact.cache_clear()
        counter_for.cache_clear()


@pytest.mark.parametrize(
    ("model", "hidden"),
    [
        ("o1", True),
        ("o3-mini", True),
        ("o4-mini", True),
        ("gpt-5", True),
        ("gpt-5-mini", True),
        ("openai/gpt-5.1", True),
        ("gpt-5-chat-latest", False),
        ("gpt-4o", False),
        ("gpt-4.1", False),
        ("gpt-oss-20b", True),
        ("gpt-oss:120b", True),
        ("openai/gpt-oss-120b", True),
        ("o100", False),
        ("llama3.2", False),
        ("gemini-2.5-flash", True),
        ("gemini-3-pro-preview", True),
        ("gemini-2.0-flash", False),
        ("claude-opus-5-5", True),
        ("claude-fable-5", True),
        ("claude-3-7-sonnet-latest", False),
        ("anthropic/claude-sonnet-4-20250514", False),
        ("claude-opus-4-8", False),
        ("claude-2.1", False),
        ("claude-instant-1.2", False),
    ],
)
def test_models_that_reason_out_of_sight(model: str, hidden: bool) -> None:
    assert is_reasoning_model(model) is hidden


def test_a_prompt_has_an_overhead_for_each_message_and_for_itself() -> None:
    messages = [Message(role="user", content="hello world"), Message(role="assistant", content="日")]
    assert prompt_bound(messages, ByteCounter()) == 32 + 8 + 11 + 8 + 3
    assert prompt_bound(messages, O200K) == 32 + 8 + 2 + 8 + 1
    assert prompt_bound([], O200K) == 32


# The output of a stream.


class Spy:
    """Counts exactly, and remembers how much it was given to count."""

    exact = True

    def __init__(self) -> None:
        self.calls = 0
        self.characters = 0

    def count(self, text: str) -> int:
        self.calls += 1
        self.characters += len(text)
        return O200K.count(text)


def stream(meter: OutputMeter, pieces: list[str]) -> int | None:
    """The index of the first piece at which the meter said that the cap was passed."""
    return next((index for index, piece in enumerate(pieces) if meter.add(piece)), None)


@given(awkward, st.data())
def test_a_cut_before_a_break_changes_no_token(text: str, data: st.DataObject) -> None:
    at = tokens.last_break(text)
    for counter in (CL100K, O200K):
        assert counter.count(text[:at]) + counter.count(text[at:]) == counter.count(text)


@given(st.lists(awkward.filter(bool), max_size=60), st.integers(1, 80))
def test_an_exact_meter_cuts_where_the_text_passes_the_cap(pieces: list[str], cap: int) -> None:
    cut = stream(OutputMeter(O200K, cap), pieces)
    counts = [O200K.count("".join(pieces[: index + 1])) for index in range(len(pieces))]
    if cut is None:
        assert max(counts, default=0) <= cap
    else:
        assert counts[cut] > cap
        assert all(count <= cap for count in counts[:cut])


@given(st.lists(awkward.filter(bool), max_size=60))
def test_an_exact_meter_charges_the_exact_count(pieces: list[str]) -> None:
    meter = OutputMeter(O200K, 1_000_000)
    stream(meter, pieces)
    assert meter.produced() == meter.produced() == O200K.count("".join(pieces))


def test_a_long_answer_is_cut_at_the_cap_and_counted_only_a_few_times() -> None:
    words = [f" {word}" for word in "the quick brown fox jumps over a lazy dog".split()] * 1_000
    spy = Spy()
    assert stream(OutputMeter(spy, 4_096), words) == 4_096
    assert spy.calls < 100
    assert spy.characters < 5 * len("".join(words[:4_096]))
    meter = OutputMeter(spy, 1_000_000)
    stream(meter, words)
    assert meter.produced() == 9_000


def test_an_answer_without_a_break_is_counted_in_pieces() -> None:
    spy = Spy()
    meter = OutputMeter(spy, 4_096)
    assert stream(meter, ["-" * 64] * 10_000) == 4_096, "64 dashes are one token"
    assert spy.characters < 5 * 64 * 4_096
    meter = OutputMeter(spy, 3_000)
    cut = stream(meter, ["字"] * 5_000)
    assert cut is not None
    assert abs(cut - 3_000) <= 3


def test_without_a_tokenizer_pieces_teach_nothing() -> None:
    meter = OutputMeter(ByteCounter(), 400)
    assert stream(meter, [" hello"] * 1_000) is None
    assert meter.produced() == 6_000


def test_without_a_tokenizer_bytes_that_no_tokens_can_have_are_cut_too() -> None:
    meter = OutputMeter(ByteCounter(), 10)
    assert not meter.add("é" * 640)
    assert meter.produced() == 1_280
    assert meter.add("a")
    assert meter.produced() == 1_281


@given(st.lists(st.text(min_size=1), max_size=30), st.integers(1, 20))
def test_without_a_tokenizer_the_charge_is_the_bytes(pieces: list[str], cap: int) -> None:
    meter = OutputMeter(ByteCounter(), cap)
    cut = stream(meter, pieces)
    seen = pieces if cut is None else pieces[: cut + 1]
    assert meter.produced() == len("".join(seen).encode())


# Families.


CHAT = [
    Message(role="user", content="How do I reverse a list in Python without changing the original one?"),
    Message(
        role="assistant",
        content="You can use slicing: `list[::-1]` gives a new list with the items in reverse order. The original "
        "list is not changed.",
    ),
    Message(role="user", content="And is that slow if the list has a million items? I do it in a loop, 50 times."),
]
WEATHER = Tool(
    name="weather",
    description="The weather of a city",
    parameters=Raw(b'{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}'),
)


@pytest.mark.parametrize(
    ("model", "true"),
    [  # of CHAT, by each family's own tokenizer and template
        ("claude-sonnet-4-20250514", 84),
        ("claude-opus-4-8", 95),
        ("gemini-2.5-flash", 85),
        ("llama3.2", 116),
        ("mistral", 76),
        ("qwen3:8b", 110),
        ("deepseek-chat", 73),
        ("smollm2-135m-instruct", 108),
    ],
)
def test_the_bound_of_an_ordinary_chat_is_tight_and_not_low(model: str, true: int) -> None:
    assert true <= prompt_bound(CHAT, counter_for(model)) <= 1.8 * true


@pytest.mark.parametrize("model", ["gpt-oss-20b", "gpt-oss:120b", "openai/gpt-oss-120b"])
def test_the_system_text_of_gpt_oss_is_in_its_bound(model: str) -> None:
    assert 67 <= prompt_bound([Message(role="user", content="Hi")], counter_for(model)) <= 100


@pytest.mark.parametrize(
    ("model", "added"),
    [  # as Anthropic documents them, at the dearer tool_choice
        ("claude-3-haiku-20240307", 340),
        ("claude-3-opus-20240229", 530),
        ("claude-3-7-sonnet-latest", 346),
        ("claude-sonnet-4-20250514", 346),
        ("claude-opus-4-1", 346),
        ("anthropic/claude-sonnet-4.5", 588),
        ("claude-haiku-4-5-20251001", 588),
        ("claude-opus-4-6", 589),
        ("claude-opus-4-7", 804),
        ("claude-opus-4-8", 410),
        ("claude-sonnet-5", 474),
        ("us.anthropic.claude-3-5-sonnet-20241022-v2:0", 346),
    ],
)
def test_the_tokens_that_claude_adds_for_tools_are_in_its_bound(model: str, added: int) -> None:
    counter = counter_for(model)
    one = prompt_bound(CHAT, counter, [WEATHER]) - prompt_bound(CHAT, counter)
    two = prompt_bound(CHAT, counter, [WEATHER, WEATHER]) - prompt_bound(CHAT, counter, [WEATHER])
    assert added + 40 <= one <= added + 200
    assert 40 <= two <= 140, "it is added once"


@pytest.mark.parametrize(
    "model", ["llama3.2", "mistral", "qwen3", "deepseek-chat", "gemini-2.5-pro", "gpt-oss", "none"]
)
@given(text=awkward)
def test_no_bound_of_a_byte_level_family_is_over_the_bytes(model: str, text: str) -> None:
    assert (1 if text else 0) <= counter_for(model).count(text) <= len(text.encode())


def test_newer_claude_models_count_more() -> None:
    text = CHAT[1].content
    older, newer = (counter_for(f"claude-{name}").count(text) for name in ("opus-4-6", "opus-4-7"))
    assert 1.3 * older <= newer <= 1.5 * older


# What is learned.


def test_a_bound_rises_with_reported_counts_and_keeps_a_floor_and_a_ceiling() -> None:
    counters = TokenCounters()
    counter, other = counters.of("p:claude-sonnet-4"), counters.of("p:claude-opus-4")
    assert isinstance(counter, FamilyCounter)
    text = CHAT[1].content * 10
    first = counter.count(text)
    counter.learn(1_000, 500)
    assert counter.count(text) == first, "never below the family's bound"
    counter.learn(100, 900)
    assert counter.count(text) == first, "a short prompt tells of its template"
    counter.learn(1_000, 1_200)
    assert 1.24 * first <= counter.count(text) <= 1.26 * first, "with a margin"
    counter.learn(1_000, 900)
    assert counter.count(text) >= 1.24 * first, "the largest that was seen"
    counter.learn(1_000, 100_000)
    assert counter.count(text) <= 1.26 * first, "no text makes that many"
    counter.learn(1_000, 4_000)
    assert counter.count(text) > 1.45 * first
    assert counter.count(text) <= 1.51 * first, "nobody's odd prompt raises it for all without end"
    assert other.count(text) == first
    assert counters.of("p:claude-sonnet-4") is counter
    assert TokenCounters().of("p:claude-sonnet-4").count(text) == first


def test_a_provider_can_be_counted_by_bytes() -> None:
    counters = TokenCounters({"p": "bytes"})
    assert counters.of("p:gpt-4o").count("hello world") == 11
    assert counters.of("q:gpt-4o").count("hello world") == 2
