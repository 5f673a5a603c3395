from __future__ import annotations

import pytest
from msgspec.structs import replace

from chat_nest.limits.numbers import PRESETS, answer_share
from chat_nest.limits.spec import (
    BALANCED,
    CONSTRAINED,
    EXPANDED,
    HardCaps,
    Limits,
    Profile,
    built_in_caps,
    built_in_profiles,
    fitted,
)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_caller_may_choose_each_built_in_profile(preset):
    profiles = built_in_profiles(preset)
    assert list(profiles) == ["constrained", "balanced", "expanded"]
    for name, profile in profiles.items():
        assert (profile.name, profile.open) == (name, True)
        numbers = PRESETS[preset].profiles[name]
        assert {each: getattr(profile, each) for each in numbers.__struct_fields__} == {
            each: getattr(numbers, each) for each in numbers.__struct_fields__
        }


def test_the_built_in_profiles_to_import_are_open_only_as_the_default():
    profiles = built_in_profiles()
    assert profiles == built_in_profiles("default")
    for profile in (CONSTRAINED, BALANCED, EXPANDED):
        assert profile == replace(profiles[profile.name], open=None)


def test_the_ceiling_is_the_presets():
    assert built_in_caps() == built_in_caps("default") == HardCaps()
    caps, numbers = built_in_caps("npm"), PRESETS["npm"].hard_caps
    assert {name: getattr(caps, name) for name in numbers.__struct_fields__} == {
        name: getattr(numbers, name) for name in numbers.__struct_fields__
    }
    assert caps != HardCaps()


@pytest.mark.parametrize(
    ("tokens", "output", "fits"),
    [(None, 100, (3_072, 100)), (3_073, 100, (3_072, 100)), (3_071, 100, (3_071, 100)), (0, 100, (0, 100))],
)
def test_a_profile_is_fitted_to_what_the_model_holds(tokens, output, fits):
    profile = fitted(replace(BALANCED, tokens_per_request=tokens, max_output_tokens=output), 3_072)
    assert (profile.tokens_per_request, profile.max_output_tokens) == fits


def test_an_answer_has_its_share_of_what_the_model_holds():
    assert fitted(replace(BALANCED, max_output_tokens=10**6), 3_072).max_output_tokens == answer_share(3_072)
    assert fitted(replace(BALANCED, max_output_tokens=7), 3_072).max_output_tokens == 7


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Limits, "usd_per_day"), (Profile, "tokens_per_request"), (Profile, "tokens_per_day"), (HardCaps, "max_messages")],
)
def test_the_word_none_is_no_limit(kind, name):
    assert getattr(kind(**{name: "none"}), name) is None
    assert getattr(kind(**{name: 5}), name) == 5
    assert getattr(kind(**{name: 0}), name) == 0
