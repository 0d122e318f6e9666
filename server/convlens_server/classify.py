"""Classify and ClassifyStream: what waits in the batcher for them, and how it is answered."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from convlens.v1 import convlens_pb2 as pb
from convlens_server.answers import stream_response
from convlens_server.errors import InvalidRequest, rpc_status
from convlens_server.items import Computed, RequestItem, Stream
from convlens_server.metrics import ModelMetrics
from convlens_server.transport.base import Call, log_failure

DEFAULT_TOP_K = 5

M = TypeVar("M", bound=Message)


class ClassifyItem(RequestItem):
    """One classification in the batcher."""

    __slots__ = ("all_logits", "all_scores", "top_k")

    method = "Classify"

    def __init__(self, call: Call, arrived: float, metrics: ModelMetrics) -> None:
        super().__init__(call, arrived, metrics)
        self.top_k = 1
        self.all_scores = self.all_logits = False

    def response(self, computed: Computed, start: int) -> bytes:
        """The ClassifyResponse."""
        answers = computed.answers
        run = computed.run
        end = start + self.count
        if self.top_k == 1 and not self.all_scores and not self.all_logits:
            lines = computed.top_one
            results = lines[start] if self.count == 1 else b"".join(lines[start:end])
        else:
            scores, logits = computed.scores[start:end], computed.logits[start:end]
            results = answers.results(scores, logits, self.top_k, self.all_scores, self.all_logits)
        return answers.response(results, (run.began - self.enqueued) * 1000, run.seconds * 1000)


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
        self.count_failure(error)
        log_failure(self.call, error)
        status = rpc_status(error, self.call.request_id)
        self.stream.answer(pb.ClassifyStreamResponse(id=self.identity, error=status).SerializeToString())


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
