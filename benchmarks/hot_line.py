"""Simulate a fleet on one PostgreSQL: how many requests a second it admits, with more cores, and one line for all.

    python -m benchmarks.hot_line

Workers send what waits in batches, two reservations' and two settlements' at a time each. A batch waits for a core of
the server, works outside the line's lock, takes the lock of the line (or of one of its stripes), works inside, and
commits. The lock is held until the commit is on the disk. The times are those of docs/performance.md: with others the
answer is another one.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections import deque

import msgspec

OUTSIDE, INSIDE, COMMIT, NETWORK = 25e-6, 35e-6, 0.4e-3, 0.3e-3
"""Seconds: a claim's work before the lock and under it, a batch's commit and its round trip."""
FIXED = 0.3e-3
"""Seconds of a core for a batch of any size."""
MOST = 64
LANES = 4
"""Batches of a worker under way: two of reservations, two of settlements."""


class Fleet(msgspec.Struct, frozen=True):
    """A server of `cores`, `workers` that ask it, and the line that all requests draw on, in `stripes` rows."""

    workers: int
    cores: int
    stripes: int
    at_once: int = 256
    """Requests of a worker under way."""


def admitted(fleet: Fleet, seconds: float = 3.0) -> float:
    """Return the admissions a second: each is a reservation and a settlement."""
    now, done, order = 0.0, 0, 0
    free_cores = fleet.cores
    ready: deque[tuple[int, int, str, int]] = deque()
    locks: list[deque[tuple[int, int, str, int]] | None] = [None] * fleet.stripes
    events: list[tuple[float, int, int, int, str, int]] = []
    waiting = [{"reserve": fleet.at_once, "settle": 0} for _ in range(fleet.workers)]
    running = [{"reserve": 0, "settle": 0} for _ in range(fleet.workers)]

    def at(time: float, worker: int, size: int, step: str, stripe: int) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (time, order, worker, size, step, stripe))

    def send(worker: int) -> None:
        for kind in ("reserve", "settle"):
            while waiting[worker][kind] and running[worker][kind] < LANES // 2:
                size = min(MOST, waiting[worker][kind])
                waiting[worker][kind] -= size
                running[worker][kind] += 1
                at(now + NETWORK / 2, worker, size, f"{kind} arrives", random.randrange(fleet.stripes))

    def use_core() -> None:
        nonlocal free_cores
        while free_cores and ready:
            worker, size, step, stripe = ready.popleft()
            kind, _, part = step.partition(" ")
            work = FIXED + size * OUTSIDE if part == "arrives" else size * INSIDE
            free_cores -= 1
            at(now + work, worker, size, f"{kind} {'wants the lock' if part == 'arrives' else 'commits'}", stripe)

    for worker in range(fleet.workers):
        send(worker)
    while events and now < seconds:
        now, _, worker, size, step, stripe = heapq.heappop(events)
        kind, _, part = step.partition(" ")
        if part == "arrives":
            ready.append((worker, size, step, stripe))
        elif part == "wants the lock":
            free_cores += 1
            queue = locks[stripe]
            if queue is None:
                locks[stripe] = deque()
                ready.append((worker, size, f"{kind} holds", stripe))
            else:
                queue.append((worker, size, f"{kind} holds", stripe))
        elif part == "commits":
            free_cores += 1
            at(now + COMMIT, worker, size, f"{kind} is over", stripe)
        elif part == "is over":
            queue = locks[stripe]
            if queue:
                ready.append(queue.popleft())
            else:
                locks[stripe] = None
            at(now + NETWORK / 2, worker, size, f"{kind} answered", stripe)
        if part == "answered":
            running[worker][kind] -= 1
            if kind == "reserve":
                waiting[worker]["settle"] += size
            else:
                done += size
                waiting[worker]["reserve"] += size
            send(worker)
        use_core()
    return done / now


def main() -> int:
    print("| workers | cores of the server | stripes of the line | admissions a second |\n|---:|---:|---:|---:|")
    for workers, cores in ((8, 1), (8, 4), (32, 8), (64, 16), (64, 32)):
        for stripes in (1, 4, 16, 64):
            rate = admitted(Fleet(workers=workers, cores=cores, stripes=stripes))
            print(f"| {workers} | {cores} | {stripes} | {rate:,.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
