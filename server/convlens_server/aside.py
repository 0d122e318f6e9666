"""Questions about a model that are answered beside the batcher, in a pool of threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from convlens.v1 import convlens_pb2 as pb
from convlens_server.classify import parse
from convlens_server.images import RequestImages
from convlens_server.items import Question, check_wanted, code_name
from convlens_server.metrics import ModelMetrics
from convlens_server.model import Model
from convlens_server.paced import Paced
from convlens_server.pool import BoundedPool
from convlens_server.repository import Repository
from convlens_server.settings import RequestLimits
from convlens_server.transport.base import Call, Method

_Request = TypeVar("_Request", bound=Message)


class Aside:
    """Makes methods whose answers are computed in a pool.

    Args:
        repository: Of the models.
        pool: Runs the answers.
        limits: Of one request.
        unknown: Counts requests for no known model.

    Attributes:
        repository: As given.
        limits: As given.
    """

    def __init__(self, repository: Repository, pool: BoundedPool, limits: RequestLimits, unknown: ModelMetrics) -> None:
        self.repository = repository
        self.limits = limits
        self._pool = pool
        self._unknown = unknown

    def method(
        self,
        path: str,
        request_type: type[_Request],
        answer: Callable[[Model, _Request, Call], Iterator[Message]],
        streams: bool = False,
        model_of: Callable[[_Request], Any] = lambda request: request,
    ) -> Method:
        """A method for a transport.

        Args:
            path: "/package.Service/Method".
            request_type: Of the request message.
            answer: Gives the messages of the answer, exactly one if the method does not stream. Runs in the pool, in
                turns of a streaming answer perhaps in several of its threads one after another; a long computation
                should look at `call.cancelled` and `call.deadline` now and then. What it raises ends the call.
            streams: Whether the answer is a stream.
            model_of: The part of the request that has the fields `model` and `version`.
        """
        name = path.rpartition("/")[2]

        def handle(data: bytes, call: Call) -> None:
            question = Question(call, name, self._unknown)
            arrived = time.monotonic()

            def messages(model: Model, request: _Request) -> Iterator[Message]:
                began = time.monotonic()
                check_wanted(call, began - arrived)
                yield from answer(model, request, call)
                if call.trace is not None:
                    call.trace.about(model=model.name, version=str(model.version))
                    call.trace.span("queue", arrived, began)
                    call.trace.span("lens", began, time.monotonic())

            def begin(model: Model, request: _Request) -> None:
                question.metrics = model.metrics
                if streams:

                    def ended(error: BaseException | None) -> None:
                        question.metrics.count(name, "OK" if error is None else code_name(error))

                    Paced(call, self._pool, messages(model, request), ended).start(len(data))
                else:
                    self._pool.submit(lambda: reply(messages(model, request)), len(data))

            def reply(answers: Iterator[Message]) -> None:
                try:
                    [message] = answers
                    response = message.SerializeToString()
                except Exception as error:
                    question.fail(error)
                    return
                question.metrics.count(name, "OK")
                call.reply(response)

            try:
                request = parse(request_type, data)
                target = model_of(request)
                self.repository.when_ready(target.model, target.version, question, lambda model: begin(model, request))
            except Exception as error:
                question.fail(error)

        return Method(path, handle, streams=streams)

    def decoded(self, images: pb.Images, model: Model, most: int = 1, limit_name: str = "") -> npt.NDArray[np.uint8]:
        """The images of a request: uint8, N × height × width × channels, 1 ≤ N ≤ `most`.

        Args:
            images: From the request.
            model: Whose input they must fit.
            most: Most images.
            limit_name: The flag that sets `most`, for the error; empty if none does.

        Raises:
            InvalidRequest: No images, or too many.
            InvalidImage: One cannot be read, or does not fit the model.
        """
        checked = RequestImages(images, model.shape, most, limit_name)
        return np.frombuffer(checked.decode(self.limits.pixels), np.uint8).reshape(-1, *model.shape)
