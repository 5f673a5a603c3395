"""The socket, and what to do where it can't be had."""

from __future__ import annotations

import errno
import socket

import pytest

from chat_nest.server.listen import ListenError, listen, url_of


def test_port_0_is_any_free_port_and_takes_connections_at_once():
    with listen("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        socket.create_connection((host, port), timeout=5).close()


def test_an_ipv6_address_is_bracketed():
    with listen("::1", 0) as listener:
        assert url_of(listener).startswith("http://[::1]:")


def test_a_port_in_use():
    with listen("127.0.0.1", 0) as taken, pytest.raises(ListenError) as caught:
        port = taken.getsockname()[1]
        listen("127.0.0.1", port)
    said = f"port {port} on 127.0.0.1 is in use: stop what listens there, or choose another with --port"
    assert str(caught.value) == said


def test_an_address_of_another_machine():
    with pytest.raises(ListenError, match=r"192.0.2.1 is not an address of this machine: correct --host"):
        listen("192.0.2.1", 0)


@pytest.mark.parametrize("host", ["no such host", "a" * 80, "\udc80"])
def test_a_host_that_is_no_name(host):
    with pytest.raises(ListenError, match="neither an address nor a name of this machine: correct --host"):
        listen(host, 0)


def test_a_privileged_port(monkeypatch):
    def refuse(self, address):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)  # the tests may run as root, who may do it
    with pytest.raises(ListenError, match="port 80 needs more rights than this user has: choose one above 1023"):
        listen("127.0.0.1", 80)
