"""[log], [metrics] and [traces]: what is wrong, and what must be installed."""

from __future__ import annotations

import sys

import pytest

from chat_nest.server.config.settings import load
from chat_nest.server.config.sources import ConfigError

KEY = {"OPENAI_API_KEY": "sk-x"}


def test_everything_is_off_by_default():
    config = load("", KEY)
    assert (config.metrics.enabled, config.traces.endpoint) == (False, "")
    assert (config.log.format, config.log.level, config.log.requests) == ("text", "info", False)


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("LOG_FORMAT", "xml-canary", "one of text, json"),
        ("LOG_LEVEL", "canary", "one of debug, info, warning, error"),
        ("METRICS_ENABLED", "canary", "true or false"),
        ("TRACES_ENDPOINT", "canary://x", "a URL that begins with http:// or https://"),
        ("TRACES_SAMPLE", "1.5", "a number from 0 to 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule_and_not_repeated(variable, value, rule):
    with pytest.raises(ConfigError) as raised:
        load("", {**KEY, f"CHAT_NEST_{variable}": value})
    (problem,) = raised.value.problems
    assert rule in problem
    assert "canary" not in problem


@pytest.mark.parametrize(
    ("package", "settings", "key"),
    [
        ("prometheus_client", {"CHAT_NEST_METRICS_ENABLED": "true"}, "metrics.enabled"),
        (
            "opentelemetry.trace",
            {"CHAT_NEST_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"},
            "traces.endpoint",
        ),
    ],
)
def test_a_missing_package_is_named_with_the_command_to_install_it(package, settings, key, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as raised:
        load("", {**KEY, **settings})
    (problem,) = raised.value.problems
    assert key in problem or key.replace(".", "_").upper() in problem
    assert "run: " in problem
