"""`chat-nest pause`, `block`, `reset`, `grant`, `audit`, `running` and `stop`, on the store of a configuration."""

from __future__ import annotations

import asyncio
import json
import shlex
import time

import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from stores_under_test import LEASE, claim, window

from chat_nest.cli.commands import chat_nest
from chat_nest.core.messages import Caller
from chat_nest.core.records import Record
from chat_nest.stores.sqlite import SQLiteStore


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAT_NEST_STORE_URL", f"sqlite:///{tmp_path}/store.db")

    def command(*words, code=0):
        result = CliRunner().invoke(chat_nest, words)
        assert result.exit_code == code, result.output
        return result.output

    return command


def test_a_pause_is_listed_until_it_is_resumed_and_each_act_is_in_the_trail(run):
    assert run("pause") == "nothing is paused or blocked\n"
    run("pause", "--provider", "openai", "--for", "2h", "--stop-running", "--reason", "too dear")
    run("block", "--address", "203.0.113.9/24", "--reason", "abuse")
    run("block", "--caller", "key:ada")
    listed = run("pause")
    assert "pause  provider:openai  until 2" in listed
    assert "stops what is running" in listed and "too dear" in listed
    assert "block  network:203.0.113.0/24  until it is ended" in listed
    assert f"caller:{Caller(id='key:ada').key}" in listed
    run("resume", "--provider", "openai")
    run("unblock", "--address", "203.0.113.0/24")
    run("unblock", "--caller", "key:ada", "--reason", "sorry")
    assert run("pause") == "nothing is paused or blocked\n"
    acts = json.loads(run("audit", "--json"))
    assert [act["act"] for act in acts] == ["unblock", "unblock", "resume", "block", "block", "pause"]
    assert acts[-1]["target"] == "provider:openai" and acts[-1]["reason"] == "too dear"
    assert all(act["by"].startswith("cli:") for act in acts)
    assert "too dear" in run("audit") and "too dear" not in run("audit", "-n", "1")


@pytest.mark.parametrize(
    "scope", [["--all"], ["--provider", "openai"], ["--group", "two words"], ["--caller", "10.0.0.1"]]
)
def test_the_command_that_a_pause_prints_ends_it(run, scope):
    said = run("pause", *scope)
    program, *words = shlex.split(said.partition("end it with `")[2].removesuffix("`\n"))
    assert program == "chat-nest"
    run(*words)
    assert run("pause") == "nothing is paused or blocked\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pause", "--all", "--provider", "x"], "not both"),
        (["pause", "--all", "--for", "soon"], "--for must be a number and s, m, h or d"),
        (["pause", "--caller", "ada"], "--caller must be an IP address"),
        (["pause", "--model", "gpt-4o"], "--model must be PROVIDER:MODEL"),
        (["pause", "--all", "--reason", "x" * 600], "control.reason must be"),
        (["resume"], "name what to resume"),
        (["block"], "give --caller or --address"),
        (["block", "--address", "0.0.0.0/0"], "must not be every address"),
        (["block", "--address", "here"], "must be an IP address, or a network"),
        (["reset"], "name the owner of the budget"),
        (["reset", "--all", "--limit", "tokens"], "--limit must be one of requests_per_hour"),
        (["grant", "--all"], "one of --tokens"),
        (["grant", "--all", "--tokens", "-1"], "--tokens must be more than 0"),
        (["grant", "--all", "--usd", "nan"], "--usd must be a number"),
        (["withdraw"], "name the owner of the grants"),
        (["stop", "abc"], "must be the id of a running answer"),
    ],
    ids=lambda each: " ".join(each)[:40] if isinstance(each, list) else "",
)
def test_a_wrong_option_names_the_rule_and_changes_nothing(run, words, says):
    assert says in run(*words, code=2)
    assert json.loads(run("audit", "--json")) == []


def test_a_provider_that_the_configuration_lacks_is_refused(run, tmp_path):
    file = tmp_path / "chat.toml"
    file.write_text('[providers.mine]\nkind = "openai"\napi_key = "k"\n')
    assert "there is no [providers.openai]; there are mine" in run(
        "pause", "--config", str(file), "--provider", "openai", code=2
    )
    run("pause", "--config", str(file), "--model", "mine:gpt")


def test_a_store_in_memory_has_nothing_to_act_on(run, monkeypatch):
    monkeypatch.setenv("CHAT_NEST_STORE_URL", "memory://")
    assert "ends with its process" in run("pause", "--all", code=2)


def test_a_budget_is_granted_and_reset(run, tmp_path):
    run("grant", "--caller", "key:ada", "--tokens", "50,000", "--reason", "demo")
    run("grant", "--group", "acme", "--usd", "2.5", "--per", "month")
    assert "nothing had been used" in run("reset", "--all")
    acts = json.loads(run("audit", "--json"))
    assert [(act["act"], act["detail"].split(" until")[0]) for act in acts] == [
        ("reset", ""),
        ("grant", "usd_per_month 2500000000 nanousd"),
        ("grant", "tokens_per_day 50000 tokens"),
    ]


def test_grants_are_listed_and_withdrawn(run):
    assert run("grant") == "nothing is granted\n"
    assert "no such grant in force" in run("withdraw", "--all", code=1)
    for words in (["--tokens", "50000"], ["--tokens", "7", "--per", "hour"], ["--usd", "2.5"]):
        run("grant", "--caller", "key:ada", *words, "--reason", "demo")
    run("grant", "--all", "--requests", "9")
    owner = f"caller:{Caller(id='key:ada').key}"
    listed = run("grant").splitlines()
    assert len(listed) == 4
    assert f"grant  {owner}  tokens_per_day  50,000 tokens  until 2" in run("grant")
    assert f"grant  {owner}  usd_per_day  2.5 usd  until 2" in run("grant")
    said = run("withdraw", "--caller", "key:ada", "--limit", "tokens_per_hour", "--reason", "over")
    assert said.startswith(f"chat-nest: withdrawn: grant  {owner}  tokens_per_hour  7 tokens")
    assert len(run("withdraw", "--caller", "key:ada").splitlines()) == 2
    assert run("grant").splitlines() == [line for line in listed if line.startswith("grant  all  requests_per_day")]
    acts = [act for act in json.loads(run("audit", "--json")) if act["act"] == "withdraw"]
    assert [act["reason"] for act in acts] == ["", "", "over"]
    assert acts[-1]["target"].startswith(f"{owner}:tokens_per_hour:")
    assert acts[-1]["by"].startswith("cli:")


def test_running_answers_are_listed_and_stopped(run, tmp_path):
    record = Record(run="a" * 24, caller="c" * 16, profile="balanced", model="p:m", started_at=time.time() - 5)
    day = window(1_000, resets_at=time.time() + 60)

    async def use(ending):
        store = SQLiteStore(tmp_path / "store.db")
        one = replace(claim("x", day), record=record)
        await (store.settle(one, None, "reported") if ending else store.reserve(one, LEASE))
        await store.aclose()

    assert run("running") == "no answer is running\n"
    asyncio.run(use(ending=False))
    assert f"{'a' * 24}      5 s  caller {'c' * 16}" in run("running")
    assert json.loads(run("running", "--json"))[0]["run"] == "a" * 24
    assert "still runs" in run("stop", "a" * 24, code=1)  # no server obeys
    asyncio.run(use(ending=True))
    assert run("running") == "no answer is running\n"
