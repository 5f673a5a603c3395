"""How workers share the streams of a provider: the board, a small document in their store, and one worker's changes.

Each worker writes the streams that its running answers need, and the callers of its waiting requests. Free streams go
to the callers in turn, whichever worker a request waits at, so a caller gains nothing from sending to several workers.
This module has plain data and functions; `fleet` reads and writes the board.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace


class StreamShare(Struct, frozen=True, array_like=True):
    """What one worker has. Callers are named by the hashes of their keys."""

    beat: int = 0
    """Another number with each write of the worker: one that stops writing has died."""
    streams: int = 0
    """The most streams that it may have open."""
    turns: Sequence[str] = ()
    """The callers for whom other workers gave it some of these streams, since it wrote last."""
    waits: Mapping[str, int] = {}
    """How many requests wait there, by caller."""


class Board(Struct, frozen=True, array_like=True):
    number: int = 0
    """The number of writes."""
    order: Sequence[str] = ()
    """The callers that wait anywhere, in the order of their turns."""
    shares: Mapping[str, StreamShare] = {}
    """By worker."""


EMPTY = Board()
read = msgspec.json.Decoder(Board).decode
encode = msgspec.json.Encoder().encode


def write(board: Board) -> str:
    """Return the board as ASCII text."""
    return encode(board).decode("ascii")


class _Worker:
    """A share while it changes."""

    def __init__(self, share: StreamShare) -> None:
        self.beat = share.beat
        self.streams = share.streams
        self.turns = list(share.turns)
        self.waits = Counter(share.waits)

    def give(self, caller: str) -> None:
        self.streams += 1
        self.turns.append(caller)
        self.waits[caller] -= 1
        if not self.waits[caller]:
            del self.waits[caller]

    def share(self) -> StreamShare:
        return StreamShare(self.beat, self.streams, self.turns, dict(self.waits))


def exchange(board: Board, me: str, most: int, kept: int, wanted: Sequence[str]) -> tuple[Board, Sequence[str]]:
    """Return the board after this worker gave back all streams but `kept`, and the callers that get one of it now.

    `wanted` has a caller for each request that waits here, in the order of the worker. `most` streams are for all
    workers together. The turns that the worker was given count only for requests that still wait.
    """
    workers = {name: _Worker(share) for name, share in board.shares.items()}
    mine = workers.setdefault(me, _Worker(StreamShare()))
    given = mine.turns
    mine.turns = list[str]()
    mine.streams, mine.waits = kept, Counter(wanted)
    for caller in given:
        if mine.waits[caller]:
            mine.give(caller)
    mine.waits = +mine.waits  # without zeros
    order = list(dict.fromkeys([*board.order, *wanted]))
    order = [caller for caller in order if any(caller in worker.waits for worker in workers.values())]
    free = most - sum(worker.streams for worker in workers.values())
    while free > 0 and order:
        caller = order.pop(0)
        waiting = sorted(name for name, worker in workers.items() if caller in worker.waits)
        workers[waiting[board.number % len(waiting)]].give(caller)  # a caller's requests at several workers alternate
        free -= 1
        if any(caller in worker.waits for worker in workers.values()):
            order.append(caller)
    now = mine.turns
    mine.turns = list[str]()
    if not mine.streams and not mine.waits:
        del workers[me]
    return Board(board.number, order, {name: worker.share() for name, worker in workers.items()}), now


def stamped(board: Board, me: str, beat: int) -> Board:
    """Return the board as this worker writes it."""
    share = board.shares.get(me)
    shares = board.shares if share is None else {**board.shares, me: replace(share, beat=beat)}
    return Board(board.number + 1, board.order, shares)


def positions(board: Board) -> Mapping[str, Sequence[int]]:
    """Return the positions, from 1, at which each caller's waiting requests are served, at whichever worker."""
    left: Counter[str] = Counter()
    for share in board.shares.values():
        left.update(share.waits)
    found: dict[str, list[int]] = {caller: [] for caller in left}
    order, position = [caller for caller in board.order if left[caller]], 0
    while order:
        for caller in order:
            position += 1
            found[caller].append(position)
        order = [caller for caller in order if len(found[caller]) < left[caller]]
    return found
