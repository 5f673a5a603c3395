"""A reload of several workers: all adopt, or none."""

from __future__ import annotations

import pytest

from chat_nest.server.config.changes import Changes
from chat_nest.server.config.settings import load
from chat_nest.server.config.sources import ConfigError
from chat_nest.server.reload import ReloadOutcome
from chat_nest.server.rollout import ADOPT_SECONDS, PREPARE_SECONDS, Rollouts

ENVIRON = {"OPENAI_API_KEY": "sk-x"}


class Source:
    def __init__(self) -> None:
        self.config = load(environ=ENVIRON)
        self.problem = ""
        self.in_force: list[Changes] = []

    def read(self):
        if self.problem:
            raise ConfigError([self.problem])
        return Changes(self.config, ("limits.tokens_per_day",), ()), self.config

    def adopted(self, changes: Changes) -> None:
        self.in_force.append(changes)


class Member:
    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[tuple] = []
        self.gone = False

    def send(self, *message: object) -> bool:
        self.heard.append(message[:2])
        return not self.gone


class Fleet:
    """Rollouts with two members, which a test lets answer by hand. `outcomes` are the answers to those who asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.source = Source()
        self.a, self.b = Member("worker 1"), Member("worker 2")
        self.members = [self.a, self.b]
        self.started_with: list[object] = []
        self.outcomes: list[ReloadOutcome] = []
        self.rollouts = Rollouts(self.source, lambda: list(self.members), self.started_with.append, lambda: self.now)  # type: ignore[arg-type]

    def ask(self) -> None:
        self.rollouts.ask(self.outcomes.append)

    def both(self, number: int) -> None:
        for member in (self.a, self.b):
            self.rollouts.prepared(member, number, "")
        for member in (self.a, self.b):
            self.rollouts.adopted(member, number)


def test_no_worker_adopts_before_all_have_prepared():
    fleet = Fleet()
    fleet.ask()
    fleet.rollouts.prepared(fleet.a, 1, "")
    assert [message[0] for message in fleet.a.heard] == ["prepare"]
    assert not fleet.started_with
    fleet.rollouts.prepared(fleet.b, 1, "")
    assert [message[0] for message in fleet.a.heard + fleet.b.heard] == ["prepare", "adopt"] * 2
    assert fleet.started_with == [fleet.source.config]
    assert not fleet.outcomes  # not before it is in force everywhere
    fleet.rollouts.adopted(fleet.a, 1)
    fleet.rollouts.adopted(fleet.b, 1)
    assert [outcome.adopted for outcome in fleet.outcomes] == [True]
    assert fleet.rollouts.due is None


def test_one_that_cant_prepare_stops_it_for_all():
    fleet = Fleet()
    fleet.ask()
    fleet.rollouts.prepared(fleet.a, 1, "")
    fleet.rollouts.prepared(fleet.b, 1, "keys.txt: there is no such file")
    assert [message[0] for message in fleet.a.heard] == ["prepare", "forget"]
    assert fleet.outcomes == [ReloadOutcome(adopted=False, problems=("keys.txt: there is no such file",), code=1)]
    assert not fleet.started_with
    assert not fleet.source.in_force
    fleet.ask()
    fleet.both(2)
    assert fleet.outcomes[-1].adopted


def test_a_wrong_configuration_reaches_no_worker():
    fleet = Fleet()
    fleet.source.problem = "chat.toml:3: no"
    fleet.ask()
    assert fleet.outcomes == [ReloadOutcome(adopted=False, problems=("chat.toml:3: no",), code=2)]
    assert not fleet.a.heard


@pytest.mark.parametrize("phase", ["preparing", "adopting"])
def test_one_that_ends_is_not_waited_for(phase):
    fleet = Fleet()
    fleet.ask()
    if phase == "adopting":
        for member in fleet.members:
            fleet.rollouts.prepared(member, 1, "")
        fleet.rollouts.adopted(fleet.a, 1)
    else:
        fleet.rollouts.prepared(fleet.a, 1, "")
    fleet.members.remove(fleet.b)
    fleet.rollouts.left(fleet.b)
    fleet.rollouts.adopted(fleet.a, 1)
    assert [outcome.adopted for outcome in fleet.outcomes] == [True]


def test_a_worker_that_starts_during_a_reload_takes_part():
    """It was started with the configuration before."""
    fleet = Fleet()
    fleet.ask()
    fleet.members.remove(fleet.b)
    fleet.rollouts.left(fleet.b)
    c = Member("worker 3")
    fleet.members.append(c)
    fleet.rollouts.joined(c)
    fleet.rollouts.prepared(fleet.a, 1, "")
    assert not fleet.started_with
    fleet.rollouts.prepared(c, 1, "")
    assert c.heard == [("prepare", 1), ("adopt", 1)]
    late = Member("worker 4")
    fleet.members.append(late)
    fleet.rollouts.joined(late)  # with the new one
    assert not late.heard


def test_silence_while_it_prepares_changes_nothing_and_the_silent_one_is_not_sent_more():
    fleet = Fleet()
    fleet.ask()
    fleet.rollouts.prepared(fleet.a, 1, "")
    fleet.now = PREPARE_SECONDS
    fleet.rollouts.expire()
    assert fleet.outcomes[0].problems == ("worker 2 did not build it in 30 s",)
    assert not fleet.started_with
    fleet.ask()
    assert fleet.outcomes[1].problems == ("worker 2 has not answered the last reload",)
    assert fleet.b.heard == [("prepare", 1), ("forget", 1)]
    fleet.rollouts.prepared(fleet.b, 1, "")  # at last
    assert not fleet.started_with
    fleet.ask()
    fleet.both(3)
    assert fleet.outcomes[2].adopted


def test_silence_while_it_adopts_is_logged_and_the_rest_is_in_force(caplog):
    fleet = Fleet()
    fleet.ask()
    for member in fleet.members:
        fleet.rollouts.prepared(member, 1, "")
    fleet.rollouts.adopted(fleet.b, 1)
    fleet.now = ADOPT_SECONDS
    fleet.rollouts.expire()
    assert fleet.outcomes[0].adopted
    assert "worker 1 did not confirm it" in caplog.text


def test_reloads_requested_during_a_reload_share_the_next_one():
    fleet = Fleet()
    for _ in range(3):
        fleet.ask()
    fleet.both(1)
    assert len(fleet.outcomes) == 1
    fleet.both(2)
    assert [outcome.adopted for outcome in fleet.outcomes] == [True] * 3
    assert fleet.a.heard == [("prepare", 1), ("adopt", 1), ("prepare", 2), ("adopt", 2)]


def test_the_end_answers_every_waiting_reload():
    fleet = Fleet()
    fleet.ask()
    fleet.ask()
    fleet.rollouts.stop("the server is about to end")
    assert [outcome.problems for outcome in fleet.outcomes] == [("the server is about to end",)] * 2
    assert not fleet.started_with


def test_a_server_without_a_running_worker_starts_them_with_it():
    fleet = Fleet()
    fleet.members.clear()
    fleet.ask()
    assert fleet.outcomes[0].adopted
    assert fleet.started_with == [fleet.source.config]
