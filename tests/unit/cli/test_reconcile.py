"""`chat-nest reconcile`: the ledger against what scripted providers say that they have counted and billed."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner
from stores_under_test import LEASE, claim, window

from chat_nest.cli.commands import chat_nest
from chat_nest.cli.reconciliation import compare
from chat_nest.core.records import Record
from chat_nest.core.usage import NANO, Usage
from chat_nest.providers.reported_usage import EVERY_MODEL, VendorUsage
from chat_nest.stores.sqlite import SQLiteStore

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
KEY = "sk-admin-0123456789"


def day(ago):
    return (TODAY - timedelta(days=ago)).date().isoformat()


def unix(ago):
    return int((TODAY - timedelta(days=ago)).timestamp())


class Script:
    """A provider: `answers` has a function of the query for each path; `asked` what came."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []
        self.url = ""


@contextmanager
def provider(answers):
    script = Script(answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            script.asked.append((url.path, query, dict(self.headers)))
            answer = script.answers[url.path](query)
            status, body = answer if isinstance(answer, tuple) else (200, json.dumps(answer))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ledger(path, *records):
    """A store with these records: days ago, model, input, output, dollars."""

    async def fill():
        store = SQLiteStore(path)
        for number, (ago, model, input, output, dollars) in enumerate(records):
            one = claim(f"{number}", window(10**9, resets_at=4_000_000_000.0))
            await store.reserve(one, LEASE)
            used = Usage(input_tokens=input, output_tokens=output)
            cost = None if dollars is None else round(dollars * NANO)
            kept = Record(
                run="r", caller="c" * 16, model=model, started_at=unix(ago) + 60.0, usage=used, cost=cost, ending="stop",
                source="reported",
            )  # fmt: skip
            assert await store.settle(one, None, "reported", kept)
        await store.aclose()

    asyncio.run(fill())


def run(folder, kind, url, *options, more=""):
    (folder / "key").write_text(f"{KEY}\n")
    (folder / "chat.toml").write_text(
        f'[providers.p]\nkind = "{kind}"\nbase_url = "{url}"\napi_key = "sk-x"\n[profiles.balanced]\nmodel = "p:m"\n'
        f'[store]\nurl = "sqlite:///{folder}/store.db"\n{more}'
    )
    arguments = ["reconcile", "p", "--admin-key-file", str(folder / "key"), "--config", str(folder / "chat.toml")]
    result = CliRunner().invoke(chat_nest, [*arguments, *options])
    assert KEY not in result.output
    return result


def openai(pages, costs):
    def usage(query):
        number = int(query.get("page", "0"))
        more = number + 1 < len(pages)
        return {"data": pages[number], "has_more": more, "next_page": str(number + 1) if more else None}

    return {
        "/v1/organization/usage/completions": usage,
        "/v1/organization/costs": lambda _: {"data": costs, "has_more": False, "next_page": None},
    }


def used(ago, *models):
    results = [{"model": name, "input_tokens": i, "output_tokens": o, "num_model_requests": 1} for name, i, o in models]
    return {"start_time": unix(ago), "end_time": unix(ago - 1), "results": results}


def cost(ago, dollars):
    return {"start_time": unix(ago), "results": [{"amount": {"value": dollars, "currency": "usd"}, "line_item": None}]}


def test_openai_agrees_over_pages_with_snapshots_and_costs_of_whole_days(tmp_path):
    ledger(
        tmp_path / "store.db",
        (2, "p:gpt-4o", 10_000, 2_000, 1.25),
        (1, "p:gpt-4o", 20_000, 4_000, 2.5),
        (1, "p:o3", 5_000, 1_000, 0.5),
        (1, "elsewhere:gpt-4o", 9, 9, 9.0),
        (0, "p:gpt-4o", 7_000_000, 1, 9.0),  # today is not over
    )
    pages = [
        [used(2, ("gpt-4o-2024-08-06", 10_000, 2_000))],
        [used(1, ("gpt-4o-2024-08-06", 20_000, 4_000), ("o3", 5_050, 1_000))],
    ]
    with provider(openai(pages, [cost(2, 1.25), cost(1, 3.004)])) as script:
        result = run(tmp_path, "openai", f"{script.url}/v1", "--days", "2")
    assert (result.exit_code, result.stdout) == (
        0,
        f"""p from {day(2)} to {day(1)}, days of UTC; ours / the provider's

day         model         input            output         cost           drift
{day(2)}  (all models)  10,000 / ?       2,000 / ?      $1.25 / $1.25  0.0 %
{day(2)}  gpt-4o        10,000 / 10,000  2,000 / 2,000  $1.25 / ?      0.0 %
{day(1)}  (all models)  25,000 / ?       5,000 / ?      $3.00 / $3.00  0.0 %
{day(1)}  gpt-4o        20,000 / 20,000  4,000 / 4,000  $2.50 / ?      0.0 %
{day(1)}  o3            5,000 / 5,050    1,000 / 1,000  $0.50 / ?      0.0 %
""",
    )
    path, query, headers = script.asked[0]
    assert (query["start_time"], query["end_time"], query["group_by"]) == (str(unix(2)), str(unix(0)), "model")
    assert headers["authorization"] == f"Bearer {KEY}"
    assert [query.get("page") for path, query, _ in script.asked if path.endswith("completions")] == [None, "1"]


def test_a_model_that_the_ledger_has_not_is_drift_and_leaves_an_alert(tmp_path):
    ledger(tmp_path / "store.db", (1, "p:gpt-4o", 10_000, 2_000, 1.0))
    hook = '[alerts]\nwebhook = "https://x.example/"\nwebhook_secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]\n'
    answers = openai([[used(1, ("gpt-4o", 10_000, 2_000), ("gpt-5", 30_000, 500))]], [cost(1, 4.0)])
    with provider(answers) as script:
        first = run(tmp_path, "openai", f"{script.url}/v1", "--days", "1", "--json", "--alert", more=hook)
        assert run(tmp_path, "openai", f"{script.url}/v1", "--days", "1", "--alert", more=hook).exit_code == 3
        assert run(tmp_path, "openai", f"{script.url}/v1", "--days", "1", "--bound", "100").exit_code == 0
    assert first.exit_code == 3
    rows = {row["model"]: row for row in json.loads(first.stdout)["rows"]}
    assert (rows["gpt-5"]["percent"], rows["gpt-4o"]["percent"], rows[""]["percent"]) == (100.0, 0.0, 75.0)

    async def pending():
        store = SQLiteStore(tmp_path / "store.db")
        found = await store.controls.reports("alert")
        await store.aclose()
        return [json.loads(row.value)["alert"] for row in found]

    [alert] = asyncio.run(pending())
    assert alert["type"] == "ledger.drift"
    assert alert["text"] == f"the ledger and p differ by 100.0 % for gpt-5 on {day(1)}"


def test_anthropic_adds_up_its_kinds_of_input_and_counts_in_cents(tmp_path):
    ledger(tmp_path / "store.db", (1, "p:claude-x", 10_000, 2_000, 1.2345))
    usage = {
        "model": "claude-x", "uncached_input_tokens": 4_000, "cache_read_input_tokens": 5_000, "output_tokens": 2_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 600, "ephemeral_1h_input_tokens": 400},
    }  # fmt: skip
    at = f"{day(1)}T00:00:00Z"
    answers = {
        "/v1/organizations/usage_report/messages": lambda _: {
            "data": [{"starting_at": at, "results": [usage]}], "has_more": False, "next_page": None
        },
        "/v1/organizations/cost_report": lambda _: {
            "data": [{"starting_at": at, "results": [
                {"amount": "100.00", "currency": "USD", "model": "claude-x"},
                {"amount": "23.45", "currency": "USD", "model": "claude-x"},
                {"amount": "50", "currency": "USD", "model": None},
            ]}],
            "has_more": False, "next_page": None,
        },
    }  # fmt: skip
    with provider(answers) as script:
        result = run(tmp_path, "anthropic", script.url, "--days", "1")
    assert f"{day(1)}  claude-x    10,000 / 10,000  2,000 / 2,000  $1.23 / $1.23  0.0 %\n" in result.stdout
    assert f"{day(1)}  (no model)  0 / ?            0 / ?          $0.00 / $0.50  100.0 % !\n" in result.stdout
    assert result.exit_code == 3
    assert script.asked[0][1]["starting_at"] == at
    assert script.asked[0][2]["x-api-key"] == KEY


def test_openrouter_is_queried_for_each_day(tmp_path):
    ledger(
        tmp_path / "store.db", (2, "p:openai/gpt-4.1", 5_000, 1_000, 0.1), (1, "p:openai/gpt-4.1", 5_000, 1_000, None)
    )

    def activity(query):
        row = {"date": f"{query['date']} 00:00:00", "model": "openai/gpt-4.1", "usage": 0.05, "byok_usage_inference": 0.05,
               "prompt_tokens": 2_500, "completion_tokens": 500, "requests": 1}  # fmt: skip
        return {"data": [row, row] if query["date"] == day(1) else [row]}

    with provider({"/api/v1/activity": activity}) as script:
        result = run(tmp_path, "openrouter", f"{script.url}/api/v1", "--days", "2")
    assert [query["date"] for _, query, _ in script.asked] == [day(2), day(1)]
    assert f"{day(2)}  openai/gpt-4.1  5,000 / 2,500  1,000 / 500    $0.10 / $0.10  50.0 % !\n" in result.stdout
    assert f"{day(1)}  openai/gpt-4.1  5,000 / 5,000  1,000 / 1,000  ? / $0.20      0.0 %\n" in result.stdout


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, "{}"), "/organization/usage/completions refuses the key (401): it must be one for administration"),
        ((429, "{}"), "/organization/usage/completions answers 429"),
        ((200, "<html>"), "/organization/usage/completions does not answer with JSON"),
        ({"error": "no"}, "its report has another form than expected (KeyError)"),
        ({"data": [], "has_more": True, "next_page": "again"}, "/organization/usage/completions has no end"),
    ],
    ids=["wrong key", "too many", "no JSON", "another form", "endless"],
)
def test_a_report_that_can_not_be_had_is_no_agreement(tmp_path, answer, said):
    ledger(tmp_path / "store.db", (1, "p:m", 1, 1, 0.0))
    with provider({"/v1/organization/usage/completions": lambda _: answer}) as script:
        result = run(tmp_path, "openai", f"{script.url}/v1")
    assert result.exit_code == 1
    assert result.stderr == f"chat-nest: p: {said}\n"


def test_incomparable_figures_are_reported(tmp_path):
    result = run(tmp_path, "ollama_v1", "http://127.0.0.1:1/v1")
    assert (result.exit_code, "must be the name of a provider of the kind openai" in result.stderr) == (2, True)
    result = run(tmp_path, "openai", "http://127.0.0.1:1/v1", "--alert")
    assert (result.exit_code, "--alert needs a receiver" in result.stderr) == (2, True)
    ledger(tmp_path / "store.db", (1, "p:m", 1, 1, 0.0))
    assert run(tmp_path, "openai", "http://127.0.0.1:1/v1").exit_code == 1


def test_rounding_is_no_drift_and_more_is():
    ours = {("d", "m"): VendorUsage(input_tokens=1_000, output_tokens=0, cost=NANO)}

    def percent(tokens, cost):
        [found] = compare(ours, {("d", "m"): VendorUsage(input_tokens=tokens, output_tokens=0, cost=cost)})
        return found.percent

    assert percent(1_100, NANO + NANO // 100) == 0.0
    assert percent(1_101, NANO) == pytest.approx(100 * 101 / 1_101)
    assert percent(1_000, NANO + NANO // 50) == pytest.approx(100 * 0.02 / 1.02)


def test_a_day_that_only_the_ledger_has_is_drift():
    ours = {("d", "m"): VendorUsage(input_tokens=1_000, output_tokens=1_000, cost=None)}
    assert [each.percent for each in compare(ours, {})] == [100.0]
    assert [each.model for each in compare(ours, {("d", EVERY_MODEL): VendorUsage(cost=5)})] == ["", "m"]
