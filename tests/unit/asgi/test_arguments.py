"""A wrong argument of `create_chat_handler` is named in one sentence, with what came and what is right."""

from __future__ import annotations

import math
import re
from contextlib import asynccontextmanager
from typing import get_args

from types import SimpleNamespace

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
from chat_nest.dialects import DialectName
from chat_nest.dialects.native import Native
from chat_nest.observers.log import LogObserver
from chat_nest.limits.prices import price
from chat_nest.runs.memory import MemoryRuns
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


class HalfReporter:
    def reported(self, report): ...
    def arrived(self, id, dialect, scope): ...


class AsyncReporter:
    async def reported(self, report): ...


P = {"p": ScriptedProvider(answer("a"))}
OWN = {"providers": P, "model": "p:m"}

WRONG = [
    ({"store": HalfStore()}, "store must be a string or a Store (chat_nest.Store), not a HalfStore, which has no extend, release, peek, sweep, ping, aclose"),
    ({"store": MemoryStore}, "store must be a Store, not the class MemoryStore: call the class to make one"),
    ({"store": None}, "store must be a string or a Store (chat_nest.Store), not None, which has no reserve"),
    ({"providers": {"p": NoOpen()}, "model": "p:m"}, "providers['p'] must be a Provider (chat_nest.Provider), not a NoOpen, which has no open"),
    ({"providers": {"p": OpenAIProvider}, "model": "p:m"}, "providers['p'] must be a Provider, not the class OpenAIProvider: call the class"),
    ({"providers": [NoOpen()], "model": "p:m"}, "providers must be a dict by name, not a list"),
    ({"providers": {1: NoOpen()}, "model": "p:m"}, "the names in providers must be strings, not an int"),
    ({"observers": [object()]}, "observers[0] must be an Observer (chat_nest.Observer), not an object, which has no started, refused, finished"),
    ({"observers": [AsyncObserver()]}, "observers[0].started must be a plain function, not an async one"),
    ({"observers": [HalfReporter()]}, "observers[0] must be a FollowsSteps (chat_nest.FollowsSteps), not a HalfReporter, which has no asking"),
    ({"observers": [SimpleNamespace(reported=print)]}, "observers[0] must be an Observer (chat_nest.Observer), not a SimpleNamespace, which has no started"),
    ({"observers": [AsyncReporter()]}, "observers[0].reported must be a plain function, not an async one"),
    ({"observers": LogObserver()}, "observers must be a list, not a LogObserver"),
    ({"dialect": object()}, "dialect must be a string or a Dialect (chat_nest.Dialect), not an object, which has no routes, parse, encoder, refuse"),
    ({"dialect": Native}, "dialect must be a Dialect, not the class Native: call the class"),
    ({"dialects": "native"}, "dialects must be a list, not a str"),
    ({"dialects": [None]}, "dialects[0] must be a string or a Dialect"),
    ({"logs": object()}, "logs must be a string or a RunLogs"),
    ({"limits": Limits(tokens_per_day="5")}, "limits.tokens_per_day must be an integer or None, not a str"),  # type: ignore[arg-type]
    ({"limits": Limits(usd_per_day="5")}, "limits.usd_per_day must be a number or None, not a str"),  # type: ignore[arg-type]
    ({"limits": Limits(tokens_per_day=5.5)}, "limits.tokens_per_day must be an integer or None, not a float"),  # type: ignore[arg-type]
    ({"limits": Limits(tokens_per_day=True)}, "limits.tokens_per_day must be an integer or None, not a bool"),
    ({"limits": {"tokens_per_day": 5}}, "limits must be a Limits, not a dict"),
    ({"limits": Limits}, "limits must be a Limits, not the class Limits"),
    ({"groups": {"a": Limits(tokens_per_day="5")}}, "groups['a'].tokens_per_day must be an integer or None, not a str"),  # type: ignore[arg-type]
    ({"groups": [Limits()]}, "groups must be a dict by name, not a list"),
    ({"prices": {"p:m": 0.15}}, "prices['p:m'] must be a Price, which chat_nest.price(input=..., output=...) makes, not a float"),
    ({"hard_caps": HardCaps(max_messages="5")}, "hard_caps.max_messages must be an integer or None, not a str"),  # type: ignore[arg-type]
    ({"timeouts": Timeouts(store="1")}, "timeouts.store must be a number, not a str"),  # type: ignore[arg-type]
    ({"timeouts": 30}, "timeouts must be a Timeouts, not an int"),
    ({"degraded": Allowance(tokens="5")}, "degraded.tokens must be an integer or None, not a str"),  # type: ignore[arg-type]
    ({"journal": 5}, "journal must be a string or a Path or None, not an int"),
    ({"lease": "60"}, "lease must be a number, not a str"),
    ({"max_body_bytes": "1"}, "max_body_bytes must be an integer, not a str"),
    ({"max_streams": "1"}, "max_streams must be an integer or None, not a str"),
    ({"time_zone": None}, "time_zone must be a string, not None"),
    ({"origins": "https://a.example"}, "origins must be a list, not a str"),
    ({"origins": [5]}, "origins[0] must be a string, not an int"),
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
        create_chat_handler(providers=P, profiles={"b": Profile(model="p:m", on_disconnect="never")})  # type: ignore[arg-type]


def test_a_misspelt_optional_name_is_reported_in_one_sentence(caplog) -> None:
    class Plain:
        abort_bill = "stops"
        close = laces = None

        def open(self, prompt, timeouts): ...

    class Talk(Native):
        long_wait = 5
        earlyer = quota_header = None

    class Batching(MemoryStore):
        call_at_once = 20

    create_chat_handler(providers={"p": Plain()}, model="p:m", dialect=Talk(), store=Batching())
    assert [record.message for record in caplog.records] == [
        "providers['p'] has abort_bill, which nothing reads: did you mean abort_bills?",
        "store has call_at_once, which nothing reads: did you mean calls_at_once?",
        "dialect has earlyer, which nothing reads: did you mean earlier?",
        "dialect has long_wait, which nothing reads: did you mean longest_wait?",
        "dialect has quota_header, which nothing reads: did you mean quota_headers?",
    ]


def test_a_built_in_part_has_no_misspelt_name(caplog) -> None:
    create_chat_handler(api_key="k", dialects=list(get_args(DialectName)))
    assert caplog.text == ""


def test_what_an_abandoned_answer_costs_is_one_of_three_words() -> None:
    class Own(ScriptedProvider):
        abort_bills = "stop"

    said = 'providers[\'p\'].abort_bills must be "stops" or "full" or "unknown"'
    with pytest.raises(ValueError, match=re.escape(said)):
        create_chat_handler(providers={"p": Own([])}, model="p:m")


@pytest.mark.parametrize("name", ["api_key", "base_url"])
def test_no_value_is_repeated(name) -> None:
    with pytest.raises(TypeError) as caught:
        create_chat_handler(**{name: b"sk-secret"})  # type: ignore[arg-type]
    assert str(caught.value) == f"{name} must be a string or None, not a bytes"


def test_valid_arguments_are_accepted() -> None:
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


@pytest.mark.parametrize("name", Timeouts.__struct_fields__)
@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, -math.inf, 86_401])
def test_a_time_out_is_a_time(name, seconds) -> None:
    with pytest.raises(ValueError, match=f"timeouts.{name} must be a number of seconds above 0 and at most 86400"):
        create_chat_handler(providers=P, model="p:m", timeouts=Timeouts(**{name: seconds}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(({"lease": each}, "lease must be a number of seconds from 5 to 3600") for each in (0, -1, 4.9, 3_601)),
        *(({"lease": each}, "lease must be") for each in (math.nan, math.inf)),
        *(({"max_body_bytes": each}, "max_body_bytes must be a whole number from 1 to") for each in (0, -1, 2**51)),
        *(({"max_streams": each}, "max_streams must be a whole number from 1 to") for each in (0, -1)),
        *(
            ({"degraded": Allowance(tokens=each), "limits": Limits(tokens_per_day=9)}, "degraded.tokens must be")
            for each in (0, -1)
        ),
        *(
            ({"degraded": Allowance(usd=each), "limits": Limits(usd_per_day=9)}, "degraded.usd must be")
            for each in (0, -1.0, math.nan, math.inf)
        ),
        ({"degraded": Allowance(requests=0)}, "degraded.requests must be"),
        ({"degraded": Allowance(streams=-5)}, "degraded.streams must be"),
        ({"store": "mysql://x"}, "^store must be memory://"),
        ({"store": "redis://h/x/y"}, "^store: the database must be one number"),
        ({"logs": "mysql://x"}, "^logs must be memory://"),
        ({"prices": {"gpt": price(input=1, output=1)}}, r"prices\['gpt'\] must be PROVIDER:MODEL.*mean p:gpt\?"),
        ({"prices": {"q:gpt": price(input=1, output=1)}}, r"prices\['q:gpt'\] must be PROVIDER:MODEL"),
        ({"prices": {"p:": price(input=1, output=1)}}, r"prices\['p:'\] must be PROVIDER:MODEL"),
        ({"dialect": "OpenAI"}, "did you mean 'openai'"),
        ({"dialect": "AI-SDK"}, "did you mean 'ai_sdk'"),
        ({"dialect": "AG UI"}, "did you mean 'ag_ui'"),
        ({"dialects": ["native", "Anthropic "]}, "did you mean 'anthropic'"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_number_or_a_name_out_of_its_range_is_named_with_the_rule(options, said) -> None:
    with pytest.raises(ValueError, match=said):
        create_chat_handler(providers=P, model="p:m", **options)


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf])
def test_the_grace_of_a_profile_is_a_time(seconds) -> None:
    profile = Profile(model="p:m", on_disconnect="grace", grace_seconds=seconds)
    with pytest.raises(ValueError, match=r"profiles\['b'\].grace_seconds must be a number of seconds from 0 to 86400"):
        create_chat_handler(providers=P, profiles={"b": profile})


def test_two_profiles_without_a_default_are_an_error_that_explains_how_to_name_one() -> None:
    two = {"a": Profile(model="p:m"), "b": Profile(model="p:m")}
    with pytest.raises(ValueError, match='default_profile="a"'):
        create_chat_handler(providers=P, profiles=two)
