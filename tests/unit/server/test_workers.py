"""When a worker's place is filled again."""

from __future__ import annotations

from chat_nest.server.worker_place import LONGEST_PAUSE, STEADY_SECONDS, WorkerSlot


def test_pauses_grow_to_a_longest_one_while_workers_end_soon():
    place = WorkerSlot()
    assert [place.vacate(float(now)) for now in range(8)] == [1, 2, 4, 8, 16, 30, 30, 30]
    assert place.start_at == 7 + LONGEST_PAUSE


def test_a_thousand_failures_are_no_longer_a_pause():
    place = WorkerSlot()
    assert {place.vacate(0.0) for _ in range(2_000)} == {1, 2, 4, 8, 16, 30}


def test_pauses_begin_anew_after_a_worker_that_served_for_a_while():
    place = WorkerSlot()
    for now in range(4):
        place.vacate(float(now))
    place.served_from = 100.0
    assert place.vacate(100.0 + STEADY_SECONDS - 0.1) == 16
    place.served_from = 200.0
    assert place.vacate(200.0 + STEADY_SECONDS) == 1
    assert place.vacate(300.0) == 2
