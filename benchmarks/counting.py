"""What counting a prompt costs, and how far each family's bound is from the true count.

    python -m benchmarks.counting [--rounds N]
    python -m benchmarks.counting --tokenizers DIR

The first prints CPU time, the median of rounds in turn: the bare tokenizer, the exact counter and families' bounds, for
an ordinary text of 2 kB, one of 400 kB, and 256 KiB of shapes that are slow to count. It fails where a counter takes
more than 1.5 times the bare tokenizer on an ordinary text, or where a shape takes more than 5 ms and more than ordinary
Japanese of that size.

The second prints bound / true: the least, the median and the most over the texts of a kind. DIR holds a tokenizer.json
for each family, as FAMILY.json, such as `llama3.2.json`; it needs the package `tokenizers`. Claude's models are counted
with `ctok` (3.12), a reconstruction from Anthropic's own counts, where that is installed. Neither is among our
dependencies.
"""

from __future__ import annotations

import argparse
import importlib
import random
import string
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from chat_nest.counting.families import family_of
from chat_nest.counting.tokens import ExactCounter, FamilyCounter

ROOT = Path(__file__).parent.parent
MODELS = ("claude-opus-4-6", "claude-opus-4-8", "gemini-2.5-pro", "llama3.2", "qwen3", "any-other")
MOST_RATIO, MOST_SECONDS = 1.5, 0.005
SIZE = 262_144
# ruff: noqa: RUF001 - other scripts
TEXTS = {
    "English chat": [
        "How do I reverse a list in Python without changing the original one?",
        "Can you help me to write an email to my landlord? The heating hasn't worked since Tuesday.",
        "Canberra. Sydney and Melbourne both wanted to be the capital, so a new city was built between them.",
        "explain it like i'm five: why is the sky blue, and why is it red in the evening?",
        "Summarize the notes in three points, and list who does what. The launch slips by two weeks.",
        "I'm getting `TypeError: unsupported operand type(s) for +: 'int' and 'str'`. What does that mean?",
    ],
    "German": ["Kannst du mir erklären, warum meine Geschirrspülmaschine während des Programms stehen bleibt?"],
    "French": ["Pourriez-vous m'aider à rédiger une lettre à mon propriétaire au sujet du chauffage en panne ?"],
    "Spanish": ["¿Me puedes explicar cómo funciona la declaración de la renta para los autónomos en España?"],
    "Russian": ["Помоги, пожалуйста, написать письмо хозяину квартиры: отопление не работает со вторника."],
    "Chinese": ["我想知道怎么学习编程，你能给我一些建议吗？我每天只有一个小时的时间。"],
    "Japanese": ["東京で働いています。日本語で上司に休暇をお願いするメールを書いてください。"],
    "Arabic": ["هل يمكنك مساعدتي في كتابة رسالة قصيرة إلى صاحب الشقة؟"],
    "JSON": ['[{"id": 17, "name": "Anna", "price": 12.5, "at": "2026-11-02T10:00:00Z", "tags": ["a", "b"]}]'],
    "capitals": ["PLEASE READ THE FOLLOWING TEXT AND TELL ME WHAT IS WRONG WITH IT"],
    "odd: a run of one letter": ["a" * 1_000],
    "odd: letters at random": ["".join(random.Random(1).choices(string.ascii_letters, k=600))],
    "odd: line breaks and blanks": ["\r\n" * 300, "\n " * 300, "\t" * 600, "~" * 600],
    "odd: accents on accents": ["a\u0301\u0323\u0330" * 100],
    "odd: emoji": ["\U0001f600\U0001f389\U0001f44d\U0001f680\U0001f525" * 40],
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counting", description=__doc__)
    parser.add_argument("--rounds", type=int, default=21, metavar="N")
    parser.add_argument("--tokenizers", type=Path, metavar="DIR")
    asked = parser.parse_args()
    return compare(asked.tokenizers) if asked.tokenizers else measure(asked.rounds)


def measure(rounds: int) -> int:
    """Print the times; 1 if one is over its goal."""
    exact = ExactCounter("o200k_base")
    counters: dict[str, Callable[[str], int]] = {"bare": exact._tokens, "exact": exact.count}  # noqa: SLF001
    counters |= {model: FamilyCounter(family_of(model), exact).count for model in MODELS}
    prose = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    failed = False
    print(f"{'':22}" + "".join(f"{name:>17}" for name in counters))
    for name, text in {"2 kB": prose[10_000:12_000], "400 kB": (prose * 3)[:400_000]}.items():
        times = interleaved(counters, text, rounds, 200 if len(text) < 10_000 else 1)
        ratios = {each: time / times["bare"] for each, time in times.items()}
        failed |= max(ratios.values()) > MOST_RATIO
        cells = (f"{times[each] * 1e6:.1f} us ({ratios[each]:.2f} x)" for each in counters)
        print(f"{name:22}" + "".join(f"{cell:>17}" for cell in cells))
    del counters["bare"]
    shaped = {name: interleaved(counters, text, 3, 1) for name, text in shapes().items()}
    usual = max(shaped.pop("Japanese").values())
    for name, times in sorted(shaped.items(), key=lambda item: -max(item[1].values())):
        print(f"{name:22}{'':17}" + "".join(f"{times[each] * 1e3:14.2f} ms" for each in counters))
        failed |= max(times.values()) > max(MOST_SECONDS, usual)
    print(f"{'Japanese, at most':22}{'':17}{usual * 1e3:14.2f} ms")
    return int(failed)


def interleaved(counters: dict[str, Callable[[str], int]], text: str, rounds: int, calls: int) -> dict[str, float]:
    """Seconds of CPU time a call: the median of `rounds`."""
    times: dict[str, list[float]] = {name: [] for name in counters}
    for _ in range(rounds):
        for name, count in counters.items():
            began = time.thread_time()
            for _ in range(calls):
                count(text)
            times[name].append((time.thread_time() - began) / calls)
    return {name: median(each) for name, each in times.items()}


def shapes() -> dict[str, str]:
    """256 KiB each."""
    chance = random.Random(7)

    def words(alphabet: str, length: int) -> str:
        word = ("".join(chance.choices(alphabet, k=length)) for _ in range(SIZE // length))
        return cut("a ".join(word))

    marks, letters = string.punctuation, string.ascii_lowercase
    ideographs = "".join(map(chr, range(0x4E00, 0x9FFF)))
    found = {
        f"{kind}, {length} a word": words(alphabet, length)
        for length in (3, 12, 95, 250)
        for kind, alphabet in {
            "letters": letters,
            "marks": marks,
            "ideographs": ideographs,
            "blanks": " \n\t",
            "base64": string.ascii_letters + string.digits + "+/",
        }.items()
    }
    found |= {
        f"{mark!r}, {length} a word": words(mark, length) for mark in "-=/#*_\t " for length in (64, 95, 127, 250)
    }
    found |= {f"{mark!r} alone": mark * SIZE for mark in "-_\t a0"}
    return found | {"letters alone": words(letters, SIZE), "Japanese": cut(TEXTS["Japanese"][0] * SIZE)}


def cut(text: str) -> str:
    return text[:SIZE].encode()[:SIZE].decode(errors="ignore")


def compare(directory: Path) -> int:
    """Print bound / true by family and kind of text."""
    exact = ExactCounter("o200k_base")
    true: dict[str, Callable[[str], int]] = {}
    loading = importlib.import_module("tokenizers").Tokenizer
    for path in sorted(directory.glob("*.json")):
        encode = loading.from_file(str(path)).encode
        true[path.stem] = lambda text, encode=encode: len(encode(text, add_special_tokens=False).ids)
    try:
        count = importlib.import_module("ctok").token_count
        true["claude-opus-4-6"] = lambda text: count(text, "4.6") - 7
        true["claude-opus-4-8"] = lambda text: count(text, "4.8") - 6
    except ImportError:
        print("ctok is not installed: Claude is left out", file=sys.stderr)
    docs = [path.read_text()[:4_000] for path in sorted((ROOT / "docs").glob("*.md"))]
    code = [path.read_text()[:4_000] for path in sorted((ROOT / "src/chat_nest").glob("*.py"))]
    texts = {"English chat": TEXTS["English chat"], "Markdown": docs, "Python": code, **TEXTS}
    print(f"{'':28}" + "".join(f"{name:>20}" for name in true))
    for kind, each in texts.items():
        cells: list[str] = []
        for name, count_true in true.items():
            bound = FamilyCounter(family_of(name), exact).count
            ratios = sorted(bound(text) / count_true(text) for text in each)
            cells.append(f"{ratios[0]:.2f} {median(ratios):.2f} {ratios[-1]:.2f}")
        print(f"{kind:28}" + "".join(f"{cell:>20}" for cell in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
