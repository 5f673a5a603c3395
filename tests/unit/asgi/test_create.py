"""What `create_chat_handler` makes of its arguments."""

from __future__ import annotations

import asyncio
import time
from zoneinfo import ZoneInfo

import pytest
from msgspec.structs import replace
from switched_store import Switched

from chat_nest import BALANCED, Allowance, Limits, MemoryStore, create_chat_handler
from chat_nest.dialects.native import Native
from chat_nest.limits import Line
from chat_nest.testing import ScriptedProvider, answer, collect
from chat_nest.windows import calendar_window

BODY = {"messages": [{"role": "user", "content": "hello"}]}


def own(*names: str, **how):
    provider = ScriptedProvider(answer("hi"))
    profiles = {name: replace(BALANCED, name=name, model=f"p:{name}") for name in names}
    return provider, create_chat_handler(providers={"p": provider}, profiles=profiles, **how)


@pytest.mark.parametrize(
    ("names", "default", "model"),
    [(("gold", "balanced"), None, "balanced"), (("gold",), None, "gold"), (("gold", "iron"), "iron", "iron")],
)
async def test_the_profile_of_a_caller_who_names_none(names, default, model) -> None:
    provider, handler = own(*names, default_profile=default)
    async with handler:
        assert (await collect(handler, BODY)).status == 200
    assert provider.prompts[0].model == model


def test_of_two_profiles_the_application_names_the_default() -> None:
    with pytest.raises(ValueError, match="default_profile"):
        own("gold", "iron")


@pytest.mark.parametrize("path", ["/talk", "/talk/", "/Talk"])
async def test_a_path_of_ones_own(path) -> None:
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
        ({"api_key": "k", "cors_origins": ["https://a.example/path/"]}, "cors_origins"),
    ],
)
def test_what_can_not_work_says_so(how, says, monkeypatch) -> None:
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
        while not handler.store.can_admit:
            await asyncio.sleep(0.01)
        link.how = "fails"
        assert (await collect(handler, BODY)).status == 200
        assert handler.store.is_down
    [kept] = tmp_path.glob("*.journal")
    assert b"hello" not in kept.read_bytes()
    link.how = "on"
    _, handler = own("balanced", store=link, limits=limits, degraded=Allowance(tokens=500), journal=tmp_path)
    async with handler:  # whoever comes next lands it, before any request
        while kept.exists() or not handler.store.can_admit:
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
def test_what_cant_work_without_the_store_is_refused(how, says) -> None:
    with pytest.raises(ValueError, match=says):
        own("balanced", **how)
