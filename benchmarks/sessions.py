"""What verifying a session token costs: CPU time of a request's token, the first time and again.

    python -m benchmarks.sessions

Prints the best of rounds in microseconds, for a token with the least and one with every field, as a request brings them
among eight headers. It fails if a token takes more than 20 µs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from chat_nest import Sessions

MOST_MICROSECONDS = 20.0
ROUNDS, CALLS = 30, 1_000
EVERYTHING: dict[str, Any] = {
    "group": "acme",
    "profile": "balanced",
    "origins": ["https://app.example"],
    "limits": {"usd": 0.05, "tokens": 20_000, "requests": 10, "concurrent_streams": 1},
    "conversation": "c_17",
}


def microseconds(call: Callable[[int], object]) -> float:
    """Return the CPU time of one call, at best."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for number in range(CALLS):
            call(number)
        best = min(best, (time.process_time() - began) / CALLS)
    return best * 1e6


def request(token: str) -> dict[str, Any]:
    named = {
        "host": "chat.example",
        "user-agent": "Mozilla/5.0",
        "accept": "*/*",
        "accept-encoding": "gzip, br",
        "content-type": "application/json",
        "content-length": "99",
        "origin": "https://app.example",
        "authorization": f"Bearer {token}",
    }
    return {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in named.items()]}


def main() -> int:
    slow = False
    for name, fields in (("the least", {}), ("every field", EVERYTHING)):
        sessions = Sessions(["a-secret-of-more-than-thirty-two-bytes"])
        made = [sessions.create(caller=f"user_{number}", **fields) for number in range(CALLS * 3)]
        requests = [request(each.token) for each in made]
        turn = iter(range(ROUNDS * CALLS))  # more tokens in turn than are remembered

        def mint(_: int, sessions: Sessions = sessions, fields: dict[str, Any] = fields) -> object:
            return sessions.create(caller="user_42", **fields)

        def first(_: int, sessions: Sessions = sessions, some: list[Any] = requests, turn: Any = turn) -> object:
            return sessions(some[next(turn) % len(some)])

        def again(_: int, sessions: Sessions = sessions, one: Any = requests[0]) -> object:
            return sessions(one)

        times = [microseconds(each) for each in (mint, first, again)]
        size = len(made[0].token)
        print(f"{name:12} {size:4} characters  mint {times[0]:5.1f}  verify {times[1]:5.1f}  again {times[2]:5.1f} us")
        slow |= max(times[1:]) > MOST_MICROSECONDS
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
