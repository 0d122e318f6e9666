"""Computations that several callers may wait for: each is done once, and stopped when nobody waits any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from convlens_server.errors import Draining

ResultT = TypeVar("ResultT")

# A caller who waits looks this often whether it is still wanted itself, seconds.
_LOOK = 0.2


class Progress(NamedTuple):
    """How far a computation is.

    Attributes:
        done: Images done.
        total: Images of the dataset.
        skipped: Files that could not be read as images, so far.
    """

    done: int
    total: int
    skipped: int


class Stopped(Exception):  # noqa: N818 - not an error
    """Nobody waits for the computation any more."""


Report = Callable[[Progress], None]


@dataclass(eq=False)
class _Job(Generic[ResultT]):
    """One computation. `waiting` and `stopped` are changed under the lock of `Jobs`, all else under `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    progress: Progress | None = None
    waiting: int = 0
    stopped: bool = False
    finished: bool = False
    result: ResultT | None = None
    error: BaseException | None = None

    def end(self, result: ResultT | None, error: BaseException | None) -> None:
        """Tells all who wait."""
        with self.changed:
            if not self.finished:
                self.result, self.error, self.finished = result, error, True
                self.changed.notify_all()


class Jobs(Generic[ResultT]):
    """Does computations one after another, in a thread of its own. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[Hashable, _Job[ResultT]] = {}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="maximizing")
        self._closed = False

    def follow(
        self, key: Hashable, work: Callable[[Report], ResultT], check: Callable[[], None]
    ) -> Iterator[Progress | ResultT]:
        """Has a computation done, or waits for the one of this key that is under way.

        Args:
            key: Of the computation.
            work: Does it; calls what it is given with its progress, which raises `Stopped` when nobody waits any more.
            check: Called now and then while waiting; what it raises ends the waiting.

        Yields:
            The progress, as often as it has changed; at last the result.

        Raises:
            Draining: The server is shutting down.
        """
        with self._lock:
            if self._closed:
                raise _draining()
            job = self._jobs.get(key)
            if job is None:
                job = self._jobs[key] = _Job()
                self._executor.submit(self._do, key, job, work)
            job.waiting += 1
        try:
            told = None
            while True:
                with job.changed:
                    if not job.finished and job.progress == told:
                        job.changed.wait(_LOOK)
                    progress, finished = job.progress, job.finished
                check()
                if progress is not None and progress != told:
                    told = progress
                    yield progress
                if finished:
                    break
        finally:
            with self._lock:
                job.waiting -= 1
                if not job.waiting and self._jobs.get(key) is job:
                    # Who comes from now on begins anew.
                    job.stopped = True
                    del self._jobs[key]
        if job.error is not None:
            raise job.error
        assert job.result is not None
        yield job.result

    def close(self) -> None:
        """Stops what runs, tells all who wait, and ends the thread."""
        with self._lock:
            self._closed = True
            for job in self._jobs.values():
                job.stopped = True
        self._executor.shutdown(cancel_futures=True)
        with self._lock:
            # Those whose turn never came.
            jobs = list(self._jobs.values())
        for job in jobs:
            job.end(None, _draining())

    def _do(self, key: Hashable, job: _Job[ResultT], work: Callable[[Report], ResultT]) -> None:
        def report(progress: Progress) -> None:
            with job.changed:
                job.progress = progress
                job.changed.notify_all()
            if job.stopped:
                raise Stopped

        result: ResultT | None = None
        error: Exception | None = None
        try:
            if job.stopped:
                raise Stopped
            result = work(report)
        except Stopped:
            error = _draining()
        except Exception as caught:
            error = caught
        with self._lock:
            if self._jobs.get(key) is job:
                del self._jobs[key]
        job.end(result, error)


def _draining() -> Draining:
    return Draining("the server is shutting down: send the request to another")
