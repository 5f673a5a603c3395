"""What identifying a visitor costs in CPU time: `python -m benchmarks.visitors`. Fails above 20 us."""

from __future__ import annotations

import sys
import time
import timeit

from chat_nest import Limits, PeerAddress, Visitors
from chat_nest.identity.visitors import ANSWER_HEADERS

MOST_US = 20.0
ROUNDS, NUMBER = 9, 5_000
HEADERS = [
    (b"host", b"chat.example"),
    (b"content-type", b"application/json"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, br"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"),
    (b"origin", b"https://chat.example"),
    (b"sec-fetch-site", b"same-origin"),
]
DAY = Limits(tokens_per_day=1_000)


def scope(cookie: bytes = b"") -> dict[str, object]:
    headers = [*HEADERS, (b"cookie", cookie)] if cookie else HEADERS
    return {"type": "http", "scheme": "https", "client": ("203.0.113.5", 1), "headers": headers, ANSWER_HEADERS: []}


def main() -> int:
    visitors = Visitors(["a secret of visitors that is long"], addresses=DAY, networks=DAY, limits=DAY)
    known = scope(visitors.new_cookie(scope()).partition(b";")[0])
    address = PeerAddress()
    ways = {
        "a visitor with a cookie": lambda: visitors(known),
        "a first visit": lambda: visitors(scope()),
        "an IP address, to compare": lambda: address(known),
    }
    worst = 0.0
    for name, way in ways.items():
        seconds = min(timeit.repeat(way, number=NUMBER, repeat=ROUNDS, timer=time.process_time))
        worst = max(worst, seconds / NUMBER * 1e6)
        print(f"{name}: {seconds / NUMBER * 1e6:.1f} us")
    return int(worst > MOST_US)


if __name__ == "__main__":
    sys.exit(main())
