from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Examples configure logging, and so does Litestar: to standard error as it is in their test, closed after it."""
    loggers = [logging.getLogger(name) for name in ("chat_nest", None, "litestar")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
