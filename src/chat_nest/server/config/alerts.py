"""[alerts]: where alerts go, and when there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from msgspec import Struct

from chat_nest.alerts.email import Mail, Security, recipients_of
from chat_nest.alerts.events import EVENTS
from chat_nest.alerts.settings import AlertType, Bounds
from chat_nest.alerts.webhook import secret_bytes
from chat_nest.server.config.provider import Secret
from chat_nest.server.config.schema import AlertsSection
from chat_nest.server.config.sources import Sources, hint
from chat_nest.server.config.telemetry import missing_extra

SECTION = "alerts"
VARIABLE = "CHAT_NEST_ALERTS_WEBHOOK_SECRETS"
ADVICE = f"put whsec_ and the output of `openssl rand -base64 32` into a file, or into {VARIABLE}"
PORTS: Mapping[str, int] = {"starttls": 587, "tls": 465, "none": 25}


class AlertsConfig(Struct, frozen=True, kw_only=True):
    """The section, resolved. The URL of a webhook may hold a token, so it is kept as a secret, too."""

    webhook: Secret = Secret("")
    """Empty: there is none."""
    webhook_secrets: tuple[Secret, ...] = ()
    mail: Mail | None = None
    smtp_password: Secret = Secret("")
    bounds: Bounds = Bounds()
    events: frozenset[AlertType] = frozenset(EVENTS)


def resolve_alerts(sources: Sources, table: Mapping[str, Any]) -> AlertsConfig | None:
    """Resolve [alerts]; None without it, or without a channel. Notes what is wrong or missing."""
    section = AlertsSection(**table)
    if not section.webhook and not section.email:
        if table:
            sources.notes.append(f"{sources.where((SECTION,))}: has no effect without alerts.webhook or alerts.email")
        return None
    for event in section.events:
        if event not in EVENTS:
            sources.problem((SECTION, "events"), f"must be types of alerts{hint(event, EVENTS)}")
            break
    secrets = _secrets(sources, section) if section.webhook else ()
    mail = _mail(sources, section) if section.email else None
    return AlertsConfig(
        webhook=Secret(section.webhook),
        webhook_secrets=tuple(map(Secret, secrets)),
        mail=mail,
        smtp_password=Secret(_password(sources, section)) if mail else Secret(""),
        bounds=Bounds(
            name=section.name,
            percents=tuple(sorted(set(section.percents))),
            repeat_seconds=section.repeat_seconds,
            store_seconds=section.store_seconds,
            breaker_seconds=section.breaker_seconds,
            pending_seconds=section.pending_seconds,
            refused_per_minute=section.refused_per_minute,
            visitors_per_minute=section.visitors_per_minute,
        ),
        events=frozenset(cast("Sequence[AlertType]", section.events) or EVENTS),
    )


def _secrets(sources: Sources, section: AlertsSection) -> Sequence[str]:
    """Return the secrets of the webhook. The variable overrides the file."""
    url, place = urlsplit(section.webhook), (SECTION, "webhook")
    if not url.hostname or "@" in url.netloc or url.fragment:
        sources.problem(place, "must be a URL with a host, and without a login or a fragment")
    elif url.scheme == "http" and not _is_loopback(url.hostname):
        sources.notes.append(f"{sources.where(place)}: alerts cross the network in clear text: use https://")
    here, found = (SECTION, "webhook_secrets"), section.webhook_secrets
    if section.webhook_secrets_file and here not in sources.variables:
        if found:
            sources.problem((SECTION, "webhook_secrets_file"), "give either webhook_secrets or this file, not both")
        here = (SECTION, "webhook_secrets_file")
        lines = _read(sources, here, section.webhook_secrets_file)
        if lines is None:
            return ()
        found = tuple(line.strip() for line in lines.splitlines() if line.strip() and not line.startswith("#"))
    if not found:
        sources.problem(here, f"needs a secret: {ADVICE}")
    for index, secret in enumerate(found, 1):
        try:
            secret_bytes(secret)
        except ValueError as error:
            sources.problem(here, f"secret {index} {error}: {ADVICE}")
            break
    return found


def _mail(sources: Sources, section: AlertsSection) -> Mail | None:
    if problem := missing_extra("aiosmtplib", "E-mail needs", "email"):
        sources.problem((SECTION, "email"), problem)
        return None
    for key, value in (("email_from", section.email_from), ("smtp_host", section.smtp_host)):
        if not value:
            sources.problem((SECTION, key), "is missing: alerts.email needs it")
    for key, addresses in (("email", section.email), ("email_from", (section.email_from,))):
        try:
            recipients_of([each for each in addresses if each])
        except ValueError as error:
            sources.problem((SECTION, key), str(error))
    has_password = section.smtp_password or section.smtp_password_file
    if bool(section.smtp_user) != bool(has_password):
        sources.problem((SECTION, "smtp_user"), "a user and a password belong together: give both, or neither")
    if section.smtp_security == "none":
        where = sources.where((SECTION, "smtp_security"))
        if has_password and not _is_loopback(section.smtp_host):
            sources.problem((SECTION, "smtp_security"), "must be starttls or tls: a password must not go in clear text")
        elif not _is_loopback(section.smtp_host):
            sources.notes.append(f"{where}: alerts cross the network in clear text: use starttls or tls")
    return Mail(
        host=section.smtp_host,
        port=section.smtp_port or PORTS[section.smtp_security],
        security=cast("Security", section.smtp_security),
        user=section.smtp_user,
        sender=section.email_from,
        recipients=section.email,
    )


def _password(sources: Sources, section: AlertsSection) -> str:
    """Return the password of the mail server. The variable overrides the file."""
    if not section.smtp_password_file or (SECTION, "smtp_password") in sources.variables:
        return section.smtp_password
    here = (SECTION, "smtp_password_file")
    if section.smtp_password:
        sources.problem(here, "give either smtp_password or smtp_password_file, not both")
    text = _read(sources, here, section.smtp_password_file)
    if text is not None and not text.strip():
        sources.problem(here, "must hold the password")
    return (text or "").strip()


def _read(sources: Sources, here: tuple[str, ...], file: str) -> str | None:
    try:
        return Path(file).read_text("utf-8")
    except OSError as error:
        sources.problem(here, f"can't be read: {error.strerror}")
    except UnicodeDecodeError:
        sources.problem(here, "must be UTF-8 text")
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
