"""What scripts/serve installs for a configuration."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from chat_nest.cli.commands import chat_nest
from chat_nest.server.config.setup_parts import needed_parts

KEY = {"OPENAI_API_KEY": "sk-canary"}


@pytest.fixture
def config(tmp_path):
    def write(text):
        (tmp_path / "chat.toml").write_text(text)
        return str(tmp_path / "chat.toml")

    return write


@pytest.mark.parametrize(
    ("text", "environ", "parts"),
    [
        ("", KEY, ()),
        ("", {}, ("demo",)),
        ("", {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}, ()),
        ('[providers.demo]\nkind = "demo"\n', KEY, ("demo",)),
        ('[providers.demo]\nkind = "demo"\nbase_url = "http://127.0.0.1:1"\n', {}, ()),
        ("# [providers.demo]\n", KEY, ()),
        ('[store]\nurl = "redis://h"\n', KEY, ("redis",)),
        ('[store]\nurl = "rediss+cluster://h"\n', KEY, ("redis",)),
        ('[runs]\nurl = "redis+sentinel://h/main"\n', KEY, ("redis",)),
        ('[store]\nurl = "postgresql://h/db"\n', KEY, ("postgres",)),
        ("", {**KEY, "CHAT_NEST_STORE_URL": "postgres://h/db"}, ("postgres",)),
        ("", {"CHAT_NEST_STORE_URL": "redis://h"}, ("redis", "demo")),
        ('[providers.bedrock]\ncredentials = "aws"\n', {"AWS_REGION": "eu-west-1"}, ("aws",)),
        ('[identity]\njwt_algorithms = ["HS256"]\njwt_audience = "a"\n', KEY, ("jwt",)),
        ("[limits]\nusd_per_day = 5\n", KEY, ("prices",)),
        ("[metrics]\nenabled = true\n", KEY, ("metrics",)),
        ("", {**KEY, "CHAT_NEST_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, ("traces",)),
        ("[profiles.balanced]\nusd_per_month = 5\n", KEY, ("prices",)),
        ("[groups.staff]\nusd_per_hour = 5\n", KEY, ("prices",)),
        ('[limits]\nusd_per_day = 5\n[prices."openai:gpt-4o-mini"]\ninput = 1\noutput = 1\n', KEY, ()),
    ],
)
def test_what_serve_needs(config, text, environ, parts):
    assert needed_parts("serve", config(text), environ) == parts


def test_other_commands_need_no_model(config):
    assert needed_parts("usage", config('[store]\nurl = "redis://h"\n'), {}) == ("redis",)


@pytest.mark.parametrize(
    "arguments", [("--config", "FILE"), ("--config=FILE", "--port", "0"), ("--port=0", "--config", "FILE", "-x")]
)
def test_the_command_takes_the_arguments_of_any_other(config, arguments):
    file = config('[store]\nurl = "redis://h"\n')
    done = CliRunner(env=KEY).invoke(chat_nest, ["parts", "serve", *(each.replace("FILE", file) for each in arguments)])
    assert (done.exit_code, done.output) == (0, "redis\n")


def test_a_mistake_is_left_to_the_command_itself(config):
    done = CliRunner(env=KEY).invoke(chat_nest, ["parts", "serve", "--config", config("[server]\nprot = 1\n")])
    assert (done.exit_code, done.output) == (0, "")


def test_it_is_not_among_the_commands_shown():
    assert "parts" not in CliRunner().invoke(chat_nest, ["--help"]).output
