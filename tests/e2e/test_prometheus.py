"""A real Prometheus scrapes the operators' listener of two real workers; the dashboard's queries and the alert rules run on it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import quote

import processes
import pytest
from ports import free_port
from postgres_server import can_mount
from prometheus_client.parser import text_string_to_metric_families
from raw_client import HELLO, connect
from scripted_provider import HANG, ScriptedProvider, answer, chunk, stream
from serve_command import command

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "chat-nest.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
CONFIG = """
[providers.p]
kind = "openai"
base_url = "{url}"
api_key = "sk-scripted"
[profiles.balanced]
model = "p:m"
requests_per_minute = 100000
[prices."p:m"]
input = 1.0
output = 2.0
[limits]
tokens_per_day = 1000000
usd_per_day = 5.0
[metrics]
enabled = true
[admin]
listen = "127.0.0.1:0"
key = "k3y-0123456789abcdef0123456789abcdef"
"""
AUTH = {"authorization": "Bearer k3y-0123456789abcdef0123456789abcdef"}


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed (Debian's prometheus)")
    return found


async def output(*words: str | Path) -> str:
    process = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=asyncio.subprocess.STDOUT)
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


async def test_promtool_accepts_the_rules_and_the_sample_configuration() -> None:
    assert "SUCCESS" in await output(program("promtool"), "check", "rules", RULES)
    await output(program("promtool"), "check", "config", "--syntax-only", RULES.with_name("prometheus.yml"))


@asynccontextmanager
async def running(*words: str | Path, **options):
    process = await asyncio.create_subprocess_exec(*words, **options)
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def prometheus(folder: Path, target: int):
    """A Prometheus that scrapes the port five times a second, with the key."""
    (folder / "key").write_text(AUTH["authorization"].removeprefix("Bearer "))
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: 200ms, evaluation_interval: 500ms}}\nrule_files: [{json.dumps(str(RULES))}]\n"
        f"scrape_configs: [{{job_name: chat-nest, authorization: {{credentials_file: {folder / 'key'}}},"
        f" static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}]\n"
    )
    port = free_port()
    options = (
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    async with running(program("prometheus"), *options, stderr=DEVNULL):
        yield port


async def get(port: int, path: str):
    """The answer's text once the server is ready."""
    while True:
        try:
            async with connect(port) as client:
                reply = await client.request("GET", path, headers=AUTH)
                body = await reply.body()
                if reply.status != 503:
                    return body.decode()
        except OSError:
            pass
        await asyncio.sleep(0.05)


async def asked(port: int, query: str) -> list[float]:
    """The values of an instant query that are numbers."""
    said = json.loads(await get(port, f"/api/v1/query?query={quote(query)}"))
    assert said["status"] == "success", (query, said)
    values = [float(sample["value"][1]) for sample in said["data"]["result"]]
    return [value for value in values if value == value]


async def until_data(port: int, queries: list[str]) -> None:
    """Return once each query has given numbers; the test's time-out is the bound."""
    waiting = list(queries)
    while waiting:
        waiting = [query for query in waiting if not await asked(port, query)]
        await asyncio.sleep(0.1)


async def traffic(port: int, provider: ScriptedProvider) -> None:
    """Three answers, a refusal, and a reader who leaves, each on a connection of its own: both workers get some."""
    for body in (HELLO, HELLO, HELLO, {"messages": []}):
        async with connect(port) as client:
            await (await client.post(body)).body()
    async with connect(port) as client:
        reply = await client.post(HELLO)
        await reply.event()
        client.reset()
    await provider.closed(len(provider.requests) - 1)


def requests_of(text: str) -> dict[str, float]:
    counted = [f for f in text_string_to_metric_families(text) if f.name == "chat_nest_requests"]
    return {sample.labels["code"]: sample.value for family in counted for sample in family.samples}


async def test_prometheus_has_all_metrics_of_the_dashboard_and_the_rules(tmp_path) -> None:
    counters = tmp_path / "counters"
    counters.mkdir()
    hanging = stream(chunk("Hel"), HANG)
    a_round = [answer("Hello", 3)] * 3 + [hanging]
    async with ScriptedProvider(*a_round, *a_round, *a_round) as provider:
        (tmp_path / "chat.toml").write_text(CONFIG.format(url=provider.url))
        options = ("--workers", "2", "--config", str(tmp_path / "chat.toml"))
        async with command(tmp_path, provider.url, "sk-x", *options, TMPDIR=str(counters)) as served:
            while len(provider.checks) < 2:
                await asyncio.sleep(0.01)
            await traffic(served.port, provider)
            [folder] = counters.glob("chat-nest-metrics-*")
            target = int((await served.until(rb"Admin +at http://127\.0\.0\.1:(\d+)"))[1])
            expected = {"ok": 3, "bad_request": 1, "client_gone": 1}
            while requests_of(await get(target, "/metrics")) != expected:
                await asyncio.sleep(0.05)
            async with prometheus(tmp_path, target) as port:
                await until_data(port, ['chat_nest_requests_total{code="ok"}'])
                await traffic(served.port, provider)
                window = [q.replace("$__rate_interval", "1m").replace("$job", "chat-nest") for q in QUERIES]
                await until_data(port, window)
                assert await asked(port, 'up{job="chat-nest"}') == [1]
                assert await asked(port, "sum(chat_nest_workers)") == [2]
                await check_rules(port)
            await check_a_killed_worker(served, folder, target)


async def check_rules(port: int) -> None:
    """Each rule was evaluated without an error."""
    while True:
        groups = json.loads(await get(port, "/api/v1/rules"))["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        if rules and all(rule["health"] != "unknown" for rule in rules):
            break
        await asyncio.sleep(0.1)
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    assert len(rules) == len(re.findall(r"- alert:", RULES.read_text()))


async def check_a_killed_worker(served, folder: Path, target: int) -> None:
    """Its counters stay, its gauges go, and the one that replaces it adds no file."""
    files = sorted(file.name for file in folder.iterdir())
    while (counted := requests_of(await get(target, "/metrics"))).get(
        "ok"
    ) != 6:  # in a second all workers have written
        await asyncio.sleep(0.05)
    workers = processes.workers(served.process.pid)
    os.kill(min(workers), signal.SIGKILL)
    await served.until(rb"worker \d+ ended \(-9\)")
    text = await get(target, "/metrics")
    assert requests_of(text) == counted
    assert len(re.findall(r"^process_open_fds\{", text, re.MULTILINE)) == 1
    assert "chat_nest_workers 1.0" in text
    while "chat_nest_workers 2.0" not in await get(target, "/metrics"):
        await asyncio.sleep(0.05)
    assert sorted(file.name for file in folder.iterdir()) == files


@contextmanager
def small_disk(folder: Path):
    """A disk of 8 MB, and what fills it."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], check=True)

    def fill() -> None:
        with pytest.raises(OSError, match="No space left"), (folder / "filling").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(not can_mount(), reason="only root may mount a small disk")
async def test_a_full_disk_under_the_counters_kills_no_worker_and_loses_no_count(tmp_path) -> None:
    with small_disk(tmp_path / "small") as fill:
        async with ScriptedProvider(answer("Hello", 3)) as provider:
            (tmp_path / "chat.toml").write_text(CONFIG.format(url=provider.url))
            options = ("--workers", "2", "--config", str(tmp_path / "chat.toml"))
            async with command(tmp_path, provider.url, "sk-x", *options, TMPDIR=str(tmp_path / "small")) as served:
                target = int((await served.until(rb"Admin +at http://127\.0\.0\.1:(\d+)"))[1])
                while "chat_nest_workers 2.0" not in await get(target, "/metrics"):
                    await asyncio.sleep(0.05)
                fill()
                await ask_until_counted(served.port, target, 8)
                before = set(processes.workers(served.process.pid))
                os.kill(min(before), signal.SIGKILL)
                await served.until(rb"worker \d+ ended \((-\d+)\)")
                while "chat_nest_workers 2.0" not in await get(target, "/metrics"):
                    await asyncio.sleep(0.05)
                await ask_until_counted(served.port, target, 16)
                assert len(before & set(processes.workers(served.process.pid))) == 1, "only the killed one was replaced"


async def ask_until_counted(port: int, target: int, total: int) -> None:
    """Ask eight times, and return once so many answers are counted in all."""
    for _ in range(8):
        async with connect(port) as client:
            await (await client.post(HELLO)).body()
    while requests_of(await get(target, "/metrics")).get("ok") != total:
        await asyncio.sleep(0.05)
