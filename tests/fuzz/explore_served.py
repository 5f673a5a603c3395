"""A served chat-nest under schemathesis for a while: `python explore_served.py FOLDER SECONDS`; exit 1 for what is wrong."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from explored import explore


def main() -> int:
    kept, seconds = Path(sys.argv[1]).resolve(), sys.argv[2]
    kept.mkdir(parents=True, exist_ok=True)
    options = ("--max-time", seconds, "--continue-on-failure", "--report", "ndjson", "--report-dir", str(kept))
    with tempfile.TemporaryDirectory() as folder:
        wrong = asyncio.run(explore(Path(folder), *options, quiet=False))
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
