"""Classify and ClassifyStream: what waits in the batcher for them, and how a batch is answered."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from convlens.v1 import convlens_pb2 as pb
from convlens_server.answers import Answers, stream_response
from convlens_server.batcher import Item
from convlens_server.engine import FloatArray
from convlens_server.errors import (
    OK,
    Cancelled,
    Draining,
    InvalidRequest,
    ServiceError,
    Status,
    rpc_status,
    status_of,
)
from convlens_server.metrics import ModelMetrics
from convlens_server.transport.base import Call, log_failure

DEFAULT_TOP_K = 5

M = TypeVar("M", bound=Message)


class ClassifyItem:
    """One classification in the batcher; `Item` of batcher.py."""

    __slots__ = (
        "all_logits", "all_scores", "arrived", "call", "count", "deadline", "enqueued", "metrics", "pixels", "top_k",
    )  # fmt: skip

    method = "Classify"

    def __init__(self, call: Call, arrived: float, metrics: ModelMetrics) -> None:
        self.call = call
        self.deadline = call.deadline
        self.arrived = arrived
        self.metrics = metrics
        self.enqueued = math.nan
        self.pixels = b""
        self.count = 0
        self.top_k = 1
        self.all_scores = self.all_logits = False

    @property
    def gone(self) -> bool:
        """Whether the caller has left."""
        return self.call.cancelled

    def answer(self, response: bytes) -> None:
        """Sends the ClassifyResponse."""
        self.call.reply(response)

    def fail(self, error: BaseException) -> None:
        """Sends the error and counts it."""
        self.metrics.count(self.method, code_name(error))
        self.call.fail(error)


class StreamItem(ClassifyItem):
    """One classification of a stream."""

    __slots__ = ("identity", "stream")

    method = "ClassifyStream"

    def __init__(self, call: Call, arrived: float, metrics: ModelMetrics, stream: Stream, identity: int) -> None:
        super().__init__(call, arrived, metrics)
        self.stream = stream
        self.identity = identity

    def answer(self, response: bytes) -> None:
        """Sends the ClassifyStreamResponse."""
        self.stream.answer(stream_response(self.identity, response))

    def fail(self, error: BaseException) -> None:
        """Answers this request of the stream by its error and counts it; the stream goes on."""
        self.metrics.count(self.method, code_name(error))
        self.stream.fail(self.identity, error)


class Stream:
    """One ClassifyStream call: ends when its caller has sent all and has got all answers, or when the server drains.

    Thread-safe: requests come in on the transport's thread, answers from the engines' and the codec's.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._unanswered = 0
        self._end: Status | None = None
        call.on_drain = self.drain

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
        """Sends the answer to one request."""
        self._call.send(message)
        with self._lock:
            self._unanswered -= 1
        self._maybe_finish()

    def fail(self, identity: int, error: BaseException) -> None:
        """Sends the error of one request."""
        log_failure(self._call, error)
        status = rpc_status(error, self._call.request_id)
        self.answer(pb.ClassifyStreamResponse(id=identity, error=status).SerializeToString())

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
            self._call.finish(self._end)


class Responder:
    """Answers the batches of one version of a model."""

    def __init__(self, answers: Answers, metrics: ModelMetrics) -> None:
        self._answers = answers
        self._metrics = metrics

    def __call__(
        self, batch: Sequence[ClassifyItem], scores: FloatArray, logits: FloatArray, began: float, seconds: float
    ) -> None:
        """`Respond` of engine.py."""
        answers = self._answers
        compute_ms = seconds * 1000
        # Of a whole batch at once: nearly every request asks for the same.
        simple = all(item.top_k == 1 and not item.all_scores and not item.all_logits for item in batch)
        lines = answers.top_one(scores) if simple else []
        # All are made before the first is sent: what fails here fails the whole batch, and nobody is answered twice.
        responses = []
        start = 0
        for item in batch:
            end = start + item.count
            if simple:
                results = lines[start] if item.count == 1 else b"".join(lines[start:end])
            else:
                results = answers.results(
                    scores[start:end], logits[start:end], item.top_k, item.all_scores, item.all_logits
                )
            start = end
            responses.append(answers.response(results, (began - item.enqueued) * 1000, compute_ms))
        for item, response in zip(batch, responses, strict=True):
            item.answer(response)
        now = time.monotonic()
        self._metrics.batch(
            [item.method for item in batch],
            len(scores),
            seconds,
            [began - item.enqueued for item in batch],
            [now - item.arrived for item in batch],
        )


def parse(message: type[M], data: bytes) -> M:
    """Reads a request message. Raises InvalidRequest."""
    try:
        return message.FromString(data)
    except DecodeError:
        raise InvalidRequest(f"the message is not a {message.DESCRIPTOR.full_name}", reason="NOT_A_MESSAGE") from None


def read_options(request: pb.ClassifyRequest, item: ClassifyItem, classes: int) -> None:
    """Takes over what the request asks for beside the images. Raises InvalidRequest."""
    top_k = request.top_k if request.HasField("top_k") else min(DEFAULT_TOP_K, classes)
    if not 1 <= top_k <= classes:
        raise InvalidRequest(
            f"top_k is {top_k}, but must be 1 … {classes}, the number of classes",
            reason="TOP_K_OUT_OF_RANGE",
            field="top_k",
            metadata={"top_k": top_k, "classes": classes},
        )
    item.top_k = top_k
    item.all_scores = request.include_scores
    item.all_logits = request.include_logits


def code_name(error: BaseException) -> str:
    """The name of the status code that an exception becomes, for the metrics."""
    return error.code.name if isinstance(error, ServiceError) else "INTERNAL"


def gone(item: Item) -> Cancelled | None:
    """The error of an item whose caller has left, else None."""
    return Cancelled("the caller left; nothing was computed") if item.gone else None
