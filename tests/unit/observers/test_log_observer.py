"""The log lines of requests."""

from __future__ import annotations

import json
import logging

import pytest

from chat_nest.core.errors import BadRequest, BudgetExceeded, ChatError, UpstreamIdle
from chat_nest.core.messages import Caller
from chat_nest.observers.log import LogObserver
from chat_nest.core.protocols import Ending
from chat_nest.core.usage import Usage

CALLER = Caller(id="203.0.113.7")


def ending(**changes) -> Ending:
    values = {
        "id": "abc",
        "caller": CALLER.key,
        "profile": "balanced",
        "model": "openai:gpt-4o-mini",
        "reason": "stop",
        "error": None,
        "usage": Usage(input_tokens=5, output_tokens=7),
        "source": "reported",
        "seconds": 1.23456,
        "first_token_seconds": 0.5,
        "remaining": {"tokens_per_day": 1},
    }
    return Ending(**{**values, **changes})


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "chat_nest")
    return lambda: [(record.name, record.levelname, record.getMessage()) for record in caplog.records]


def test_a_finished_request_is_one_line(lines):
    LogObserver().finished(ending())
    said = (
        f"finished id=abc caller={CALLER.key} profile=balanced model=openai:gpt-4o-mini reason=stop "
        "input_tokens=5 output_tokens=7 source=reported seconds=1.235 first_token=0.5"
    )
    assert lines() == [("chat_nest", "INFO", said)]


def test_a_failure_on_our_side_is_a_warning_with_its_code(lines):
    LogObserver().finished(ending(reason=None, error=UpstreamIdle(), first_token_seconds=None))
    ((_, level, line),) = lines()
    assert level == "WARNING"
    assert " error=upstream_idle " in line
    assert "reason" not in line
    assert "first_token" not in line


def test_a_refusal_names_the_limit_and_never_the_message(lines):
    LogObserver().refused("abc", CALLER, BudgetExceeded(limit="tokens_per_day"))
    LogObserver().refused("abd", None, BadRequest("canary", field="canary"))
    assert lines() == [
        ("chat_nest", "INFO", f"refused id=abc caller={CALLER.key} error=budget_exceeded limit=tokens_per_day"),
        ("chat_nest", "INFO", "refused id=abd error=bad_request"),
    ]


def test_the_address_is_never_there(lines):
    LogObserver().refused("abc", CALLER, ChatError())
    LogObserver("json").finished(ending())
    assert CALLER.id not in str(lines())


def test_json_holds_the_same_fields_with_their_types(lines):
    LogObserver("json").finished(ending())
    assert json.loads(lines()[0][2]) == {
        "event": "finished",
        "id": "abc",
        "caller": CALLER.key,
        "profile": "balanced",
        "model": "openai:gpt-4o-mini",
        "reason": "stop",
        "input_tokens": 5,
        "output_tokens": 7,
        "source": "reported",
        "seconds": 1.235,
        "first_token": 0.5,
    }


@pytest.mark.parametrize("style", ["text", "json"])
def test_row31_a_name_can_forge_neither_a_field_nor_a_line(lines, style):
    LogObserver(style).finished(ending(profile="x reason=stop\nERROR\x1b[2J\u2028", id='a"b'))
    line = lines()[0][2]
    assert line.isprintable()
    if style == "text":
        assert r'profile="x reason=stop\nERROR\u001b[2J\u2028"' in line
        assert r'id="a\"b"' in line


def test_another_logger(caplog):
    LogObserver(logger=logging.getLogger("mine")).finished(ending(error=UpstreamIdle()))
    assert [record.name for record in caplog.records] == ["mine"]
