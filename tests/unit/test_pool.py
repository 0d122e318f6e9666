from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from convlens_server.errors import Draining, QueueFull
from convlens_server.pool import BoundedPool


class Gate:
    """Work that says when it runs, and goes on when told to."""

    def __init__(self) -> None:
        self.running: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.go = threading.Event()

    def work(self, name: int = 0) -> Callable[[], None]:
        def run() -> None:
            self.running.put(name)
            assert self.go.wait(20)

        return run

    def started(self, number: int) -> list[int]:
        return [self.running.get(timeout=20) for _ in range(number)]


@pytest.fixture
def pool() -> Any:
    pool = BoundedPool("decoding", workers=2, max_waiting=3)
    yield pool
    pool.close()


def test_runs_what_is_submitted_in_order() -> None:
    pool = BoundedPool("decoding", workers=1, max_waiting=100)
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(50):
        pool.submit(lambda number=number: done.put(number))
    assert [done.get(timeout=20) for _ in range(50)] == list(range(50))
    pool.close()


def test_refuses_what_would_hold_too_many_bytes() -> None:
    pool = BoundedPool("decoding", workers=1, max_waiting=100, max_bytes=1000)
    gate = Gate()
    pool.submit(gate.work(0), 600)
    pool.submit(gate.work(1), 400)
    with pytest.raises(QueueFull, match="1000 bytes wait for decoding, and 1 more are over the limit of 1000"):
        pool.submit(gate.work(2), 1)
    gate.go.set()
    gate.started(2)
    pool.close()


def test_one_that_is_too_large_for_all_is_taken_where_nothing_waits() -> None:
    pool = BoundedPool("decoding", workers=1, max_waiting=100, max_bytes=1000)
    gate = Gate()
    gate.go.set()
    pool.submit(gate.work(0), 5000)
    gate.started(1)
    pool.close()


def test_refuses_what_would_wait_too_long(pool: BoundedPool) -> None:
    gate = Gate()
    # Two run and three wait, however quickly they come.
    for number in range(5):
        pool.submit(gate.work(number))
    with pytest.raises(QueueFull, match="3 requests wait for decoding, which is the limit: try again later") as caught:
        pool.submit(gate.work(5))
    assert caught.value.retry_after == 0.1
    assert caught.value.metadata == {"waiting": "3", "limit": "3"}
    gate.go.set()
    assert sorted(gate.started(5)) == [0, 1, 2, 3, 4]


def test_there_is_room_again(pool: BoundedPool) -> None:
    for _ in range(20):
        gate = Gate()
        for number in range(5):
            while True:
                try:
                    pool.submit(gate.work(number))
                    break
                except QueueFull:
                    # The last round's threads have answered, but not yet ended their work.
                    pass
        gate.go.set()
        gate.started(5)


def test_resumed_work_is_never_refused(pool: BoundedPool) -> None:
    gate = Gate()
    for number in range(5):
        pool.submit(gate.work(number))
    for number in range(5, 10):
        pool.resume(gate.work(number))
    with pytest.raises(QueueFull, match="8 requests wait"):
        pool.submit(gate.work(10))
    gate.go.set()
    assert sorted(gate.started(10)) == list(range(10))


def test_work_that_raises_is_logged(pool: BoundedPool, caplog: pytest.LogCaptureFixture) -> None:
    def raising() -> None:
        raise ValueError("a bug")

    for _ in range(10):
        pool.resume(raising)
    gate = Gate()
    gate.go.set()
    pool.resume(gate.work())
    gate.started(1)
    pool.close()
    assert caplog.text.count("ValueError: a bug") == 10
    assert "internal error in decoding" in caplog.text


def test_closing_waits_for_what_runs_and_forgets_what_waits() -> None:
    pool = BoundedPool("decoding", workers=1, max_waiting=10)
    gate, later = Gate(), Gate()
    pool.submit(gate.work())
    gate.started(1)
    pool.submit(later.work())
    closing = threading.Thread(target=pool.close)
    closing.start()
    while not pool._closed:
        pass
    with pytest.raises(Draining):
        pool.submit(later.work())
    pool.resume(later.work())
    assert closing.is_alive()
    gate.go.set()
    closing.join(20)
    assert later.running.empty()
    pool.close()
