"""What a refused request costs: CPU milliseconds from its body to its refusal, for many shapes of 256 KiB.

python -m benchmarks.refusals [--most 5] [--shape NAME]: prints a table, worst first in each dialect; exits with 1 if a
shape costs more than `--most` milliseconds. Each figure is the median of several runs of the whole ASGI application in
this process, with a store in memory; nothing is sent over a socket. A shape that is a valid chat is refused by
`tokens_per_request`, so its tokens are counted, too: those rows are marked, and don't count.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from collections.abc import Callable, Iterator
from statistics import median
from time import thread_time
from typing import Any

from chat_nest import Profile, create_chat_handler
from chat_nest.asgi.handler import ChatHandler

SIZE = 262_144
PATHS = {
    "native": "/api/chat",
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "ai_sdk": "/api/ai",
    "ag_ui": "/api/ag-ui",
    "blog": "/chat",
}
HEAD = b'{"messages":5,"zz":'
TAIL = b"}"
USER = b'{"role":"user","content":"x"}'


def filled(before: bytes, piece: bytes | Callable[[int], bytes], between: bytes, after: bytes) -> bytes:
    """As many pieces as fit into SIZE bytes."""
    size, number = len(before) + len(after), 0
    pieces: list[bytes] = []
    while True:
        made = piece if isinstance(piece, bytes) else piece(number)
        size += len(made) + len(between)
        if size > SIZE:
            return before + between.join(pieces) + after
        pieces.append(made)
        number += 1


def array(piece: bytes | Callable[[int], bytes]) -> bytes:
    return filled(HEAD + b"[", piece, b",", b"]" + TAIL)


def member(piece: bytes | Callable[[int], bytes]) -> bytes:
    return filled(HEAD + b"{", piece, b",", b"}" + TAIL)


def text(piece: bytes) -> bytes:
    return filled(b'{"zz":"', piece, b"", b'","messages":5}')


def field(name: bytes, piece: bytes | Callable[[int], bytes]) -> bytes:
    """An array under this name, of as many pieces as fit."""
    return filled(b'{"messages":[' + USER + b'],"' + name + b'":[', piece, b",", b"]}")


def in_message(before: bytes, piece: bytes, between: bytes, after: bytes) -> bytes:
    return filled(b'{"messages":[{"role":"user","content":' + before, piece, between, after + b"}]}")


def few(piece: bytes, most: int, name: bytes = b"messages") -> bytes:
    """`most` items that together have nearly SIZE bytes: `%b` in the piece is what fills them."""
    room = SIZE // most - len(piece)
    return b'{"' + name + b'":[' + b",".join([piece.replace(b"%b", b"y" * max(1, room))] * most) + b"]}"


def schema(depth: int) -> bytes:
    return b'{"type":"object","properties":{"a":' * depth + b"{}" + b"}}" * depth


def tool(number: int) -> bytes:
    parameters = schema(10)
    return (
        b'{"type":"function","name":"t%d","description":"%b","input_schema":%b,'
        b'"function":{"name":"t%d","description":"%b","parameters":%b}}'
    ) % (number, b"d" * 400, parameters, number, b"d" * 400, parameters)


SHAPES: dict[str, bytes] = {
    "integers": array(b"1"),
    "long integers": array(b"1" * 32),
    "integers too long": array(b"1" * 40),
    "one integer": HEAD + b"9" * (SIZE - 40) + TAIL,
    "floats": array(b"1.5"),
    "long floats": array(b"0.1234567890123456789e-300"),
    "one float": HEAD + b"1." + b"9" * (SIZE - 40) + TAIL,
    "one float with a long exponent": HEAD + b"1e" + b"9" * (SIZE - 40) + TAIL,
    "halfway floats": array(b"2.4703282292062327208e-324"),
    "NaN": array(b"NaN"),
    "null": array(b"null"),
    "true": array(b"true"),
    "empty strings": array(b'""'),
    "short strings": array(b'"a"'),
    "strings of one escape": array(b'"\\u00e9"'),
    "arrays in arrays": array(b"[[]]"),
    "empty arrays": array(b"[]"),
    "empty objects": array(b"{}"),
    "objects of one": array(b'{"a":1}'),
    "objects in objects": array(b'{"a":{"b":{}}}'),
    "31 levels, again and again": array(b"[" * 29 + b"]" * 29),
    "members": member(lambda number: b'"%x":1' % number),
    "the same key": member(b'"a":1'),
    "escaped keys": member(lambda number: b'"\\u0061%x":""' % number),
    "top-level members": filled(b"{", lambda number: b'"%x":1' % number, b",", b"}"),
    "keys without values": filled(b"{", b'"a":', b"", b"}"),
    "deep arrays": HEAD + b"[" * (SIZE - 40),
    "deep objects": filled(b"", b'{"a":', b"", b""),
    "runs of 32 openers": filled(HEAD, b"[" * 32 + b"1", b"", TAIL),
    "openers in a string": text(b"[{"),
    "32 openers in a string": text(b"[" * 32 + b"x"),
    "closers": filled(HEAD, b"]", b"", TAIL),
    "commas": filled(HEAD + b"[", b",", b"", b"]" + TAIL),
    "commas in a string": text(b","),
    "colons": filled(HEAD, b":", b"", TAIL),
    "quotes": filled(HEAD, b'"', b"", TAIL),
    "escaped quotes": text(b'\\"'),
    "backslashes": text(b"\\\\"),
    "escapes": text(b"\\u0041"),
    "surrogate pairs": text(b"\\ud83d\\ude00"),
    "halves of pairs": text(b"\\ud83d"),
    "NUL escapes": text(b"\\u0000"),
    "two-byte letters": text("é".encode()),
    "four-byte letters": text("🎉".encode()),
    "one letter last": text(b"a")[:-20] + "é".encode() + b'","messages":5}',
    "blanks": b" " * (SIZE - 20) + b'{"messages":5}',
    "blanks between": array(b" \n1\t"),
    "blanks and nothing": b"\n" * SIZE,
    "broken at the end": array(b"[1]")[:-2],
    "not UTF-8 at the end": text(b"a")[:-20] + b"\xff",
    "a byte order mark": b"\xef\xbb\xbf" + array(b"[1]")[3:],
    "messages, too many": field(b"messages", USER)[: -len(b"]}")].replace(b"[" + USER + b"],", b"[", 1) + b"]}",
    "messages, a thousand": few(b'{"role":"user","content":"%b"}', 999),
    "messages, a thousand, the last wrong": few(b'{"role":"user","content":"%b"}', 999)[:-2] + b",5]}",
    "messages, wrong at the end": filled(b'{"messages":[', USER, b",", b",5]}"),
    "messages with many members": few(b'{"role":"user","content":"x","a":1,"b":2,"c":3,"d":4,"e":"%b"}', 800)[:-2]
    + b",5]}",
    "empty answers": few(b'{"role":"assistant","content":"   %b"}', 999),
    "parts": in_message(b"[", b'{"type":"text","text":"x"}', b",", b"]"),
    "parts, not text": in_message(b"[", b'{"type":"image_url"}', b",", b"]"),
    "a blank message": in_message(b'"', b" ", b"", b'"'),
    "a message of line ends": in_message(b'"', b"\\n", b"", b'"'),
    "a message of NULs": in_message(b'"', b"\\u0000", b"", b'"'),
    "a message of one letter": in_message(b'"', b"a", b"", b'"'),
    "a message of words": in_message(b'"', b"word ", b"", b'"'),
    "tools": field(b"tools", tool),
    "tools, 128": filled(b'{"messages":[' + USER + b'],"max_tokens":9,"tools":[', tool, b",", b"]}"),
    "tools, one of many members": b'{"messages":['
    + USER
    + b'],"max_tokens":9,"tools":[{"name":"a","function":{"name":"a","parameters":'
    + filled(b"{", lambda number: b'"%x":{}' % number, b",", b"}")[:60_000].rpartition(b",")[0]
    + b'}},"input_schema":{}}]}',
    "stop sequences": field(b"stop", b'"x"'),
    "context": field(b"context", b'{"description":"d","value":"v"}'),
}


class Refused:
    """What an ASGI server would take and give: one body in, one refusal out."""

    def __init__(self, path: str, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), *headers],
            "client": ("127.0.0.1", 1),
        }
        self._messages: Iterator[dict[str, Any]] = iter([{"type": "http.request", "body": body, "more_body": False}])
        self.status = 0
        self.said = b""

    async def receive(self) -> dict[str, Any]:
        for message in self._messages:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.said += message.get("body", b"")


async def cost(
    handler: ChatHandler, path: str, body: bytes, headers: list[tuple[bytes, bytes]]
) -> tuple[float, Refused]:
    """The median of the milliseconds of CPU, and the refusal."""
    found: list[float] = []
    for _ in range(7):
        refused = Refused(path, body, headers)
        began = thread_time()
        await handler(refused.scope, refused.receive, refused.send)
        found.append(1_000 * (thread_time() - began))
    return median(found), refused


HEADS: dict[str, list[tuple[bytes, bytes]]] = {
    "a hundred header fields": [(b"x-%d" % number, b"y" * 140) for number in range(96)],
    "a long X-Forwarded-For": [(b"x-forwarded-for", b"127.0.0.1," * 1_600)],
    "a long Authorization": [(b"authorization", b"Bearer " + b"x" * 16_000)],
    "a long Idempotency-Key": [(b"idempotency-key", b"x" * 16_000)],
    "many Idempotency-Keys": [(b"idempotency-key", b"x")] * 96,
    "a long Last-Event-ID": [(b"last-event-id", b"9" * 16_000)],
    "a long Origin": [(b"origin", b"x" * 16_000)],
}


async def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--most", type=float, default=5.0, help="milliseconds of CPU")
    options.add_argument("--shape", default="", help="only shapes with this in their name")
    chosen = options.parse_args()
    profile = Profile(model="openai:gpt-4o-mini", tokens_per_request=64, requests_per_minute=None, allow_tools=True)
    handler = create_chat_handler(
        api_key="k", base_url="http://127.0.0.1:9/v1", profiles={"balanced": profile}, dialects=tuple(PATHS)
    )
    gc.disable()
    rows: list[tuple[str, str, float, int, str]] = []
    async with handler:
        for dialect, path in PATHS.items():
            heads = {name: (b'{"messages":5}', head) for name, head in HEADS.items()} if dialect == "native" else {}
            shapes = {name: (body, []) for name, body in SHAPES.items()} | heads
            for name, (body, headers) in shapes.items():
                if chosen.shape not in name:
                    continue
                assert len(body) <= SIZE, (name, len(body))
                milliseconds, refused = await cost(handler, path, body, headers)
                code = next((code for code in ("request_too_large", "limit_exceeded") if code in str(refused.said)), "")
                counted = "tokens counted" if refused.status == 429 or code else ""
                assert 400 <= refused.status < 500, (dialect, name, refused.status, refused.said)
                rows.append((dialect, name, milliseconds, refused.status, counted))
    rows.sort(key=lambda row: (row[0], -row[2]))
    print(f"{'dialect':10} {'shape':42} {'CPU ms':>7}  status")
    for dialect, name, milliseconds, status, counted in rows:
        print(f"{dialect:10} {name:42} {milliseconds:7.2f}  {status} {counted}".rstrip())
    worst = max((row for row in rows if not row[4]), key=lambda row: row[2])
    print(f"worst: {worst[2]:.2f} ms, {worst[1]} ({worst[0]}); {len(rows)} rows")
    return int(worst[2] > chosen.most)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
