"""Batches on their way to a collector: attempts, pauses and the environment's variables."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from chat_nest.traces import export
from chat_nest.traces.export import Exporter


class Collector:
    """Answers each post with the next status, and 200 after the last."""

    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.got = asyncio.Queue()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1/traces"
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
        message = ExportTraceServiceRequest.FromString(await reader.readexactly(int(fields["content-length"])))
        status = self.statuses.pop(0) if self.statuses else 200
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        writer.close()
        self.got.put_nowait((fields, message))


class Sending:
    """An exporter that runs, and what it has to send: one span a batch."""

    def __init__(self, url, *names):
        self.left = [[Span(name=name).SerializeToString()] for name in names]
        self.exporter = Exporter(url, "my-chat", lambda: self.left.pop(0) if self.left else [])

    async def __aenter__(self):
        self._task = asyncio.create_task(self.exporter.keep_sending())
        self.exporter.hurry()
        return self.exporter

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.wait([self._task])


def names(message):
    return [span.name for each in message.resource_spans for scope in each.scope_spans for span in scope.spans]


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_collector_gets_the_same_batch_again(status, monkeypatch):
    monkeypatch.setattr(export, "PAUSES", (0.0, 0.0))
    async with Collector(status, status) as collector, Sending(collector.url, "one"):
        assert [names((await collector.got.get())[1]) for _ in range(3)] == [["one"]] * 3


async def test_a_refused_batch_is_dropped_and_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(export, "BATCH_SECONDS", 0.0)
    async with Collector(400, 400) as collector, Sending(collector.url, "one", "two", "three"):
        assert [names((await collector.got.get())[1]) for _ in range(3)] == [["one"], ["two"], ["three"]]
    assert [record.getMessage() for record in caplog.records if record.name == "chat_nest.traces"] == [
        "traces are dropped, since the collector does not take them: status 400; it goes on trying"
    ]


async def test_a_batch_is_dropped_after_some_attempts(monkeypatch, caplog):
    monkeypatch.setattr(export, "PAUSES", (0.0,))
    monkeypatch.setattr(export, "BATCH_SECONDS", 0.0)
    async with Collector(503, 503) as collector, Sending(collector.url, "one", "two"):
        assert [names((await collector.got.get())[1]) for _ in range(3)] == [["one"], ["one"], ["two"]]
    assert "status 503" in caplog.text


async def test_a_batch_that_waits_for_its_next_attempt_is_sent_at_the_end():
    async with Collector(503) as collector:
        async with Sending(collector.url, "one", "two") as exporter:
            await collector.got.get()  # and the pause of a second begins
        await exporter.flush()
        assert [names(collector.got.get_nowait()[1]) for _ in range(2)] == [["one"], ["two"]]


async def test_the_variables_of_the_environment_count(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=all, x-tenant=a%20b")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "api-key=traces")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test%2C1,service.name=other,nonsense")
    async with Collector() as collector, Sending(collector.url, "one"):
        fields, message = await collector.got.get()
    assert (fields["api-key"], fields["x-tenant"]) == ("traces", "a b")
    assert fields["content-type"] == "application/x-protobuf"
    assert {each.key: each.value.string_value for each in message.resource_spans[0].resource.attributes} == {
        "deployment.environment": "test,1",
        "service.name": "my-chat",
    }
