"""One harness of fuzz_harnesses under atheris, which looks for inputs that reach new code: `python explore.py NAME`.

What follows the name goes to libFuzzer: a directory for the inputs that were found, `-max_total_time=SECONDS`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["chat_nest"]):
    import fuzz_harnesses


def main() -> None:
    name, *options = sys.argv[1:]
    harness = fuzz_harnesses.HARNESSES[name]
    for option in options:
        if not option.startswith("-"):
            corpus = Path(option)
            corpus.mkdir(parents=True, exist_ok=True)
            for number, seed in enumerate(fuzz_harnesses.seeds(name)):
                (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *options], harness)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
