"""What is fuzzed: each harness takes any bytes, and raises AssertionError for what must not be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from decoding import cut, decode

from chat_nest.dialects import DIALECTS
from chat_nest.core.errors import BadRequest
from chat_nest.providers.anthropic import anthropic_codec
from chat_nest.providers.codec import Codec
from chat_nest.providers.gemini import gemini_codec
from chat_nest.providers.ndjson import LineDecoder
from chat_nest.providers.ollama import ollama_codec
from chat_nest.providers.openai_codec import openai_codec
from chat_nest.core.sse import Decoder, EventTooLong

MOST = 256
"""Bytes that a splitter may keep, here: small, so that a short input passes it."""


def places(data: bytes) -> tuple[list[int], bytes]:
    """The first byte says how many of those that follow say where the rest is cut."""
    count = data[0] % 8 if data else 0
    return list(data[1 : 1 + count]), data[1 + count :]


def parse(name: str, data: bytes) -> None:
    """A body is a request or a bad request that names a field."""
    try:
        DIALECTS[name]().parse(data)
    except BadRequest as error:
        assert error.field


def split(make: Callable[[int], Decoder | LineDecoder], data: bytes) -> None:
    """Whole or cut, a splitter finds the same events, and keeps no more than it may."""
    at, body = places(data)
    outcomes = []
    for reads in ([body], cut(body, at), [body[i : i + 1] for i in range(len(body))]):
        splitter, events, failed = make(MOST), [], False
        for read in reads:
            try:
                events += splitter.feed(read)
            except EventTooLong as error:
                events += error.events
                failed = True
                break
            assert len(splitter._line) <= MOST
        outcomes.append((events, failed))
    assert outcomes[1] == outcomes[0] == outcomes[2]


def read(make: Callable[[], Codec], data: bytes) -> None:
    """Whole or cut, an answer means the same; what fails is an UpstreamError."""
    at, body = places(data)
    outcome = decode(make(), body)
    assert decode(make(), *cut(body, at)) == outcome


CODECS: Mapping[str, Callable[[], Codec]] = {
    "openai": openai_codec,
    "anthropic": anthropic_codec,
    "gemini": gemini_codec,
    "ollama": ollama_codec,
}
BODIES = {f"body_{name}": partial(parse, name) for name in DIALECTS}
CUTS = {
    "sse": partial(split, Decoder),
    "ndjson": partial(split, LineDecoder),
    **{f"codec_{name}": partial(read, make) for name, make in CODECS.items()},
}
HARNESSES: Mapping[str, Callable[[bytes], None]] = {**BODIES, **CUTS}
SEEDS = {
    "body": [
        b'{"messages":[{"role":"user","content":"hello"}],"max_tokens":5}',
        b'{"messages":[{"role":"user","parts":[{"type":"text","text":"\\ud83d"}]}]}',
        b'{"threadId":"t","runId":"r","messages":[{"id":"a","role":"user","content":"x"}]}',
        b'{"message":1e999}',
    ],
    "sse": [b"\x02\x05\x09\xef\xbb\xbfdata: a\r\ndata\rdata:b\n\n: c\nid: 1\n\n", b"\x00data: " + b"x" * 300],
    "ndjson": [b"\x02\x03\x05{}\r\n[1]\n\n", b"\x00" + b"x" * 300 + b"\n"],
    "codec": [
        b'\x02\x09\x20data: {"choices":[{"index":0,"delta":{"content":"\xc3\xa9"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
        b'\x01\x30data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}\n\n',
        b'\x01\x10data: {"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}\n\n',
        b'\x01\x10{"message":{"content":"a"},"done":true,"done_reason":"stop","eval_count":-1}\n',
    ],
}


def seeds(name: str) -> list[bytes]:
    return SEEDS[name.split("_")[0]]
