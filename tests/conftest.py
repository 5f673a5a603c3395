"""Makes the tools beside this file importable by name in every test: `from scripted_provider import ScriptedProvider`."""

import asyncio

import pytest
from example_counts import examples
from hypothesis import settings

# How long an example takes depends on the machine more than on the code.
settings.register_profile("chat-nest", deadline=None, max_examples=examples())
settings.load_profile("chat-nest")


class NamedFailures:
    """Prints each failure's name when it happens: a whole run takes many minutes."""

    def __init__(self, config: pytest.Config) -> None:
        self._plugins = config.pluginmanager

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._plugins.get_plugin("terminalreporter")  # None in a worker of pytest-xdist
        if report.failed and terminal is not None:
            terminal.write_line(f"\nFAILED {report.nodeid} ({report.when})", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Set no event loop: pytest-asyncio asks for the current one, and a new one would never be closed."""
    asyncio.set_event_loop(None)
    config.pluginmanager.register(NamedFailures(config))
