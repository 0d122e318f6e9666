from __future__ import annotations

import math
import queue
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convlens_server.batcher import Batcher, BatchIterator
from convlens_server.errors import Cancelled, DeadlineExceeded, Draining, QueueFull, ServiceError
from convlens_server.settings import QueuePolicy


class Request:
    def __init__(self, name: int = 0, count: int = 1, deadline: float = math.inf, gone: bool = False) -> None:
        self.name = name
        self.pixels = bytes([name % 256]) * count
        self.count = count
        self.batch_key: object = None
        self.deadline = deadline
        self.enqueued = math.nan
        self.gone = gone
        self.errors: list[ServiceError] = []

    def fail(self, error: ServiceError) -> None:
        self.errors.append(error)

    def __repr__(self) -> str:
        return f"Request({self.name}, {self.count})"


def closed(batcher: Batcher[Request]) -> list[list[Request]]:
    """Closes a batcher and takes what is in it."""
    batcher.close()
    return list(batcher.batches())


def submitted(batcher: Batcher[Request], *requests: Request) -> None:
    for request in requests:
        batcher.submit(request)


class Consumer:
    """A thread that takes batches and gives them out one after another."""

    def __init__(self, batcher: Batcher[Request], helping: bool = False) -> None:
        self.batches: queue.SimpleQueue[list[Request] | None] = queue.SimpleQueue()
        self._batches = batcher.batches(helping)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        for batch in self._batches:
            self.batches.put(batch)
        self.batches.put(None)

    def get(self) -> list[Request] | None:
        return self.batches.get(timeout=20)


def names(batch: list[Request] | None) -> list[int]:
    assert batch is not None
    return [request.name for request in batch]


def test_takes_what_waits_at_once() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=8, policy=QueuePolicy(100))
    submitted(batcher, Request(1))
    batches = batcher.batches()
    assert names(next(batches)) == [1]
    submitted(batcher, Request(2), Request(3))
    assert names(next(batches)) == [2, 3]
    assert batcher.waiting == 0


def test_an_idle_consumer_is_woken() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=8, policy=QueuePolicy(100))
    consumer = Consumer(batcher)
    for number in range(20):
        submitted(batcher, Request(number))
        assert names(consumer.get()) == [number]
    batcher.close()
    assert consumer.get() is None


def test_never_over_the_maximum_and_in_order() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(100))
    submitted(batcher, *[Request(number, count) for number, count in enumerate([1, 2, 2, 3, 1, 4, 1, 1, 1, 1, 1])])
    assert [names(batch) for batch in closed(batcher)] == [[0, 1], [2], [3, 4], [5], [6, 7, 8, 9], [10]]
    assert batcher.waiting == 0


def test_a_request_over_the_maximum_is_alone() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(100))
    submitted(batcher, Request(0), Request(1, 9), Request(2), Request(3, 5))
    assert [names(batch) for batch in closed(batcher)] == [[0], [1], [2], [3]]


def test_waiting_counts_images_until_they_are_taken() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(100))
    submitted(batcher, Request(0, 3), Request(1, 2), Request(2, 4))
    assert batcher.waiting == 9
    batches = batcher.batches()
    next(batches)
    assert batcher.waiting == 6
    next(batches)
    assert batcher.waiting == 4
    next(batches)
    assert batcher.waiting == 0


def test_full_queue_refuses_at_once() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(10))
    submitted(batcher, Request(0, 8), Request(1, 2))
    refused = Request(2)
    with pytest.raises(QueueFull, match="queue holds 10 images, and 1 more are over its limit of 10") as caught:
        batcher.submit(refused)
    assert caught.value.retry_after is not None
    assert 0.01 <= caught.value.retry_after <= 10
    assert caught.value.metadata == {"waiting": "10", "limit": "10"}
    assert not refused.errors
    # There is room again, and what waited was not harmed.
    batches = batcher.batches()
    assert names(next(batches)) == [0]
    batcher.submit(refused)
    assert names(next(batches)) == [1, 2]


def test_the_hint_follows_the_rate() -> None:
    def hint(seconds: float) -> float:
        batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(1000))
        for _ in range(100):
            batcher.computed(100, seconds)
        submitted(batcher, Request(0, 1000))
        with pytest.raises(QueueFull) as caught:
            batcher.submit(Request())
        assert caught.value.retry_after is not None
        return caught.value.retry_after

    assert hint(0.1) == pytest.approx(1.0, rel=0.01)
    assert hint(0.01) == pytest.approx(0.1, rel=0.01)
    assert hint(100.0) == 10.0
    assert hint(1e-6) == 0.01
    assert hint(0.0) == 1.0  # A clock that did not move teaches nothing.


def test_more_than_the_queue_ever_holds_is_refused_without_a_hint() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(10))
    with pytest.raises(QueueFull, match="the request has 11 images, more than the queue ever holds") as caught:
        batcher.submit(Request(0, 11))
    assert caught.value.retry_after is None


def test_cancel_one_of_three() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=8, policy=QueuePolicy(100))
    one, two, three = Request(1), Request(2), Request(3)
    submitted(batcher, one, two, three)
    two.gone = True
    assert closed(batcher) == [[one, three]]
    assert [type(error) for error in two.errors] == [Cancelled]
    assert not one.errors + three.errors
    assert batcher.waiting == 0


def test_deadline_passed_is_never_computed() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=8, policy=QueuePolicy(100))
    late, alive = Request(1, deadline=time.monotonic()), Request(2, deadline=time.monotonic() + 1000)
    submitted(batcher, late, alive)
    assert closed(batcher) == [[alive]]
    assert [type(error) for error in late.errors] == [DeadlineExceeded]
    assert "ms in the queue; nothing was computed" in str(late.errors[0])


def test_a_batch_of_none_alive_is_not_given_out() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=2, policy=QueuePolicy(100))
    submitted(batcher, Request(1, gone=True), Request(2, deadline=0.0), Request(3))
    assert [names(batch) for batch in closed(batcher)] == [[3]]


def test_an_item_that_breaks_its_promise_does_not_end_the_consumer(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Request):
        def fail(self, error: ServiceError) -> None:
            raise RuntimeError("cannot be failed")

    batcher: Batcher[Request] = Batcher(max_batch=2, policy=QueuePolicy(100))
    submitted(batcher, Broken(1, gone=True), Request(2))
    assert [names(batch) for batch in closed(batcher)] == [[2]]
    assert "a request could not be answered" in caplog.text


def test_closed() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=2, policy=QueuePolicy(100))
    submitted(batcher, *[Request(number) for number in range(5)])
    batcher.close()
    batcher.close()
    with pytest.raises(Draining):
        batcher.submit(Request())
    assert [names(batch) for batch in batcher.batches()] == [[0, 1], [2, 3], [4]]
    assert list(batcher.batches()) == []


def test_closing_wakes_every_consumer() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=2, policy=QueuePolicy(100))
    consumers = [Consumer(batcher) for _ in range(3)]
    batcher.close()
    assert [consumer.get() for consumer in consumers] == [None, None, None]


def test_enqueued_is_set() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=2, policy=QueuePolicy(100))
    request = Request()
    before = time.monotonic()
    batcher.submit(request)
    assert before <= request.enqueued <= time.monotonic()


def test_what_did_not_fit_is_not_held_from_an_idle_consumer() -> None:
    """Two consumers that take one batch each: whoever takes the first does not come back for what did not fit."""
    for _ in range(20):
        batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(100))
        taken: queue.SimpleQueue[list[Request]] = queue.SimpleQueue()

        def take(batches: BatchIterator[Request], taken: queue.SimpleQueue[list[Request]] = taken) -> None:
            taken.put(next(batches))

        for _ in range(2):
            threading.Thread(target=take, args=(batcher.batches(),), daemon=True).start()
        submitted(batcher, Request(0, 3), Request(1, 3))
        assert sorted(names(taken.get(timeout=20)) + names(taken.get(timeout=20))) == [0, 1]


def test_what_did_not_fit_comes_first() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(100))
    one, two = batcher.batches(), batcher.batches()
    submitted(batcher, Request(0, 3), Request(1, 3), Request(2, 1), Request(3, 4), Request(4, 1))
    assert names(next(one)) == [0]
    assert names(next(two)) == [1, 2]
    assert names(next(one)) == [3]
    batcher.close()
    assert names(next(two)) == [4]
    for batches in (one, two):
        with pytest.raises(StopIteration):
            next(batches)


def test_what_did_not_fit_is_taken_after_the_end() -> None:
    """The end of the queue was seen by the other consumer already."""
    batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(100))
    submitted(batcher, Request(0, 3), Request(1, 3))
    batcher.close()
    one, two = batcher.batches(), batcher.batches()
    assert names(next(one)) == [0]
    assert names(next(two)) == [1]
    assert list(one) == list(two) == []


def test_max_delay_waits_for_a_full_batch() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=3, policy=QueuePolicy(100), max_delay=1000.0)
    consumer = Consumer(batcher)
    for number in range(6):
        submitted(batcher, Request(number))
    assert names(consumer.get()) == [0, 1, 2]
    assert names(consumer.get()) == [3, 4, 5]
    # One that does not fit ends the wait.
    submitted(batcher, Request(6), Request(7, 3))
    assert names(consumer.get()) == [6]
    assert names(consumer.get()) == [7]
    # So does the end.
    submitted(batcher, Request(8))
    batcher.close()
    assert names(consumer.get()) == [8]
    assert consumer.get() is None


def test_max_delay_ends() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=3, policy=QueuePolicy(100), max_delay=0.02)
    submitted(batcher, Request(0), Request(1))
    assert names(next(batcher.batches())) == [0, 1]


@given(
    counts=st.lists(st.integers(1, 12), max_size=60),
    max_batch=st.integers(1, 10),
    dropped=st.sets(st.integers(0, 59)),
    data=st.data(),
)
def test_properties_in_turns(counts: list[int], max_batch: int, dropped: set[int], data: st.DataObject) -> None:
    """Submitting, refusing and taking in any order, with two consumers."""
    batcher: Batcher[Request] = Batcher(max_batch, policy=QueuePolicy(30))
    consumers: list[BatchIterator[Request]] = [batcher.batches(), batcher.batches()]
    accepted: list[Request] = []
    taken: list[Request] = []

    def take(number: int) -> None:
        batch = next(consumers[number])
        assert batch
        assert len(batch) == 1 or sum(request.count for request in batch) <= max_batch
        taken.extend(batch)

    def alive() -> bool:
        answered = {id(request) for request in taken} | {id(r) for r in accepted if r.errors}
        return any(id(request) not in answered and not request.gone for request in accepted)

    for name, count in enumerate(counts):
        request = Request(name, count, gone=name in dropped)
        waiting = batcher.waiting
        if waiting + count > 30:
            with pytest.raises(QueueFull):
                batcher.submit(request)
            assert batcher.waiting == waiting
        else:
            batcher.submit(request)
            accepted.append(request)
        if alive() and data.draw(st.booleans()):
            take(data.draw(st.integers(0, 1)))
    batcher.close()
    for consumer in consumers:
        taken.extend(request for batch in consumer for request in batch)
    assert names(taken) == [request.name for request in accepted if not request.gone]
    assert all(len(request.errors) == request.gone for request in accepted)
    assert batcher.waiting == 0


@settings(max_examples=20)
@given(
    counts=st.lists(st.lists(st.integers(1, 7), max_size=40), min_size=1, max_size=3),
    max_batch=st.integers(1, 8),
    consumers=st.integers(1, 3),
)
def test_properties_with_threads(counts: list[list[int]], max_batch: int, consumers: int) -> None:
    """Nothing is lost or given out twice; each producer's requests are taken in order."""
    batcher: Batcher[Request] = Batcher(max_batch, policy=QueuePolicy(10_000))
    takers = [Consumer(batcher) for _ in range(consumers)]

    def produce(producer: int) -> None:
        for number, count in enumerate(counts[producer]):
            batcher.submit(Request(1000 * producer + number, count))

    producers = [threading.Thread(target=produce, args=(number,)) for number in range(len(counts))]
    for thread in producers:
        thread.start()
    for thread in producers:
        thread.join(20)
    batcher.close()
    taken = []
    for taker in takers:
        mine = []
        while (batch := taker.get()) is not None:
            assert len(batch) == 1 or sum(request.count for request in batch) <= max_batch
            mine.extend(names(batch))
        for producer in range(len(counts)):
            own = [name for name in mine if name // 1000 == producer]
            assert own == sorted(own)
        taken.extend(mine)
    assert sorted(taken) == sorted(1000 * p + n for p, part in enumerate(counts) for n in range(len(part)))
    assert batcher.waiting == 0


class TestHelpers:
    """Consumers that rest until the queue is long."""

    def helper(self, batcher: Batcher[Request]) -> Consumer:
        helper = Consumer(batcher, helping=True)
        while not batcher._resting:
            pass
        return helper

    def test_rests_while_little_waits(self) -> None:
        batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(100), help_from=8)
        helper = self.helper(batcher)
        submitted(batcher, *(Request(number) for number in range(7)))
        assert batcher._resting == 1
        assert not batcher.needs_help
        assert helper.batches.empty()
        batches = batcher.batches()
        assert [names(next(batches)), names(next(batches))] == [[0, 1, 2, 3], [4, 5, 6]]
        batcher.close()
        assert helper.get() is None

    def test_takes_from_a_long_queue_until_it_is_short(self) -> None:
        batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(100), help_from=8)
        helper = self.helper(batcher)
        submitted(batcher, *(Request(number) for number in range(8)))
        assert names(helper.get()) == [0, 1, 2, 3]
        while not batcher._resting:
            pass
        assert batcher.waiting == 4
        assert names(next(batcher.batches())) == [4, 5, 6, 7]
        batcher.close()
        assert helper.get() is None

    def test_one_large_request_is_enough(self) -> None:
        batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(100), help_from=8)
        helper = self.helper(batcher)
        submitted(batcher, Request(1, 20))
        assert names(helper.get()) == [1]

    def test_closing_ends_all_helpers_and_loses_nothing(self) -> None:
        batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(1000), help_from=8)
        consumers = [Consumer(batcher, helping=True) for _ in range(3)]
        requests = [Request(number, 1 + number % 3) for number in range(300)]
        submitted(batcher, *requests)
        batcher.close()
        taken = []
        for consumer in consumers:
            while (batch := consumer.get()) is not None:
                taken += names(batch)
        assert sorted(taken) == list(range(300))
        assert batcher.waiting == 0


class TestPriorities:
    def batcher(self, **options: int) -> Batcher[Request]:
        return Batcher(max_batch=2, policy=QueuePolicy(), levels=[QueuePolicy(1000)] * 3, default_level=2, **options)

    def test_better_ones_are_taken_first(self) -> None:
        batcher = self.batcher()
        for name, priority in enumerate((3, 2, 1, 0, 1, 9, 3)):
            batcher.submit(Request(name), priority)
        batches = batcher.batches()
        # 0 and 9 are no levels, and so the default one, 2.
        assert [names(next(batches)) for _ in range(3)] == [[2, 4], [1, 3], [5, 0]]
        batcher.submit(Request(7), 1)
        assert names(next(batches)) == [7, 6]
        assert batcher.waiting == 0

    def test_without_levels_a_priority_is_nothing(self) -> None:
        batcher: Batcher[Request] = Batcher(max_batch=2, policy=QueuePolicy(10))
        batcher.submit(Request(0), 5)
        batcher.submit(Request(1), 1)
        assert names(next(batcher.batches())) == [0, 1]

    def test_what_does_not_fit_is_not_lost(self) -> None:
        batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(), levels=[QueuePolicy(100)] * 2)
        for name, count, priority in ((0, 3, 1), (1, 3, 1), (2, 1, 1), (3, 4, 2), (4, 1, 2)):
            batcher.submit(Request(name, count), priority)
        assert [names(batch) for batch in closed(batcher)] == [[0], [1, 2], [3], [4]]

    @settings(max_examples=30)
    @given(
        requests=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), max_size=80),
        consumers=st.integers(1, 3),
        max_batch=st.integers(1, 6),
    )
    def test_nothing_is_lost_or_given_out_twice(
        self, requests: list[tuple[int, int]], consumers: int, max_batch: int
    ) -> None:
        batcher: Batcher[Request] = Batcher(
            max_batch, policy=QueuePolicy(10_000), levels=[QueuePolicy(10_000)] * 3, help_from=2 * max_batch
        )
        takers = [Consumer(batcher, helping=number > 0) for number in range(consumers)]
        for name, (count, priority) in enumerate(requests):
            batcher.submit(Request(name, count), priority)
        batcher.close()
        taken = []
        for taker in takers:
            while (batch := taker.get()) is not None:
                taken += names(batch)
        assert sorted(taken) == list(range(len(requests)))
        assert batcher.waiting == 0

    def test_each_level_has_a_bound_of_its_own(self) -> None:
        levels = [QueuePolicy(2), QueuePolicy(5)]
        batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(1), levels=levels, default_level=2)
        for number in range(5):
            batcher.submit(Request(number), 2)
        with pytest.raises(QueueFull, match=r"queue holds 5 images for priority level 2, and 1 more are over .* of 5"):
            batcher.submit(Request(), 0)
        batcher.submit(Request(5, 2), 1)
        with pytest.raises(QueueFull, match="queue holds 2 images for priority level 1"):
            batcher.submit(Request(), 1)
        with pytest.raises(QueueFull, match=r"has 3 images, more than the queue ever holds for priority level 1 \(2\)"):
            batcher.submit(Request(0, 3), 1)
        batches = batcher.batches()
        assert names(next(batches)) == [5, 0, 1]
        batcher.submit(Request(6), 1)
        batcher.submit(Request(7), 2)
        assert [names(batch) for batch in closed(batcher)] == [[6, 2, 3, 4], [7]]

    def test_each_level_has_a_wait_of_its_own(self) -> None:
        levels = [QueuePolicy(), QueuePolicy(max_wait=100.0), QueuePolicy(max_wait=9.0, shorter_waits=False)]
        batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(max_wait=1.0), levels=levels)
        waits = []
        for level in (1, 2, 3):
            for timeout in (0.0, 5.0):
                request = Request()
                batcher.submit(request, level, timeout)
                waits.append(request.deadline - request.enqueued)
        assert waits == pytest.approx([math.inf, 5.0, 100.0, 5.0, 9.0, 9.0])


class TestDelays:
    """Who has waited too long is taken after those who have not."""

    def batcher(self, *levels: QueuePolicy) -> Batcher[Request]:
        return Batcher(max_batch=2, policy=QueuePolicy(), levels=levels)

    def test_within_its_level(self) -> None:
        soon = QueuePolicy(max_wait=1e-9, delays=True)
        batcher = self.batcher(QueuePolicy(max_wait=1000.0, delays=True), soon)
        for name, level, timeout in ((0, 2, 0.0), (1, 1, 1e-9), (2, 1, 0.0), (3, 2, 0.0), (4, 1, 0.0), (5, 1, 1e-9)):
            batcher.submit(Request(name), level, timeout)
        assert [names(batch) for batch in closed(batcher)] == [[2, 4], [1, 5], [0, 3]]
        assert batcher.waiting == batcher.waiting_items == 0

    def test_it_is_not_refused_but_by_its_own_deadline(self) -> None:
        batcher = self.batcher(QueuePolicy(max_wait=1e-9, delays=True))
        patient, late = Request(0), Request(1, deadline=time.monotonic())
        submitted(batcher, patient, late)
        assert names(next(batcher.batches())) == [0]
        assert not patient.errors
        assert isinstance(late.errors[0], DeadlineExceeded)

    def test_it_counts_to_the_bound(self) -> None:
        batcher = self.batcher(QueuePolicy(3, max_wait=1e-9, delays=True))
        submitted(batcher, Request(0), Request(1), Request(2))
        with pytest.raises(QueueFull):
            batcher.submit(Request(3))
        next(batcher.batches())
        submitted(batcher, Request(4), Request(5))
        assert [names(batch) for batch in closed(batcher)] == [[2, 4], [5]]


class TestWaits:
    def test_a_wait_ends_before_the_deadline(self) -> None:
        batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(100, max_wait=100.0))
        waits = {}
        for name, timeout in (("none", 0.0), ("shorter", 5.0), ("longer", 500.0)):
            request = Request()
            batcher.submit(request, timeout=timeout)
            waits[name] = request.deadline - request.enqueued
        assert waits == pytest.approx({"none": 100.0, "shorter": 5.0, "longer": 100.0})
        sooner = Request(deadline=time.monotonic() + 1)
        batcher.submit(sooner, timeout=5.0)
        assert sooner.deadline - sooner.enqueued <= 1

    def test_a_request_may_not_always_say_how_long(self) -> None:
        batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(100, shorter_waits=False))
        request = Request()
        batcher.submit(request, timeout=5.0)
        assert request.deadline == math.inf

    def test_whose_wait_is_over_is_not_computed(self) -> None:
        batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(100))
        late, other = Request(0), Request(1)
        batcher.submit(late, timeout=1e-6)
        batcher.submit(other)
        assert names(next(batcher.batches())) == [1]
        assert isinstance(late.errors[0], DeadlineExceeded)


def test_a_preferred_size_does_not_wait_for_more() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=8, policy=QueuePolicy(100), max_delay=1000.0, preferred=[2, 4])
    consumer = Consumer(batcher)
    submitted(batcher, Request(0, 2))
    assert names(consumer.get()) == [0]
    # One that waits already is taken along.
    blocked: Batcher[Request] = Batcher(max_batch=8, policy=QueuePolicy(100), max_delay=1000.0, preferred=[2, 4])
    submitted(blocked, Request(0), Request(1), Request(2), Request(3))
    assert names(next(blocked.batches())) == [0, 1, 2, 3]
    batcher.close()


def test_what_comes_after_the_end_may_have_another_way() -> None:
    batcher: Batcher[Request] = Batcher(max_batch=4, policy=QueuePolicy(100))
    late: list[Request] = []
    batcher.submit(Request(0))
    batcher.close(late.append)
    batcher.submit(Request(1))
    assert names(late) == [1]
    assert not math.isnan(late[0].enqueued)
    assert [names(batch) for batch in batcher.batches()] == [[0]]
    batcher.close()
    with pytest.raises(Draining):
        batcher.submit(Request(2))
