"""Promise 8 at the real server, as talkative as it can be made: whatever fails, no key, prompt, answer or name gets out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from raw_client import JSON, connect
from scripted_provider import (
    CLOSE,
    DONE,
    HANG,
    RESET,
    ScriptedProvider,
    Step,
    answer,
    chunk,
    event,
    failure,
    finish,
    stream,
    usage,
)
from serve_command import command


KEY, PROMPT, SAID, WHO, HEADER = (
    "sk-canary-6e1f",
    "canary-prompt-20c4",
    "canary-answer-77ab",
    "canary-user-51d0",
    "canary-key-9f3e",
)
CHAT = {"messages": [{"role": "user", "content": PROMPT}]}
ECHO = f"{KEY} {PROMPT}"
CONFIG = """
[server]
trusted_proxies = ["127.0.0.1"]
caller_header = "x-user"
[store]
journal = "journal"
[profiles.balanced]
requests_per_minute = 60
on_disconnect = "grace"
grace_seconds = 1
"""
FAILING: list[Sequence[Step]] = [
    failure(401, ECHO, KEY, www_authenticate=KEY),  # type: ignore[list-item]
    failure(429, ECHO),  # type: ignore[list-item]
    failure(400, ECHO),  # type: ignore[list-item]
    failure(500, ECHO),  # type: ignore[list-item]
    stream(chunk(SAID), event([], error={"message": ECHO, "code": KEY})),
    stream(chunk(SAID), b"data: {" + ECHO.encode() + b"\n\n"),
    stream(chunk(SAID), CLOSE),
    stream(chunk(SAID), RESET),
    [RESET],
    answer(SAID, 2),
    stream(chunk(SAID), finish(), usage(-5, 10**30), DONE),
]
BODIES = [
    b"{" + PROMPT.encode(),
    b'{"messages":"' + PROMPT.encode() + b'"}',
    b'{"messages":[{"role":"' + PROMPT.encode() + b'","content":"x"}]}',
    b'{"messages":[{"role":"user","content":"x"}],"model":"' + PROMPT.encode() + b'"}',
    b'{"messages":[{"role":"user","content":"x"}],"max_tokens":"' + PROMPT.encode() + b'"}',
]
PATHS = ("/api/chat", "/v1/chat/completions", "/api/ai", "/api/ag-ui", "/v1/messages")


async def test_nothing_secret_is_in_any_output_file_or_refusal(tmp_path: Path) -> None:
    (tmp_path / "chat.toml").write_text(CONFIG)
    headers = {**JSON, "x-user": WHO, "authorization": f"Bearer {HEADER}", "x-api-key": HEADER}
    refusals: list[bytes] = []
    environ = {"CHAT_NEST_CONFIG": str(tmp_path / "chat.toml")}
    async with ScriptedProvider(answer("x")) as provider:
        async with command(tmp_path, provider.url, KEY, "--log-level", "debug", "--access-log", **environ) as served:

            async def ask(body: object, path: str = "/api/chat", **more: str) -> None:
                async with connect(served.port) as client:
                    reply = await client.post(body, path, {**headers, **more})
                    raw = await reply.body()
                    if reply.status != 200:
                        refusals.append(raw)
                        refusals.append(repr(reply.headers).encode())

            for script in FAILING:
                provider.scripts = [script] * 3
                await ask(CHAT, **{"idempotency-key": f"k{len(refusals)}"})
            for path in PATHS:
                for body in BODIES:
                    await ask(body, path)
            await ask(CHAT, **{"x-user": ""})
            await ask(CHAT, **{"content-type": f"text/{PROMPT}"})
            provider.scripts = [stream(chunk(SAID), HANG)]
            async with connect(served.port) as client:
                await (await client.post(CHAT, "/api/chat", headers)).until("token")
                client.reset()
            await asyncio.sleep(0)
            served.process.terminate()
            assert await served.ended() == 0
        said = served.said
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "chat.toml"}
    assert any(path.name == "chat-nest.db" for path in kept)
    assert len(refusals) > 20
    assert said.count(b"finished") + said.count(b"refused") > 20, "it did talk"
    for secret in (KEY, PROMPT, SAID, WHO, HEADER):
        where = [str(path) for path, held in kept.items() if secret.encode() in held]
        assert where == [], secret
        assert secret.encode() not in said, secret
        assert not any(secret.encode() in refusal for refusal in refusals), secret


def test_the_search_can_find(tmp_path: Path) -> None:
    """A canary would be seen in a file: the search reads what is there."""
    (tmp_path / "x").write_bytes(os.urandom(100) + PROMPT.encode())
    assert [path for path in tmp_path.rglob("*") if PROMPT.encode() in path.read_bytes()]
