"""An incremental decoder of newline-delimited JSON (https://github.com/ndjson/ndjson-spec)."""

from __future__ import annotations

from chat_nest.sse import EventTooLong


class LineDecoder:
    """Bytes cut anywhere in, whole lines out, without their ends. Not decoded, and not checked for JSON.

    A line that no LF ended is dropped. A line may hold `max_line` bytes; no more than that is ever kept.
    """

    def __init__(self, max_line: int = 1 << 20) -> None:
        self._max = max_line
        self._line = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises EventTooLong as soon as the limit is passed; the decoder is of no use afterwards."""
        end = chunk.rfind(b"\n") + 1
        lines: list[bytes] = []
        if end:
            whole = bytes(self._line) + chunk[: end - 1]
            self._line.clear()
            lines = whole.split(b"\n")
            if len(whole) > self._max:
                for at, line in enumerate(lines):
                    if len(line) > self._max:
                        raise EventTooLong(lines[:at])
        if len(self._line) + len(chunk) - end > self._max:
            raise EventTooLong(lines)
        self._line += chunk[end:]
        return lines
