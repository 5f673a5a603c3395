"""What the server answers besides chats: health, the page, the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from chat_nest.asgi.handler import ChatHandler
from chat_nest.asgi.hosts import Hosts
from chat_nest.asgi.parts import Parts
from chat_nest.challenges.settings import SERVICES
from chat_nest.core.protocols import Identify
from chat_nest.counting.images import useful_pixels
from chat_nest.identity.first_of import FirstOf
from chat_nest.identity.sessions import Sessions
from chat_nest.identity.visitors import Visitors
from chat_nest.limits.spec import Profile
from chat_nest.pipeline.upstream import Upstream, split_model
from chat_nest.server.config.settings import Config
from chat_nest.server.health import Health
from chat_nest.server.identification import Identification
from chat_nest.server.openapi.paths import PATH, document
from chat_nest.server.page_files import PageFile, page_file
from chat_nest.server.page_settings import OfferedImages, OfferedProfile, PageFacts, page_files

_json = msgspec.json.Encoder().encode


class Front(Struct, frozen=True, kw_only=True):
    """What the server answers besides chats."""

    health: Health
    files: Mapping[str, PageFile]
    info: bytes
    hosts: Hosts
    shows_details: bool
    """Whether /readyz shows its details to all clients."""


def make_front(config: Config, handler: ChatHandler, parts: Parts, ways: Identification) -> Front:
    """Build it from the configuration and the parts that will be in force with it. Raises OSError."""
    wants_key = config.identity.takes_keys and not config.identity.accepts_strangers
    facts = _page_facts(config, parts, ways.visitors, wants_key=wants_key)
    resumable = config.profiles[config.default_profile].on_disconnect != "cancel"
    return Front(
        health=_health(config, handler, parts, ways),
        files={**page_files(config.page, facts), PATH: page_file(PATH, _document(config, parts))},
        info=_json({"demo": config.is_demo, "model": config.model.partition(":")[2], "resumable": resumable}),
        hosts=parts.hosts,
        shows_details=config.server.readyz_details,
    )


def _health(config: Config, handler: ChatHandler, parts: Parts, ways: Identification) -> Health:
    return Health(
        handler.store,
        parts.providers,
        {name: provider.key_from for name, provider in config.providers.items()},
        models=_models(config),
        identify=_checkable(parts.sessions, ways.identify),
        draws_on_allowance=lambda: handler.draws_on_allowance,
        store_seconds=config.timeouts.store,
    )


def _document(config: Config, parts: Parts) -> bytes:
    return document(
        dict(zip(config.dialects, parts.dialects, strict=True)),
        max_body_bytes=config.server.max_body_bytes,
        names_callers=config.identity.ways != ("address",),
        bearer=config.identity.takes_keys,
        strangers=config.identity.accepts_strangers,
        sessions=config.sessions is not None,
        visitors=parts.settings.visitors is not None,
        challenge=parts.settings.challenge is not None,
    )


def _checkable(sessions: Sessions | None, identify: Identify | None) -> Identify | None:
    """Return what /readyz checks: the sessions, and the other ways."""
    if sessions is None or identify is None:
        return sessions or identify
    return FirstOf(sessions, identify)


def _page_facts(config: Config, parts: Parts, visitors: Visitors | None, *, wants_key: bool) -> PageFacts:
    """Return the page's facts, with the default profile first, then the others that every visitor may choose."""
    challenge = parts.settings.challenge
    rules = config.rules()
    default = next(profile for profile in rules.all if profile.name.lower() == config.default_profile.lower())
    offered = dict.fromkeys((default, *rules.open))
    if challenge is not None and challenge.before:  # the challenge decides, and not the visitor
        offered = dict.fromkeys((rules.named(challenge.before),))
    profiles = [
        OfferedProfile(
            name=profile.name,
            model=profile.model.partition(":")[2],
            system_prompt=profile.allow_system_prompt,
            resumable=profile.on_disconnect != "cancel",
            signed_turns=profile.signed_turns,
            images=_offered_images(profile, parts.terms.upstream),
        )
        for profile in offered
    ]
    return PageFacts(
        demo=config.is_demo,
        wants_key=wants_key,
        profiles=profiles,
        cookie=None if visitors is None else visitors.new_cookie,
        challenge=challenge.kind if challenge is not None and challenge.kind in SERVICES else "",
        max_upload_bytes=0 if parts.uploads is None else parts.uploads.most,
    )


def _offered_images(profile: Profile, upstream: Upstream) -> OfferedImages | None:
    if not profile.allow_images or "images" not in upstream.takes(profile.model):
        return None
    pixels = useful_pixels(split_model(profile.model)[1])
    return OfferedImages(most=profile.max_images, bytes=profile.max_image_bytes, pixels=pixels)


def _models(config: Config) -> dict[str, list[str]]:
    """Return the models of the profiles, by provider."""
    models: dict[str, list[str]] = {}
    for profile in config.profiles.values():
        for full in profile.models:
            provider, name = split_model(full)
            models.setdefault(provider, []).append(name)
    return models
