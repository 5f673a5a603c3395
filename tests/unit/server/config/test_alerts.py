"""[alerts]: each mistake has its place and its rule, and no secret is repeated."""

from __future__ import annotations

import builtins

import pytest

from chat_nest.alerts.settings import Bounds
from chat_nest.server.alerts import make_channels
from chat_nest.server.config.settings import load
from chat_nest.server.config.sources import ConfigError

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_T3RoZXJTZWNyZXRPdGhlclNlY3JldE90aGVy"
HOOK = f'webhook = "https://ops.example.org/hook?token=t0ken"\nwebhook_secrets = ["{SECRET}"]\n'
MAIL = 'email = ["ops@example.org"]\nemail_from = "nest@example.org"\nsmtp_host = "mail.example.org"\n'


def loaded(tmp_path, alerts, **environ):
    (tmp_path / "chat.toml").write_text(f"[alerts]\n{alerts}")
    return load(str(tmp_path / "chat.toml"), {"OPENAI_API_KEY": "sk-x", **environ})


def problems(tmp_path, alerts, **environ):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, alerts, **environ)
    return [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]


def test_a_webhook_and_mail(tmp_path):
    (tmp_path / "password").write_text("correct horse\n")
    more = f'smtp_user = "nest"\nsmtp_password_file = "{tmp_path}/password"\npercents = [90, 60, 60]\n'
    found = loaded(tmp_path, HOOK + MAIL + more).alerts
    assert found.webhook.reveal() == "https://ops.example.org/hook?token=t0ken"
    assert (found.mail.host, found.mail.port, found.mail.security) == ("mail.example.org", 587, "starttls")
    assert found.smtp_password.reveal() == "correct horse"
    assert found.bounds == Bounds(percents=(60, 90))
    assert [each.kind for each in make_channels(found)] == ["webhook", "email"]
    for secret in (SECRET, "t0ken", "correct horse"):
        assert secret not in repr(found)


def test_secrets_come_from_a_file_or_a_variable_which_wins(tmp_path):
    (tmp_path / "secrets").write_text(f"# new\n{OTHER}\n\n{SECRET}\n")
    hook = f'webhook = "https://x.example/"\nwebhook_secrets_file = "{tmp_path}/secrets"\n'
    assert [each.reveal() for each in loaded(tmp_path, hook).alerts.webhook_secrets] == [OTHER, SECRET]
    found = loaded(tmp_path, hook, CHAT_NEST_ALERTS_WEBHOOK_SECRETS=SECRET, CHAT_NEST_ALERTS_PERCENTS="75,100").alerts
    assert [each.reveal() for each in found.webhook_secrets] == [SECRET]
    assert found.bounds.percents == (75, 100)


def test_without_a_receiver_there_are_none(tmp_path):
    config = loaded(tmp_path, "percents = [80]\n")
    assert config.alerts is None
    assert "has no effect without alerts.webhook or alerts.email" in "".join(config.notes)
    assert make_channels(config.alerts) == []


@pytest.mark.parametrize(
    ("alerts", "problem"),
    [
        ('webhook = "ftp://x"', "chat.toml:2: alerts.webhook: must be a URL that begins with https://"),
        ('webhook = "https://u:p@x/"\n' + HOOK.partition("\n")[2], "chat.toml:2: alerts.webhook: must be a URL with a host, and"),
        ('webhook = "https://x/"', "chat.toml:1: alerts.webhook_secrets: needs a secret: put whsec_"),
        ('webhook = "https://x/"\nwebhook_secrets = ["hunter2"]', "secret 1 must be whsec_ and 24 to 64 random bytes in base64"),
        (HOOK + 'webhook_secrets_file = "nowhere"', "give either webhook_secrets or this file, not both"),
        ('webhook = "https://x/"\nwebhook_secrets_file = "nowhere"', "webhook_secrets_file: can't be read: No such file"),
        (HOOK + "percents = [0]", "alerts.percents: must be a list of whole numbers from 1 to 100"),
        (HOOK + 'events = ["store.up"]', "alerts.events: must be types of alerts; did you mean store.down?"),
        ('email = ["ops@example.org"]', "alerts.smtp_host: is missing: alerts.email needs it"),
        (MAIL.replace("ops@example.org", "ops"), "alerts.email: must be e-mail addresses, such as ops@example.org"),
        (MAIL + 'smtp_user = "nest"', "a user and a password belong together"),
        (MAIL + 'smtp_user = "n"\nsmtp_password = "hunter2"\nsmtp_security = "none"', "a password must not go in clear text"),
        (MAIL + 'smtp_security = "ssl"', 'must be one of "starttls", "tls", "none"'),
    ],
)  # fmt: skip
def test_a_mistake_has_its_place_and_its_rule(tmp_path, alerts, problem):
    found = problems(tmp_path, alerts)
    assert any(problem in each for each in found), found
    assert "hunter2" not in "".join(found)


def test_mail_without_its_package_names_the_remedy(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **more):
        if name == "aiosmtplib":
            raise ModuleNotFoundError("No module named 'aiosmtplib'", name=name)
        return real(name, *arguments, **more)

    monkeypatch.setitem(__import__("sys").modules, "aiosmtplib", None)
    monkeypatch.setattr(builtins, "__import__", missing)
    [problem] = problems(tmp_path, MAIL)
    assert "E-mail needs a package that is not installed: run:" in problem


def test_clear_text_is_noted_except_on_this_machine(tmp_path):
    hook = HOOK.replace("https://ops.example.org", "http://{}")
    assert "clear text" in "".join(loaded(tmp_path, hook.format("ops.example.org")).notes)
    assert "clear text" not in "".join(loaded(tmp_path, hook.format("127.0.0.1:9")).notes)
    assert "clear text" in "".join(loaded(tmp_path, MAIL + 'smtp_security = "none"').notes)
