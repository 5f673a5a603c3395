from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from chat_nest.core.claims import Line
from chat_nest.core.errors import BadRequest, Closed, Forbidden
from chat_nest.core.limits import LineScope, Share, Totals, Unit
from chat_nest.core.messages import Caller, ChatRequest, Message, Role, Tool, ToolCall, hashed
from chat_nest.core.limits import COUNTERS
from chat_nest.limits.counters import LIMITS, RATES
from chat_nest.limits.counters import OWN as OWN_LIMITS
from chat_nest.limits.prices import Prices, price
from chat_nest.limits.profile_names import default_name
from chat_nest.limits.profiles import Profiles
from chat_nest.limits.spec import (
    BALANCED,
    BUILT_IN_PROFILES,
    CONSTRAINED,
    EXPANDED,
    HARD_CAPS,
    HardCaps,
    Limits,
    Profile,
    Rung,
)

WIDE = HardCaps(
    max_output_tokens=10**6,
    max_messages=10**6,
    temperature=2.0,
    tokens_per_day=10**12,
    tokens_per_request=10**9,
    requests_per_minute=10**6,
)
NUMBERS = (
    "max_output_tokens",
    "max_messages",
    "temperature",
    "tokens_per_request",
    "tokens_per_day",
    "tokens_per_minute",
    "requests_per_minute",
    "concurrent_streams",
)
CALLER = Caller(id="203.0.113.5")
HELLO = (Message(role="user", content="hello"),)
NOON = 1_772_366_400.0  # 2026-03-01 12:00 UTC


def built_in(limits: Limits = Limits(), hard_caps: HardCaps = HARD_CAPS, time_zone: str = "UTC") -> Profiles:
    return Profiles(BUILT_IN_PROFILES, limits, hard_caps, time_zone)


def ask(profile: str | None = None, **fields: object) -> ChatRequest:
    return msgspec.convert({"messages": HELLO, "profile": profile, **fields}, ChatRequest)


# Which profile.


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        (None, "balanced"),
        ("constrained", "constrained"),
        ("balanced", "balanced"),
        ("expanded", "expanded"),
        ("  ExPanDed \n", "expanded"),
        ("budget", "constrained"),
        ("MODERATE", "balanced"),
        ("Free", "expanded"),
        ("", "balanced"),
        ("nosuch", "balanced"),
        ("constructor", "balanced"),
        ("__proto__", "balanced"),
        ("__class__", "balanced"),
    ],
)
def test_a_profile_is_found_by_its_name_or_is_the_default(name: str | None, profile: str) -> None:
    assert built_in().resolve(CALLER, ask(name)) == BUILT_IN_PROFILES[profile]


def test_an_operator_may_give_an_old_name_to_a_custom_profile() -> None:
    own = Profile(name="Free", open=True, max_output_tokens=7, min_output_tokens=7)
    profiles = Profiles({**BUILT_IN_PROFILES, "Free": own}, Limits(), HARD_CAPS, "UTC", default="free")
    assert profiles.resolve(CALLER, ask("free")) == own
    assert profiles.resolve(CALLER, ask()) == own


def test_a_configuration_that_can_not_be_is_refused() -> None:
    with pytest.raises(ValueError, match="default_profile must name one of the profiles: constrained, balanced, expan"):
        Profiles(BUILT_IN_PROFILES, Limits(), HARD_CAPS, "UTC", default="nosuch")
    for zone in ("Mars/Olympus", "", "../etc/passwd", "America"):
        with pytest.raises(ValueError, match="not a known time zone"):
            built_in(time_zone=zone)


# Who may choose it.


CHEAP = Profile(name="cheap", model="a:cheap")
DEAR = Profile(name="dear", model="b:dear", tokens_per_day=9, temperature=0.1)
OPEN = Profile(name="free", model="a:free", open=True)


def own(*profiles: Profile, default: str | None = None) -> Profiles:
    return Profiles({profile.name: profile for profile in profiles}, Limits(), WIDE, "UTC", default)


def test_a_stranger_may_choose_the_default_profile_and_those_that_are_open() -> None:
    rules = own(CHEAP, DEAR, OPEN, default="cheap")
    assert rules.open == rules.offered(CALLER) == (CHEAP, OPEN)
    assert rules.model_names(CALLER) == ("cheap", "free")
    assert [rules.resolve(CALLER, ask(name)) for name in (None, "free", "dear", "nosuch")] == [
        CHEAP,
        OPEN,
        CHEAP,
        CHEAP,
    ]


@pytest.mark.parametrize("model", ["dear", "b:dear", "nosuch"])
def test_the_model_of_a_closed_profile_is_offered_no_more_than_an_unknown_one(model: str) -> None:
    rules = own(CHEAP, DEAR, OPEN, default="cheap")
    for profile, names in ((None, "cheap, free"), ("cheap", "cheap"), ("free", "free"), ("dear", "cheap, free")):
        with pytest.raises(BadRequest, match=f"must be a model that is offered here: {names}$"):
            rules.resolve(CALLER, ask(profile, model=model))
    assert rules.resolve(CALLER, ask(model="free")) == OPEN


def test_a_refused_model_is_answered_with_ten_that_are_offered() -> None:
    rules = own(*(Profile(name=f"p{n}", model=f"a:m{n}", open=True) for n in range(11)), default="p0")
    with pytest.raises(BadRequest, match=r"offered here: m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, \.\.\.$"):
        rules.resolve(CALLER, ask(model="gpt-4o"))


@pytest.mark.parametrize("name", ["profile", "model"])
def test_a_closed_profile_lowers_a_caller_with_another_profile_but_does_not_give_its_model(name: str) -> None:
    rules = own(CHEAP, DEAR, default="dear")
    caller = Caller(id="a", profile="cheap")
    asked = ask("dear") if name == "profile" else ask(model="dear")
    assert rules.resolve(caller, asked) == replace(CHEAP, tokens_per_day=9, temperature=0.1)
    with pytest.raises(BadRequest):
        rules.resolve(caller, ask("dear", model="b:dear"))


def test_with_only_closed_profiles_callers_need_an_assigned_profile() -> None:
    rules = own(replace(CHEAP, open=False), DEAR, default="cheap")
    assert rules.open == ()
    for call in (
        lambda: rules.resolve(CALLER, ask()),
        lambda: rules.offered(CALLER),
        lambda: rules.model_names(CALLER),
    ):
        with pytest.raises(Forbidden, match="not open to you"):
            call()
    assert rules.resolve(Caller(id="a", profile="dear"), ask()) == DEAR


@pytest.mark.parametrize(
    ("profiles", "named", "default"),
    [
        ([CHEAP, BALANCED, OPEN], None, "balanced"),
        ([CHEAP], None, "cheap"),
        ([CHEAP, DEAR, OPEN], None, "free"),
        ([CHEAP, DEAR], "DEAR ", "dear"),
        ([CHEAP, EXPANDED], "free", "expanded"),
    ],
)
def test_the_default_profile(profiles: list[Profile], named: str | None, default: str) -> None:
    assert default_name({profile.name: profile for profile in profiles}, named) == default


@pytest.mark.parametrize(
    ("profiles", "named", "said"),
    [
        (
            [CHEAP, DEAR],
            None,
            'default_profile must name the profile of a caller without its own: cheap, dear; write default_profile="cheap"',
        ),
        ([CHEAP, OPEN, replace(DEAR, open=True)], None, "default_profile must name the profile of a caller"),
        ([CHEAP, DEAR], "nosuch", "default_profile must name one of the profiles: cheap, dear"),
        (
            [replace(CHEAP, open=False), OPEN],
            "cheap",
            "default_profile is cheap, which is closed, while free is open: name an open one, or close every profile",
        ),
    ],
)
def test_a_default_profile_that_can_not_be(profiles: list[Profile], named: str | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        own(*profiles, default=named)


# What a client can change.


def test_the_numbers_of_a_request_lower_the_profile() -> None:
    asked = ask(tokens_per_day=9, tokens_per_request=8, max_output_tokens=7, temperature=0.1)
    assert built_in().resolve(CALLER, asked) == replace(
        BUILT_IN_PROFILES["balanced"],
        tokens_per_day=9,
        tokens_per_request=8,
        max_output_tokens=7,
        min_output_tokens=7,
        temperature=0.1,
    )


@pytest.mark.parametrize("name", ["tokens_per_day", "tokens_per_request", "max_output_tokens", "temperature"])
def test_one_number_alone_lowers_the_profile(name: str) -> None:
    number: dict[str, Any] = {name: 0.25 if name == "temperature" else 20}
    assert built_in().resolve(CALLER, ask(**number)) == replace(BUILT_IN_PROFILES["balanced"], **number)


def test_the_numbers_of_a_request_do_not_raise_the_profile() -> None:
    asked = ask(tokens_per_day=10**30, tokens_per_request=10**30, max_output_tokens=10**30, temperature=99.0)
    assert built_in().resolve(CALLER, asked) == BUILT_IN_PROFILES["balanced"]


def test_a_request_sets_a_limit_that_the_profile_leaves_open() -> None:
    profiles = Profiles({"balanced": Profile(tokens_per_day=None)}, Limits(), WIDE, "UTC")
    assert profiles.resolve(CALLER, ask(tokens_per_day=5)).tokens_per_day == 5


CAPS = HardCaps(
    max_output_tokens=4_096,
    max_messages=20,
    temperature=1.5,
    tokens_per_request=16_000,
    tokens_per_day=500_000,
    requests_per_minute=60,
)


@pytest.mark.parametrize("number", [10**6, None])
def test_the_caps_are_above_every_profile(number: int | None) -> None:
    profile = Profile(
        max_output_tokens=10**6,
        max_messages=10**6,
        temperature=2.0,
        tokens_per_request=number,
        tokens_per_day=number,
        requests_per_minute=number,
    )
    assert Profiles({"balanced": profile}, Limits(), CAPS, "UTC").resolve(CALLER, ask()) == Profile(
        max_output_tokens=4_096,
        max_messages=20,
        temperature=1.5,
        tokens_per_request=16_000,
        tokens_per_day=500_000,
        requests_per_minute=60,
    )
    assert built_in().resolve(CALLER, ask()) == BUILT_IN_PROFILES["balanced"]  # no cap but that on the temperature
    assert Profiles({"balanced": profile}, Limits(), HARD_CAPS, "UTC").resolve(CALLER, ask()) == profile


def test_a_cap_of_nothing_closes() -> None:
    with pytest.raises(Closed):
        Profiles(BUILT_IN_PROFILES, Limits(), HardCaps(tokens_per_day=0), "UTC").resolve(CALLER, ask())


# No limit, and nothing at all.


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_of_none_is_no_limit_in_either_spelling(name: str) -> None:
    word: dict[str, Any] = {name: "none"}
    nothing: dict[str, Any] = {name: None}
    five: dict[str, Any] = {name: 5}
    assert Profile(**word) == Profile(**nothing)
    profile = replace(Profile(**five), **word)
    assert getattr(profile, name) is None
    rules = Profiles({"balanced": profile}, Limits(), HARD_CAPS, "UTC", prices=OWN)
    assert name not in [line.name for line in rules.lines(CALLER, rules.resolve(CALLER, ask()), 1, NOON)]
    if name not in OWN_LIMITS:
        assert Limits(**word) == Limits()


@pytest.mark.parametrize("where", ["profile", "ceiling", "chosen under a ceiling", "group", "default group", "limits"])
@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_of_0_closes(where: str, name: str) -> None:
    nothing: dict[str, Any] = {name: 0}
    if name in OWN_LIMITS and where in ("group", "default group", "limits"):
        return
    profiles = {
        "balanced": Profile(**nothing) if where == "profile" else Profile(),
        "own": Profile(name="own", **(nothing if where == "ceiling" else {})),
        "shut": Profile(name="shut", **nothing),
    }
    groups = {
        "acme": Limits(**nothing) if where == "group" else Limits(),
        "default": Limits(**nothing) if where == "default group" else Limits(),
    }
    limits = Limits(**nothing) if where == "limits" else Limits()
    rules = Profiles(profiles, limits, HARD_CAPS, "UTC", groups=groups)  # no price is needed for a limit of $0
    caller = Caller(
        id="a",
        profile="own" if "ceiling" in where else None,
        group={"group": "acme", "default group": "other"}.get(where),
    )
    with pytest.raises(Closed) as refused:
        rules.resolve(caller, ask("shut" if where == "chosen under a ceiling" else None))
    assert (refused.value.status, refused.value.code, refused.value.retry_after) == (403, "closed", None)
    assert refused.value.message == "This chat is closed."
    if where != "limits":
        open_to = Caller(id="b", profile="own" if where == "profile" else None)
        assert rules.resolve(open_to, ask()).name in ("own", "balanced")


WHOLE = [-1, True, 1.5, 1.0, math.nan, "nine", 2**50 + 1]
DOLLARS = [-1, -0.01, True, math.nan, math.inf, "nine", 0.000_000_000_1, 1_000_001]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("tokens_per_day", "tokens_per_minute", "concurrent_streams") for value in WHOLE),
        *(("usd_per_month", value) for value in DOLLARS),
    ],
)
def test_an_invalid_number_is_named_at_any_place(name: str, value: Any) -> None:
    rule = "must be 0, or a number of dollars from" if "usd" in name else "must be a whole number from 0 to"
    wrong: dict[str, Any] = {name: value}
    for where, profile, shared, groups in (
        ("profile 'own'", Profile(**wrong), Limits(), {}),
        ("limits", Profile(), Limits(**wrong), {}),
        ("group 'acme'", Profile(), Limits(), {"acme": Limits(**wrong)}),
    ):
        with pytest.raises(ValueError, match=f'^{where}: {name} {rule} .*, or "none"$'):
            Profiles({"own": profile}, shared, HARD_CAPS, "UTC", groups=groups, prices=OWN)


@pytest.mark.parametrize(
    ("numbers", "rule"),
    [
        ({"max_output_tokens": 0}, "must be a whole number from 1 to"),
        ({"max_messages": 0}, "must be a whole number from 1 to"),
        ({"max_messages": math.nan}, "must be a whole number from 1 to"),
        ({"temperature": -0.1}, "must be a number from 0 to 2"),
        ({"temperature": math.nan}, "must be a number from 0 to 2"),
        ({"temperature": 2.1}, "must be a number from 0 to 2"),
        ({"tokens_per_request": -1}, "must be a whole number from 0 to"),
        ({"requests_per_minute": True}, "must be a whole number from 0 to"),
    ],
)
def test_a_cap_that_breaks_its_rule_is_named(numbers: dict[str, Any], rule: str) -> None:
    [name] = numbers
    with pytest.raises(ValueError, match=f"^hard_caps: {name} {rule}"):
        Profiles(BUILT_IN_PROFILES, Limits(), HardCaps(**numbers), "UTC")
    with pytest.raises(ValueError, match=f"^profile 'balanced': {name} {rule}"):
        Profiles({"balanced": Profile(**numbers)}, Limits(), HARD_CAPS, "UTC")


def test_the_profile_of_a_caller_is_a_ceiling() -> None:
    paid = Profile(name="paid", model="openai:gpt-4o", fallbacks=("x:y",), max_messages=3, temperature=1.5)
    profiles = Profiles({**BUILT_IN_PROFILES, "paid": paid}, Limits(), HARD_CAPS, "UTC")
    caller = Caller(id="a", profile=" Paid")
    assert profiles.resolve(caller, ask()) == paid
    assert profiles.resolve(caller, ask("nosuch")) == paid
    assert profiles.resolve(caller, ask("expanded")) == replace(paid, temperature=0.8)
    assert profiles.resolve(caller, ask("constrained", tokens_per_day=5)) == replace(
        paid,
        max_output_tokens=1_000,
        max_messages=3,
        tokens_per_request=16_000,
        temperature=0.5,
        tokens_per_day=5,
        requests_per_minute=15,
    )


def test_a_caller_with_a_missing_profile_is_refused() -> None:
    with pytest.raises(Forbidden):
        built_in().resolve(Caller(id="a", profile="nosuch"), ask("expanded"))


limit = st.one_of(st.none(), st.integers(1, 10**7))
some_profile = st.builds(
    Profile,
    model=st.sampled_from(["a:1", "b:2"]),
    max_output_tokens=st.integers(1, 10**7),
    max_messages=st.integers(1, 10**7),
    temperature=st.floats(0, 2),
    tokens_per_request=limit,
    tokens_per_day=limit,
    tokens_per_minute=limit,
    requests_per_minute=limit,
    concurrent_streams=limit,
    allow_system_prompt=st.booleans(),
)
some_request = st.builds(
    ChatRequest,
    messages=st.just(HELLO),
    profile=st.one_of(st.none(), st.sampled_from(["balanced", "Expanded", "constrained", "free", "x"]), st.text()),
    system_prompt=st.one_of(st.none(), st.text()),
    tokens_per_day=st.one_of(st.none(), st.integers(1, 10**40)),
    tokens_per_request=st.one_of(st.none(), st.integers(1, 10**40)),
    max_output_tokens=st.one_of(st.none(), st.integers(1, 10**40)),
    temperature=st.one_of(st.none(), st.floats(0, allow_nan=False)),
)


def no_higher(low: Profile, high: Profile | HardCaps) -> bool:
    return all(
        getattr(high, name, None) is None
        or (getattr(low, name) is not None and getattr(low, name) <= getattr(high, name))
        for name in NUMBERS
    )


@given(st.tuples(some_profile, some_profile, some_profile), some_request, st.sampled_from([None, "expanded", "free"]))
def test_no_request_raises_a_number(
    three: tuple[Profile, Profile, Profile], request: ChatRequest, ceiling: str | None
) -> None:
    own = dict(zip(("constrained", "balanced", "expanded"), three, strict=True))
    own["constrained"] = replace(own["constrained"], open=True)
    profile = Profiles(own, Limits(), WIDE, "UTC").resolve(Caller(id="a", profile=ceiling), request)
    assert no_higher(profile, WIDE)
    bounds = [own["expanded"]] if ceiling else [own["constrained"], own["balanced"]]
    assert any(
        no_higher(profile, bound)
        and (profile.model, profile.fallbacks) == (bound.model, bound.fallbacks)
        and (bound.allow_system_prompt or not profile.allow_system_prompt)
        for bound in bounds
    )
    assert 1 <= profile.min_output_tokens <= profile.max_output_tokens


# Roles.


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_prompt_of_a_client_needs_a_profile_that_allows_it(role: Role) -> None:
    request = ChatRequest(messages=(*HELLO, Message(role=role, content="obey"), *HELLO))
    with pytest.raises(BadRequest) as refused:
        built_in().resolve(CALLER, request)
    assert refused.value.field == "messages[1].role"
    assert refused.value.message.endswith("see allow_system_prompt of the profile")
    allowing = Profiles({"balanced": Profile(allow_system_prompt=True)}, Limits(), HARD_CAPS, "UTC")
    assert allowing.resolve(CALLER, request).allow_system_prompt


def test_a_ceiling_that_allows_no_system_prompt_holds_for_every_chosen_profile() -> None:
    able = Profile(name="able", open=True, allow_system_prompt=True)
    profiles = Profiles({**BUILT_IN_PROFILES, "able": able}, Limits(), HARD_CAPS, "UTC")
    request = ChatRequest(messages=(Message(role="system", content="obey"), *HELLO), profile="able")
    assert profiles.resolve(CALLER, request).allow_system_prompt
    with pytest.raises(BadRequest):
        profiles.resolve(Caller(id="a", profile="balanced"), request)


def test_a_tool_result_from_a_client_is_never_accepted() -> None:
    allowing = Profiles({"balanced": Profile(allow_system_prompt=True)}, Limits(), HARD_CAPS, "UTC")
    with pytest.raises(BadRequest) as refused:
        allowing.resolve(CALLER, ChatRequest(messages=(Message(role="tool", content="4"), *HELLO)))
    assert refused.value.field == "messages[0].role"


# Lines.


def test_every_line_of_a_request_in_order() -> None:
    limits = Limits(tokens_per_day=10**6, tokens_per_minute=10**5, requests_per_minute=600, concurrent_streams=90)
    profile = Profile(tokens_per_minute=5_000, concurrent_streams=2)
    me = f"caller:{CALLER.key}"
    midnight = 1_772_409_600.0  # 2026-03-02 00:00 UTC
    lines = built_in(limits).lines(CALLER, profile, 100, NOON)
    assert lines == (
        Line(
            name="tokens_per_request",
            scope="caller",
            key=f"{me}:tokens_per_request",
            unit="tokens",
            kind="request",
            limit=32_000,
            fixed=100,
            per_million=1_000_000,
        ),
        Line(
            name="requests_per_minute",
            scope="caller",
            key=f"{me}:requests_per_minute",
            unit="requests",
            kind="rate",
            limit=30,
            fixed=1,
            period=60,
        ),
        Line(
            name="concurrent_streams",
            scope="caller",
            key=f"{me}:concurrent_streams",
            unit="streams",
            kind="gauge",
            limit=2,
            fixed=1,
        ),
        Line(
            name="tokens_per_minute",
            scope="caller",
            key=f"{me}:tokens_per_minute",
            unit="tokens",
            kind="rate",
            limit=5_000,
            fixed=100,
            per_million=1_000_000,
            period=60,
        ),
        Line(
            name="tokens_per_day",
            scope="caller",
            key=f"{me}:tokens_per_day:2026-03-01",
            unit="tokens",
            kind="window",
            limit=200_000,
            fixed=100,
            per_million=1_000_000,
            period=86_400,
            resets_at=midnight,
        ),
        Line(
            name="requests_per_minute",
            scope="all",
            key="all:requests_per_minute",
            unit="requests",
            kind="rate",
            limit=600,
            fixed=1,
            period=60,
        ),
        Line(
            name="concurrent_streams",
            scope="all",
            key="all:concurrent_streams",
            unit="streams",
            kind="gauge",
            limit=90,
            fixed=1,
        ),
        Line(
            name="tokens_per_minute",
            scope="all",
            key="all:tokens_per_minute",
            unit="tokens",
            kind="rate",
            limit=100_000,
            fixed=100,
            per_million=1_000_000,
            period=60,
        ),
        Line(
            name="tokens_per_day",
            scope="all",
            key="all:tokens_per_day:2026-03-01",
            unit="tokens",
            kind="window",
            limit=1_000_000,
            fixed=100,
            per_million=1_000_000,
            period=86_400,
            resets_at=midnight,
        ),
    )
    assert lines[0].amount(50) == 150
    assert lines[1].amount(50) == lines[2].amount(50) == 1


def test_a_limit_that_is_none_makes_no_line() -> None:
    bare = Profile(tokens_per_request=None, tokens_per_day=None, requests_per_minute=None)
    assert built_in().lines(CALLER, bare, 100, NOON) == ()


def test_a_day_ends_at_midnight_in_the_operators_zone() -> None:
    keys = {
        zone: [line for line in built_in(time_zone=zone).lines(CALLER, BALANCED, 1, NOON) if line.kind == "window"]
        for zone in ("UTC", "Pacific/Kiritimati", "America/New_York")
    }
    assert [lines[0].key.rpartition(":")[2] for lines in keys.values()] == ["2026-03-01", "2026-03-02", "2026-03-01"]
    assert [lines[0].resets_at - NOON for lines in keys.values()] == [12 * 3600, 22 * 3600, 17 * 3600]


def test_a_caller_that_switches_profiles_keeps_the_same_counters() -> None:
    profiles = built_in()
    keys = {
        tuple(line.key for line in profiles.lines(CALLER, profiles.resolve(CALLER, ask(name)), 1, NOON))
        for name in ("constrained", "balanced", "expanded")
    }
    assert len(keys) == 1
    assert keys.isdisjoint(tuple(line.key for line in profiles.lines(Caller(id="b"), BALANCED, 1, NOON)))


def test_no_key_holds_the_callers_address() -> None:
    assert not any(CALLER.id in line.key for line in built_in().lines(CALLER, BALANCED, 1, NOON))


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
def test_a_rate_too_high_to_be_exact_is_refused_at_the_start(name):
    too_high = 2**53 // 60_000_000 + 1
    refused: dict[str, Any] = {name: too_high}
    highest: dict[str, Any] = {name: too_high - 1}
    for profile, limits in ((Profile(), Limits(**refused)), (Profile(**refused), Limits())):
        caps = HardCaps()
        with pytest.raises(ValueError, match=f"{name} must be a whole number from 0 to {too_high - 1}, or"):
            Profiles({"balanced": profile}, limits, caps, "UTC")
        Profiles({"balanced": Profile(**highest)}, Limits(**highest), caps, "UTC")


# Every window, for callers, groups and all, in every unit.

OWN = Prices({"openai:gpt-4o-mini": price(input=0.15, output=0.6), "openai:big": price(input=3, output=15)})


def test_every_counter_becomes_a_line_of_its_unit_and_window() -> None:
    numbers: dict[str, Any] = {each.name: 1.5 if each.unit == "nanousd" else 100 for each in COUNTERS}
    profile = Profile(**numbers)
    rules = Profiles(
        {"balanced": profile},
        Limits(**numbers),
        WIDE,
        "UTC",
        groups={"acme": Limits(**numbers)},
        prices=OWN,
    )
    lines = rules.lines(Caller(id="a", group="acme"), profile, 100, NOON)[1:]
    assert len(lines) == 3 * len(COUNTERS) == len({line.key for line in lines})
    assert [line.scope for line in lines] == ["caller"] * 13 + ["group"] * 13 + ["all"] * 13
    for line, spec in zip(lines, COUNTERS * 3, strict=True):
        name, unit, span = spec.name, spec.unit, spec.window
        assert (line.name, line.unit) == (name, unit)
        assert line.limit == (1_500_000_000 if unit == "nanousd" else 100)
        assert line.kind == ("gauge" if span is None else "rate" if name in RATES else "window")
        if line.kind == "window":
            assert line.period == {"minute": 60, "hour": 3_600, "day": 86_400, "month": 31 * 86_400}[span]
            assert NOON < line.resets_at <= NOON + line.period
        assert (line.fixed, line.per_million) == {
            "requests": (1, 0),
            "streams": (1, 0),
            "tokens": (100, 1_000_000),
            "nanousd": (100 * 150, 600_000_000),
        }[unit]


def test_money_is_held_for_the_dearest_model_that_may_answer() -> None:
    profile = Profile(fallbacks=("openai:big",), usd_per_day=1.0)
    rules = Profiles({"balanced": profile}, Limits(), WIDE, "UTC", prices=OWN)
    line = rules.lines(CALLER, profile, 100, NOON)[-1]
    assert (line.name, line.fixed, line.per_million) == ("usd_per_day", 100 * 3_000, 15_000_000_000)


@pytest.mark.parametrize("where", ["profile", "limits", "group"])
def test_a_limit_in_dollars_without_a_price_is_refused_at_once(where: str) -> None:
    dear = Profile(model="openai:gpt-4o-mini", fallbacks=("openai:unknown",))
    money: dict[str, Any] = {"usd_per_month": 5.0}
    profile = replace(dear, **money) if where == "profile" else dear
    limits = Limits(**money) if where == "limits" else Limits()
    groups = {"acme": Limits(**money)} if where == "group" else None
    with pytest.raises(
        ValueError, match="profile 'dear'.*price of 'openai:unknown' is not known: add .*openai:unknown"
    ):
        Profiles({"dear": replace(profile, name="dear")}, limits, WIDE, "UTC", "dear", groups=groups, prices=OWN)


def test_each_group_has_counters_that_its_members_share() -> None:
    groups = {"acme": Limits(tokens_per_day=5), "default": Limits(tokens_per_day=3)}
    rules = Profiles(BUILT_IN_PROFILES, Limits(), HARD_CAPS, "UTC", groups=groups)

    def shared(caller: Caller) -> list[tuple[str, int]]:
        return [(line.key, line.limit) for line in rules.lines(caller, BALANCED, 1, NOON) if line.scope == "group"]

    [(acme, five)] = shared(Caller(id="a", group="acme"))
    [(other, three)] = shared(Caller(id="a", group="other"))
    assert (five, three) == (5, 3)
    assert shared(Caller(id="b", group="acme")) == [(acme, 5)]
    assert len({acme, other, shared(Caller(id="a", group="third"))[0][0]}) == 3
    assert shared(Caller(id="a")) == []
    assert "acme" not in acme


def test_an_unconfigured_group_is_refused() -> None:
    rules = Profiles(BUILT_IN_PROFILES, Limits(), HARD_CAPS, "UTC", groups={"acme": Limits(tokens_per_day=5)})
    with pytest.raises(Forbidden):
        rules.lines(Caller(id="a", group="other"), BALANCED, 1, NOON)
    assert built_in().lines(Caller(id="a", group="other"), BALANCED, 1, NOON)  # there are no groups at all


# Shares: keys, sessions, conversations, visitors and addresses, whose limits a request draws on, too.


def total(name: str, scope: LineScope, unit: Unit, limit: int, fixed: int, per_million: int) -> Line:
    return Line(
        name=name,
        scope=scope,
        key=f"{scope}:{hashed('its id')}:{name.partition('_per_')[0] if scope != 'conversation' else unit}",
        unit=unit,
        kind="window",
        limit=limit,
        fixed=fixed,
        per_million=per_million,
        period=90,
        resets_at=NOON + 90.5,
    )


def test_a_request_draws_on_what_may_be_used_until_its_session_ends() -> None:
    profile = Profile(tokens_per_request=None, tokens_per_day=None, requests_per_minute=None)
    rules = Profiles({"one": profile}, Limits(), WIDE, "UTC", prices=OWN)
    totals = Totals(requests=3, tokens=500, usd=0.25)
    session = Share(scope="session", id="its id", totals=totals, ends_at=NOON + 90.5)
    assert rules.lines(Caller(id="a", shares=(session,)), rules.named(None), 100, NOON)[-3:] == (
        total("requests_per_session", "session", "requests", 3, 1, 0),
        total("tokens_per_session", "session", "tokens", 500, 100, 1_000_000),
        total("usd_per_session", "session", "nanousd", 250_000_000, 100 * 150, 600_000_000),
    )
    over = replace(session, ends_at=NOON - 5, totals=Totals(tokens=500))
    [line] = [each for each in rules.lines(Caller(id="a", shares=(over,)), profile, 100, NOON) if each.kind == "window"]
    assert (line.period, line.resets_at) == (1, NOON - 5), "a store keeps no window whose length is 0"


def test_a_conversation_counts_its_questions_as_turns() -> None:
    rules = Profiles({"one": BALANCED}, Limits(), WIDE, "UTC")
    conversation = Share(scope="conversation", id="its id", totals=Totals(requests=3, tokens=5), ends_at=NOON + 90.5)
    assert rules.lines(Caller(id="a", shares=(conversation,)), BALANCED, 100, NOON)[-2:] == (
        total("turns_per_conversation", "conversation", "requests", 3, 1, 0),
        total("tokens_per_conversation", "conversation", "tokens", 5, 100, 1_000_000),
    )


def test_the_limits_of_shares_come_between_those_of_the_caller_and_those_of_all() -> None:
    groups = {"acme": Limits(tokens_per_day=4)}
    profile = Profile(tokens_per_request=None, tokens_per_day=1, requests_per_minute=None, concurrent_streams=None)
    rules = Profiles({"one": profile}, Limits(tokens_per_day=5), WIDE, "UTC", groups=groups)
    shares = (
        Share(scope="address", id="203.0.113.5", limits=Limits(tokens_per_day=2, concurrent_streams=7)),
        Share(scope="network", id="203.0.113.0/24", limits=Limits(tokens_per_day=3)),
    )
    lines = rules.lines(Caller(id="a", group="acme", shares=shares), profile, 100, NOON)
    found = [(line.scope, line.name, line.limit, line.key.split(":")[:2]) for line in lines]
    assert found == [
        ("caller", "tokens_per_day", 1, ["caller", Caller(id="a").counter_key]),
        ("address", "concurrent_streams", 7, ["address", hashed("203.0.113.5")]),
        ("address", "tokens_per_day", 2, ["address", hashed("203.0.113.5")]),
        ("network", "tokens_per_day", 3, ["network", hashed("203.0.113.0/24")]),
        ("group", "tokens_per_day", 4, ["group", hashed("acme")]),
        ("all", "tokens_per_day", 5, ["all", "tokens_per_day"]),
    ]
    assert [line.fixed for line in lines] == [100, 1, 100, 100, 100, 100]
    assert {line.resets_at for line in lines} == {NOON + 43_200, 0.0}


@pytest.mark.parametrize(
    "share",
    [
        Share(scope="key", id="k", limits=Limits(usd_per_day=1.0)),
        Share(scope="key", id="k", totals=Totals(usd=1.0), ends_at=NOON + 90),
    ],
)
@pytest.mark.parametrize("fallbacks", [(), ("openai:unknown",)])
def test_a_share_in_dollars_needs_the_price_of_every_model(share: Share, fallbacks: tuple[str, ...]) -> None:
    profile = Profile(model="openai:gpt-4o-mini", fallbacks=fallbacks)
    rules = Profiles({"one": profile}, Limits(), WIDE, "UTC", prices=OWN)
    caller = Caller(id="a", shares=(share,))
    if not fallbacks:
        assert rules.lines(caller, profile, 100, NOON)[-1].unit == "nanousd"
        return
    with pytest.raises(Forbidden, match="You have a limit in dollars, and the price of this model is not known here"):
        rules.lines(caller, profile, 100, NOON)
    tokens = Share(scope="key", id="k", limits=Limits(tokens_per_day=5))
    assert rules.lines(Caller(id="a", shares=(tokens,)), profile, 100, NOON)[-1].limit == 5


def test_the_models_without_a_price_are_named_once_each() -> None:
    one = Profile(name="one", model="openai:gpt-4o-mini", fallbacks=("openai:unknown", "x:other"))
    two = Profile(name="two", model="x:other", fallbacks=("openai:big",))
    rules = Profiles({"one": one, "two": two}, Limits(), WIDE, "UTC", "one", prices=OWN)
    assert rules.unpriced([one, two]) == ["openai:unknown", "x:other"]
    assert rules.unpriced([]) == []


def test_the_lines_that_are_shown_without_a_request_draw_nothing() -> None:
    limits, groups = (
        Limits(tokens_per_day=5, usd_per_day=1.0),
        {"acme": Limits(requests_per_day=4, concurrent_streams=2)},
    )
    groups["default"] = Limits(tokens_per_day=3)
    rules = Profiles({"one": Profile(name="one")}, limits, WIDE, "UTC", groups=groups, prices=OWN)
    drawn = {line.key: line for line in rules.lines(Caller(id="a", group="acme"), rules.named("one"), 100, NOON)}
    of_group = rules.group_lines(NOON)
    assert of_group.keys() == {"acme"}, "those of the default group are for each group by itself"
    for line in (*rules.shared_lines(NOON), *of_group["acme"]):
        assert line == replace(drawn[line.key], fixed=0, per_million=0)
    assert [line.limit for line in rules.shared_lines(NOON)] == [5, 1_000_000_000]
    assert [line.limit for line in of_group["acme"]] == [4, 2]


def test_a_profile_by_its_name_for_the_operator() -> None:
    rules = own(CHEAP, DEAR, OPEN, default="cheap")
    assert (rules.named(None), rules.named(" DEAR"), rules.named("free")) == (CHEAP, DEAR, OPEN)
    with pytest.raises(ValueError, match="^must name one of the profiles: cheap, dear, free$"):
        rules.named("nosuch")


def test_of_ten_models_that_are_offered_all_are_named() -> None:
    rules = own(*(Profile(name=f"p{n}", model="a:m", open=True) for n in range(9)), default="p0")
    with pytest.raises(BadRequest, match=r"offered here: m, p0, p1, p2, p3, p4, p5, p6, p7, p8$"):
        rules.resolve(CALLER, ask(model="gpt-4o"))


def test_a_model_of_another_open_profile_than_the_requested_one_is_refused() -> None:
    rules = own(CHEAP, OPEN, default="cheap")
    assert rules.resolve(CALLER, ask("free", model="free")) == OPEN
    with pytest.raises(BadRequest):
        rules.resolve(CALLER, ask("free", model="cheap"))


# Models and tools.


def test_row17_a_client_may_name_a_model_that_is_offered_and_no_other() -> None:
    paid = Profile(name="paid", open=True, model="openai:gpt-4o")
    rules = Profiles({**BUILT_IN_PROFILES, "paid": paid}, Limits(), HARD_CAPS, "UTC")

    def named(model: str, profile: str | None = None, ceiling: str | None = None) -> str:
        return rules.resolve(Caller(id="a", profile=ceiling), ask(model=model, profile=profile)).name

    assert named("gpt-4o-mini") == "balanced"
    assert named("openai:gpt-4o") == named("gpt-4o") == named("paid") == "paid"
    assert named("gpt-4o-mini", "constrained") == "constrained"
    assert named("gpt-4o", ceiling="paid") == "paid"
    for model, profile, ceiling in [
        ("GPT-4o", None, None),
        ("gpt-5", None, None),
        ("", None, None),
        ("gpt-4o", "constrained", None),
        ("gpt-4o", None, "balanced"),
        ("openai:gpt-4o ", None, None),
    ]:
        with pytest.raises(BadRequest) as refused:
            named(model, profile, ceiling)
        assert refused.value.field == "model"
        assert model not in refused.value.message.partition(": ")[2].split(", ")


def test_a_profiles_name_under_a_ceiling_only_lowers_it() -> None:
    rules = built_in()
    lowered = rules.resolve(Caller(id="a", profile="expanded"), ask(model="constrained"))
    assert (lowered.name, lowered.max_output_tokens) == ("expanded", CONSTRAINED.max_output_tokens)


def test_row18_tools_are_for_profiles_that_allow_them() -> None:
    able = Profile(name="able", open=True, allow_tools=True)
    rules = Profiles({"balanced": BALANCED, "able": able}, Limits(), HARD_CAPS, "UTC")
    asked = ask(tools=(Tool(name="weather"),))
    with pytest.raises(BadRequest) as refused:
        rules.resolve(CALLER, asked)
    assert refused.value.field == "tools"
    assert rules.resolve(CALLER, replace(asked, profile="able")).allow_tools
    talked = (
        *HELLO,
        Message(role="assistant", content="", tool_calls=(ToolCall(id="1", name="weather", arguments="{}"),)),
        Message(role="tool", content="sun", tool_call_id="1"),
        *HELLO,
    )
    with pytest.raises(BadRequest) as refused:
        rules.resolve(CALLER, replace(ask(), messages=talked))
    assert refused.value.field == "messages[1].role"
    assert refused.value.message.endswith("tools are not accepted from this caller: see allow_tools of the profile")
    assert rules.resolve(CALLER, replace(ask(profile="able"), messages=talked)).name == "able"


def test_a_caller_of_some_profiles_chooses_among_them_and_gets_the_first() -> None:
    rules = own(CHEAP, DEAR, OPEN, default="cheap")
    caller = Caller(id="a", profiles=("dear", "Free"))
    assert [rules.resolve(caller, ask(name)) for name in (None, "free", "dear", "cheap")] == [DEAR, OPEN, DEAR, DEAR]
    assert rules.offered(caller) == (DEAR, OPEN)
    with pytest.raises(Forbidden, match="^The profile of this caller does not exist$"):
        rules.offered(Caller(id="a", profiles=("dear", "nosuch")))


@pytest.mark.parametrize("totals", [Totals(requests=0), Totals(tokens=0), Totals(usd=0.0)])
def test_a_total_of_0_closes(totals: Totals) -> None:
    session = Share(scope="session", id="s", totals=totals, ends_at=NOON + 60)
    with pytest.raises(Closed):
        built_in().resolve(Caller(id="a", shares=(session,)), ask())
    left = Share(scope="session", id="s", totals=Totals(requests=1, tokens=1), ends_at=NOON + 60)
    assert built_in().resolve(Caller(id="a", shares=(left,)), ask()) == BUILT_IN_PROFILES["balanced"]


@pytest.mark.parametrize(
    ("more", "field", "less", "given"),
    [
        ({"on_disconnect": "finish"}, "on_disconnect", "grace", "grace"),
        ({"on_disconnect": "grace"}, "on_disconnect", "finish", "grace"),
        ({"on_disconnect": "cancel"}, "on_disconnect", "finish", "cancel"),
        ({"on_disconnect": "finish"}, "on_disconnect", "cancel", "cancel"),
        ({"grace_seconds": 60.0}, "grace_seconds", 5.0, 5.0),
        ({"grace_seconds": 5.0}, "grace_seconds", 60.0, 5.0),
        ({"allow_tools": True}, "allow_tools", False, False),
        ({"allow_tools": False}, "allow_tools", True, False),
        ({"signed_turns": True}, "signed_turns", False, True),
        ({"signed_turns": False}, "signed_turns", True, True),
        ({"allow_images": True}, "allow_images", False, False),
        ({"allow_images": False}, "allow_images", True, False),
        ({"allow_image_urls": True}, "allow_image_urls", False, False),
        ({"min_output_tokens": 30}, "min_output_tokens", 20, 20),
        ({"max_messages": 9}, "max_messages", 2, 2),
        ({"allow_system_prompt": True}, "allow_system_prompt", False, False),
        ({"max_images": 9}, "max_images", 2, 2),
        ({"max_images": 2}, "max_images", 9, 2),
        ({"max_image_bytes": 9_000}, "max_image_bytes", 2_000, 2_000),
        ({"max_image_bytes": 2_000}, "max_image_bytes", 9_000, 2_000),
    ],
)
def test_under_a_ceiling_nothing_gets_more_than_either_profile_gives(
    more: dict[str, Any], field: str, less: object, given: object
) -> None:
    lower: dict[str, Any] = {field: less}
    high, low = Profile(name="high", model="a:m", **more), Profile(name="low", model="a:m", **lower)
    found = own(high, low, default="high").resolve(Caller(id="a", profile="high"), ask("low"))
    assert getattr(found, field) == given


def test_a_system_prompt_in_a_separate_field_is_refused_by_that_name() -> None:
    asked = ask(system_prompt="Be brief", system_field="instructions")
    with pytest.raises(BadRequest, match="^is not accepted from this caller: see allow_system_prompt") as refused:
        built_in().resolve(CALLER, asked)
    assert refused.value.field == "instructions"
    allowed = Profile(name="one", allow_system_prompt=True)
    assert own(allowed).resolve(CALLER, asked) == own(allowed).named(None)


def test_a_model_with_a_colon_in_its_name_is_named_whole() -> None:
    rules = own(Profile(name="one", model="ollama:qwen3:4b"))
    assert rules.model_names(CALLER) == ("qwen3:4b", "one")
    assert rules.resolve(CALLER, ask(model="qwen3:4b")).model == "ollama:qwen3:4b"


def test_a_limit_of_strangers_that_breaks_its_rule_is_named_by_its_section() -> None:
    with pytest.raises(ValueError, match="^visitors.addresses: tokens_per_day must be a whole number"):
        Profiles({"one": BALANCED}, Limits(), WIDE, "UTC", visitors={"visitors.addresses": Limits(tokens_per_day=-1)})


def test_a_ladder_that_breaks_its_rule_is_named_by_its_profile() -> None:
    rungs = (Rung(below=0.5, model="a:m"), Rung(below=0.5, model="a:n"))
    with pytest.raises(ValueError, match="^profile 'one'"):
        own(Profile(name="one", model="a:m", ladder=rungs))


def test_a_missing_group_is_named() -> None:
    rules = Profiles(BUILT_IN_PROFILES, Limits(), HARD_CAPS, "UTC", groups={"acme": Limits(tokens_per_day=5)})
    with pytest.raises(Forbidden, match="^The group of this caller does not exist$"):
        rules.group_of(Caller(id="a", group="other"))
