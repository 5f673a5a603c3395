"""A worker's end of the link to its parent, over a real pipe."""

from __future__ import annotations

import asyncio
from multiprocessing import Pipe

import pytest

from chat_nest.server.config.settings import load
from chat_nest.server.parent_link import NO_PARENT, ParentLink
from chat_nest.server.reload import DRAINING, ReloadOutcome

CONFIG = load(environ={"OPENAI_API_KEY": "sk-x"})


class App:
    """An application that can't use one configuration."""

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def prepare(self, config):
        if self.failure:
            raise self.failure
        return ("prepared", config)


class Worker:
    def __init__(self) -> None:
        self.app = App()
        self.adopted = []

    def adopt(self, prepared) -> None:
        asyncio.get_running_loop()  # or it raises
        self.adopted.append(prepared)


@pytest.fixture
async def linked():
    parent, theirs = Pipe()
    link, worker = ParentLink(theirs), Worker()
    link.serving(worker)  # type: ignore[arg-type]
    assert await heard(parent) == ("serving",)
    yield parent, link, worker
    parent.close()


async def heard(parent):
    return await asyncio.to_thread(parent.recv)


async def test_it_adopts_the_prepared_configuration_and_confirms_it(linked):
    parent, _, worker = linked
    parent.send(("prepare", 1, CONFIG))
    assert await heard(parent) == ("prepared", 1, "")
    assert worker.adopted == []
    parent.send(("adopt", 1))
    assert await heard(parent) == ("adopted", 1)
    [(_, config)] = worker.adopted
    assert config == CONFIG


async def test_it_reports_an_unusable_configuration_and_adopts_no_forgotten_one(linked, caplog):
    parent, _, worker = linked
    worker.app.failure = ValueError("keys.txt: there is no such file")
    parent.send(("prepare", 1, CONFIG))
    assert await heard(parent) == ("prepared", 1, "keys.txt: there is no such file")
    worker.app.failure = KeyError("sk-canary")
    parent.send(("prepare", 2, CONFIG))
    _, _, problem = await heard(parent)
    assert "KeyError" in problem
    assert "canary" not in problem + caplog.text
    worker.app.failure = None
    parent.send(("prepare", 3, CONFIG))
    assert await heard(parent) == ("prepared", 3, "")
    parent.send(("forget", 3))
    parent.send(("adopt", 3))
    parent.send(("prepare", 4, CONFIG))
    assert await heard(parent) == ("prepared", 4, "")
    assert worker.adopted == []


async def test_its_application_gets_the_parents_outcome(linked):
    parent, link, _ = linked
    first, second = (asyncio.create_task(link.reload()) for _ in range(2))
    assert [await heard(parent), await heard(parent)] == [("reload", 0), ("reload", 1)]
    parent.send(("outcome", 1, ReloadOutcome(adopted=True, changed=("limits",))))
    assert await second == ReloadOutcome(adopted=True, changed=("limits",))
    link.ended()
    assert (await first).problems == (DRAINING,)


async def test_a_parent_that_is_gone(linked):
    parent, link, _ = linked
    parent.close()
    outcome = await link.reload()
    assert (outcome.adopted, outcome.problems) == (False, (NO_PARENT,))
