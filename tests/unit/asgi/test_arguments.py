"""A wrong argument of `create_chat_handler` is named in one sentence, with what came and what is right."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from chat_nest import (
    BALANCED,
    Allowance,
    HardCaps,
    Limits,
    MemoryStore,
    OpenAIProvider,
    PeerAddress,
    Profile,
    Timeouts,
    create_chat_handler,
)
from chat_nest.dialects.native import Native
from chat_nest.observers.log import LogObserver
from chat_nest.prices import price
from chat_nest.stream_log import MemoryRuns
from chat_nest.testing import ScriptedProvider, answer


class NoOpen:
    async def check(self) -> None: ...


class HalfStore:
    async def reserve(self, claim, lease): ...
    async def settle(self, claim, actual, source, record=None): ...


class AsyncObserver:
    async def started(self, id, caller, profile, model): ...
    def refused(self, id, caller, error): ...
    def finished(self, ending): ...


P = {"p": ScriptedProvider(answer("a"))}
OWN = {"providers": P, "model": "p:m"}

WRONG = [
    ({"store": HalfStore()}, "store must be a string or a Store (chat_nest.protocols), not a HalfStore, which has no extend, release, peek, sweep, ping, aclose"),
    ({"store": MemoryStore}, "store must be a Store, not the class MemoryStore: call the class to make one"),
    ({"store": None}, "store must be a string or a Store (chat_nest.protocols), not None, which has no reserve"),
    ({"providers": {"p": NoOpen()}, "model": "p:m"}, "providers['p'] must be a Provider (chat_nest.protocols), not a NoOpen, which has no open"),
    ({"providers": {"p": OpenAIProvider}, "model": "p:m"}, "providers['p'] must be a Provider, not the class OpenAIProvider: call the class"),
    ({"providers": [NoOpen()], "model": "p:m"}, "providers must be a dict by name, not a list"),
    ({"providers": {1: NoOpen()}, "model": "p:m"}, "the names in providers must be strings, not an int"),
    ({"observers": [object()]}, "observers[0] must be an Observer (chat_nest.protocols), not an object, which has no started, refused, finished"),
    ({"observers": [AsyncObserver()]}, "observers[0].started must be a plain function, not an async one"),
    ({"observers": LogObserver()}, "observers must be a list, not a LogObserver"),
    ({"dialect": object()}, "dialect must be a string or a Dialect (chat_nest.protocols), not an object, which has no routes, parse, encoder, refuse"),
    ({"dialect": Native}, "dialect must be a Dialect, not the class Native: call the class"),
    ({"dialects": "native"}, "dialects must be a list, not a str"),
    ({"dialects": [None]}, "dialects[0] must be a string or a Dialect"),
    ({"logs": object()}, "logs must be a string or a RunLogs"),
    ({"limits": Limits(tokens_per_day="5")}, "limits.tokens_per_day must be an integer or None, not a str"),
    ({"limits": Limits(usd_per_day="5")}, "limits.usd_per_day must be a number or None, not a str"),
    ({"limits": Limits(tokens_per_day=5.5)}, "limits.tokens_per_day must be an integer or None, not a float"),
    ({"limits": Limits(tokens_per_day=True)}, "limits.tokens_per_day must be an integer or None, not a bool"),
    ({"limits": {"tokens_per_day": 5}}, "limits must be a Limits, not a dict"),
    ({"limits": Limits}, "limits must be a Limits, not the class Limits"),
    ({"groups": {"a": Limits(tokens_per_day="5")}}, "groups['a'].tokens_per_day must be an integer or None, not a str"),
    ({"groups": [Limits()]}, "groups must be a dict by name, not a list"),
    ({"prices": {"p:m": 0.15}}, "prices['p:m'] must be a Price, which chat_nest.prices.price(input=..., output=...) makes, not a float"),
    ({"hard_caps": HardCaps(max_messages="5")}, "hard_caps.max_messages must be an integer, not a str"),
    ({"timeouts": Timeouts(store="1")}, "timeouts.store must be a number, not a str"),
    ({"timeouts": 30}, "timeouts must be a Timeouts, not an int"),
    ({"degraded": Allowance(tokens="5")}, "degraded.tokens must be an integer or None, not a str"),
    ({"journal": 5}, "journal must be a string or a Path or None, not an int"),
    ({"lease": "60"}, "lease must be a number, not a str"),
    ({"max_body_bytes": "1"}, "max_body_bytes must be an integer, not a str"),
    ({"max_streams": "1"}, "max_streams must be an integer or None, not a str"),
    ({"time_zone": None}, "time_zone must be a string, not None"),
    ({"cors_origins": "https://a.example"}, "cors_origins must be a list, not a str"),
    ({"cors_origins": [5]}, "cors_origins[0] must be a string, not an int"),
    ({"identify": "ada"}, "identify must be a function, not a str"),
    ({"identify": PeerAddress}, "identify must be a function, not the class PeerAddress: call the class"),
    ({"now": 5.0}, "now must be a function, not a float"),
    ({"model": 5}, "model must be a string or None, not an int"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "said"), WRONG, ids=lambda value: value[:50] if isinstance(value, str) else "x")
def test_a_wrong_type_is_named(options, said) -> None:
    with pytest.raises(TypeError, match=re.escape(said)):
        create_chat_handler(**{**OWN, **options})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens_per_day": "50_000"}, "profiles['balanced'].tokens_per_day must be an integer or None, not a str"),
        ({"fallbacks": "p:n"}, "profiles['balanced'].fallbacks must be a tuple, each a string, not a str"),
        ({"fallbacks": (5,)}, "profiles['balanced'].fallbacks must be a tuple, each a string, not a tuple"),
        ({"model": None}, "profiles['balanced'].model must be a string, not None"),
        ({"temperature": "0.5"}, "profiles['balanced'].temperature must be a number, not a str"),
        ({"allow_tools": "yes"}, "profiles['balanced'].allow_tools must be a bool, not a str"),
    ],
)
def test_a_profile_is_checked_field_by_field(changes, said) -> None:
    with pytest.raises(TypeError, match=re.escape(said)):
        create_chat_handler(providers=P, profiles={"balanced": replace(BALANCED, **{"model": "p:m", **changes})})


def test_a_word_that_is_none_of_those_allowed_is_a_value_error() -> None:
    said = 'profiles[\'b\'].on_disconnect must be "cancel" or "grace" or "finish"'
    with pytest.raises(ValueError, match=re.escape(said)):
        create_chat_handler(providers=P, profiles={"b": Profile(model="p:m", on_disconnect="never")})


@pytest.mark.parametrize("name", ["api_key", "base_url"])
def test_no_value_is_repeated(name) -> None:
    with pytest.raises(TypeError) as caught:
        create_chat_handler(**{name: b"sk-secret"})
    assert str(caught.value) == f"{name} must be a string or None, not a bytes"


def test_what_is_right_is_accepted() -> None:
    class Wrapped:
        """Finds its methods only when they are asked for."""

        def __getattr__(self, name):
            return getattr(MemoryStore(), name)

    class Later(ScriptedProvider):
        @asynccontextmanager
        async def open(self, prompt, timeouts):
            yield

    create_chat_handler(
        providers={"p": Later([])},
        profiles={"balanced": Profile(model="p:m", temperature=1, fallbacks=("p:n",), usd_per_day=5)},
        prices={"p:*": price(input=1, output=2)},
        store=Wrapped(),
        dialects=[Native(), "openai"],
        logs=MemoryRuns(),
        observers=(LogObserver(),),
        lease=60,
        timeouts=Timeouts(store=1),
        journal=None,
    )
