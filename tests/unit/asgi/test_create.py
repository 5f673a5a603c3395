"""What `create_chat_handler` makes of its arguments."""

from __future__ import annotations

import asyncio
import time
from inspect import signature
from zoneinfo import ZoneInfo

import pytest
from msgspec.structs import replace
from switched_store import Switched

from chat_nest import BALANCED, Allowance, ChatHandler, Limits, MemoryStore, create_chat_handler
from chat_nest.asgi.settings import ChangeableSettings, HandlerSettings
from chat_nest.dialects.native import Native
from chat_nest.core.claims import Line
from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.providers.gemini import GeminiProvider
from chat_nest.providers.ollama import OllamaProvider
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.testing import ScriptedProvider, answer, collect
from chat_nest.limits.windows import calendar_window

FAR, NEAR, SAFE = "http://llm.example.com/v1", "http://gpu-1:8000/v1", "https://llm.example.com/v1"
BODY = {"messages": [{"role": "user", "content": "hello"}]}


def own(*names: str, **how):
    provider = ScriptedProvider(answer("hi"))
    profiles = {name: replace(BALANCED, name=name, model=f"p:{name}") for name in names}
    return provider, create_chat_handler(providers={"p": provider}, profiles=profiles, **how)


@pytest.mark.parametrize(
    ("names", "default", "model"),
    [(("gold", "balanced"), None, "balanced"), (("gold",), None, "gold"), (("gold", "iron"), "iron", "iron")],
)
async def test_the_profile_of_a_request_that_names_none(names, default, model) -> None:
    provider, handler = own(*names, default_profile=default)
    async with handler:
        assert (await collect(handler, BODY)).status == 200
    assert provider.prompts[0].model == model


async def test_the_built_in_profiles_are_fitted_to_a_model_that_holds_little() -> None:
    class Small(ScriptedProvider):
        context_tokens = 3_072

    provider = Small(answer("a"))
    async with create_chat_handler(providers={"p": provider}, model="m") as handler:
        assert (await collect(handler, BODY)).status == 200
        long = {"messages": [{"role": "user", "content": "word " * 3_100}]}
        assert (await collect(handler, long)).status == 429
    assert [prompt.max_output_tokens for prompt in provider.prompts] == [512]


def test_of_two_profiles_the_application_names_the_default() -> None:
    with pytest.raises(ValueError, match="default_profile"):
        own("gold", "iron")


@pytest.mark.parametrize("path", ["/talk", "/talk/", "/Talk"])
async def test_a_custom_path(path) -> None:
    _, handler = own("balanced", dialects=[Native(path)])
    async with handler:
        assert (await collect(handler, BODY, path="/talk")).status == 200
        assert (await collect(handler, BODY, path="/talk/")).status == 200
        assert (await collect(handler, BODY, path="/api/chat")).status == 404


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"model": "m"}, "no API key"),
        ({"api_key": "k", "providers": {}}, "not both"),
        ({"api_key": "k", "profiles": {"balanced": BALANCED}, "model": "m"}, "not both"),
        ({"api_key": "k", "profiles": {"balanced": replace(BALANCED, model="other:m")}}, "PROVIDER:MODEL"),
        ({"providers": {"p": ScriptedProvider([])}}, "name the model"),
        ({"api_key": "k", "store": "mysql://x"}, "memory://"),
        ({"api_key": "k", "time_zone": "Mars/Olympus"}, "time zone"),
        ({"api_key": "k", "origins": ["https://a.example/path/"]}, "origins"),
    ],
)
def test_invalid_combinations_are_refused_with_the_reason(how, says, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ValueError, match=says):
        create_chat_handler(**how)


def everybodys_day(day) -> Line:
    return Line(
        name="tokens_per_day", scope="all", key=f"all:tokens_per_day:{day.id}", unit="tokens", kind="window",
        limit=10_000, fixed=0, resets_at=day.end,
    )  # fmt: skip


async def test_an_app_answers_on_an_allowance_while_its_store_is_down(tmp_path) -> None:
    link = Switched(MemoryStore())
    limits = Limits(tokens_per_day=10_000)
    _, handler = own("balanced", store=link, limits=limits, degraded=Allowance(tokens=500), journal=tmp_path)
    async with handler:
        while not handler.draws_on_allowance:
            await asyncio.sleep(0.01)
        link.how = "fails"
        assert (await collect(handler, BODY)).status == 200
        assert handler._ledger.is_down
    [kept] = tmp_path.glob("*.journal")
    assert b"hello" not in kept.read_bytes()
    link.how = "on"
    _, handler = own("balanced", store=link, limits=limits, degraded=Allowance(tokens=500), journal=tmp_path)
    async with handler:  # whoever comes next lands it, before any request
        while kept.exists() or not handler.draws_on_allowance:
            await asyncio.sleep(0.01)
    day = calendar_window("day", time.time(), ZoneInfo("UTC"))
    [standing] = await link.peek([everybodys_day(day)])
    assert (standing.held, standing.used > 0) == (0, True)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"degraded": Allowance(tokens=5)}, "degraded needs a budget"),
        ({"degraded": Allowance(tokens=5), "limits": Limits(tokens_per_day=5)}, "degraded.tokens must be below"),
        ({"journal": __file__}, "the journal can't be kept"),
    ],
)
def test_options_that_need_the_store_are_refused_without_it(how, says) -> None:
    with pytest.raises(ValueError, match=says):
        own("balanced", **how)


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_key_that_travels_unencrypted_is_warned_of_once(caplog) -> None:
    create_chat_handler(api_key="terces", base_url=FAR, model="m")
    assert warnings(caplog) == ["base_url: the key and every prompt travel unencrypted; use https"]
    assert "terces" not in caplog.text


@pytest.mark.parametrize(("key", "url"), [(None, FAR), ("k", NEAR), ("k", "http://127.0.0.1:8000/v1"), ("k", SAFE)])
def test_without_a_key_or_on_a_private_network_nothing_is_warned_of(key, url, caplog, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    create_chat_handler(api_key=key, base_url=url, model="m")
    assert warnings(caplog) == []


@pytest.mark.parametrize("made", [OpenAIProvider, AnthropicProvider, GeminiProvider, OllamaProvider])
def test_each_custom_provider_that_sends_its_key_unencrypted_is_named(made, caplog) -> None:
    providers = {
        "far": made("k", FAR),
        "near": made("k", NEAR),
        "keyless": made(None, FAR),
        "header": made(None, FAR, headers={"Authorization": "Bearer k"}),
    }
    create_chat_handler(providers=providers, model="far:m")
    said = "travel unencrypted; use https"
    assert warnings(caplog) == [f"providers['{name}']: the key and every prompt {said}" for name in ("far", "header")]


def test_the_signature_that_help_and_editors_show_has_every_argument_with_its_default() -> None:
    parameters = signature(create_chat_handler).parameters
    assert list(parameters) == list(HandlerSettings.__struct_fields__)
    assert parameters["time_zone"].default == "UTC"
    assert parameters["limits"].annotation is Limits
    assert list(signature(ChatHandler.reload).parameters) == ["self", *ChangeableSettings.__struct_fields__]


def test_an_argument_that_does_not_exist_is_named() -> None:
    with pytest.raises(TypeError, match="max_stream"):
        create_chat_handler(max_stream=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
