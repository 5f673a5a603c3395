"""The files of deploy/nginx and deploy/caddy, run by the programs that read them, over TLS and HTTP/2."""

from __future__ import annotations

import asyncio

import pytest
from deployed_proxies import NAME, proxy
from raw_client import HELLO
from scripted_provider import DONE, HANG, ScriptedProvider, chunk, finish, stream, usage
from serve_command import command

CONFIG = """
[server]
trusted_proxies = ["127.0.0.1", "::1"]
[store]
url = "memory://"
"""


async def used(client) -> int:
    limits = (await client.get("/api/usage")).json()["limits"]
    return next(limit["used"] for limit in limits if limit["name"] == "tokens_per_day")


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
async def test_a_proxy_passes_all_of_it_on_at_once_and_names_its_client(tmp_path, kind) -> None:
    (tmp_path / "chat.toml").write_text(CONFIG)
    seen = asyncio.Event()
    scripts = (
        stream(chunk("one"), seen, chunk("two"), finish(), usage(5, 2), DONE),
        stream(chunk("three"), finish(), usage(5, 1), DONE),
        stream(chunk("left"), HANG),
    )
    async with (
        ScriptedProvider(*scripts) as provider,
        command(tmp_path, provider.url, "sk-served", "--config", "chat.toml") as served,
        proxy(kind, tmp_path / kind, served.port) as front,
        front.client("127.0.0.2") as ada,
        front.client("127.0.0.3") as bob,
        asyncio.timeout(120),
    ):
        page = await ada.get("/")
        assert (page.status_code, page.http_version) == (200, "HTTP/2")
        assert "<title>" in page.text
        assert (await ada.get("/v1/models")).json()["object"] == "list"
        assert (await ada.get("/healthz")).status_code == 200

        async with ada.stream("POST", "/api/chat", json=HELLO) as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            text = ""
            async for piece in reply.aiter_text():
                text += piece
                if '"one"' in text:
                    seen.set()  # only now the provider goes on: a proxy that holds pieces back would wait for ever
        assert text.index('"one"') < text.index('"two"') < text.index("event: done")

        forged = {"x-forwarded-for": "127.0.0.2", "forwarded": "for=127.0.0.2", "x-real-ip": "127.0.0.2"}
        assert (await bob.post("/api/chat", json=HELLO, headers=forged)).status_code == 200
        assert (await used(ada), await used(bob)) == (7, 6)

        details = (await ada.get("/readyz")).json()
        assert set(details) == {"ready", "status"}, "a client behind the proxy is not this machine"

        large = {"messages": [{"role": "user", "content": "x" * 300_000}]}
        refused = await ada.post("/api/chat", json=large)
        assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large")

        async with front.client() as leaving, leaving.stream("POST", "/api/chat", json=HELLO) as reply:
            async for piece in reply.aiter_text():
                if '"left"' in piece:
                    break
        await provider.closed(2)  # the client's connection is closed: it sends no RST_STREAM


def test_the_names_in_the_files_are_those_of_the_other_examples() -> None:
    from deployed_proxies import DEPLOY

    for path in (*DEPLOY.rglob("*.conf"), *DEPLOY.rglob("Caddyfile"), *DEPLOY.rglob("*.yaml")):
        if "example" in path.read_text():
            assert NAME in path.read_text(), path
