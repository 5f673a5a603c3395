"""`chat-nest check --public`, and the ten steps of docs/strangers.md, which it leads through."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from chat_nest.cli.commands import chat_nest
from chat_nest.cli.public import SAFE
from chat_nest.stores.sqlite import SQLiteStore

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/strangers.md").read_text()
EXAMPLE = re.compile(r"put here what .*? writes")
ENVIRON = {"OPENAI_API_KEY": "sk-of-the-test", "NO_COLOR": "1"}


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner(env=ENVIRON).invoke(chat_nest, arguments)
    return result.exit_code, result.output


def check(text: str, folder: Path) -> tuple[int, list[str]]:
    """The exit code, and the findings in order."""
    file = folder / "chat-nest.toml"
    file.write_text(text)
    code, output = run("check", "--public", "--config", str(file))
    assert code in (0, 1), output
    return code, re.findall(r"^\d+\. (.+)", output, re.MULTILINE)


async def used(file: Path) -> None:
    """Make the store, as the server does."""
    store = SQLiteStore(file)
    await store.ping()
    await store.aclose()


def test_each_step_of_the_page_closes_something_until_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = [EXAMPLE.sub("5e" * 32, step) for step in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]
    text, found = "", check("", tmp_path)
    assert found[0] == 1
    assert [what.partition(":")[0] for what in found[1]].count("MONEY") == 1, "nothing bounds all of them together"
    for step in steps:
        text += step + "\n"
        code, after = check(text, tmp_path)
        assert (code, len(after) <= len(found[1])) == (0, True), step
        assert set(found[1]) - set(after) or "[page]" in step, step
        found = code, after
    assert found == (0, [])
    assert SAFE in PAGE


def test_the_commands_of_the_page_exist_with_their_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat-nest.toml").write_text("\n".join(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)))
    asyncio.run(used(tmp_path / "chat-nest.db"))
    commands = re.findall(r"^chat-nest (.+)$", PAGE, re.MULTILINE)
    assert len(commands) >= 9
    for command in commands:
        arguments = shlex.split(command)
        if arguments[0] == "serve":
            arguments += ["--help"]
        code, output = run(*arguments)
        assert code == 0, f"{command}: {output}"


def test_the_most_dangerous_comes_first_and_each_has_its_remedy(tmp_path: Path) -> None:
    file = tmp_path / "chat-nest.toml"
    file.write_text('[server]\norigins = ["*"]\n[store]\nurl = "memory://"\n[profiles.balanced]\nallow_tools = true')
    _, output = run("check", "--public", "--config", str(file))
    dangers = re.findall(r"^\d+\. (\w+):", output, re.MULTILINE)
    assert dangers == sorted(dangers, key=["MONEY", "ABUSE", "CARE"].index)
    assert "[limits] usd_per_day" in output
    assert "[profiles.balanced] allow_tools = false" in output


def test_without_strangers_nothing_of_theirs_is_open(tmp_path: Path) -> None:
    file = tmp_path / "chat-nest.toml"
    file.write_text(
        f'[identity]\nkeys_file = "{tmp_path}/keys.json"\nsecret = "{"s" * 40}"\n'
        '[server]\nallowed_hosts = ["chat.example"]'
    )
    assert run("keys", "create", "ada", "--config", str(file))[0] == 0
    code, output = run("check", "--public", "--config", str(file))
    assert (code, "Strangers: can't chat" in output) == (0, True)
    assert "Nothing of what is known here" in output


VISITORS = f"""
[limits]
tokens_per_day = 1_000_000
[profiles.balanced]
tokens_per_day = 2_000
[visitors]
secret = "{"v1" * 20}"
"""


@pytest.mark.parametrize(
    ("more", "what", "close"),
    [
        ('[server]\nhost = "0.0.0.0"', "every page and program on the internet can use this chat", "[server] origins"),
        ("[addresses]\nconcurrent_streams = 2", "can use up the budget of all strangers", "[addresses] tokens_per_day"),
        (
            "[addresses]\ntokens_per_day = 9_000",
            "a network of IP addresses has the budget",
            "[networks] tokens_per_day",
        ),
        ("[networks]\ntokens_per_day = 9_000", "a program is a visitor like a person", '[challenge] kind = "proof'),
        (
            '[challenge]\nkind = "turnstile"\nwhen = "always"\nsite_key = "s"\nsecret = "t"\nhostnames = ["a.example"]\n'
            'unreachable = "before"',
            "while the challenge's service does not answer, visitors pass",
            '[challenge] unreachable = "closed"',
        ),
        (
            '[challenge]\nkind = "proof_of_work"\nwhen = "always"\nbind = "none"',
            "a solution counts from any network",
            '[challenge] bind = "network"',
        ),
        ("[dialects]\nblog = true\nblog_get = true", "the blog's path answers GET", "[dialects] blog_get = false"),
        (
            '[server]\ntrusted_proxies = ["unix", "::/0"]',
            "every client can make up its IP address",
            "[server] trusted_proxies",
        ),
        (
            f'[sessions]\nsecrets = ["{"s1" * 20}"]\nexpires_in = 43_200',
            "a session token that is stolen works for 12 hours",
            "[sessions] expires_in = 600",
        ),
    ],
)
def test_what_visitors_challenges_and_sessions_leave_open(tmp_path: Path, more: str, what: str, close: str) -> None:
    file = tmp_path / "chat-nest.toml"
    shared = "" if "[addresses]" in more or "[networks]" in more else "[addresses]\ntokens_per_day = 9_000\n"
    file.write_text(f"{VISITORS}{shared}{more}")
    code, output = run("check", "--public", "--config", str(file))
    (remedy,) = re.findall(rf"^\d+\. \w+: .*{re.escape(what)}.*\n   (.+)$", output, re.MULTILINE)
    assert (code, remedy.startswith(close)) == (0, True), output
    file.write_text(VISITORS + "[addresses]\ntokens_per_day = 9_000\n[networks]\ntokens_per_day = 30_000\n")
    if "[networks]" not in more:
        assert what not in run("check", "--public", "--config", str(file))[1]


def test_a_profile_that_a_challenge_gives_is_a_profile_of_strangers(tmp_path: Path) -> None:
    file = tmp_path / "chat-nest.toml"
    file.write_text(
        VISITORS
        + '[addresses]\ntokens_per_day = 9_000\n[challenge]\nkind = "proof_of_work"\nafter = "meal"\n'
        + "[profiles.meal]\nopen = false\nallow_tools = true"
    )
    _, output = run("check", "--public", "--config", str(file))
    assert "Strangers: may chat in balanced, meal; they are identified by a visitor's cookie" in output
    assert "[profiles.meal] allow_tools = false" in output


@pytest.mark.parametrize("section", ["signatures", "visitors"])
def test_a_secret_of_the_documentation_is_none(tmp_path: Path, section: str) -> None:
    file = tmp_path / "chat-nest.toml"
    file.write_text("\n".join(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)))
    _, output = run("check", "--public", "--config", str(file))
    assert f"put what `openssl rand -hex 32` writes into [{section}]" in output
    assert EXAMPLE.search(output) is None, "no secret is printed"
