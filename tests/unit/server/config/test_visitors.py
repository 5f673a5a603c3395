from __future__ import annotations

from pathlib import Path

import pytest

from chat_nest.cli.strangers import spending_rows
from chat_nest.server.app import build
from chat_nest.server.config.settings import Config, load
from chat_nest.server.config.setup_parts import needed_parts
from chat_nest.server.config.sources import ConfigError

SECRET = "a secret of visitors that is long"
ENVIRON = {"OPENAI_API_KEY": "sk-test", "CHAT_NEST_STORE_URL": "memory://"}
VISITORS = f"""
[visitors]
secret = "{SECRET}"
tokens_per_day = 500
[addresses]
tokens_per_day = 3_000
requests_per_day = 90
"""
CHALLENGE = """
[challenge]
kind = "proof_of_work"
before = "taste"
after = "meal"
[profiles.taste]
open = true
[profiles.meal]
"""


def loaded(tmp_path: Path, text: str, **environ: str) -> Config:
    file = tmp_path / "chat-nest.toml"
    file.write_text(text)
    return load(str(file), {**ENVIRON, **environ})


def problems(tmp_path: Path, text: str, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, text, **environ)
    return error.value.problems


def test_without_the_section_callers_are_their_addresses(tmp_path):
    config = loaded(tmp_path, "")
    assert (config.visitors, config.identity.ways) == (None, ("address",))


def test_visitors_take_the_place_of_addresses(tmp_path):
    config = loaded(tmp_path, VISITORS)
    assert config.visitors is not None
    assert config.identity.ways == ("visitor",)
    assert (config.visitors.limits.tokens_per_day, config.visitors.addresses.tokens_per_day) == (500, 3_000)
    assert SECRET not in repr(config)


def test_the_secrets_may_be_in_variables(tmp_path):
    text = '[visitors]\nsecret_env = "NOW"\nprevious_secret_env = "BEFORE"\n[networks]\ntokens_per_day = 1\n'
    config = loaded(tmp_path, text, NOW="n" * 32, BEFORE="b" * 32)
    assert config.visitors is not None
    assert [secret.reveal() for secret in config.visitors.secrets] == ["n" * 32, "b" * 32]
    direct = loaded(tmp_path, "[networks]\ntokens_per_day = 1\n[visitors]\n", CHAT_NEST_VISITORS_SECRET=SECRET)
    assert direct.visitors is not None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[addresses]\ntokens_per_day = 1", "addresses: has no meaning without [visitors]"),
        ('[challenge]\nkind = "proof_of_work"', "challenge: has no meaning without [visitors]"),
        ("[visitors]\n[addresses]\ntokens_per_day = 1", "visitors: needs a secret"),
        (
            '[visitors]\nsecret = "short"\n[addresses]\ntokens_per_day = 1',
            "secret: the secret must have at least 32 bytes",
        ),
        (f'[visitors]\nsecret = "{SECRET}"', "needs a limit in [addresses] or [networks]"),
        (
            f'[visitors]\nsecret = "{SECRET}"\nsecret_env = "X"\n[addresses]\ntokens_per_day = 1',
            "give either secret or secret_env",
        ),
        (
            '[visitors]\nsecret_env = "MISSING"\n[addresses]\ntokens_per_day = 1',
            "must name an environment variable that is set",
        ),
        (VISITORS + '[challenge]\nwhen = "limit"', "challenge.kind: is missing"),
        (VISITORS + '[challenge]\nkind = "magic"', 'kind: must be one of "proof_of_work"'),
        (VISITORS + '[challenge]\nkind = "proof_of_work"', "after: must name the profile of a visitor that passed"),
        (VISITORS + CHALLENGE.replace('"meal"', '"lunch"'), "after: must name one of the profiles: taste, meal"),
        (VISITORS + CHALLENGE.replace("before", "hours = 0\nbefore"), "hours: must be a number above 0"),
        (VISITORS + '[challenge]\nkind = "turnstile"\nwhen = "always"', "site_key: is needed"),
    ],
)
def test_problems(tmp_path, text, problem):
    found = problems(tmp_path, 'default_profile = "taste"\n' + text if "taste" in text else text)
    assert any(problem in each for each in found)
    assert not any('"short"' in each or SECRET in each for each in found)


def test_dollars_need_a_price(tmp_path):
    text = (
        VISITORS.replace("requests_per_day = 90", "usd_per_day = 1")
        + '[profiles.balanced]\nmodel = "openai:unheard-of"\n'
    )
    assert any("the price of 'openai:unheard-of' is not known" in each for each in problems(tmp_path, text))


def test_visitors_that_are_not_accepted(tmp_path):
    only = loaded(tmp_path, VISITORS + '[identity]\naccept = ["address"]\n')
    assert only.identity.ways == ("address",)
    assert build(only)._prepared.ways.visitors is None


def test_what_one_stranger_can_spend_is_what_its_address_can(tmp_path):
    rows = {
        row[0]: row for row in spending_rows(loaded(tmp_path, VISITORS + '[profiles.balanced]\nmodel = "openai:m"\n'))
    }
    assert rows["alone"][1] == "visitors of one address, in any open profile"
    assert rows["alone"][2] == rows["balanced"][2] == "3,000"


def test_the_profiles_of_a_challenge_are_open_to_strangers(tmp_path):
    text = 'default_profile = "taste"\n' + VISITORS + CHALLENGE
    rows = {row[0]: row for row in spending_rows(loaded(tmp_path, text))}
    assert rows["meal"][1] == "every stranger"


def test_the_extra_is_installed_if_it_is_needed(tmp_path):
    file = tmp_path / "chat-nest.toml"
    file.write_text('default_profile = "taste"\n' + VISITORS + CHALLENGE)
    assert "altcha" in needed_parts("check", str(file), ENVIRON)


async def test_a_reload_changes_limits_and_challenge(tmp_path):
    text = 'default_profile = "taste"\n' + VISITORS + CHALLENGE
    app = build(loaded(tmp_path, text))
    before = app._prepared
    changed = loaded(tmp_path, text.replace("3_000", "4_000").replace("before =", 'when = "always"\nbefore ='))
    app.adopt(app.prepare(changed))
    assert app._prepared.ways.visitors is not None
    assert app._prepared.ways.visitors is not before.ways.visitors
    assert app._prepared.ways.visitors.addresses.tokens_per_day == 4_000
    assert app._prepared.parts.settings.challenge.when == "always"
    app.adopt(app.prepare(loaded(tmp_path, "")))
    assert app._prepared.ways.visitors is None
