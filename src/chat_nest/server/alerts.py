"""The alerts of a server process, from its configuration."""

from __future__ import annotations

from pathlib import Path
from zoneinfo import ZoneInfo

from chat_nest.alerts.counts import Counts
from chat_nest.alerts.delivery import Count
from chat_nest.alerts.email import Email
from chat_nest.alerts.local import FILE
from chat_nest.alerts.service import Alerts, Plan
from chat_nest.alerts.settings import Channel
from chat_nest.alerts.webhook import Webhook
from chat_nest.asgi.handler import ChatHandler
from chat_nest.core.protocols import Store
from chat_nest.server.config.alerts import AlertsConfig
from chat_nest.server.config.settings import Config
from chat_nest.stores.sqlite import SQLiteStore


def make_channels(config: AlertsConfig | None) -> list[Channel]:
    """Return the configured ways to deliver an alert. Nothing is connected."""
    channels: list[Channel] = []
    if config is not None and (url := config.webhook.reveal()):
        channels.append(Webhook(url, [secret.reveal() for secret in config.webhook_secrets]))
    if config is not None and config.mail is not None:
        channels.append(Email(config.mail, config.smtp_password.reveal()))
    return channels


def plan_of(config: Config) -> Plan:
    """Return the configured alerts."""
    zone, alerts = ZoneInfo(config.server.time_zone), config.alerts
    if alerts is None:
        return Plan(zone=zone)
    return Plan(channels=make_channels(alerts), bounds=alerts.bounds, events=alerts.events, zone=zone)


def make_alerts(config: Config, handler: ChatHandler, counts: Counts, count: Count) -> Alerts:
    """Return the alerts of a handler whose observers `counts` is one of."""
    return Alerts(
        counts,
        handler.store,
        handler.controls,
        lambda: handler.providers,
        local=_local_file(config, handler.store),
        count=count,
    )


def _local_file(config: Config, store: Store) -> Path | None:
    """Return the file of this machine's outbox: beside an SQLite store, else in the directory for state."""
    if isinstance(store, SQLiteStore):
        return store.path.with_name(f".{store.path.name}.{FILE}")
    directory = config.state or config.journal
    return None if directory is None else Path(directory) / FILE
