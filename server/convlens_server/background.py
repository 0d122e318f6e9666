"""Runs the many images of one long computation through a model's ordinary queue, without being in anybody's way."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from convlens_server.batcher import Batcher
from convlens_server.engine import FloatArray
from convlens_server.errors import Cancelled, DeadlineExceeded
from convlens_server.items import Computed, RequestItem
from convlens_server.metrics import ModelMetrics
from convlens_server.transport.base import Call

if TYPE_CHECKING:
    from convlens_server.model import Model

Image = npt.NDArray[np.uint8]


class Outputs(NamedTuple):
    """What the network says of some images.

    Attributes:
        scores: float32 N × classes.
        logits: float32 N × classes.
    """

    scores: FloatArray
    logits: FloatArray


class Background:
    """Has images classified for one call, in pieces that each fit into a batch.

    One piece is in the queue or in the engine at a time, at the last priority level where there are any, so a
    classification waits for one batch of ours at most; the next piece is made ready meanwhile. Metrics count the images
    and the batches, but the pieces are no requests.

    Args:
        batcher: Of the model.
        metrics: Of the model.
        call: That everything is for; when it is over, nothing more is run.
        most: Images of a piece.
        priority: The last of the batcher's levels; 0 if it has none.

    Attributes:
        done: Images that were run so far.
    """

    def __init__(
        self, batcher: Batcher[RequestItem], metrics: ModelMetrics, call: Call, most: int, priority: int = 0
    ) -> None:
        self.done = 0
        self._batcher = batcher
        self._metrics = metrics
        self._call = call
        self._priority = priority
        self._piece = most

    @classmethod
    def of(cls, model: Model, call: Call) -> Background:
        """For a model."""
        settings = model.settings
        policy = settings.levels[-1] if settings.levels else settings.queue
        most = min(model.batcher.max_batch, policy.max_queue)
        return cls(model.batcher, model.metrics, call, most, len(settings.levels))

    def run(self, images: Iterable[Image]) -> Iterator[Outputs]:
        """Runs images, each height × width × channels; gives their outputs piece by piece, in order.

        Args:
            images: Made when their piece's turn comes, so that never more than two pieces are in memory.

        Raises:
            Cancelled: The caller has left.
            DeadlineExceeded: The deadline has passed.
            QueueFull: The model's queue is full.
            EngineFailed: The engine failed.
        """
        rest = iter(images)
        piece = self._next(rest)
        while piece is not None:
            self.check()
            self._batcher.submit(piece, self._priority)
            following = self._next(rest)
            try:
                outputs = piece.future.result()
            except (Cancelled, DeadlineExceeded):
                self.check()
                raise
            self.done += piece.count
            yield outputs
            piece = following

    def check(self) -> None:
        """Whether somebody still waits for the answer.

        Raises:
            Cancelled: The caller has left.
            DeadlineExceeded: The deadline has passed.
        """
        if self._call.cancelled:
            raise Cancelled(f"the caller left after {self.done} images; the rest was not computed")
        if time.monotonic() >= self._call.deadline:
            raise DeadlineExceeded(
                f"deadline passed after {self.done} images, which were not all: allow more time, or ask for less",
                metadata={"images": self.done},
            )

    def _next(self, images: Iterator[Image]) -> _Piece | None:
        piece = [image.tobytes() for image in itertools.islice(images, self._piece)]
        return _Piece(self._call, self._metrics, piece) if piece else None


class _Piece(RequestItem):
    """Some of the images, in the batcher."""

    __slots__ = ("_outputs", "future")

    method = "background"
    counted = False

    def __init__(self, call: Call, metrics: ModelMetrics, images: list[bytes]) -> None:
        super().__init__(call, time.monotonic(), metrics)
        # The call's trace does not end with its first piece.
        self.trace = None
        self.pixels = b"".join(images)
        self.count = len(images)
        self.future: Future[Outputs] = Future()
        self._outputs: Outputs | None = None

    def response(self, computed: Computed, start: int) -> bytes:
        """Keeps its rows of the batch; there are no bytes to send."""
        end = start + self.count
        self._outputs = Outputs(computed.scores[start:end], computed.logits[start:end])
        return b""

    def answer(self, response: bytes) -> None:
        """Hands the outputs to the thread that waits for them."""
        assert self._outputs is not None
        self.future.set_result(self._outputs)

    def fail(self, error: BaseException) -> None:
        """Hands the error to the thread that waits; what becomes of the call is decided there."""
        if not self.future.done():
            self.future.set_exception(error)
