"""[dialects]: which wire formats are on, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat_nest.cli.check import table
from chat_nest.core.errors import BudgetExceeded
from chat_nest.server.config.settings import Config, load
from chat_nest.server.config.front_ends import PATHS, make_dialects
from chat_nest.server.config.sources import ConfigError


def loaded(tmp_path: Path, text: str = "", **environ: str) -> Config:
    file = tmp_path / "chat.toml"
    file.write_text(text)
    return load(str(file), {"OPENAI_API_KEY": "sk-of-the-test", **environ})


def test_all_but_the_blogs_are_on_at_their_usual_paths(tmp_path):
    config = loaded(tmp_path)
    assert config.dialects == {name: path for name, path in PATHS.items() if name != "blog"}
    assert not config.blog_get
    assert not config.notes
    assert "openai at /v1, responses at /v1/responses, ai_sdk at /api/ai" in table(config)


def test_each_can_be_moved_switched_off_or_switched_on(tmp_path):
    text = '[dialects]\nopenai = "/openai/v1"\nanthropic = false\nresponses = false\nai_sdk = true\nblog = "/talk"\nblog_get = true\n'
    config = loaded(tmp_path, text, CHAT_NEST_DIALECTS_AG_UI="false", CHAT_NEST_DIALECTS_AI_SDK="/ai")
    assert config.dialects == {"native": "/api/chat", "openai": "/openai/v1", "ai_sdk": "/ai", "blog": "/talk"}
    routes = [
        (route.method, route.path)
        for made in make_dialects(config.dialects, blog_get=config.blog_get)
        for route in made.routes
    ]
    assert routes == [
        ("POST", "/api/chat"),
        ("POST", "/openai/v1/chat/completions"),
        ("GET", "/openai/v1/models"),
        ("POST", "/ai"),
        ("POST", "/talk"),
        ("GET", "/talk"),
    ]


def test_a_budget_s_refusal_has_the_configured_status(tmp_path):
    assert loaded(tmp_path).budget_status == 429
    config = loaded(tmp_path, "[dialects]\nbudget_status = 402\n")
    made = make_dialects(config.dialects, blog_get=False, budget_status=config.budget_status)
    statuses = {dialect.routes[0].path: dialect.refuse(BudgetExceeded(), "id").status for dialect in made}
    assert {path for path, status in statuses.items() if status == 402} == {
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
    }
    assert loaded(tmp_path, CHAT_NEST_DIALECTS_BUDGET_STATUS="402").budget_status == 402


def test_the_page_needs_the_native_one(tmp_path):
    for text in ("native = false", 'native = "/talk"'):
        assert "the page at / can chat only" in loaded(tmp_path, f"[dialects]\n{text}\n").notes[0]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('openai = "v1"', "chat.toml:2: dialects.openai: must be true, false, or a path that begins with /"),
        ("budget_status = 400", "chat.toml:2: dialects.budget_status: must be 402 or 429"),
        ("openai = 1", "chat.toml:2: dialects.openai: must be true, false, or a path that begins with /"),
        ('openai = "/a b"', "chat.toml:2: dialects.openai: must be true, false, or a path that begins with /"),
        ("opanai = true", "chat.toml:2: dialects.opanai: there is no such key; did you mean openai?"),
        (
            'ai_sdk = "/API/Chat/"',
            "chat.toml:2: dialects.ai_sdk: must be another path: two dialects answer POST /API/Chat/: "
            "give one of them another path",
        ),
        (
            'ag_ui = "/healthz"',
            "chat.toml:2: dialects.ag_ui: must be another path: the server uses this one itself",
        ),
        (
            'blog = "/openapi.json/"',
            "chat.toml:2: dialects.blog: must be another path: the server uses this one itself",
        ),
        ('ag_ui = "/"', "chat.toml:2: dialects.ag_ui: must be another path: the server uses this one itself"),
        (
            "native = false\nopenai = false\nresponses = false\nai_sdk = false\nag_ui = false\nanthropic = false",
            "chat.toml:1: dialects: at least one must be on",
        ),
    ],
)
def test_what_can_not_be_refuses_to_start(tmp_path, line, problem):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"[dialects]\n{line}\n")
    assert [each.replace(f"{tmp_path}/", "") for each in caught.value.problems] == [problem]
