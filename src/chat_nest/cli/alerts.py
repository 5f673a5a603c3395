"""`chat-nest alerts`: try the ways by which operators are warned."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Sequence

import click

from chat_nest.alerts.events import Alert, payload
from chat_nest.alerts.settings import Channel, SendOutcome
from chat_nest.cli.options import CONFIG, CONTEXT, Group, fail
from chat_nest.server.logs import escape


@click.group(cls=Group, context_settings=CONTEXT)
def alerts() -> None:
    """Try the alerts of [alerts]."""


@alerts.command(context_settings=CONTEXT)
@CONFIG
def test(file: str) -> None:
    """Send one alert to each configured receiver, and print its answer.

    Needs no running server, and writes nothing into the store. The alert is sent once: what fails here is tried again
    by a server.

    \b
    Example:
      chat-nest alerts test --config chat.toml

    Exits with 2 if the configuration is wrong or has no receiver, with 1 if one did not take the alert.
    """  # noqa: D301 - click's mark for "keep these lines" is a real backspace
    from chat_nest.server.alerts import make_channels  # noqa: PLC0415 - so that --help is quick
    from chat_nest.server.config.settings import load  # noqa: PLC0415 - as above
    from chat_nest.server.config.sources import ConfigError  # noqa: PLC0415 - as above

    try:
        config = load(file)
    except ConfigError as error:
        fail(*error.problems, code=2)
    channels = make_channels(config.alerts)
    if config.alerts is None or not channels:
        fail("there is no receiver: set alerts.webhook or alerts.email", code=2)
    name = config.alerts.bounds.name
    text = f"{f'{name}: ' if name else ''}this is a test of alerts; nothing has happened"
    alert = Alert(id=f"msg_{secrets.token_hex(16)}", type="test", at=time.time(), text=text, data={"server": name})
    outcomes = asyncio.run(_send(channels, alert))
    for channel, outcome in zip(channels, outcomes, strict=True):
        said = "sent" if outcome.sent else "not sent"
        click.echo(f"chat-nest: {channel.kind}: {said}{f': {escape(outcome.why)}' if outcome.why else ''}")
    sys.exit(int(not all(outcome.sent for outcome in outcomes)))


async def _send(channels: Sequence[Channel], alert: Alert) -> list[SendOutcome]:
    sending = (each.send(alert.id, alert.type, alert.text, payload(alert)) for each in channels)
    return list(await asyncio.gather(*sending))
