"""Sends spans to a collector with OTLP over HTTP: https://opentelemetry.io/docs/specs/otlp/#otlphttp."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

from chat_nest.core.errors import UpstreamError, failure_name
from chat_nest.providers.http import HTTPSession
from chat_nest.traces.observer import NAME
from chat_nest.traces.protobuf import export_request

log = logging.getLogger("chat_nest.traces")

BATCH_SECONDS: Final = 5.0
"""The longest time that a span waits for others."""
SEND_SECONDS: Final = 5.0
"""The longest attempt to send a batch."""
PAUSES: Final = (1.0, 2.0, 4.0, 8.0)
"""Seconds between the attempts for one batch, unless the collector asks for more. Then the batch is dropped."""
_LONGEST_PAUSE: Final = 30.0
_RETRIED: Final = (429, 502, 503, 504)


class Exporter:
    """Sends what `take` returns, every few seconds, from one task.

    The variables OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_TRACES_HEADERS and OTEL_RESOURCE_ATTRIBUTES count, as
    OpenTelemetry describes them. Raises ValueError if the URL can't be used.
    """

    def __init__(self, endpoint: str, service: str, take: Callable[[], Sequence[bytes]]) -> None:
        parts = urlsplit(endpoint)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {
            "user-agent": "chat-nest",
            **_pairs("OTEL_EXPORTER_OTLP_HEADERS"),
            **_pairs("OTEL_EXPORTER_OTLP_TRACES_HEADERS"),
            "content-type": "application/x-protobuf",
        }
        self._resource = {**_pairs("OTEL_RESOURCE_ATTRIBUTES"), "service.name": service}
        self._take = take
        self._full = asyncio.Event()
        self._unsent = b""
        self._fails = False

    def hurry(self) -> None:
        """Send what there is now: a batch is full."""
        self._full.set()

    async def keep_sending(self) -> None:
        """Send a batch every few seconds, until it is cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BATCH_SECONDS):
                    await self._full.wait()
            self._full.clear()
            if self._gather():
                await self._send()

    async def flush(self) -> None:
        """Try once to send what is left, at the end."""
        while self._gather():
            await self._post()
            self._unsent = b""

    def _gather(self) -> bool:
        """Encode the next batch, unless one is still unsent; return whether there is one."""
        if not self._unsent and (spans := self._take()):
            self._unsent = export_request(self._resource, NAME, spans)
        return bool(self._unsent)

    async def _send(self) -> None:
        """Send the batch, or drop it after some attempts."""
        why = ""
        for pause in (*PAUSES, None):
            why, wait = await self._post()
            if wait is None or pause is None:
                break
            await asyncio.sleep(min(max(wait, pause), _LONGEST_PAUSE))
        self._unsent = b""
        if why and not self._fails:
            log.warning("traces are dropped, since the collector does not take them: %s; it goes on trying", why)
        self._fails = bool(why)

    async def _post(self) -> tuple[str, float | None]:
        """Try to send the batch once. Returns why it failed, and how long to wait before another attempt, if at all."""
        http = HTTPSession(self._origin)
        sent = http.request("POST", self._path, headers=self._headers, body=self._unsent, connect_timeout=SEND_SECONDS)
        try:
            async with asyncio.timeout(SEND_SECONDS), sent as answer:
                if 200 <= answer.status < 300:
                    return "", None
                after = answer.headers.get("retry-after", "")
                wait = float(after) if after.isascii() and after.isdigit() and len(after) < 7 else 0.0
                return f"status {answer.status}", wait if answer.status in _RETRIED else None
        except TimeoutError:
            return f"no answer within {SEND_SECONDS:.0f} seconds", 0.0
        except UpstreamError as error:
            return f"no answer ({failure_name(error)})", 0.0
        finally:
            await http.aclose()


def _pairs(variable: str) -> dict[str, str]:
    """Return the value of a variable such as `key1=value1,key2=value2`, whose values are percent-encoded."""
    pairs = (pair.partition("=") for pair in os.environ.get(variable, "").split(","))
    return {key.strip(): unquote(value.strip()) for key, equals, value in pairs if equals and key.strip()}
