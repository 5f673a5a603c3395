"""Which model server on this machine `chat-nest serve` takes where no provider is configured."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack

import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from scripted_provider import CLOSE, HANG, Script, ScriptedProvider, failure, head, http, piece

from chat_nest.cli.commands import chat_nest
from chat_nest.providers import PRESETS
from chat_nest.server import local_servers
from chat_nest.server.providers import make_provider
from chat_nest.server.config.settings import Config, load
from chat_nest.server.local_servers import LOCAL, LocalServer, find_local_server

OLLAMA = http(
    200, json.dumps({"models": [{"name": "nomic-embed-text:latest"}, {"name": "llama3.2:3b"}, {"name": "b"}]}).encode()
)
LM_STUDIO = http(
    200,
    json.dumps({"object": "list", "data": [{"id": "text-embedding-bge-m3"}, {"id": "openai/gpt-oss-20b"}]}).encode(),
)
FOUND = LocalServer("ollama", "http://localhost:11434", "llama3.2:3b")  # fmt: skip


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine an answer may take longer than a user should wait."""
    monkeypatch.setattr(local_servers, "SECONDS", 60.0)


async def found(**lists: Script) -> tuple[LocalServer | None, Mapping[str, str], Mapping[str, list[str]]]:
    """What is found where these servers answer the question for their models; with their URLs, and what they were asked."""
    async with AsyncExitStack() as stack:
        presets, urls, servers = {}, {}, {}
        for kind, models in lists.items():
            servers[kind] = server = await stack.enter_async_context(ScriptedProvider())
            server.models = models
            urls[kind] = server.url if kind == "lmstudio" else server.url.removesuffix("/v1")
            presets[kind] = replace(LOCAL[kind], base_url=urls[kind])
        local = await asyncio.to_thread(find_local_server, presets)
        return local, urls, {kind: [check.path for check in server.checks] for kind, server in servers.items()}


async def test_ollama_comes_before_lm_studio_and_embedding_models_are_passed_over() -> None:
    local, urls, asked = await found(ollama=OLLAMA, lmstudio=LM_STUDIO)
    assert local == LocalServer("ollama", urls["ollama"], "llama3.2:3b")
    assert asked == {"ollama": ["/api/tags"], "lmstudio": ["/v1/models"]}
    local, urls, _ = await found(lmstudio=LM_STUDIO)
    assert local == LocalServer("lmstudio", urls["lmstudio"], "openai/gpt-oss-20b")


@pytest.mark.parametrize(
    "answer",
    [
        http(200, b'{"models": []}'),
        http(200, b'{"models": [{"name": "nomic-embed-text"}, {"name": "all-minilm"}, {"name": "bge-m3"}]}'),
        http(200, b"<html>", "text/html"),
        http(200, b"[1, 2]"),
        http(404),
        failure(401),
        failure(500),
        [CLOSE],
        [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", CLOSE],
    ],
)
async def test_a_port_of_another_server_is_skipped(answer: Script) -> None:
    local, urls, _ = await found(ollama=answer, lmstudio=LM_STUDIO)
    assert local == LocalServer("lmstudio", urls["lmstudio"], "openai/gpt-oss-20b")


@pytest.mark.parametrize(
    "answer", [[HANG], [head(content_type="application/json"), piece(b'{"models": [{"name": "a"'), HANG]]
)
async def test_a_server_that_never_finishes_is_not_waited_for(answer: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_servers, "SECONDS", 0.01)
    assert (await found(ollama=answer, lmstudio=answer))[0] is None


def test_without_a_local_server_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    presets = {kind: replace(preset, base_url="http://127.0.0.1:1") for kind, preset in LOCAL.items()}
    assert find_local_server(presets) is None
    assert not caplog.messages
    assert not logging.getLogger("chat_nest.upstream").disabled


def test_the_ports_are_the_usual_ones() -> None:
    assert {kind: preset.base_url for kind, preset in LOCAL.items()} == {
        "ollama": "http://localhost:11434",
        "lmstudio": "http://localhost:1234/v1",
    }


def serve(environ: Mapping[str, str], text: str = "", folder: object = None) -> Config:
    if not text:
        return load("", environ, find_local=lambda: FOUND)
    file = folder / "chat.toml"
    file.write_text(text)
    return load(str(file), environ, find_local=lambda: FOUND)


def test_a_local_server_replaces_the_demo_model_and_is_logged_once() -> None:
    config = serve({})
    assert not config.is_demo
    assert {profile.model for profile in config.profiles.values()} == {"ollama:llama3.2:3b"}
    assert config.notes == (
        "ollama runs on this machine, so its llama3.2:3b answers, not the demo model: serve --demo switches this off",
    )
    provider = config.providers["ollama"]
    assert (provider.base_url, provider.api_key) == ("http://localhost:11434", None)
    assert make_provider(provider).abort_bills == "stops"  # type: ignore[attr-defined]
    assert serve({"CHAT_NEST_MODEL": "qwen3:4b"}).model == "ollama:qwen3:4b"


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("", {"OPENAI_API_KEY": "k"}),
        ("", {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}),
        ("", {"PERPLEXITY_API_KEY": "k"}),
        ("", {"PERPLEXITY_API_KEY": "k", "GROQ_API_KEY": "k"}),
        ("", {"ANTHROPIC_API_KEY": "k"}),
        ("[providers.demo]\n", {}),
        ('[profiles.balanced]\nmodel = "demo:smollm2-135m-instruct"\n', {}),
        ('[providers.p]\nbase_url = "http://127.0.0.1:1/v1"\n[profiles.balanced]\nmodel = "p:m"\n', {}),
    ],
)
def test_a_provider_that_is_configured_leaves_nothing_to_look_for(text, environ, tmp_path) -> None:
    def never() -> LocalServer:
        raise AssertionError

    file = tmp_path / "chat.toml"
    file.write_text(text)
    assert "ollama" not in load(str(file), environ, find_local=never).providers


def test_the_command_looks_for_local_servers_unless_demo_is_set(monkeypatch, tmp_path) -> None:
    looked: list[str] = []

    def find() -> LocalServer:
        looked.append("once")
        return FOUND

    served: list[Config] = []
    monkeypatch.setattr(local_servers, "find_local_server", find)
    monkeypatch.setattr(
        "chat_nest.cli.serve.run", lambda config, listener, load, **_: (listener.close(), served.append(config))[1] or 0
    )
    monkeypatch.chdir(tmp_path)
    environ = {"OPENAI_API_KEY": None, "OPENAI_BASE_URL": None, **{preset.key_env: None for preset in PRESETS.values()}}
    for options, names in (([], ["ollama"]), (["--demo"], ["demo"])):
        done = CliRunner(env=environ).invoke(chat_nest, ["serve", "--port", "0", *options])
        assert done.exit_code == 0, done.output
        assert list(served[-1].providers) == names
    assert looked == ["once"]
    assert CliRunner(env=environ).invoke(chat_nest, ["check"]).exit_code == 0
    assert looked == ["once"], "check asks nobody"
