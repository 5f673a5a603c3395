"""What `chat-nest serve` says of limits when it starts."""

from __future__ import annotations

import pytest

from chat_nest.cli.check import table
from chat_nest.cli.serve import banner
from chat_nest.server.config.settings import load

OPENAI = {"OPENAI_API_KEY": "sk-1"}
PRICED = '[prices."openai:*"]\ninput = 0.15\noutput = 0.60\n'


@pytest.mark.parametrize(
    ("text", "environ", "warned"),
    [
        ("", OPENAI, True),
        (PRICED, OPENAI, True),
        ('[prices."openai:*"]\ninput = 0\noutput = 0\n', OPENAI, False),
        ("[limits]\ntokens_per_month = 5\n", OPENAI, False),
        ("[limits]\nrequests_per_minute = 5\n", OPENAI, False),
        ("[limits]\nconcurrent_streams = 5\n", OPENAI, True),
        (PRICED + "[limits]\nusd_per_month = 5\n", OPENAI, False),
        (PRICED + '[limits]\nusd_per_month = "none"\n', OPENAI, True),
        ("[profiles.balanced]\nopen = false\n", OPENAI, False),
        ("[profiles.balanced]\ntokens_per_day = 0\n", OPENAI, False),
        ("", {}, False),  # the demo model
    ],
)
def test_the_banner_warns_in_one_line_where_all_strangers_are_unlimited(tmp_path, text, environ, warned):
    (tmp_path / "chat.toml").write_text(text)
    said = banner(load(str(tmp_path / "chat.toml"), environ), "http://127.0.0.1:1", color=False)
    lines = [line for line in said.splitlines() if "unlimited" in line]
    assert lines == (
        [
            "  Limits   what all strangers together can spend in a day is unlimited: set tokens_per_day or usd_per_day in "
            "[limits] (see: chat-nest check)"
        ]
        if warned
        else []
    )


@pytest.mark.parametrize(
    ("text", "environ", "warned"),
    [
        ("", {}, False),
        ("", {"CHAT_NEST_SERVER_HOST": "0.0.0.0"}, True),
        ("", {"CHAT_NEST_SERVER_TRUSTED_PROXIES": "127.0.0.1"}, True),
        ('[server]\nhost = "::"\norigins = ["https://example.com"]\n', {}, False),
        ('[server]\nhost = "::"\norigins = ["https://example.com", "*"]\n', {}, True),
        ('[server]\nhost = "::"\n', {"CHAT_NEST_SESSIONS_SECRETS": "5b" * 20}, False),
        (
            '[server]\nhost = "::"\n[identity]\naccept = ["session", "address"]\n',
            {"CHAT_NEST_SESSIONS_SECRETS": "5b" * 20},
            True,
        ),
    ],
)
def test_the_banner_of_an_open_server_names_the_line_that_closes_it(tmp_path, text, environ, warned):
    (tmp_path / "chat.toml").write_text(text)
    config = load(str(tmp_path / "chat.toml"), {**OPENAI, **environ})
    warning = 'name your site with origins = ["https://example.com"] in [server]'
    assert (warning in banner(config, "http://127.0.0.1:1", color=False)) is warned
    assert ("Note: every page and program on the internet can spend" in table(config)) is warned
