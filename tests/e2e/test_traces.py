"""`chat-nest serve` sends the spans of its requests to a collector, also the last ones before it ends."""

from __future__ import annotations

import asyncio
import gzip

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from raw_client import HELLO, JSON, connect
from scripted_provider import ScriptedProvider, answer
from serve_command import command

TRACE = "0af7651916cd43dd8448eb211c80319c"
REMOTE = "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{REMOTE}-01", "tracestate": "canary=1"}


class Collector:
    """An OTLP receiver over HTTP."""

    def __init__(self):
        self.spans = []
        self.services = set()

    async def serve(self, reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
            body = await reader.readexactly(int(fields["content-length"]))
            if fields.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            writer.close()
            return


async def test_the_collector_gets_every_request_also_the_last_before_the_end(tmp_path):
    collector = Collector()
    server = await asyncio.start_server(collector.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    environ = {
        "CHAT_NEST_TRACES_ENDPOINT": f"http://127.0.0.1:{port}/v1/traces",
        "CHAT_NEST_TRACES_SAMPLE": "1",
        "CHAT_NEST_TRACES_SERVICE": "my-chat",
        "CHAT_NEST_SERVER_TRUSTED_PROXIES": "127.0.0.1",
    }
    async with ScriptedProvider(answer("Hello", 3)) as provider:
        async with command(tmp_path, provider.url, **environ) as served, connect(served.port) as client:
            await (await client.post(HELLO, headers={**JSON, **TRACEPARENT})).body()
            sent = (await provider.request(0)).headers
            served.process.terminate()
            assert await served.ended() == 0
    server.close()
    call, request = sorted(collector.spans, key=lambda span: span.parent_span_id == bytes.fromhex(REMOTE))
    assert collector.services == {"my-chat"}
    assert (call.name.split()[0], request.name) == ("chat", "chat_nest native")
    assert request.trace_id.hex() == call.trace_id.hex() == TRACE
    assert sent["traceparent"].split("-")[1:3] == [TRACE, call.span_id.hex()]
    assert request.trace_state == call.trace_state == ""
    assert "canary" not in str(collector.spans)


async def test_a_collector_that_is_away_delays_no_answer_and_no_end(tmp_path):
    environ = {"CHAT_NEST_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}
    async with ScriptedProvider(answer("Hello", 3)) as provider:
        async with command(tmp_path, provider.url, **environ) as served, connect(served.port) as client:
            reply = await client.post(HELLO)
            assert b"event: done" in await reply.body()
            assert "traceparent" in (await provider.request(0)).headers
            served.process.terminate()
            assert await served.ended() == 0
