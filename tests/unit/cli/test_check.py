"""`chat-nest check`: the limits in force."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from chat_nest.cli.commands import chat_nest

FILE = """
[providers.local]
base_url = "http://127.0.0.1:8081/v1"
api_key = "sk-canary"
[profiles.balanced]
model = "local:llama"
tokens_per_day = 1000
max_output_tokens = 9000
[profiles.constrained]
[profiles.expanded]
tokens_per_day = "none"
usd_per_day = 0
[limits]
tokens_per_day = 5000
[hard_caps]
max_output_tokens = 4096
"""


def run(*arguments: str, **environ: str | None):
    clean = dict.fromkeys(("OPENAI_API_KEY", "OPENAI_BASE_URL", "CHAT_NEST_MODEL", "CHAT_NEST_CONFIG"))
    return CliRunner(env={**clean, **environ}).invoke(chat_nest, arguments)


def test_the_effective_limits_are_a_table(tmp_path):
    (tmp_path / "chat.toml").write_text(FILE)
    result = run("check", "--config", str(tmp_path / "chat.toml"))
    assert result.exit_code == 0
    limits = result.stdout.partition("What a stranger can spend")[0]
    rows = {line.split()[0]: line.split()[1:] for line in limits.splitlines() if line.strip()}
    facts = result.stdout.partition("Providers")[0]
    assert "  profile     balanced, unless the request or the caller has another one\n" in facts
    assert rows["balanced"] == ["constrained", "expanded", "all", "callers"]
    assert rows["model"] == ["local:llama"] * 3
    assert rows["tokens_per_day"] == ["1,000", "50,000", "none", "5,000"]
    assert rows["usd_per_day"] == ["none", "none", "0", "none"]
    assert rows["max_output_tokens"] == ["4,096", "1,000", "4,096", "-"]  # under the hard cap
    assert rows["tokens_per_minute"] == ["none"] * 4
    assert rows["local"] == ["openai", "http://127.0.0.1:8081/v1", "with", "a", "key"]
    assert "hard_caps.max_output_tokens is lower and wins" in result.stdout
    assert "sk-canary" not in result.output


def test_a_price_has_cents(tmp_path):
    prices = '[prices."local:llama"]\ninput = 0.6\noutput = 12\ncached_input = 0.075\n'
    (tmp_path / "chat.toml").write_text(FILE + prices)
    shown = run("check", "--config", str(tmp_path / "chat.toml")).stdout
    assert "$0.60 in, $12.00 out" in shown
    (tmp_path / "chat.toml").write_text(FILE + prices.replace("0.6", "0.0375"))
    assert "$0.0375 in, $12.00 out" in run("check", "--config", str(tmp_path / "chat.toml")).stdout


@pytest.mark.parametrize("preset", ["default", "npm"])
def test_the_preset_in_force_is_named(tmp_path, preset):
    (tmp_path / "chat.toml").write_text(f'preset = "{preset}"\n{FILE}')
    assert f"  preset      {preset}: " in run("check", "--config", str(tmp_path / "chat.toml")).stdout


@pytest.mark.parametrize("command", ["check", "serve", "usage"])
def test_a_file_as_an_argument_is_answered_with_the_option(command):
    result = run(command, "chat.toml")
    assert result.exit_code == 2
    assert "write --config chat.toml" in result.stderr
    assert "--config" not in run(command, "chat").stderr


@pytest.mark.parametrize("name", ["ada", "user:", "203.0.113.300", "0f3c9a52d81be6"])
def test_a_name_that_is_no_id_is_answered_with_the_forms_of_one(name):
    result = run("caller", name, CHAT_NEST_PROVIDERS_LOCAL_BASE_URL="http://127.0.0.1:8081/v1")
    assert result.exit_code == 2
    assert "user:ada" in result.stderr
    assert not result.stdout


SPENDING = """
[providers.openai]
base_url = "http://127.0.0.1:8081/v1"
[profiles.balanced]
tokens_per_day = 50_000
[profiles.member]
requests_per_minute = 2
tokens_per_day = "none"
[profiles.shut]
open = true
requests_per_day = 0
[prices."openai:gpt-4o-mini"]
input = 0.15
output = 0.60
"""


def spending(tmp_path, text, **environ):
    """The title and the rows of what callers can spend, and the notes."""
    (tmp_path / "chat.toml").write_text(text)
    result = run("check", "--config", str(tmp_path / "chat.toml"), **environ)
    assert result.exit_code == 0, result.output
    part = result.stdout.partition("What a ")[2]
    rows = {line[2:12].strip(): re.split(r" {2,}", line.strip())[1:] for line in part.splitlines()[2:]}
    return part.splitlines()[0], rows, [line for line in part.splitlines() if line.startswith("Note: ")]


def test_what_a_stranger_can_spend_in_a_day(tmp_path):
    title, rows, _ = spending(tmp_path, SPENDING)
    assert title == "stranger can spend in a day, at most"
    assert rows["balanced"] == ["every stranger", "50,000", "$0.031"]
    assert rows["member"] == ["only a caller to whom it is given", "92,224,000", "$55.34"]
    assert rows["shut"] == ["no caller: a limit is 0", "0", "$0"]
    assert rows["alone"] == ["one stranger, in any open profile", "50,000", "$0.031"]
    assert rows["together"] == ["all strangers, however many", "unlimited", "unlimited"]


def test_limits_for_all_bound_all_strangers(tmp_path):
    _, rows, _ = spending(tmp_path, SPENDING + "[limits]\nusd_per_month = 2\n")
    assert rows["together"] == ["all strangers, however many", "13,333,333", "$2.00"]
    assert rows["alone"][1:] == ["50,000", "$0.031"]
    _, rows, _ = spending(tmp_path, SPENDING + "[limits]\nrequests_per_day = 0\n")
    assert rows["together"][1:] == rows["alone"][1:] == ["0", "$0"]


def test_the_built_in_profiles_and_the_callers_that_may_use_them(tmp_path):
    _, rows, notes = spending(tmp_path, '[providers.openai]\nbase_url = "http://127.0.0.1:1/v1"\n')
    assert rows["expanded"][1:] == ["500,000", "price not known"]
    assert rows["alone"][1:] == ["500,000", "price not known"]
    [note] = [note for note in notes if "price" in note]
    assert note.startswith('Note: The price of openai:gpt-4o-mini is not known: add [prices."openai:gpt-4o-mini"]')
    header = '[server]\ncaller_header = "x-user"\ntrusted_proxies = ["10.0.0.7"]\n'
    title, rows, _ = spending(tmp_path, header + SPENDING)
    assert title == "caller can spend in a day, at most"
    assert (rows["balanced"][0], rows["together"][0]) == ("every caller", "all callers, however many")


def test_the_demo_model_costs_nothing(tmp_path):
    _, rows, notes = spending(tmp_path, "")
    assert rows["together"] == ["all strangers, however many", "unlimited", "$0"]
    assert not [note for note in notes if "price" in note]


def test_unlimited_is_red_on_a_terminal_and_nowhere_else(tmp_path, monkeypatch):
    (tmp_path / "chat.toml").write_text(SPENDING)
    arguments = ("check", "--config", str(tmp_path / "chat.toml"))
    assert "\x1b" not in run(*arguments).stdout
    red = "\x1b[31munlimited\x1b[0m"
    monkeypatch.setattr("chat_nest.cli.options.is_terminal", lambda: True)
    assert run(*arguments, NO_COLOR=None, TERM="xterm").stdout.count(red) == 2
    assert "\x1b" not in run(*arguments, NO_COLOR="1", TERM="xterm").stdout


def test_the_file_can_be_named_by_the_environment(tmp_path):
    (tmp_path / "chat.toml").write_text(FILE)
    assert "local:llama" in run("check", CHAT_NEST_CONFIG=str(tmp_path / "chat.toml")).stdout


def test_a_mistake_exits_with_2_and_a_line_each(tmp_path):
    (tmp_path / "chat.toml").write_text("[server]\nprot = 1\nport = -1\n")
    result = run("check", "--config", str(tmp_path / "chat.toml"))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"chat-nest: {tmp_path}/chat.toml:2: server.prot: there is no such key; did you mean port?",
        f"chat-nest: {tmp_path}/chat.toml:3: server.port: must be a whole number from 0 (any free port) to 65535",
    ]


def test_help_and_version():
    assert run("--version").stdout == "chat-nest, version 0.1.0\n"
    said = run("serve", "--help").stdout
    assert "OPENAI_API_KEY=sk-... chat-nest serve --port 8080" in said
    assert "CHAT_NEST_SERVER_PORT" in said


def test_a_stores_password_is_never_shown(tmp_path):
    for url, shown in (
        ("postgresql://chat:canary@db/chat?sslmode=require&password=canary", "postgresql://chat:***@db/chat"),
        ("redis://:can@ry@db:6379/0", "redis://:***@db:6379/0"),
        ("postgresql://chat:canary?x@db:5433/chat", "the PostgreSQL store at db:5433"),
        ("redis+sentinel://u:canary@a:1,b:2/m?sentinel_password=canary", "redis+sentinel://u:***@a:1,b:2/m"),
    ):
        (tmp_path / "chat.toml").write_text(f'[store]\nurl = "{url}"\n')
        result = run("check", "--config", str(tmp_path / "chat.toml"), OPENAI_API_KEY="sk-1")
        assert result.exit_code == 0, result.output
        assert shown in result.stdout
        assert "canary" not in result.stdout
        assert "can@ry" not in result.stdout


def test_how_many_keys_a_provider_has(tmp_path):
    (tmp_path / "keys").write_text("sk-canary-a\nsk-canary-b\n")
    (tmp_path / "chat.toml").write_text(f"""
[providers.one]
base_url = "http://127.0.0.1:8081/v1"
api_keys = ["sk-canary-a", "sk-canary-b", "sk-canary-c"]
[providers.two]
base_url = "http://127.0.0.1:8081/v1"
api_keys_file = "{tmp_path}/keys"
[providers.three]
base_url = "http://127.0.0.1:8081/v1"
[profiles.balanced]
model = "one:llama"
""")
    result = run("check", "--config", str(tmp_path / "chat.toml"))
    assert result.exit_code == 0, result.output
    shown = [line.partition("8081/v1")[2].strip() for line in result.stdout.splitlines() if "8081/v1" in line]
    assert shown == ["3 keys", f"2 keys in {tmp_path}/keys", "no key"]
    assert "sk-canary" not in result.output
