"""One line a record, whatever the record holds."""

from __future__ import annotations

import logging
import sys

from chat_nest.server.logs import LineFormatter, configure


def record(message: str, *args: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("chat_nest.x", logging.WARNING, "file", 1, message, args, more.pop("exc_info", None))  # type: ignore[arg-type]
    made.created = 0.25
    return made


def test_time_level_logger_message():
    line = LineFormatter().format(record("hello %s", "world"))
    assert line == "1970-01-01T00:00:00.250Z WARNING chat_nest.x: hello world"


def test_a_message_can_neither_forge_a_line_nor_steer_a_terminal():
    line = LineFormatter().format(record("%s", "a\nERROR b\r\x1b[31mc\u2028\u0085\x9b\t\x7f"))
    assert line.endswith(r"a\nERROR b\r\x1b[31mc\u2028\x85\x9b\t\x7f")
    assert line.isprintable()


def test_a_traceback_follows_on_separate_lines_and_is_escaped():
    try:
        raise ValueError("bad\x1b[2J")
    except ValueError:
        text = LineFormatter().format(record("failed", exc_info=sys.exc_info()))
    first, *rest = text.split("\n")
    assert first.endswith("failed")
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == r"ValueError: bad\x1b[2J"


def test_color_is_around_the_line_only():
    line = LineFormatter(color=True).format(record("\x1b[2J"))
    assert line.startswith("\x1b[33m1970")
    assert line.endswith(r"\x1b[2J" + "\x1b[0m")


def test_levels_are_chat_nests_and_others_only_warn(capsys):
    root = logging.getLogger()
    before = (
        root.handlers[:],
        root.level,
        logging.getLogger("chat_nest").level,
        logging.getLogger("uvicorn.access").level,
    )
    try:
        configure("debug", color=False, access_log=False)
        logging.getLogger("chat_nest.x").debug("ours")
        logging.getLogger("elsewhere").info("theirs")
        logging.getLogger("elsewhere").warning("their warning")
        logging.getLogger("uvicorn.access").info("a request")
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        logging.getLogger("chat_nest").setLevel(before[2])
        logging.getLogger("uvicorn.access").setLevel(before[3])
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["DEBUG chat_nest.x: ours", "WARNING elsewhere: their warning"]
