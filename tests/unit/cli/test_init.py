"""`chat-nest init`: what it asks, what it writes, and that the file is one which `check` accepts."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from chat_nest.cli import init as command
from chat_nest.cli.commands import chat_nest
from chat_nest.cli.starter_config import Choices, find_providers, key_variable, starter_config
from chat_nest.providers import PRESETS
from chat_nest.server import local_servers
from chat_nest.server.config.settings import load
from chat_nest.server.local_servers import LocalServer

KEY = "sk-canary-of-the-environment"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local_servers, "find_local_server", lambda: None)


def run(*arguments: str, input: str | None = None, **environ: str) -> Result:
    keys = {preset.key_env for preset in PRESETS.values()}
    clean = {name: None for name in os.environ if name.startswith(("CHAT_NEST_", "OPENAI_")) or name in keys}
    result = CliRunner(env={**clean, **environ}).invoke(chat_nest, arguments, input=input)
    assert KEY not in result.output
    return result


def written(name: str = command.FILE) -> str:
    text = Path(name).read_text()
    assert KEY not in text
    return text


def test_without_questions_the_demo_model_is_ready_to_serve() -> None:
    assert run("init", "--yes").exit_code == 0
    checked = run("check", "--config", command.FILE)
    assert checked.exit_code == 0, checked.output
    assert "demo:smollm2" in checked.output
    assert "unlimited" not in checked.output, "all strangers together have a limit"


@pytest.mark.parametrize(
    ("environ", "model"),
    [
        ({"OPENAI_API_KEY": KEY}, "openai:gpt-4o-mini"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "CHAT_NEST_MODEL": "llama"}, "openai:llama"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": KEY}, "openai:gpt-4o-mini"),
        ({"PERPLEXITY_API_KEY": KEY}, "perplexity:sonar"),
        ({"ANTHROPIC_API_KEY": KEY, "CHAT_NEST_MODEL": "claude-haiku-4-5"}, "anthropic:claude-haiku-4-5"),
    ],
)
def test_a_key_in_the_environment_is_taken_and_named_but_not_written(environ, model) -> None:
    result = run("init", "--yes", **environ)
    assert (result.exit_code, model in result.output) == (0, True), result.output
    config = load(command.FILE, environ)
    assert config.model == model
    key = config.providers[model.partition(":")[0]].api_key
    assert (key and key.reveal()) == (KEY if KEY in environ.values() else None)
    written()
    assert "export" not in result.output, "the key is there"


def test_a_model_server_on_this_machine_is_offered(monkeypatch) -> None:
    monkeypatch.setattr(
        local_servers, "find_local_server", lambda: LocalServer("ollama", "http://localhost:11434", "qwen3:8b")
    )
    result = run("init", input="\n\n\n\n\n\n\n")
    assert result.exit_code == 0, result.output
    assert "it runs on this machine" in result.output
    assert load(command.FILE, {}).model == "ollama:qwen3:8b"


def test_every_answer_is_in_the_file() -> None:
    answers = "groq\nllama-3.3-70b\nchat.example.org\n7000\nmany\n900_000\n900000\ny\nmysql://x\nmemory://\n"
    result = run("init", "my.toml", input=answers)
    assert result.exit_code == 0, result.output
    assert "store.url" not in result.output and "must be memory://" in result.output
    assert "export GROQ_API_KEY=..." in result.output
    assert "chat-nest keys create ada --config my.toml" in result.output
    text = written("my.toml")
    values = tomllib.loads(text)
    assert values["server"]["allowed_hosts"] == ["chat.example.org"]
    assert values["server"]["trusted_proxies"] == ["127.0.0.1", "::1"]
    assert values["providers"]["groq"]["api_key_env"] == "GROQ_API_KEY"
    assert values["profiles"]["balanced"]["model"] == "groq:llama-3.3-70b"
    assert values["profiles"]["balanced"]["tokens_per_day"] == 7000
    assert values["limits"]["tokens_per_day"] == 900_000
    assert values["store"]["url"] == "memory://"
    environ = {"GROQ_API_KEY": KEY, "CHAT_NEST_IDENTITY_SECRET": "s" * 64}
    assert run("keys", "create", "ada", "--config", "my.toml", **environ).exit_code == 0
    assert run("check", "--config", "my.toml", **environ).exit_code == 0


def test_a_file_that_is_there_is_not_replaced() -> None:
    Path("mine.toml").write_text("# mine\n")
    Path("dangling.toml").symlink_to("nowhere")
    for name in ("mine.toml", "dangling.toml"):
        result = run("init", "--yes", name)
        assert (result.exit_code, "is not replaced" in result.output) == (1, True)
    assert Path("mine.toml").read_text() == "# mine\n"
    assert not Path("nowhere").exists()


def test_an_aborted_dialogue_writes_nothing() -> None:
    assert run("init", input="openai\n").exit_code == 1
    assert not Path(command.FILE).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--provider", "opnai"], "did you mean openai?"),
        (["--provider", "anthropic"], "needs --model NAME"),
        (["--provider", "azure"], "needs a URL of yours"),
        (["nowhere/chat.toml"], "can't be written: No such file or directory"),
    ],
)
def test_a_choice_that_can_not_work_is_named(arguments, said) -> None:
    result = run("init", "--yes", *arguments)
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert not Path(command.FILE).exists()


@pytest.mark.parametrize("kind", [*PRESETS, "demo"])
def test_the_file_of_every_kind_of_provider_is_accepted(kind) -> None:
    preset = PRESETS.get(kind)
    url = "https://mine.example/x" if preset is not None and preset.url_form else ""
    odd = 'a"model\\with é'
    environ = {preset.key_env: KEY} if preset is not None else {}
    key_env = key_variable(kind, url, environ)
    text = starter_config(Choices(kind=kind, base_url=url, key_env=key_env, model=odd, store="memory://"))
    Path("chat.toml").write_text(text)
    assert load("chat.toml", environ).model == f"{kind}:{odd}"


def test_the_commented_lines_are_right_too() -> None:
    import re

    text = starter_config(Choices(kind="openai", key_env="NO", model="m", store="memory://", keys=True))
    text = re.sub(r"^# (?=\w+ = )|^api_key_env.*\n", "", text, flags=re.MULTILINE)
    text = text.replace("PROVIDER:MODEL", "openai:m")
    text += '\n[prices."openai:m"]\ninput = 1\noutput = 2\n'
    Path("keys.txt").write_text(KEY)
    Path("chat.toml").write_text(text)
    environ = {"CHAT_NEST_IDENTITY_SECRET": "s" * 64}
    assert run("keys", "create", "ada", "--config", "chat.toml", **environ).exit_code == 0
    profile = load("chat.toml", environ).profiles["balanced"]
    assert (profile.allow_tools, profile.usd_per_day) == (True, 0.5)


def test_found_providers_are_listed_in_the_order_of_serve() -> None:
    environ = {"GROQ_API_KEY": KEY, "OPENAI_API_KEY": KEY}
    local = LocalServer("lmstudio", "http://localhost:1234/v1", "qwen")
    assert [each.kind for each in find_providers(environ, lambda: local)] == ["openai", "groq", "lmstudio", "demo"]
