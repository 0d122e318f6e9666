"""A bounded pool of threads, for work beside the batcher: decoding, feature maps."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from convlens_server.errors import Draining, QueueFull

log = logging.getLogger(__name__)


class BoundedPool:
    """Runs work in threads; refuses more when too much waits. Thread-safe.

    Args:
        name: Says in errors and thread names what waits.
        workers: Threads.
        max_waiting: Most pieces of work that wait for a thread.
        max_bytes: Most bytes that all of them hold, those that run included.
    """

    def __init__(self, name: str, workers: int, max_waiting: int, max_bytes: int = 256 * 2**20) -> None:
        self._name = name
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._workers = workers
        self._max_waiting = max_waiting
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        # Pieces of work that run or wait.
        self._admitted = 0
        self._bytes = 0
        self._closed = False

    def submit(self, work: Callable[[], None], size: int = 0) -> None:
        """Queues work, which must not raise.

        Args:
            work: Called in one of the threads.
            size: Bytes that it holds until it has run.

        Raises:
            QueueFull: Too much waits already.
            Draining: The pool is closed.
        """
        with self._lock:
            if self._closed:
                raise Draining("the server is shutting down: send the request to another")
            waiting = max(self._admitted - self._workers, 0)
            if self._admitted >= self._workers + self._max_waiting:
                raise QueueFull(
                    f"{waiting} requests wait for {self._name}, which is the limit: try again later",
                    metadata={"waiting": waiting, "limit": self._max_waiting},
                    retry_after=0.1,
                )
            if self._admitted and self._bytes + size > self._max_bytes:
                raise QueueFull(
                    f"{self._bytes} bytes wait for {self._name}, and {size} more are over the limit of "
                    f"{self._max_bytes}: try again later",
                    metadata={"waiting": self._bytes, "bytes": size, "limit": self._max_bytes},
                    retry_after=0.1,
                )
            self._start(work, size)

    def resume(self, work: Callable[[], None]) -> None:
        """Queues the next piece of work that was admitted before; never refused, but forgotten by a closed pool."""
        with self._lock:
            if not self._closed:
                self._start(work, 0)

    def close(self) -> None:
        """Waits for what runs, forgets what waits, and ends the threads."""
        with self._lock:
            self._closed = True
        self._executor.shutdown(cancel_futures=True)

    def _start(self, work: Callable[[], None], size: int) -> None:
        self._admitted += 1
        self._bytes += size
        self._executor.submit(self._run, work, size)

    def _run(self, work: Callable[[], None], size: int) -> None:
        try:
            work()
        except Exception:
            log.exception("internal error in %s", self._name)
        finally:
            with self._lock:
                self._admitted -= 1
                self._bytes -= size
