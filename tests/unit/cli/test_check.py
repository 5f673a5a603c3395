"""`chat-nest check`: the limits in force."""

from __future__ import annotations

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
[limits]
tokens_per_day = 5000
"""


def run(*arguments: str, **environ: str | None):
    clean = dict.fromkeys(("OPENAI_API_KEY", "OPENAI_BASE_URL", "CHAT_NEST_MODEL", "CHAT_NEST_CONFIG"))
    return CliRunner(env={**clean, **environ}).invoke(chat_nest, arguments)


def test_the_effective_limits_are_a_table(tmp_path):
    (tmp_path / "chat.toml").write_text(FILE)
    result = run("check", "--config", str(tmp_path / "chat.toml"))
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert rows["balanced"] == ["constrained", "expanded", "all", "callers"]
    assert rows["model"] == ["local:llama"] * 3
    assert rows["tokens_per_day"] == ["1,000", "30,000", "200,000", "5,000"]
    assert rows["max_output_tokens"] == ["4,096", "150", "3,000", "-"]  # under the hard cap
    assert rows["tokens_per_minute"] == ["-", "-", "-", "-"]
    assert rows["local"] == ["openai", "http://127.0.0.1:8081/v1", "with", "a", "key"]
    assert "hard_caps.max_output_tokens is lower and wins" in result.stdout
    assert "sk-canary" not in result.output


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
        ("redis+sentinel://u:canary@a:1,b:2/m?sentinel_password=canary", "redis+sentinel://u:***@a:1,b:2/m"),
    ):
        (tmp_path / "chat.toml").write_text(f'[store]\nurl = "{url}"\n')
        result = run("check", "--config", str(tmp_path / "chat.toml"), OPENAI_API_KEY="sk-1")
        assert result.exit_code == 0, result.output
        assert shown in result.stdout
        assert "canary" not in result.stdout
        assert "can@ry" not in result.stdout
