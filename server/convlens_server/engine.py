"""The engine: one inference session and one thread that runs batches and has them answered."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from convlens_server.batcher import Batcher, ItemT, dropped, fail
from convlens_server.errors import EngineFailed

if TYPE_CHECKING:
    import onnxruntime

log = logging.getLogger(__name__)

FloatArray: TypeAlias = npt.NDArray[np.float32]


class Run(NamedTuple):
    """When an engine ran a batch.

    Attributes:
        began: Seconds of `time.monotonic()`.
        input_seconds: That joining the images took.
        seconds: That everything took, joining included.
    """

    began: float
    input_seconds: float
    seconds: float


# Answers the items of a batch: (items, scores, logits, when it ran).
Respond: TypeAlias = Callable[[list[ItemT], FloatArray, FloatArray, Run], None]


class Engine:
    """Runs batches of images through a network.

    Args:
        session: Takes N images, uint8 N × height × width × channels; or other tensors, N × `image_shape` of `dtype`.
            Gives scores and logits, float32 N × classes.
        input_name: Of the session's input.
        output_names: Of its scores and its logits.
        image_shape: Height, width, channels; or that of one of the other tensors.
        dtype: uint8, or that of the other tensors.
        max_batch: Most images of one run.
        buckets: Batch sizes that runs are padded to, ascending, the last being `max_batch`; empty: never padded.
            CUDA chooses its algorithms anew at every size it has not seen.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        input_name: str,
        output_names: tuple[str, str],
        image_shape: tuple[int, int, int],
        dtype: npt.DTypeLike,
        max_batch: int,
        buckets: tuple[int, ...] = (),
    ) -> None:
        self._session = session
        self._input_name = input_name
        self._output_names = list(output_names)
        self._image_shape = image_shape
        self._max_batch = max_batch
        self._buckets = buckets
        self._dtype = np.dtype(dtype)

    def warm(self) -> None:
        """Runs every bucket once (without buckets: the powers of two), so that no request meets a first time."""
        sizes = set(self._buckets) or {1 << n for n in range(self._max_batch.bit_length())}
        for size in sorted(sizes | {self._max_batch}):
            self._run(np.zeros((size, *self._image_shape), self._dtype))

    def run(self, pixels: bytes) -> tuple[FloatArray, FloatArray]:
        """Classifies joined images.

        Args:
            pixels: The bytes of N × height × width × channels values, N ≥ 1; more than `max_batch` are run one part
                after another.

        Returns:
            Scores and logits, float32 N × classes each.
        """
        images = np.frombuffer(pixels, self._dtype).reshape(-1, *self._image_shape)
        if len(images) <= self._max_batch:
            return self._run(images)
        parts = [self._run(images[i : i + self._max_batch]) for i in range(0, len(images), self._max_batch)]
        return np.concatenate([scores for scores, _ in parts]), np.concatenate([logits for _, logits in parts])

    def _run(self, images: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        count = len(images)
        if self._buckets:
            size = next(bucket for bucket in self._buckets if bucket >= count)
            if size > count:
                images = np.concatenate([images, np.zeros((size - count, *self._image_shape), self._dtype)])
        scores, logits = self._session.run(self._output_names, {self._input_name: images})
        return scores[:count], logits[:count]


class Engines(NamedTuple):
    """The engines of one kind of input; a batch key where that is not images.

    Attributes:
        beside: Runs batches; called by several threads at the same time.
        alone: Runs a batch that no other runs beside; may be the same.
    """

    beside: Engine
    alone: Engine


class EngineThreads(Generic[ItemT]):
    """Feed an engine from a batcher until the batcher is closed and empty.

    One thread takes what waits at once. The others help it while the queue is long. Measured with the lecture network
    on 2 cores shared with the load generator, images/s at concurrency 8 / 32 / 128: 9,700 / 11,500 / 10,500 if one
    thread runs every batch on both cores; 7,700 / 10,900 / 11,700 if two threads always take what waits; 9,700 / 11,700
    / 11,700 in this way.

    Models share the CPU because each has threads of its own, between which the system divides the cores. Turns that
    were given out here would be worse, since a run cannot be interrupted: measured with the lecture network on 2 cores,
    one image every 10 ms beside a flood of 128 requests to another model took 1.7 … 2.2 ms (median; 2.0 ms without the
    flood), and 7.7 … 9.9 ms where it had to wait for its turn.

    Args:
        name: For the threads' names.
        engines: Run the batches of images; what is no image has its own as its batch key.
        batcher: Gives the batches.
        respond: Answers the batches.
        count: Threads, each with a batch of its own.
        instances: Further engines for images, each with a thread that takes what waits at once.
    """

    def __init__(
        self,
        name: str,
        engines: Engines,
        batcher: Batcher[ItemT],
        respond: Respond[ItemT],
        count: int = 1,
        instances: Sequence[Engine] = (),
    ) -> None:
        self._engines = engines
        self._lock = threading.Lock()
        self._running = 0
        self._batcher = batcher
        self._respond = respond
        self._threads = [
            threading.Thread(target=self._work, args=(helping, own), name=f"engine {name} #{number}", daemon=True)
            for number, (helping, own) in enumerate(
                [
                    *((number > 0, engines) for number in range(count)),
                    *((False, Engines(own, own)) for own in instances),
                ]
            )
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Waits until everything in the queue is answered. The batcher must be closed."""
        for thread in self._threads:
            thread.join()

    def late(self) -> Callable[[ItemT], None]:
        """What answers an item in the caller's thread, when the threads have ended."""
        # Not a method of this object: what keeps it must not keep the batcher, which keeps it.
        return functools.partial(_compute_late, self._engines, self._respond)

    def _work(self, helping: bool, own: Engines) -> None:
        for batch in self._batcher.batches(helping):
            try:
                self._compute(batch, own)
            except Exception as error:
                _failed(batch, error)

    def _compute(self, batch: list[ItemT], own: Engines) -> None:
        key = batch[0].batch_key
        engines = key if isinstance(key, Engines) else own
        began = time.monotonic()
        # Joining 32 images of bytes takes 1 µs, np.stack 22 µs.
        pixels = batch[0].pixels if len(batch) == 1 else b"".join([item.pixels for item in batch])
        joined = time.monotonic()
        with self._lock:
            engine = engines.beside if self._running or self._batcher.needs_help else engines.alone
            self._running += 1
        try:
            scores, logits = engine.run(pixels)
        finally:
            with self._lock:
                self._running -= 1
        seconds = time.monotonic() - began
        self._batcher.computed(len(scores), seconds)
        self._respond(batch, scores, logits, Run(began, joined - began, seconds))


def _compute_late(engines: Engines, respond: Respond[ItemT], item: ItemT) -> None:
    """Answers one item that came when its model had left."""
    began = time.monotonic()
    if dropped(item, began):
        return
    try:
        key = item.batch_key
        scores, logits = (key if isinstance(key, Engines) else engines).beside.run(item.pixels)
        respond([item], scores, logits, Run(began, 0.0, time.monotonic() - began))
    except Exception as error:
        _failed([item], error)


def _failed(batch: list[ItemT], error: Exception) -> None:
    log.error("batch of %d requests failed", len(batch), exc_info=error)
    for item in batch:
        fail(item, EngineFailed(f"the engine failed on this batch: {type(error).__name__}"))
