"""Webhooks signed as in Standard Webhooks: https://github.com/standard-webhooks/standard-webhooks."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ssl
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from chat_nest.alerts.settings import SEND_SECONDS, AlertType, SendOutcome
from chat_nest.core.errors import UpstreamError, failure_name
from chat_nest.core.protocols import Now
from chat_nest.providers.http import HTTPSession

PREFIX = "whsec_"
SECRET_RULE = "must be whsec_ and 24 to 64 random bytes in base64"  # noqa: S105 - a rule, no secret
_LONGEST_WAIT = 86_400.0
_MOST_BYTES = 65_536


def secret_bytes(secret: str) -> bytes:
    """Return the key of a secret. Raises ValueError, whose message is the rule."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError(SECRET_RULE)
    return key


def signatures(keys: Sequence[bytes], id: str, at: int, body: bytes) -> str:
    """Return the header webhook-signature: one `v1,` signature a key, so that a receiver can change its secret."""
    signed = f"{id}.{at}.".encode() + body
    return " ".join(f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode()}" for key in keys)


class Webhook:
    """Posts alerts to one URL, each attempt on a new connection. Follows no redirect."""

    kind = "webhook"

    def __init__(
        self, url: str, secrets: Sequence[str], *, now: Now = time.time, tls: ssl.SSLContext | None = None
    ) -> None:
        parts = urlsplit(url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._keys = [secret_bytes(secret) for secret in secrets]
        self._now = now
        self._tls = tls

    async def send(self, id: str, type: AlertType, text: str, body: bytes) -> SendOutcome:  # noqa: ARG002 - the body has them
        at = int(self._now())
        headers = {
            "content-type": "application/json",
            "user-agent": "chat-nest",
            "webhook-id": id,
            "webhook-timestamp": str(at),
            "webhook-signature": signatures(self._keys, id, at, body),
        }
        http = HTTPSession(self._origin, tls=self._tls)
        try:
            async with (
                asyncio.timeout(SEND_SECONDS),
                http.request("POST", self._path, headers=headers, body=body, connect_timeout=SEND_SECONDS) as answer,
            ):
                return _outcome(answer.status, answer.headers.get("retry-after", ""))
        except TimeoutError:
            return SendOutcome(why=f"no answer within {SEND_SECONDS:.0f} seconds")
        except UpstreamError as error:
            return SendOutcome(why=f"no answer ({failure_name(error)})")
        finally:
            await http.aclose()

    async def aclose(self) -> None:
        """Keep nothing open between attempts, so there is nothing to close."""


def _outcome(status: int, retry_after: str) -> SendOutcome:
    if 200 <= status < 300:
        return SendOutcome(sent=True)
    if status == 410:
        return SendOutcome(why="410: the receiver is gone and wants no more alerts", final=True)
    seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 7 else 0.0
    return SendOutcome(why=f"status {status}", wait=min(seconds, _LONGEST_WAIT))
