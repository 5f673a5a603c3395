"""What `create_chat_handler` makes of its arguments."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from chat_nest import BALANCED, create_chat_handler
from chat_nest.dialects.native import Native
from chat_nest.testing import ScriptedProvider, answer, collect

BODY = {"messages": [{"role": "user", "content": "hello"}]}


def own(*names: str, **how):
    provider = ScriptedProvider(answer("hi"))
    profiles = {name: replace(BALANCED, name=name, model=f"p:{name}") for name in names}
    return provider, create_chat_handler(providers={"p": provider}, profiles=profiles, **how)


@pytest.mark.parametrize(
    ("names", "default", "model"),
    [(("gold", "balanced"), None, "balanced"), (("gold", "iron"), None, "gold"), (("gold", "iron"), "iron", "iron")],
)
async def test_the_profile_of_a_caller_who_names_none(names, default, model) -> None:
    provider, handler = own(*names, default_profile=default)
    async with handler:
        assert (await collect(handler, BODY)).status == 200
    assert provider.prompts[0].model == model


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
