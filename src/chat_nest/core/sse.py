"""Server-Sent Events: frames out, and an incremental decoder of bytes in.

The reference is the WHATWG HTML standard, 9.2 "Server-sent events"; sections 9.2.5 and 9.2.6 define the bytes.
"""

from __future__ import annotations

BOM = b"\xef\xbb\xbf"


def event(name: bytes, data: bytes) -> bytes:
    """Return one event. `data` is one line without CR or LF, as JSON always is; lines end in LF only."""
    return b"event: %b\ndata: %b\n\n" % (name, data)


class EventTooLong(ValueError):
    """A line or an event exceeds the limit. `events` are the whole ones before it in the same read."""

    def __init__(self, events: list[bytes]) -> None:
        super().__init__("an event is too long")
        self.events = events


class Decoder:
    """Decodes bytes, cut anywhere, to the data of each whole event. Names, ids and retry times are dropped.

    An event without a final blank line is dropped, as the standard requires, unless `end` is called. Bytes are not
    decoded: the reader of the data finds invalid UTF-8. The lines of an unfinished event, including the line being
    read, may hold `max_event` bytes; no more than that is ever kept.
    """

    def __init__(self, max_event: int = 1 << 20) -> None:
        self._max = max_event
        self._between = False  # nothing is kept: the next byte starts an event
        self._at_start = True
        self._after_cr = False  # an LF that comes next belongs to a line end already seen
        self._line: bytearray = bytearray()  # the line being read, or at the start a possible BOM
        self._data: list[bytes] = []  # the data lines of the event being read
        self._size = 0  # bytes of the data lines being kept

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of each completed event. Raises EventTooLong; the decoder is then unusable."""
        if self._between and b"\r" not in chunk and len(chunk) <= self._max:
            events = _one_line_events(chunk)
            if events:
                return events
        if self._at_start:
            self._line += chunk
            if len(self._line) < len(BOM) and BOM.startswith(self._line):
                return []
            chunk = bytes(self._line.removeprefix(BOM))
            self._line.clear()
            self._at_start = False
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

        end = chunk.rfind(b"\n") + 1
        events = []
        if end:
            lines = chunk[:end]
            if self._line:
                lines = b"".join((self._line, lines))
                self._line.clear()
            events = self._read(lines)
        if self._size + len(self._line) + len(chunk) - end > self._max:
            raise EventTooLong(events)
        self._line += chunk[end:]
        self._between = not (self._line or self._data or self._after_cr)
        return events

    def end(self) -> list[bytes]:
        """Return the event that only the end of the body completed, if any: for bodies with complete framing."""
        if self._at_start:
            self._at_start = False
            self._line = bytearray(self._line.removeprefix(BOM))
        rest = bytes(self._line) + b"\n\n"
        self._line.clear()
        return self._read(rest)

    def _read(self, lines: bytes) -> list[bytes]:
        """Take whole lines, each ended by LF."""
        events: list[bytes] = []
        if not self._data and len(lines) <= self._max:
            events = _one_line_events(lines)
            if events:
                return events
        for line in lines[:-1].split(b"\n"):
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
                    self._size = 0
            elif self._size + len(line) > self._max:
                raise EventTooLong(events)
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._size += len(line)
            elif line == b"data":
                self._data.append(b"")
                self._size += len(line)
            # A comment, another field, or a field unknown to the standard: ignored.
        return events


def _one_line_events(lines: bytes) -> list[bytes]:
    """Return the events in the common case, by one split: each is one line `data: ...` and a blank line. Else empty."""
    if lines.startswith(b"data: ") and lines.endswith(b"\n\n"):
        events = lines[6:-2].split(b"\n\ndata: ")
        if lines.count(b"\n") == 2 * len(events):
            return events
    return []
