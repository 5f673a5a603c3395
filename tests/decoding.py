"""Feed a codec reads, and see what comes out: the deltas of a whole body, and how it failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chat_nest.core.deltas import Delta
from chat_nest.core.errors import UpstreamError
from chat_nest.providers.codec import Codec

SECRET = "canary-2f7c"


def decode(codec: Codec, *reads: bytes, whole: bool = False) -> tuple[list[Delta], type[UpstreamError] | None]:
    """`whole`: the body's framing says that it is all there."""
    deltas: list[Delta] = []
    try:
        for read in reads:
            if codec.over:
                break
            deltas += codec.feed(read)
        deltas += codec.end(whole=whole)
        deltas += codec.end(whole=whole)  # a failure is raised once what came before it was returned
    except UpstreamError as error:
        assert SECRET not in repr(error) + str(error)
        assert error.__context__ is None
        assert not error.spent_nothing
        return deltas, type(error)
    return deltas, None


def decode_cut_anywhere(make: Callable[[], Codec], body: bytes) -> tuple[list[Delta], type[UpstreamError] | None]:
    """The outcome, which is the same when the body comes whole, byte by byte, or in two pieces cut at any place."""
    outcome = decode(make(), body)
    assert decode(make(), *(body[at : at + 1] for at in range(len(body)))) == outcome
    for cut in range(len(body)):
        assert decode(make(), body[:cut], body[cut:]) == outcome
    return outcome


def cut(body: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted(place % (len(body) + 1) for place in places)
    return [body[a:b] for a, b in zip([0, *ends], [*ends, len(body)], strict=True)]
