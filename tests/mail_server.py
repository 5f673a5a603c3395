"""A real SMTP server on the test's own event loop: `async with mail_server(inbox) as port`."""

from __future__ import annotations

import asyncio
import email
import ssl
from contextlib import asynccontextmanager, suppress
from typing import Any

import trustme
from aiosmtpd.smtp import SMTP, AuthResult

CA = trustme.CA()
PASSWORD = "correct horse"


class Inbox:
    """What a server took: recipients, message, and whether it came encrypted."""

    def __init__(self, answer="250 OK"):
        self.messages = []
        self.answer = answer

    async def handle_DATA(self, server, session, envelope):
        encrypted = server.transport.get_extra_info("ssl_object") is not None
        self.messages.append((envelope.rcpt_tos, email.message_from_bytes(envelope.content), encrypted))
        return self.answer


@asynccontextmanager
async def mail_server(inbox, *, tls="starttls", login=False):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("127.0.0.1").configure_cert(context)
    options: dict[str, Any] = {"decode_data": False, "hostname": "mail.example.org"}
    if tls == "starttls":
        options |= {"tls_context": context, "require_starttls": True}
    if login:
        options |= {
            "auth_required": True,
            "authenticator": lambda *args: AuthResult(success=args[-1].password == PASSWORD.encode(), handled=False),
        }
    loop = asyncio.get_running_loop()
    sessions: list[SMTP] = []

    def session():
        sessions.append(SMTP(inbox, loop=loop, **options))
        return sessions[-1]

    server = await loop.create_server(session, "127.0.0.1", 0, ssl=context if tls == "tls" else None)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for each in sessions:
            if isinstance(each.transport, asyncio.WriteTransport):
                # Before Python 3.11.4 a TLS transport that was closed already has no abort.
                with suppress(AttributeError):
                    each.transport.abort()
        await asyncio.sleep(0)
