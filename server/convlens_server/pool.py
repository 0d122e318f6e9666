"""A bounded pool of threads, for work beside the batcher: decoding, feature maps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from convlens_server.errors import QueueFull


class BoundedPool:
    """Runs work in threads; refuses more when too much waits.

    Args:
        name: Says in errors and thread names what waits.
        workers: Threads.
        max_waiting: Most pieces of work that wait for a thread.
    """

    def __init__(self, name: str, workers: int, max_waiting: int) -> None:
        self._name = name
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._max_waiting = max_waiting

    def submit(self, work: Callable[[], None]) -> None:
        """Queues work, which must not raise.

        Raises:
            QueueFull: Too much waits already.
        """
        waiting = self._executor._work_queue.qsize()
        if waiting >= self._max_waiting:
            raise QueueFull(
                f"{waiting} requests wait for {self._name}, which is the limit: try again later",
                metadata={"waiting": waiting, "limit": self._max_waiting},
                retry_after=0.1,
            )
        self._executor.submit(work)

    def resume(self, work: Callable[[], None]) -> None:
        """Queues the next piece of work that was admitted before; never refused."""
        self._executor.submit(work)

    def close(self) -> None:
        """Waits for what runs, forgets what waits, and ends the threads."""
        self._executor.shutdown(cancel_futures=True)
