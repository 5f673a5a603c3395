"""Every example runs: each application under uvicorn, against a scripted provider, over real sockets."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from asgi_servers import serve, serve_process
from click.testing import CliRunner
from ports import free_port
from raw_client import HELLO, JSON, Event, ask, connect, settled, standing
from scripted_provider import RESET, ScriptedProvider, answer, chunk, stream

from chat_nest.cli.commands import chat_nest

EXAMPLES = Path(__file__).parents[2] / "examples"
KEY = "sk-example-5f1d"


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedProvider]:
    """The provider that OPENAI_BASE_URL names."""
    async with ScriptedProvider(answer("Hello ", 3, input_tokens=9)) as scripted:
        monkeypatch.setenv("OPENAI_BASE_URL", scripted.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield scripted


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_example_has_a_test():
    tested = {name for name in globals() if name.startswith("test_")}
    missing = [path.stem for path in EXAMPLES.glob("*.py") if f"test_{path.stem}" not in tested]
    assert not missing


async def check(port: int, provider: ScriptedProvider, who: Mapping[str, str] = {}) -> None:
    """A chat, what it cost, a preflight and a refusal: what every way of mounting must hand over unchanged."""
    reply = await ask(port, headers={**JSON, **who})
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream"
    events = reply.raw.split(b"\n\n")
    assert events[1:4] == [b'event: token\ndata: "Hello "'] * 3
    assert provider.requests[-1].headers["authorization"] == f"Bearer {KEY}"

    limits = await settled(port, headers=who)
    assert limits["tokens_per_day"]["used"] == 12

    async with connect(port) as client:
        preflight = await client.request("OPTIONS", "/api/chat", headers={"origin": "https://shop.example"})
        assert preflight.status == 204
        assert preflight.headers["access-control-allow-origin"] == "*"
    refused = await ask(port, {"messages": []}, headers={**JSON, **who})
    assert refused.status == 400
    assert json.loads(refused.raw)["error"] == "Invalid messages payload"
    async with connect(port) as client:
        assert (await client.request("GET", "/api/chat")).status == 405


async def test_01_smallest(provider, tmp_path):
    env = {"OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": KEY}
    async with serve_process("uvicorn", "01_smallest:app", tmp_path, env, EXAMPLES) as served:
        await check(served.port, provider)


async def test_02_fastapi(provider):
    app = load("02_fastapi")
    async with serve(app.app) as port:
        await check(port, provider)
        async with connect(port) as client:
            assert (await client.request("GET", "/hello")).status == 200
        async with connect(port) as client:
            assert (await client.request("GET", "/openapi.json")).status == 200
    assert provider.active == 0, "the lifespan closes the provider's connections"


async def test_03_starlette(provider):
    async with serve(load("03_starlette").app) as port:
        await check(port, provider)
    assert provider.active == 0


async def test_04_litestar(provider):
    async with serve(load("04_litestar").app) as port:
        await check(port, provider)
        async with connect(port) as client:
            assert (await client.request("GET", "/hello")).status == 200
    assert provider.active == 0


async def test_05_your_users(provider):
    async with serve(load("05_your_users").app) as port:
        nobody = await ask(port)
        assert nobody.status == 401
        assert json.loads(nobody.raw)["error"] == "Please log in"
        assert (await ask(port, headers={**JSON, "cookie": "session=mallory; \x80=;"})).status == 401
        assert not provider.requests

        ada, bob = {"cookie": "session=ada"}, {"cookie": "theme=dark; session=bob"}
        assert (await ask(port, {**HELLO, "profile": "expanded"}, headers={**JSON, **bob})).status == 200
        assert provider.requests[-1].json()["max_tokens"] == 1_000, "bob's plan is a ceiling"
        assert (await ask(port, headers={**JSON, **ada})).status == 200
        assert provider.requests[-1].json()["max_tokens"] == 8_000
        # Same address, two accounts.
        assert (await standing(port, bob))["tokens_per_day"]["limit"] == 50_000
        assert (await standing(port, ada))["tokens_per_day"]["limit"] == 500_000
        assert (await standing(port, ada))["tokens_per_day"]["used"] == 12

        reply = await ask(port, headers={**JSON, **ada, "origin": "https://evil.example"})
        assert "access-control-allow-origin" not in reply.headers


async def test_06_profiles_and_limits(provider, tmp_path, monkeypatch):
    monkeypatch.setenv("CHAT_DB", str(tmp_path / "chat.db"))
    async with serve(load("06_profiles_and_limits").app) as port:
        assert (await ask(port)).status == 200
        assert provider.requests[-1].json()["max_tokens"] == 300
        assert (await ask(port, {**HELLO, "profile": "short"})).status == 200
        assert provider.requests[-1].json()["max_tokens"] == 60
        assert (await settled(port))["tokens_per_day"]["used"] == 24
    async with serve(load("06_profiles_and_limits").app) as port:
        assert (await standing(port))["tokens_per_day"]["used"] == 24, "the file outlives the process"
        statuses = [(await ask(port)).status for _ in range(5)]
        assert statuses == [200, 200, 200, 200, 429], "six requests in a minute, two of them before the restart"


async def test_07_your_provider():
    async with serve(load("07_your_provider").app) as port:
        async with connect(port) as client:
            reply = await client.post({"messages": [{"role": "user", "content": "one two three"}]})
            assert (await reply.event()).json()["model"] == "polly"
            assert [event for event in await reply.events() if event.name == "token"] == [
                Event("token", '"one "'),
                Event("token", '"two "'),
                Event("token", '"three "'),
            ]
        assert (await settled(port))["tokens_per_day"]["used"] == 6


async def test_08_observer(provider, capsys):
    async with serve(load("08_observer").app) as port:
        await ask(port)
        await ask(port, {"messages": "secret"})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["started", "finished", "refused"]
    assert lines[1]["tokens"] == 12
    assert lines[1]["source"] == "reported"
    assert lines[2]["code"] == "bad_request"


async def run_client(url: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        EXAMPLES / "09_client.py",
        "Hello?",
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


async def test_09_client(provider):
    awkward = "a\u2028b\u0085c\n\ndata: d"
    provider.scripts = [answer(awkward, 2, input_tokens=9), stream(chunk("begun"), RESET)]
    async with serve(load("01_smallest").app) as port:
        url = f"http://127.0.0.1:{port}/api/chat"
        assert await run_client(url) == (0, awkward * 2 + "\n(11 tokens, stop)\n", "")
        assert provider.requests[0].json()["messages"] == [{"role": "user", "content": "Hello?"}]
        code, out, errors = await run_client(url)
        assert (code, out) == (1, "begun")
        assert "upstream_truncated" in errors
        code, _, errors = await run_client(url + "/nowhere")
        assert code == 1
        assert "not_found" in errors
    code, _, errors = await run_client(f"http://127.0.0.1:{free_port()}/api/chat")
    assert code == 1
    assert "nothing answers at http" in errors
    assert "Traceback" not in errors


async def test_10_api_keys(provider, tmp_path, monkeypatch):
    secret = "0123456789abcdef" * 4
    environ = {"CHAT_NEST_IDENTITY_KEYS_FILE": str(tmp_path / "keys.json"), "CHAT_NEST_IDENTITY_SECRET": secret}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    made = await asyncio.to_thread(CliRunner().invoke, chat_nest, ["keys", "create", "ada"])
    assert made.exit_code == 0, made.output
    async with serve(load("10_api_keys").app) as port:
        assert (await ask(port)).status == 401
        assert not provider.requests
        await check(port, provider, {"authorization": f"Bearer {made.stdout.strip()}"})


@pytest.mark.parametrize("missing", ["CHAT_NEST_IDENTITY_KEYS_FILE", "CHAT_NEST_IDENTITY_SECRET"])
def test_10_api_keys_without_its_variables_names_them(missing, tmp_path, monkeypatch):
    monkeypatch.setenv("CHAT_NEST_IDENTITY_KEYS_FILE", str(tmp_path / "keys.json"))
    monkeypatch.setenv("CHAT_NEST_IDENTITY_SECRET", "0123456789abcdef" * 4)
    monkeypatch.delenv(missing)
    with pytest.raises(SystemExit, match=f"^{missing} is not set: export it, as the beginning of .*10_api_keys.py"):
        load("10_api_keys")


@pytest.mark.parametrize("name", ["01_smallest", "02_fastapi", "03_starlette", "04_litestar", "05_your_users"])
def test_an_example_without_a_key_names_the_variable(name, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ValueError, match='^no API key: pass api_key=.*"A model without a key" in docs/embedding.md'):
        load(name)
