"""An incremental decoder of newline-delimited JSON (https://github.com/ndjson/ndjson-spec)."""

from __future__ import annotations

from chat_nest.core.sse import EventTooLong


class LineDecoder:
    """Splits bytes into whole lines, without their ends. The bytes may be cut anywhere, and are not decoded or parsed.

    A line that no LF ended is dropped, unless `end` is called. A line may hold `max_line` bytes; no more than that is
    ever kept.
    """

    def __init__(self, max_line: int = 1 << 20) -> None:
        self._max = max_line
        self._line = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that end here.

        Raises EventTooLong as soon as the limit is passed; the decoder is then unusable.
        """
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

    def end(self) -> list[bytes]:
        """Return the line that only the end of the body ended, if there is one.

        For bodies whose framing is complete.
        """
        line = bytes(self._line)
        self._line.clear()
        return [line] if line else []
