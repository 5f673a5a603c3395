"""`chat-nest usage`: what was used, from the store's own records."""

from __future__ import annotations

import asyncio
import json
import os
import time
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from collections.abc import MutableMapping
from typing import Any
import pytest
from msgspec.structs import replace
from click.testing import CliRunner
from postgres_server import empty, shared_url
from scripted_provider import DONE, ScriptedProvider, chunk, finish, stream, usage
from stores_under_test import LEASE, claim, window

from chat_nest.cli.commands import chat_nest
from chat_nest.cli.usage import Unanswerable, dollars, moment
from chat_nest.controls.grants import BudgetGrant, grant_row
from chat_nest.core.claims import Claim, Granted, Line
from chat_nest.core.messages import hashed
from chat_nest.core.records import Record
from chat_nest.core.protocols import HasControls
from chat_nest.server.app import build
from chat_nest.server.config.settings import load
from chat_nest.limits.windows import calendar_window
from chat_nest.stores.postgres import PostgresStore
from chat_nest.stores.sqlite import SQLiteStore
from chat_nest.stores.urls import open_store
from chat_nest.core.usage import Usage

BODY = b'{"messages": [{"role": "user", "content": "Why is the sky blue?"}]}'
ALICE, BOB = "a" * 16, "b" * 16


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def record(
    when: str, caller: str, model: str, tokens: int, cost: int | None, ending="stop", source="reported"
) -> Record:
    used = Usage(input_tokens=tokens, output_tokens=10 * tokens)
    return Record(
        run="r", caller=caller, model=model, started_at=at(when), usage=used, cost=cost, ending=ending, source=source
    )


HISTORY = [
    record("2026-11-02T00:00", ALICE, "openai:gpt-4o-mini", 100, 1_500_000),
    record("2026-11-02T23:59", BOB, "openai:gpt-4o-mini", 120, 2_000_001, ending="client_gone", source="estimated"),
    record("2026-11-03T12:00", ALICE, "local:llama", 1_000, None),
    record("2026-11-03T13:00", ALICE, "openai:gpt-4o-mini", 7, 12_345_000_000, ending="lost", source="assumed"),
    record("2026-11-04T00:00", BOB, "openai:\x1b[31mred", 1, 0, ending="upstream_idle", source="reported"),
]


def fill(store: SQLiteStore | PostgresStore, history: list[Record]) -> None:
    async def settle() -> None:
        for n, each in enumerate(history):
            one = claim(f"{n}", window(10**9, resets_at=4_000_000_000.0))
            assert isinstance(await store.reserve(one, LEASE), Granted)
            assert await store.settle(one, None, each.source, each)
        await store.aclose()

    asyncio.run(settle())


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    """The URL of a store that has recorded the history."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/store.db"
        fill(SQLiteStore(tmp_path / "store.db"), HISTORY)
    else:
        url = shared_url()
        empty(url)
        fill(PostgresStore(url), HISTORY)
    return url


def run(url: str, *arguments: str, **environ: str | None):
    clean = {name: None for name in os.environ if name.startswith(("CHAT_NEST_", "OPENAI_"))}
    return CliRunner(env={**clean, "CHAT_NEST_STORE_URL": url, **environ}).invoke(chat_nest, ["usage", *arguments])


NOVEMBER = ("--since", "2026-11-01", "--until", "2026-11-30")


def test_days_models_and_money_are_an_aligned_table(url):
    result = run(url, *NOVEMBER, "--by", "day,model")
    assert result.exit_code == 0
    assert (
        result.stdout
        == r"""Usage from 2026-11-01 00:00 to 2026-12-01 00:00, UTC

day         model               requests  input  output        cost  unpriced  errors  assumed
2026-11-02  openai:gpt-4o-mini         2    220   2,200   $0.003501         0       0        0
2026-11-03  openai:gpt-4o-mini         1      7      70  $12.345000         0       1        1
2026-11-03  local:llama                1  1,000  10,000     unknown         1       0        0
2026-11-04  openai:\x1b[31mred         1      1      10   $0.000000         0       1        0
total                                  5  1,228  12,280  $12.348501         1       2        1

The price of 1 of 5 requests is not known: add theirs to these costs.
"""
    )


def test_the_same_as_json(url):
    result = run(url, *NOVEMBER, "--by", "caller", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    nothing = {"cached_input_tokens": 0, "cache_write_tokens": 0, "reasoning_tokens": 0}
    assert report == {
        "since": "2026-11-01T00:00:00+00:00",
        "until": "2026-12-01T00:00:00+00:00",
        "time_zone": "UTC",
        "rows": [
            {"caller": ALICE, "requests": 3, "errors": 1, "assumed": 1, "input_tokens": 1_107, "output_tokens": 11_070,
             "cost_nanousd": 12_346_500_000, "unpriced": 1, **nothing},
            {"caller": BOB, "requests": 2, "errors": 1, "assumed": 0, "input_tokens": 121, "output_tokens": 1_210,
             "cost_nanousd": 2_000_001, "unpriced": 0, **nothing},
        ],
        "total": {"requests": 5, "errors": 2, "assumed": 1, "input_tokens": 1_228, "output_tokens": 12_280,
                  "cost_nanousd": 12_348_500_001, "unpriced": 1, **nothing},
    }  # fmt: skip


def test_the_shared_limits_and_their_forecasts_follow_the_table(url, tmp_path):
    month = calendar_window("month", time.time(), ZoneInfo("UTC"))
    day = calendar_window("day", time.time(), ZoneInfo("UTC"))

    async def spend() -> None:
        store = open_store(url)
        for number, (owner, span) in enumerate((("all", month), (f"group:{hashed('lab')}", day))):
            name = f"tokens_per_{'month' if span is month else 'day'}"
            line = Line(
                name=name, scope="all", key=f"{owner}:{name}:{span.id}", unit="tokens", kind="window", limit=10**9,
                fixed=600, resets_at=span.end,
            )  # fmt: skip
            one = Claim(id=f"f{number}", fingerprint="f", lines=(line,), max_output_tokens=1)
            assert isinstance(await store.reserve(one, LEASE), Granted)
            assert await store.settle(one, None, "reported")
        row = grant_row(
            replace(line, key=f"all:tokens_per_month:{month.id}", resets_at=month.end),
            BudgetGrant(amount=200, kind="grant"),
            "w",
            "",
        )
        assert isinstance(store, HasControls)
        await store.controls.change([row])
        await store.aclose()

    asyncio.run(spend())
    (tmp_path / "chat.toml").write_text(
        "[limits]\ntokens_per_month = 1000\nusd_per_day = 2.5\n[groups.lab]\ntokens_per_day = 500\n"
    )
    options = ("--config", str(tmp_path / "chat.toml"))
    lines = run(url, *NOVEMBER, *options).stdout.splitlines()
    assert "all callers, usd_per_day: $0.00 of $2.50" in lines
    assert any(line.startswith("all callers, tokens_per_month: 600 of 1,200") for line in lines)
    assert any(line.startswith("group lab, tokens_per_day: 600 of 500") for line in lines)
    found = {each["name"]: each for each in json.loads(run(url, *NOVEMBER, *options, "--json").stdout)["forecasts"]}
    assert (found["tokens_per_month"]["limit"], found["tokens_per_month"]["used"]) == (1_200, 600)
    if found["tokens_per_day"]["text"]:  # not in the first half hour of a day
        assert found["tokens_per_day"]["full_at"] <= time.time()
        assert "at this pace the limit is reached at" in found["tokens_per_day"]["text"]
    assert "forecasts" not in json.loads(run(url, *NOVEMBER, *options, "--json", "--caller", BOB).stdout)


def test_one_caller_and_one_zone(url):
    result = run(
        url, "--since", "2026-11-03", "--until", "2026-11-03", "--caller", BOB, CHAT_NEST_SERVER_TIME_ZONE="Asia/Tokyo"
    )
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "Usage from 2026-11-03 00:00 to 2026-11-04 00:00, Asia/Tokyo"
    assert result.stdout.splitlines()[3].split() == ["2026-11-03", "1", "120", "1,200", "$0.002001", "0", "0", "0"]
    assert len(result.stdout.splitlines()) == 4  # one row needs no total


def test_no_requests_are_reported_as_none(url):
    result = run(url, "--since", "2026-10-01", "--until", "2026-10-31")
    assert (result.exit_code, result.stdout) == (0, "No requests from 2026-10-01 00:00 to 2026-11-01 00:00, UTC.\n")
    empty_report = json.loads(run(url, "--since", "2026-10-01", "--until", "2026-10-31", "--json").stdout)
    assert (empty_report["rows"], empty_report["total"]["requests"]) == ([], 0)


def test_without_options_it_is_the_last_seven_days(tmp_path):
    now = time.time()
    days = [Record(run="r", caller=ALICE, started_at=now - 86_400 * ago, cost=1) for ago in (0.001, 5, 8)]
    fill(SQLiteStore(tmp_path / "store.db"), days)
    result = run(f"sqlite:///{tmp_path}/store.db")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].split()[:2] == ["total", "2"]


def test_the_store_and_zone_may_be_in_a_file_with_a_provider_without_a_key(tmp_path):
    fill(SQLiteStore(tmp_path / "store.db"), HISTORY)
    (tmp_path / "chat.toml").write_text(
        f'[server]\ntime_zone = "Europe/Paris"\n[store]\nurl = "sqlite:///{tmp_path}/store.db"\n'
        '[providers.openai]\napi_key_env = "NOT_SET_HERE"\n'
    )
    result = run("", "--config", str(tmp_path / "chat.toml"), *NOVEMBER, CHAT_NEST_STORE_URL=None)
    assert result.exit_code == 0
    assert "Europe/Paris" in result.stdout
    assert [line.split()[:2] for line in result.stdout.splitlines()[3:6]] == [
        ["2026-11-02", "1"],
        ["2026-11-03", "3"],
        ["2026-11-04", "1"],
    ]


@pytest.mark.parametrize("scheme", ["memory", "redis"])
def test_a_store_without_records_exits_with_2_and_a_remedy(scheme):
    url = "memory://" if scheme == "memory" else "redis://user:hunter2@localhost/0"
    result = run(url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"chat-nest: a store of {scheme}:// keeps no records of requests, so there is nothing to report: "
        "let [store] url name a sqlite:// or postgresql:// store\n"
    )


def test_a_store_configured_to_keep_no_records_exits_with_2(tmp_path):
    result = run(f"sqlite:///{tmp_path}/store.db", CHAT_NEST_STORE_RECORDS_DAYS="0")
    assert result.exit_code == 2
    assert "[store] records_days is 0" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--since", "yesterday"), "--since must be days or hours (7d, 24h), a date (2026-11-30)"),
        (("--since", "0d"), "--since must be days or hours"),
        (("--since", "2026-02-30"), "--since must be days or hours"),
        (("--until", "2026-11-03T25:00"), "--until must be days or hours"),
        (("--since", "2026-11-05", "--until", "2026-11-03"), "--since must be before --until"),
        (("--since", "2999-01-01"), "--since must be before --until"),
        (("--since", "1969-01-01"), "--since and --until: since and until must be times"),
        (("--caller", "ada"), "--caller must be the 16 hex digits that `chat-nest caller WHO` prints for usage"),
        (("--by", "day,modle"), "--by must be one or more of day, caller, group, profile, model"),
        (("--by", "day,day"), "--by must be one or more"),
        (("--by", ""), "--by must be one or more"),
    ],
)
def test_an_option_that_can_not_be_exits_with_2(tmp_path, arguments, said):
    fill(SQLiteStore(tmp_path / "store.db"), [])
    result = run(f"sqlite:///{tmp_path}/store.db", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"chat-nest: {said}")


def test_a_mistake_in_the_configuration_exits_with_2(tmp_path):
    result = run(f"sqlite:///{tmp_path}/store.db", CHAT_NEST_STORE_RECORDS_DAYS="-1")
    assert result.exit_code == 2
    assert "must be a number of days from 0, which keeps none, to 36500" in result.stderr


def test_a_store_that_can_not_be_read_exits_with_1(tmp_path):
    url = f"sqlite:///{tmp_path}/store.db"
    result = run(url)
    assert result.exit_code == 1
    assert result.stderr == (
        f"chat-nest: the SQLite store {tmp_path}/store.db is not there: has a server run with this configuration?\n"
    )
    assert not (tmp_path / "store.db").exists()
    (tmp_path / "store.db").write_bytes(b"no database " * 400)
    result = run(url)
    assert result.exit_code == 1
    assert result.stderr == (
        f"chat-nest: the SQLite store {tmp_path}/store.db can't be read: DatabaseError: "
        "check that the file is there and a database, its rights, and the disk\n"
    )


def test_help_teaches():
    said = run("memory://", "--help").stdout
    assert "chat-nest usage --since 14d --until 7d" in said
    assert "a reader who left or stopped is none" in said


@pytest.mark.parametrize(
    ("option", "text", "zone", "expected"),
    [
        ("since", "1d", "UTC", "2026-11-10T00:00+00:00"),
        ("since", "7d", "UTC", "2026-11-04T00:00+00:00"),
        ("until", "7d", "UTC", "2026-11-04T00:00+00:00"),
        ("since", "24h", "UTC", "2026-11-09T12:30+00:00"),
        ("since", "2026-11-03", "Europe/Paris", "2026-11-03T00:00+01:00"),
        ("until", "2026-11-03", "Europe/Paris", "2026-11-04T00:00+01:00"),
        ("since", "20d", "Europe/Paris", "2026-10-22T00:00+02:00"),
        ("until", "2026-10-25", "Europe/Paris", "2026-10-26T00:00+01:00"),
        ("since", "2026-11-03T18:00", "Europe/Paris", "2026-11-03T18:00+01:00"),
        ("since", "2026-11-03T18:00Z", "Europe/Paris", "2026-11-03T18:00+00:00"),
    ],
)
def test_when(option, text, zone, expected):
    now = at("2026-11-10T12:30")
    assert moment(option, text, now, ZoneInfo(zone)) == datetime.fromisoformat(expected).timestamp()


def test_when_is_not_before_time_began():
    with pytest.raises(Unanswerable):
        moment("since", "999999d", at("2026-11-10T12:30"), ZoneInfo("UTC"))


def test_dollars_are_never_too_few():
    assert [dollars(nano) for nano in (0, 1, 1_000, 1_001, 10**9, 1_234_567 * 10**9)] == [
        "$0.000000", "$0.000001", "$0.000001", "$0.000002", "$1.000000", "$1,234,567.000000",
    ]  # fmt: skip


@pytest.mark.parametrize("tokens", [(5, 1), (2**50, 2**50)])
def test_the_usage_of_a_served_chat_is_reported(tmp_path, tokens):
    """From the request's bytes to the table: also where a provider reports what can't be true."""
    (tmp_path / "chat.toml").write_text(
        f'[store]\nurl = "sqlite:///{tmp_path}/store.db"\n[prices."openai:*"]\ninput = 1000\noutput = 2000\n'
    )

    async def send(message: MutableMapping[str, Any]) -> None:
        assert message.get("status", 200) == 200

    async def chat() -> None:
        body = [{"type": "http.request", "body": BODY, "more_body": False}]

        async def receive() -> dict:
            return body.pop() if body else await asyncio.Future()

        scope = {
            "type": "http", "method": "POST", "path": "/api/chat", "client": ("127.0.0.1", 1),
            "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip
        async with ScriptedProvider(stream(chunk("Hello"), finish(), usage(*tokens), DONE)) as provider:
            app = build(load(str(tmp_path / "chat.toml"), {"OPENAI_BASE_URL": provider.url}))
            await app(scope, receive, send)
            await app._handler.aclose()

    asyncio.run(chat())
    result = run("", "--config", str(tmp_path / "chat.toml"), "--json", CHAT_NEST_STORE_URL=None)
    total = json.loads(result.stdout)["total"]
    cost = min(2**50, tokens[0] * 1_000_000 + tokens[1] * 2_000_000)
    assert (total["requests"], total["errors"], total["assumed"]) == (1, 0, 0)
    assert (total["input_tokens"], total["output_tokens"], total["cost_nanousd"]) == (*tokens, cost)
