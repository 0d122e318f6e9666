"""The batcher: what waits while an engine runs becomes its next batch.

It is work-conserving: an idle engine takes what is there at once, and no timer makes anybody wait (unless
`max_delay` is set). Nothing is computed for a caller who has left or whose deadline has passed. The queue is
bounded in images; a request beyond the bound is refused at once, with a hint when to come back.

With priority levels the better ones are taken first, and each level has a bound of its own, so that a flood of the
others leaves it room; without, nothing is paid for them.
"""

from __future__ import annotations

import collections
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Generic, Protocol, TypeVar

from convlens_server.errors import Cancelled, DeadlineExceeded, Draining, QueueFull, ServiceError
from convlens_server.settings import QueuePolicy

log = logging.getLogger(__name__)


class Item(Protocol):
    """One request's images, waiting to be classified.

    Attributes:
        pixels: uint8, count × height × width × channels, joined; or what its `batch_key` stands for.
        count: Number of images, ≥ 1.
        batch_key: Only items with the very same one share a batch; None for images.
        deadline: When its caller stops waiting, seconds of `time.monotonic()`.
        enqueued: When it was submitted, seconds of `time.monotonic()`; set by the batcher.
    """

    pixels: bytes
    count: int
    batch_key: object
    deadline: float
    enqueued: float

    @property
    def gone(self) -> bool:
        """Whether its caller has left."""

    def fail(self, error: ServiceError) -> None:
        """Answers it with an error. Must not raise."""


ItemT = TypeVar("ItemT", bound=Item)


class _Wake:
    """In the queue: look among the held items, or, with priority levels, in those: there is one more item."""


class _Level(Generic[ItemT]):
    """The items of one priority level. The batcher's lock is held.

    Attributes:
        number: 1 … .
        policy: How they wait.
        images: That wait.
    """

    def __init__(self, number: int, policy: QueuePolicy) -> None:
        self.number = number
        self.policy = policy
        self.images = 0
        # With the time from which on each is taken after the others.
        self._items: collections.deque[tuple[ItemT, float]] = collections.deque()
        self._delayed: collections.deque[ItemT] = collections.deque()

    def append(self, item: ItemT, delayed_from: float) -> None:
        """Adds an item."""
        self.images += item.count
        self._items.append((item, delayed_from))

    def take(self) -> ItemT | None:
        """The next item; None if there is none."""
        item = self._next()
        if item is not None:
            self.images -= item.count
        return item

    def _next(self) -> ItemT | None:
        while self._items:
            item, delayed_from = self._items.popleft()
            if delayed_from == math.inf or time.monotonic() < delayed_from:
                return item
            self._delayed.append(item)
        return self._delayed.popleft() if self._delayed else None


class Batcher(Generic[ItemT]):
    """A bounded queue of items that gives them out as batches. Thread-safe.

    Args:
        max_batch: Most images of a batch; an item with more makes a batch of its own.
        policy: How items wait; without `levels`, since each of those has its own.
        max_delay: Seconds that an incomplete batch may wait for more; 0 never waits.
        help_from: Waiting images from which on helping consumers take some of them.
        preferred: Sizes at which a batch stops waiting for `max_delay` to pass.
        levels: How items of each priority level wait; the first is level 1, and is taken first. Empty: all are taken as
            they come.
        default_level: Of items that ask for none, or for one that there is not.
    """

    def __init__(
        self,
        max_batch: int,
        policy: QueuePolicy,
        max_delay: float = 0.0,
        help_from: int = 1,
        preferred: Collection[int] = (),
        levels: Sequence[QueuePolicy] = (),
        default_level: int = 1,
    ) -> None:
        self.max_batch = max_batch
        self._policy = policy
        self._max_delay = max_delay
        self._preferred = frozenset(preferred)
        # With levels, the queue holds a _Wake for each item in them. Submitting and taking an item then costs twice as
        # much.
        self._levels: tuple[_Level[ItemT], ...] = tuple(_Level(n, each) for n, each in enumerate(levels, 1))
        self._default_level = default_level
        # SimpleQueue is implemented in C: a put and a get cost 0.1 µs, with a Condition 5 µs.
        self._queue: queue.SimpleQueue[ItemT | _Wake | None] = queue.SimpleQueue()
        # Items that did not fit into a batch: they come before what is in the queue, and any consumer may take them.
        self._held: collections.deque[ItemT] = collections.deque()
        self._help_from = help_from
        # Calls resting helpers: True to look, False when there will be no more to do.
        self._help: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._resting = 0
        self._lock = threading.Lock()
        self._waiting = 0
        self._waiting_items = 0
        self._closed = False
        self._late: Callable[[ItemT], None] | None = None
        # Images per second of recent batches, for the hint of a refusal.
        self._rate = 1000.0

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return self._waiting

    @property
    def waiting_items(self) -> int:
        """Items in the queue."""
        return self._waiting_items

    @property
    def needs_help(self) -> bool:
        """Whether so many images wait that helping consumers take some of them."""
        return self._waiting >= self._help_from

    def submit(self, item: ItemT, priority: int = 0, timeout: float = 0.0) -> None:
        """Queues an item.

        Args:
            item: Belongs to the batcher from now on.
            priority: Its level; a number that is none is the default level.
            timeout: Seconds that it may wait for its batch, no more than its policy says; 0: as long as others.

        Raises:
            QueueFull: The images would be more than its policy says.
            Draining: The batcher is closed.
        """
        with self._lock:
            if self._closed:
                return self._submit_late(item)
            level = self._level(priority) if self._levels else None
            policy = level.policy if level is not None else self._policy
            waiting = self._waiting if level is None else level.images
            if waiting + item.count > policy.max_queue:
                raise self._full(item.count, waiting, level, policy.max_queue)
            self._waiting += item.count
            self._waiting_items += 1
            item.enqueued = time.monotonic()
            wait = policy.max_wait
            if timeout and policy.shorter_waits:
                wait = min(wait or timeout, timeout)
            if wait and not policy.delays:
                item.deadline = min(item.deadline, item.enqueued + wait)
            if level is not None:
                level.append(item, item.enqueued + wait if wait and policy.delays else math.inf)
                self._queue.put(_Wake())
            else:
                self._queue.put(item)
            if self._resting and self.needs_help:
                self._resting -= 1
                self._help.put(True)
            return None

    def batches(self, helping: bool = False) -> BatchIterator[ItemT]:
        """A consumer of the queue, for one engine thread; several share the queue.

        Args:
            helping: Whether it rests until `help_from` images wait, because the other consumers are busy.
        """
        return BatchIterator(self, helping)

    def computed(self, images: int, seconds: float) -> None:
        """Tells how long a batch took."""
        if seconds > 0:
            self._rate += 0.1 * (images / seconds - self._rate)

    def close(self, late: Callable[[ItemT], None] | None = None) -> None:
        """Takes no new items; the consumers stop when the queue is empty.

        Args:
            late: Takes the items that are submitted from now on; None: they are refused.
        """
        with self._lock:
            self._late = late
            if not self._closed:
                self._closed = True
                self._queue.put(None)
                self._help.put(False)

    def _level(self, priority: int) -> _Level[ItemT]:
        return self._levels[(priority if 1 <= priority <= len(self._levels) else self._default_level) - 1]

    def _full(self, count: int, waiting: int, level: _Level[ItemT] | None, limit: int) -> QueueFull:
        of = "" if level is None else f" for priority level {level.number}"
        cure = "let the queue hold more (--max-queue, or max_queue_size in the model's config.pbtxt)"
        if count > limit:
            return QueueFull(
                f"the request has {count} images, more than the queue ever holds{of} ({limit}): send fewer images a "
                f"request, or {cure}",
                metadata={"images": count, "limit": limit},
            )
        return QueueFull(
            f"queue holds {waiting} images{of}, and {count} more are over its limit of {limit}: try again later, or "
            f"{cure}",
            metadata={"waiting": waiting, "limit": limit},
            retry_after=min(max(self._waiting / self._rate, 0.01), 10.0),
        )

    def _get(self, until: float | None) -> ItemT | None:
        """The next item; None when closed and empty.

        Args:
            until: When to give up, seconds of `time.monotonic()`; None never does, 0 does at once.

        Raises:
            queue.Empty: There was none in time.
        """
        while True:
            if self._held:
                try:
                    return self._held.popleft()
                except IndexError:
                    pass  # Another consumer was faster.
            if until is None:
                item = self._queue.get()
            elif (seconds := until and until - time.monotonic()) > 0:
                item = self._queue.get(timeout=seconds)
            else:
                item = self._queue.get_nowait()
            if item is None:
                # Passed on to the next consumer.
                self._queue.put(None)
            elif not isinstance(item, _Wake):
                return item
            if self._levels and (best := self._best()) is not None:
                return best
            if item is None:
                return None

    def _best(self) -> ItemT | None:
        """The first item of the best level that has any."""
        with self._lock:
            for level in self._levels:
                if (item := level.take()) is not None:
                    return item
            return None

    def _submit_late(self, item: ItemT) -> None:
        if self._late is None:
            raise Draining("the server is shutting down: send the request to another")
        item.enqueued = time.monotonic()
        self._late(item)

    def _hold(self, item: ItemT) -> None:
        """Puts back an item that did not fit; an idle consumer takes it at once."""
        self._held.append(item)
        self._queue.put(_Wake())

    def _rest(self) -> None:
        """Returns when a helper is needed, or all is over."""
        with self._lock:
            if self._closed or self.needs_help:
                return
            self._resting += 1
        if not self._help.get():
            # Passed on to the next helper.
            self._help.put(False)

    def _taken(self, batch: list[ItemT]) -> None:
        with self._lock:
            self._waiting -= sum(item.count for item in batch)
            self._waiting_items -= len(batch)


class BatchIterator(Generic[ItemT]):
    """Yields batches: non-empty lists of items of at most `max_batch` images together, unless one has more alone."""

    def __init__(self, batcher: Batcher[ItemT], helping: bool) -> None:
        self._batcher = batcher
        self._helping = helping

    def __iter__(self) -> BatchIterator[ItemT]:
        return self

    def __next__(self) -> list[ItemT]:
        while True:
            first = self._first()
            if first is None:
                raise StopIteration
            batch = self._gather(first)
            self._batcher._taken(batch)
            now = time.monotonic()
            alive = [item for item in batch if not dropped(item, now)]
            if alive:
                return alive

    def _first(self) -> ItemT | None:
        """The first item of the next batch; None when closed and empty."""
        if not self._helping:
            return self._batcher._get(None)
        while True:
            self._batcher._rest()
            try:
                return self._batcher._get(0.0)
            except queue.Empty:
                pass  # Another consumer was faster.

    def _gather(self, first: ItemT) -> list[ItemT]:
        """Takes what waits, as far as it fits; what does not fit begins the next batch, of whichever consumer."""
        batch = [first]
        room = self._batcher.max_batch - first.count
        delay = self._batcher._max_delay
        ends = time.monotonic() + delay if delay else 0.0
        preferred = self._batcher._preferred
        while room > 0:
            try:
                item = self._batcher._get(0.0 if ends and self._batcher.max_batch - room in preferred else ends)
            except queue.Empty:
                break
            if item is None:
                break
            if item.count > room or item.batch_key is not first.batch_key:
                self._batcher._hold(item)
                break
            batch.append(item)
            room -= item.count
        return batch


def fail(item: Item, error: ServiceError) -> None:
    """Answers an item with an error; the thread of an engine must survive even an item that breaks its promise."""
    try:
        item.fail(error)
    except Exception:
        log.exception("a request could not be answered")


def dropped(item: Item, now: float) -> bool:
    """Answers an item that nobody waits for any more."""
    if now >= item.deadline:
        late = now - item.enqueued
        fail(item, DeadlineExceeded(f"deadline passed after {late * 1000:.0f} ms in the queue; nothing was computed"))
        return True
    if item.gone:
        fail(item, Cancelled("the caller left while the request was in the queue; nothing was computed"))
        return True
    return False
