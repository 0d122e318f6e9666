from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from convlens_server.background import Background
from convlens_server.batcher import Batcher
from convlens_server.engine import Run
from convlens_server.errors import Cancelled, DeadlineExceeded, Draining, EngineFailed, QueueFull
from convlens_server.items import Computed, RequestItem, Responder
from convlens_server.metrics import ModelMetrics
from convlens_server.settings import QueuePolicy


class Asking:
    """A call as far as an item looks at it."""

    def __init__(self, deadline: float = math.inf) -> None:
        self.cancelled = False
        self.deadline = deadline
        self.trace: Any = None


class Classification(RequestItem):
    """Somebody else's image."""

    method = "Classify"

    def __init__(self) -> None:
        super().__init__(Asking(), 0.0, ModelMetrics("m", "1"))  # type: ignore[arg-type]
        self.pixels, self.count = bytes([200]), 1
        self.answered = False

    def response(self, computed: Computed, start: int) -> bytes:
        return b"ok"

    def answer(self, response: bytes) -> None:
        self.answered = True


class Engine:
    """Takes batches when the test says so: an image of one pixel has that pixel as its score, twice it as its logit."""

    def __init__(self, batcher: Batcher[RequestItem]) -> None:
        self.batches = batcher.batches()
        self.metrics = ModelMetrics("m", "1")
        self.respond = Responder(None, self.metrics)  # type: ignore[arg-type]

    def take(self) -> list[RequestItem]:
        return next(self.batches)

    def answer(self, batch: list[RequestItem]) -> None:
        pixels = np.frombuffer(b"".join(item.pixels for item in batch), np.uint8).astype(np.float32)[:, None]
        self.respond(batch, pixels, 2 * pixels, Run(0.0, 0.0, 0.0))


class Caller(threading.Thread):
    """Runs `count` images in the background of a batcher."""

    def __init__(self, background: Background, count: int) -> None:
        super().__init__()
        self.background = background
        self.count = count
        self.made = 0
        self.results: list[Any] = []
        self.error: BaseException | None = None
        self.start()

    def images(self) -> Iterator[np.ndarray]:
        for number in range(self.count):
            self.made = number + 1
            yield np.full((1, 1, 1), number, np.uint8)

    def run(self) -> None:
        try:
            self.results.extend(self.background.run(self.images()))
        except Exception as error:
            self.error = error

    def end(self) -> None:
        self.join(20)
        assert not self.is_alive()


def started(count: int, call: Asking | None = None, priority: int = 0, **options: Any):
    policy = QueuePolicy(options.pop("max_queue", 64))
    levels = [policy] * options.pop("levels", 0)
    batcher: Batcher[RequestItem] = Batcher(4, policy, levels=levels, **options)
    engine = Engine(batcher)
    most = min(4, policy.max_queue)
    background = Background(batcher, engine.metrics, call or Asking(), most, priority)  # type: ignore[arg-type]
    return batcher, engine, background, count


def test_outputs_come_in_order() -> None:
    batcher, engine, background, count = started(11)
    caller = Caller(background, count)
    sizes = []
    for _ in range(3):
        batch = engine.take()
        sizes.append(sum(item.count for item in batch))
        engine.answer(batch)
    caller.end()
    assert caller.error is None
    assert sizes == [4, 4, 3]
    scores, logits = (np.concatenate(each)[:, 0] for each in zip(*caller.results, strict=True))
    np.testing.assert_array_equal(scores, range(11))
    np.testing.assert_array_equal(logits, 2 * scores)
    assert background.done == 11
    assert batcher.waiting == 0


def test_a_classification_waits_for_one_piece_at_most() -> None:
    """However many images there are, one piece is on its way; what comes meanwhile is in the very next batch."""
    batcher, engine, background, count = started(100)
    caller = Caller(background, count)
    for _ in range(5):
        piece = engine.take()
        # The next piece is ready or being made, but not in the queue.
        assert batcher.waiting_items == 0
        assert caller.made <= background.done + 2 * batcher.max_batch
        mine = Classification()
        batcher.submit(mine)
        engine.answer(piece)
        batch = engine.take()
        assert batch[0] is mine
        engine.answer(batch)
        assert mine.answered
    batcher.close()
    for batch in engine.batches:
        engine.answer(batch)
    caller.end()
    assert isinstance(caller.error, Draining)


def test_the_last_priority_level_is_taken_last() -> None:
    batcher, engine, background, count = started(4, priority=3, levels=3, default_level=2)
    caller = Caller(background, count)
    ends = time.monotonic() + 20
    while not batcher.waiting_items:
        assert time.monotonic() < ends
        time.sleep(0.001)
    mine = Classification()
    batcher.submit(mine)
    batch = engine.take()
    assert batch[0] is mine
    rest = batch[1:] or engine.take()
    assert rest[0].method == "background"
    engine.answer([mine])
    engine.answer(rest)
    caller.end()
    assert caller.error is None


def test_a_caller_who_leaves_stops_it() -> None:
    batcher, engine, background, count = started(100, call := Asking())
    caller = Caller(background, count)
    batch = engine.take()
    call.cancelled = True
    engine.answer(batch)
    caller.end()
    assert isinstance(caller.error, Cancelled)
    assert background.done == 4
    assert batcher.waiting == 0


def test_a_deadline_stops_it() -> None:
    _, engine, background, count = started(100, call := Asking())
    caller = Caller(background, count)
    batch = engine.take()
    call.deadline = 0.0
    engine.answer(batch)
    caller.end()
    assert isinstance(caller.error, DeadlineExceeded)
    assert "after 4 images, which were not all" in str(caller.error)


def test_a_piece_that_is_dropped_in_the_queue_says_how_far_it_was() -> None:
    batcher, _, background, count = started(100, Asking(deadline=0.0))
    caller = Caller(background, count)
    caller.end()
    assert isinstance(caller.error, DeadlineExceeded)
    assert batcher.waiting == 0


def test_a_failed_batch_ends_it() -> None:
    _, engine, background, count = started(100)
    caller = Caller(background, count)
    for item in engine.take():
        item.fail(EngineFailed("the engine failed"))
    caller.end()
    assert isinstance(caller.error, EngineFailed)


def test_a_full_queue_refuses_it() -> None:
    batcher, _, background, count = started(100, max_queue=4)
    batcher.submit(Classification())
    with pytest.raises(QueueFull):
        list(background.run(iter([np.zeros((1, 1, 1), np.uint8)] * count)))


def test_pieces_are_no_requests_in_the_metrics() -> None:
    _, engine, background, count = started(4)
    caller = Caller(background, count)
    batch = engine.take()
    mine = Classification()
    engine.answer([*batch, mine])
    caller.end()
    statistics = engine.metrics.statistics()
    assert statistics.images == 5
    assert statistics.success.count == 1
    assert engine.metrics._requests == {("Classify", "OK"): 1}


def test_pieces_do_not_end_the_calls_trace() -> None:
    call = Asking()
    call.trace = object()  # On which anything that was done would fail.
    _, engine, background, count = started(7, call)
    caller = Caller(background, count)
    for _ in range(2):
        engine.answer(engine.take())
    caller.end()
    assert caller.error is None
    assert background.done == 7


def test_no_images() -> None:
    _, _, background, _ = started(0)
    assert list(background.run(iter(()))) == []
