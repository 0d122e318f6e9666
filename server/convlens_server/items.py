"""What waits in a batcher, whatever service asked for it, and how a batch is answered."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import grpc

from convlens_server.answers import Answers
from convlens_server.engine import FloatArray, Run
from convlens_server.errors import OK, Cancelled, DeadlineExceeded, Draining, ServiceError, Status, status_of
from convlens_server.metrics import ModelMetrics
from convlens_server.transport.base import Call

if TYPE_CHECKING:
    from convlens_server.tracing import Trace


class Computed:
    """What an engine has computed for a batch.

    Attributes:
        answers: Writes the responses of its version.
        scores: float32 N × classes.
        logits: float32 N × classes.
        run: When, and how long it took.
    """

    def __init__(self, answers: Answers, scores: FloatArray, logits: FloatArray, run: Run) -> None:
        self.answers = answers
        self.scores = scores
        self.logits = logits
        self.run = run

    @cached_property
    def top_one(self) -> list[bytes]:
        """`Answers.top_one` of the whole batch at once: nearly every request asks for that."""
        return self.answers.top_one(self.scores)


class RequestItem(ABC):
    """One request in the batcher; `Item` of batcher.py.

    Attributes:
        method: Of the service, for the metrics.
        priority: Level that it asks for; 0: the default.
        timeout: Seconds that it may wait in the queue, where that is less than its deadline; 0: no such bound.
        counted: Whether it is a request of its own, and not a part of one that is counted elsewhere.
    """

    __slots__ = ("arrived", "batch_key", "call", "count", "deadline", "enqueued", "metrics", "pixels", "trace")

    method: str
    priority = 0
    timeout = 0.0
    counted = True

    def __init__(self, call: Call, arrived: float, metrics: ModelMetrics) -> None:
        self.call = call
        self.trace = call.trace
        self.deadline = call.deadline
        self.arrived = arrived
        self.metrics = metrics
        self.enqueued = math.nan
        self.batch_key: object = None
        self.pixels = b""
        self.count = 0

    @property
    def gone(self) -> bool:
        """Whether the caller has left."""
        return self.call.cancelled

    @abstractmethod
    def response(self, computed: Computed, start: int) -> bytes:
        """Writes the answer. Must not raise for what only this request did: that would fail its whole batch.

        Args:
            computed: Of the batch.
            start: The request's first row in it.
        """

    def answer(self, response: bytes) -> None:
        """Sends the answer."""
        self.call.reply(response)

    def fail(self, error: BaseException) -> None:
        """Sends the error and counts it."""
        self.count_failure(error)
        self.call.fail(error)

    def count_failure(self, error: BaseException) -> None:
        """Counts an error."""
        self.metrics.count(self.method, code_name(error), time.monotonic() - self.arrived)
        if self.trace is not None:
            self.trace.end(grpc.StatusCode[code_name(error)])


class Question:
    """One call that is not for the batcher, while it waits for its model; `Waiting` of repository.py."""

    def __init__(self, call: Call, method: str, metrics: ModelMetrics) -> None:
        self.call = call
        self.method = method
        self.metrics = metrics
        self.deadline = call.deadline

    @property
    def gone(self) -> bool:
        """Whether the caller has left."""
        return self.call.cancelled

    def fail(self, error: BaseException) -> None:
        """Sends the error and counts it."""
        self.metrics.count(self.method, code_name(error))
        self.call.fail(error)


class Stream:
    """A call of many requests: ends when its caller has sent all and has got all answers, or when the server drains.

    Thread-safe: requests come in on the transport's thread, answers from the engines' and the codec's.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self._lock = threading.Lock()
        self._unanswered = 0
        self._end: Status | None = None
        call.on_drain = self.drain

    @classmethod
    def of(cls, call: Call) -> Stream:
        """The stream of a call."""
        if not isinstance(call.state, Stream):
            call.state = cls(call)
        return call.state

    def began(self) -> None:
        """Counts a request in.

        Raises:
            Draining: The stream is ending.
        """
        with self._lock:
            self._unanswered += 1
            if self._end is not None:
                raise Draining("the server is shutting down: send the request to another")

    def answer(self, message: bytes) -> None:
        """Sends the answer to one request, or its error."""
        self.call.send(message)
        with self._lock:
            self._unanswered -= 1
        self._maybe_finish()

    def half_close(self) -> None:
        """The caller will send no more."""
        with self._lock:
            self._end = self._end or OK
        self._maybe_finish()

    def drain(self) -> None:
        """The server will answer no more than what it has."""
        with self._lock:
            self._end = self._end or status_of(Draining("the server is shutting down: open the stream to another"))
        self._maybe_finish()

    def _maybe_finish(self) -> None:
        if self._end is not None and self._unanswered == 0:
            self.call.finish(self._end)


class Responder:
    """Answers the batches of one version of a model."""

    def __init__(self, answers: Answers, metrics: ModelMetrics) -> None:
        self._answers = answers
        self._metrics = metrics

    def __call__(self, batch: Sequence[RequestItem], scores: FloatArray, logits: FloatArray, run: Run) -> None:
        """`Respond` of engine.py."""
        computed = Computed(self._answers, scores, logits, run)
        # All are made before the first is sent: what fails here fails the whole batch, and nobody is answered twice.
        responses = []
        start = 0
        for item in batch:
            responses.append(item.response(computed, start))
            start += item.count
            if item.trace is not None:
                self._trace(item.trace, item, batch, computed)
        for item, response in zip(batch, responses, strict=True):
            item.answer(response)
            if item.trace is not None:
                item.trace.end(OK.code)
        now = time.monotonic()
        began = run.began
        counted = [item for item in batch if item.counted]
        self._metrics.batch(
            [item.method for item in counted],
            len(scores),
            run,
            now - began - run.seconds,
            [began - item.enqueued for item in counted],
            [now - item.arrived for item in counted],
        )

    def _trace(self, trace: Trace, item: RequestItem, batch: Sequence[RequestItem], computed: Computed) -> None:
        model, version = self._metrics.labels
        run = computed.run
        trace.about(model=model, version=version, images=item.count)
        trace.span("queue", item.enqueued, run.began)
        size = {"batch_images": len(computed.scores), "batch_requests": len(batch)}
        trace.span("compute", run.began, run.began + run.seconds, **size)


def code_name(error: BaseException) -> str:
    """The name of the status code that an exception becomes, for the metrics."""
    return error.code.name if isinstance(error, ServiceError) else "INTERNAL"


def gone(item: RequestItem) -> Cancelled | None:
    """The error of an item whose caller has left, else None."""
    return Cancelled("the caller left; nothing was computed") if item.gone else None


def check_wanted(call: Call, queued: float) -> None:
    """Before something is computed for a call that has waited `queued` seconds: whether somebody still waits for it.

    Raises:
        Cancelled: The caller has left.
        DeadlineExceeded: The deadline has passed.
    """
    if call.cancelled:
        raise Cancelled("the caller left; nothing was computed")
    if time.monotonic() >= call.deadline:
        raise DeadlineExceeded(f"deadline passed after {queued * 1000:.0f} ms in the queue; nothing was computed")
