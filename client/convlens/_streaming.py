"""`Client.stream`: any number of images over one call."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import grpc

from convlens import _answers
from convlens._connection import Connection
from convlens._errors import Error
from convlens._requests import Query
from convlens._types import ImageLike, Outcome
from convlens._window import Window
from convlens.v1 import convlens_pb2 as pb

# What a stream waits for: an answer, an image that could not be sent, the failure of all, or the end.
_Event: TypeAlias = pb.ClassifyStreamResponse | Outcome | Exception | None


def stream(
    connection: Connection, images: Iterable[ImageLike], query: Query, seconds: float, bound: int
) -> Iterator[Outcome]:
    """The outcomes of `Client.stream`.

    Args:
        connection: To the server.
        images: Drawn by a thread, as places become free.
        query: What is asked of each.
        seconds: That the stream may go without an answer.
        bound: Most images sent whose outcome has not been yielded.
    """
    window = Window(seconds)
    events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
    places = threading.Semaphore(bound)
    stopped = threading.Event()

    def send() -> Iterator[pb.ClassifyStreamRequest]:
        try:
            for position, image in enumerate(images):
                places.acquire()
                if stopped.is_set():
                    return
                try:
                    message = window.sent(position, query.single(image))
                except Error as error:
                    events.put(Outcome(position, error))
                else:
                    yield message
        except Exception as error:
            events.put(error)

    def receive() -> None:
        try:
            for response in call:
                events.put(response)
            events.put(None)
        except grpc.RpcError as failure:
            events.put(connection.endpoint.error(failure))

    metadata = connection.endpoint.metadata
    call = connection.repeat(lambda _: connection.stub.ClassifyStream(send(), metadata=metadata), seconds)
    receiver = threading.Thread(target=receive, name="convlens-stream", daemon=True)
    receiver.start()
    try:
        while (event := _wait(events, window)) is not None:
            if isinstance(event, Exception):
                raise event
            for outcome, request in window.arrived(event):
                places.release()
                yield _settled(connection, outcome, request, seconds)
        window.ended()
    finally:
        stopped.set()
        places.release()
        call.cancel()
        receiver.join()


def _settled(connection: Connection, outcome: Outcome, request: pb.ClassifyRequest | None, seconds: float) -> Outcome:
    """The outcome, after another try where the server asks for one."""
    if outcome.error is None or request is None:
        return outcome
    try:
        response = connection.unary(connection.stub.Classify, request, seconds, outcome.error)
        return Outcome(outcome.position, None, _answers.classifications(response, request.images)[0])
    except Error as error:
        return Outcome(outcome.position, error)


def _wait(events: queue.SimpleQueue[_Event], window: Window) -> _Event:
    since = time.monotonic()
    while True:
        try:
            return events.get(timeout=window.patience(since))
        except queue.Empty:
            continue
