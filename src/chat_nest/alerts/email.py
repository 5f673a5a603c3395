"""Alerts by e-mail, over SMTP."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import formatdate
from importlib import import_module
from typing import Literal

from msgspec import Struct

from chat_nest.alerts.settings import SEND_SECONDS, AlertType, SendOutcome
from chat_nest.core.errors import failure_name

Security = Literal["starttls", "tls", "none"]
_LONGEST_SUBJECT = 120


class Mail(Struct, frozen=True, kw_only=True):
    """A mail server, a sender and recipients. With `starttls` a server that can't encrypt gets no mail."""

    host: str
    port: int
    security: Security = "starttls"
    user: str = ""
    sender: str
    recipients: tuple[str, ...]


class Email:
    """Sends alerts by mail. The Message-ID is the alert's, the same for each attempt. Raises ImportError."""

    kind = "email"

    def __init__(self, mail: Mail, password: str = "", *, tls: ssl.SSLContext | None = None) -> None:
        import_module("aiosmtplib")  # an extra: its lack is known at the start
        self._mail = mail
        self._password = password
        self._tls = tls

    async def send(self, id: str, type: AlertType, text: str, body: bytes) -> SendOutcome:
        import aiosmtplib  # noqa: PLC0415 - an extra

        mail = self._mail
        try:
            async with asyncio.timeout(SEND_SECONDS):
                refused, _ = await aiosmtplib.send(
                    self._message(id, type, text, body),
                    sender=mail.sender,
                    recipients=mail.recipients,
                    hostname=mail.host,
                    port=mail.port,
                    use_tls=mail.security == "tls",
                    start_tls=mail.security == "starttls",
                    username=mail.user or None,
                    password=self._password or None,
                    tls_context=self._tls,
                    timeout=SEND_SECONDS,
                )
        except TimeoutError:
            return SendOutcome(why=f"no answer within {SEND_SECONDS:.0f} seconds")
        except aiosmtplib.SMTPResponseException as error:
            return SendOutcome(why=f"the mail server answers {error.code}")
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            return SendOutcome(why=failure_name(error))
        return SendOutcome(sent=True, why=_refused(refused))

    async def aclose(self) -> None:
        """Keep nothing open between attempts, so there is nothing to close."""

    def _message(self, id: str, type: AlertType, text: str, body: bytes) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self._mail.sender
        message["To"] = ", ".join(self._mail.recipients)
        message["Subject"] = f"Chat Nest: {text}"[:_LONGEST_SUBJECT]
        message["Date"] = formatdate()
        message["Message-ID"] = f"<{id}@{self._mail.sender.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic reply
        message["X-Chat-Nest-Alert"] = type
        message.set_content(f"{text}.\n\n{body.decode()}\n")
        return message


def _refused(refused: object) -> str:
    """Return how many recipients were refused while others were not."""
    count = len(refused) if isinstance(refused, dict) else 0  # pyright: ignore[reportUnknownArgumentType]
    return f"{count} of the recipients were refused" if count else ""


def recipients_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the addresses. Raises ValueError for one that is none."""
    for text in texts:
        local, at, domain = text.rpartition("@")
        if (
            not (local and at and domain)
            or not text.isprintable()
            or not text.isascii()
            or set(text) & set(' ,;:<>"()')
        ):
            raise ValueError("must be e-mail addresses, such as ops@example.org")
    return tuple(texts)
