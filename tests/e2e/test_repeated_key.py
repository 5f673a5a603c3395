"""A retry with the same Idempotency-Key after a broken connection, with a real server and its store."""

from __future__ import annotations

import asyncio
import json

import pytest
from raw_client import HELLO, JSON, connect
from scripted_provider import HANG, ScriptedProvider, chunk, head, piece
from serve_command import command

KEYED = {**JSON, "idempotency-key": "a-retry"}
OPENAI = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/chat", HELLO), ("/v1/chat/completions", {**OPENAI, "stream": True}), ("/v1/chat/completions", OPENAI)],
)
async def test_row_27_a_retry_after_a_broken_connection_gets_the_end_of_the_first(tmp_path, path, body):
    (tmp_path / "c.toml").write_text('[providers.openai]\nabort_bills = "full"\n')
    async with (
        ScriptedProvider([head(), piece(chunk("Hello ")), HANG]) as provider,
        command(tmp_path, provider.url, "sk-served", "--config", "c.toml") as server,
    ):
        async with connect(server.port) as client:
            client.send("POST", path, body, KEYED)
            await provider.request()
            client.reset()
            await provider.closed()
        status = 409
        while status == 409:
            async with connect(server.port) as client:
                reply = await client.request("POST", path, body, KEYED)
                await reply.body()
                status = reply.status
            await asyncio.sleep(0)
        assert reply.headers["idempotency-replayed"] == "true"
        assert b"client_gone" in reply.raw
        assert len(provider.requests) == 1
        if not body.get("stream", path == "/api/chat"):
            assert reply.status == 499
            assert json.loads(reply.raw)["error"]["code"] == "client_gone"
