"""Requests that wait until the version that they ask for is loaded, off the transport's thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from convlens_server.errors import Cancelled, DeadlineExceeded, Draining, QueueFull
from convlens_server.model import Model

# Requests that wait for one version.
_MAX_WAITING = 4096


class Waiting(Protocol):
    """A request that may have to wait for a model.

    Attributes:
        deadline: When its caller stops waiting, seconds of `time.monotonic()`.
    """

    deadline: float

    @property
    def gone(self) -> bool:
        """Whether its caller has left."""

    def fail(self, error: BaseException) -> None:
        """Answers it with an error."""


class OnDemand:
    """Has versions loaded one after another, each once for all who wait for it. Thread-safe.

    Args:
        load: Gives a version's model, loaded if it was not; may raise.
    """

    def __init__(self, load: Callable[[str, int], Model]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, int], list[tuple[Waiting, Callable[[Model], None]]]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loading")
        self._closed = False

    def wait(self, name: str, number: int, item: Waiting, use: Callable[[Model], None]) -> None:
        """Calls `use` with the model when it is loaded, in another thread; what fails there fails the item.

        Raises:
            QueueFull: Too many wait for this version.
            Draining: The server is shutting down.
        """
        key = name, number
        with self._lock:
            if self._closed:
                raise Draining("the server is shutting down: send the request to another")
            waiting = self._waiting.get(key)
            if waiting is None:
                self._waiting[key] = [(item, use)]
                self._pool.submit(self._work, key)
                return
            if len(waiting) >= _MAX_WAITING:
                raise QueueFull(
                    f"{len(waiting)} requests wait for version {number} of model {name!r} to be loaded, which is the "
                    "limit: try again later",
                    metadata={"waiting": len(waiting), "limit": _MAX_WAITING},
                    retry_after=1.0,
                )
            waiting.append((item, use))

    def close(self) -> None:
        """Finishes what is being loaded, and refuses those who wait for anything else."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(cancel_futures=True)
        for waiting in self._waiting.values():
            for item, _ in waiting:
                item.fail(Draining("the server is shutting down: send the request to another"))

    def _work(self, key: tuple[str, int]) -> None:
        model: Model | None = None
        failure: BaseException | None = None
        while True:
            with self._lock:
                items = [item for item, _ in self._waiting[key]]
            # Nothing is loaded for those who have left.
            if model is None and failure is None and not all(map(_lost, items)):
                try:
                    model = self._load(*key)
                except Exception as error:
                    failure = error
            with self._lock:
                if model is not None or failure is not None or len(self._waiting[key]) == len(items):
                    waiting = self._waiting.pop(key)
                    break
        for item, use in waiting:
            try:
                if (problem := _lost(item) or failure) is not None:
                    raise problem
                assert model is not None
                use(model)
            except Exception as error:
                item.fail(error)


def _lost(item: Waiting) -> Cancelled | DeadlineExceeded | None:
    """The error of a request that nobody waits for any more."""
    if item.gone:
        return Cancelled("the caller left while the model was loaded; nothing was computed")
    if time.monotonic() >= item.deadline:
        return DeadlineExceeded("deadline passed while the model was loaded; nothing was computed")
    return None
