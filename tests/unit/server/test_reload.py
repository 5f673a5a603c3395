"""What is read again: new values beside old ones that stay, SIGHUP at any time, and the service manager."""

from __future__ import annotations

import os
import re
import signal
import socket

import pytest

from chat_nest.server.config.settings import load
from chat_nest.server.config.sources import ConfigError
from chat_nest.server.hangup import Hangup
from chat_nest.server.reload import ConfigSource
from chat_nest.server.systemd import notify, notify_reloading, watchdog_seconds

ENVIRON = {"OPENAI_API_KEY": "sk-x", "CHAT_NEST_STORE_URL": "redis://127.0.0.1:1", "CHAT_NEST_STORE_JOURNAL": "off"}


def source_of(folder, before: str, after: str) -> ConfigSource:
    file = folder / "c.toml"

    def read(host: str | None = None):
        return load(str(file), ENVIRON, host=host)

    file.write_text(before)
    source = ConfigSource(read(), read)
    file.write_text(after)
    return source


def test_new_limits_must_hold_the_allowance_that_stays_in_force(tmp_path):
    allowance = "[degraded]\ntokens = {0}\n[limits]\ntokens_per_day = {1}\n"
    source = source_of(tmp_path, allowance.format(500, 1_000), allowance.format(50, 100))
    with pytest.raises(ConfigError, match=r"c\.toml: degraded.*a restart may be needed"):
        source.read()


def test_the_defaults_of_hosts_are_those_of_the_address_in_use(tmp_path):
    source = source_of(tmp_path, "", '[server]\nhost = "0.0.0.0"\nport = 9\n')
    changes, config = source.read()
    assert changes.kept == ("server.host", "server.port")
    assert config.server.host == "127.0.0.1"
    assert config.server.allowed_hosts == ("localhost", "127.0.0.1", "[::1]")
    assert config.server.cors_origins == ()


def test_only_what_is_adopted_is_the_next_base(tmp_path):
    source = source_of(tmp_path, "", "[limits]\ntokens_per_day = 5_000\n")
    for _ in range(2):
        changes, _ = source.read()
        assert changes.changed == ("limits.tokens_per_day",)
    source.adopted(changes)
    assert source.read()[0].changed == ()


@pytest.fixture
def hangup_as_before():
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup_as_before")
def test_a_sighup_before_the_server_serves_is_not_lost():
    hangup, calls = Hangup(), []
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    hangup.reload_with(lambda: calls.append("now"))
    assert calls == ["now"]
    signal.raise_signal(signal.SIGHUP)
    assert calls == ["now", "now"]


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_states_go_to_the_service_managers_socket(tmp_path, monkeypatch, kind):
    name = str(tmp_path / "n") if kind == "path" else f"@chat-nest-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name[1:]}" if kind == "abstract" else name)
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")
        assert listening.recv(100) == b"READY=1"
        notify_reloading()
        assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=[0-9]+", listening.recv(100))


@pytest.mark.parametrize("name", ["", "relative", "/nobody/is/there"])
def test_without_a_service_manager_nothing_fails(monkeypatch, name, caplog):
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify("READY=1")
    assert caplog.text.count("the service manager was not notified") == (name == "/nobody/is/there")


@pytest.mark.parametrize(
    ("micros", "pid", "seconds"),
    [
        ("30000000", "", 15.0),
        ("30000000", "own", 15.0),
        ("30000000", "1", None),
        ("0", "", None),
        ("x", "", None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_expects(monkeypatch, micros, pid, seconds):
    monkeypatch.setenv("WATCHDOG_USEC", micros)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert watchdog_seconds() == seconds
