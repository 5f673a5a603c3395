"""The arguments of the chat endpoint that come from a configuration."""

from __future__ import annotations

from collections.abc import Mapping

from chat_nest.asgi.settings import ChangeableSettings
from chat_nest.core.protocols import Provider
from chat_nest.server.config.front_ends import make_dialects
from chat_nest.server.config.settings import Config
from chat_nest.server.identification import Identification


def changes_of(config: Config, providers: Mapping[str, Provider], ways: Identification) -> ChangeableSettings:
    """Return the handler's arguments that a reload can change."""
    return ChangeableSettings(
        dialects=make_dialects(
            config.dialects,
            blog_get=config.blog_get,
            responses_store=config.responses_store,
            budget_status=config.budget_status,
        ),
        providers=providers,
        profiles=config.profiles,
        default_profile=config.default_profile,
        limits=config.limits,
        groups=config.groups,
        prices=config.prices,
        counting={name: provider.counting for name, provider in config.providers.items()},
        hard_caps=config.hard_caps,
        identify=ways.guarded,
        sessions=ways.sessions,
        visitors=ways.visitors,
        challenge=None if ways.visitors is None or config.visitors is None else config.visitors.full_challenge,
        origins=config.server.origins,
        allowed_hosts=config.server.allowed_hosts,
        trusted_proxies=config.server.trusted_proxies,
        time_zone=config.server.time_zone,
        max_body_bytes=config.server.max_body_bytes,
        max_upload_bytes=config.server.max_upload_bytes,
        max_streams=config.server.max_streams,
        queue=config.queue,
        provider_streams={
            name: each.concurrent_streams
            for name, each in config.providers.items()
            if each.concurrent_streams is not None
        },
        turn_secrets=[secret.reveal() for secret in config.turn_secrets],
    )
