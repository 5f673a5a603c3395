"""The sockets of the service manager: which are taken, and what is refused."""

from __future__ import annotations

import fcntl
import os
import re
import socket

import pytest
from msgspec.structs import replace

from chat_nest.server import socket_activation
from chat_nest.server.config.settings import load
from chat_nest.server.listen import ListenError, listen
from chat_nest.server.listeners import open_listeners
from chat_nest.server.socket_activation import Passed, take_passed

KEY = {"OPENAI_API_KEY": "sk-x"}


@pytest.fixture
def passed(monkeypatch):
    """Pass these sockets, as descriptors in a row; return the environment."""
    numbers = []

    def hand_over(*sockets, names="", pid=None):
        first = max(fcntl.fcntl(each.fileno(), fcntl.F_DUPFD, 500) for each in sockets) + 1
        for index, each in enumerate(sockets):
            os.dup2(each.fileno(), first + index)
            numbers.append(first + index)
        monkeypatch.setattr(socket_activation, "FIRST", first)
        return {
            "LISTEN_PID": str(os.getpid() if pid is None else pid),
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": names,
            "OTHER": "kept",
        }

    yield hand_over
    for number in numbers:
        try:
            os.close(number)
        except OSError:  # it was taken
            pass


def test_sockets_are_distinguished_by_name_and_not_inherited_by_a_child(passed):
    with listen("127.0.0.1", 0) as chats, listen("127.0.0.1", 0) as operators:
        environ = passed(operators, chats, names="admin:chat-nest.socket")
        taken = take_passed(environ)
        assert taken.public is not None
        assert taken.operators is not None
        with taken.public, taken.operators:
            assert taken.public.getsockname() == chats.getsockname()
            assert taken.operators.getsockname() == operators.getsockname()
            assert not taken.public.get_inheritable()
            assert not taken.public.getblocking()
    assert environ == {"OTHER": "kept"}


def test_those_of_another_process_are_left_alone(passed):
    with listen("127.0.0.1", 0) as chats:
        environ = passed(chats, pid=1)
        assert take_passed(environ) == Passed()
    assert environ == {"OTHER": "kept"}
    assert take_passed({}) == Passed()


@pytest.mark.parametrize(("names", "of"), [("public:public", "chats"), ("", "chats"), ("admin:admin", "operators")])
def test_two_for_one_use_are_refused(passed, names, of):
    with listen("127.0.0.1", 0) as one, listen("127.0.0.1", 0) as other:
        with pytest.raises(ListenError, match=f"passed two sockets for {of}: give one ListenStream="):
            take_passed(passed(one, other, names=names))


def test_a_connection_is_no_listener(passed):
    with listen("127.0.0.1", 0) as chats, socket.create_connection(chats.getsockname()) as connection:
        with pytest.raises(ListenError, match="does not listen for streams: use ListenStream= and Accept=no"):
            take_passed(passed(connection))


def test_a_file_is_no_socket(passed, tmp_path):
    with (tmp_path / "file").open("w") as file:
        with pytest.raises(ListenError, match="of LISTEN_FDS is no socket: Socket operation on non-socket"):
            take_passed(passed(file))


def config(port, admin=""):
    return replace(load("", {**KEY, "CHAT_NEST_SERVER_PORT": str(port)}), admin_listen=admin)


@pytest.mark.parametrize(
    ("admin", "says"),
    [("", "name it in [admin] listen"), ("127.0.0.1:1", "[admin] has 127.0.0.1:1"), ("unix:/no", "has unix:/no")],
)
def test_the_configuration_must_know_the_operators_socket(admin, says):
    with listen("127.0.0.1", 0) as public, listen("127.0.0.1", 0) as operators:
        with pytest.raises(ListenError, match=re.escape(says)):
            open_listeners(config(public.getsockname()[1], admin), Passed(public, operators))


def test_the_configuration_must_know_the_public_address_too():
    with (
        listen("127.0.0.1", 0) as public,
        pytest.raises(ListenError, match=r"but \[server\] has 127\.0\.0\.1 port 1:"),
    ):
        open_listeners(config(1), Passed(public))


def test_a_unix_socket_of_operators_is_not_removed_at_the_end(tmp_path):
    path = tmp_path / "admin.sock"
    with listen("127.0.0.1", 0) as public, socket.socket(socket.AF_UNIX) as operators:
        operators.bind(str(path))
        operators.listen()
        listeners = open_listeners(config(public.getsockname()[1], f"unix:{path}"), Passed(public, operators))
        assert (listeners.operators, listeners.outlives) == (operators, True)
        listeners.remove()
    assert path.exists()
