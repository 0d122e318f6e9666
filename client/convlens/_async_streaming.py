"""`AsyncClient.stream`: any number of images over one call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio

from convlens import _answers
from convlens._async_connection import AsyncConnection, built
from convlens._errors import Cancelled, Error
from convlens._requests import Query
from convlens._types import ImageLike, Outcome
from convlens._window import Window
from convlens.v1 import convlens_pb2 as pb

if TYPE_CHECKING:
    from convlens.v1.convlens_pb2_grpc import ConvLensAsyncStub

# What a stream waits for: an answer, an image that could not be sent, the failure of all, or the end.
_Event: TypeAlias = pb.ClassifyStreamResponse | Outcome | Exception | None


async def stream(
    connection: AsyncConnection,
    images: Iterable[ImageLike] | AsyncIterable[ImageLike],
    query: Query,
    seconds: float,
    bound: int,
) -> AsyncIterator[Outcome]:
    """The outcomes of `AsyncClient.stream`.

    Args:
        connection: To the server.
        images: Drawn as places become free.
        query: What is asked of each.
        seconds: That the stream may go without an answer.
        bound: Most images sent whose outcome has not been yielded.
    """
    window = Window(seconds)
    events: asyncio.Queue[_Event] = asyncio.Queue()
    places = asyncio.Semaphore(bound)

    async def send() -> AsyncIterator[pb.ClassifyStreamRequest]:
        position = 0
        try:
            async for image in _each(images):
                await places.acquire()
                try:
                    message = window.sent(position, await built(query.single, image))
                except Error as error:
                    events.put_nowait(Outcome(position, error))
                else:
                    yield message
                position += 1
        except Exception as error:
            events.put_nowait(error)

    async def receive() -> None:
        try:
            async for response in call:
                events.put_nowait(response)
            events.put_nowait(None)
        except grpc.RpcError as failure:
            status = await _sent_status(call, [*statuses, failure])
            events.put_nowait(None if status.code() is grpc.StatusCode.OK else connection.endpoint.error(status))
        except asyncio.CancelledError:
            events.put_nowait(Cancelled(f"the client of {connection.endpoint.target} was closed"))
            raise

    statuses: list[grpc.aio.AioRpcError] = []

    async def begin(
        stub: ConvLensAsyncStub, _: float
    ) -> grpc.aio.StreamStreamCall[pb.ClassifyStreamRequest, pb.ClassifyStreamResponse]:
        call = stub.ClassifyStream(send(), metadata=connection.endpoint.metadata)
        call.add_done_callback(lambda ended: statuses.append(_status(ended)))
        return call

    call = await connection.repeat(begin, seconds)
    receiver = asyncio.create_task(receive())
    try:
        while (event := await _wait(events, window)) is not None:
            if isinstance(event, Exception):
                raise event
            for outcome, request in window.arrived(event):
                places.release()
                yield await _settled(connection, outcome, request, seconds)
        window.ended()
    finally:
        call.cancel()
        receiver.cancel()
        with suppress(asyncio.CancelledError):
            await receiver


async def _settled(
    connection: AsyncConnection, outcome: Outcome, request: pb.ClassifyRequest | None, seconds: float
) -> Outcome:
    """The outcome, after another try where the server asks for one."""
    if outcome.error is None or request is None:
        return outcome
    try:
        response = await connection.unary(lambda stub: stub.Classify, request, seconds, outcome.error)
        return Outcome(outcome.position, None, _answers.classifications(response, request.images)[0])
    except Error as error:
        return Outcome(outcome.position, error)


async def _sent_status(call: Any, seen: Sequence[grpc.RpcError]) -> grpc.RpcError:
    """The status that the server sent to end a stream.

    A message that is being sent meanwhile fails, and grpc.aio then puts a status of its own before or over the server's
    (https://github.com/grpc/grpc/issues/36066; 10 to 39 % of 400 streams that a server broke off).

    Args:
        call: The stream.
        seen: The statuses that it had so far, at least one.
    """
    for status in seen:
        if not _is_of_grpc(status):
            return status
    # The server's is on its way, unless there is none: then grpc's stands.
    for _ in range(100):
        await asyncio.sleep(0.01)
        if not _is_of_grpc(status := _status(call)):
            return status
    return seen[0]


def _is_of_grpc(status: grpc.RpcError) -> bool:
    return status.code() is grpc.StatusCode.INTERNAL and status.details() == "Internal error from Core"


def _status(ended: Any) -> grpc.aio.AioRpcError:
    """The status that a stream which has ended has now."""
    return grpc.aio.AioRpcError(
        _result(ended.code()), grpc.aio.Metadata(), _result(ended.trailing_metadata()), _result(ended.details())
    )


def _result(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    return None


async def _each(images: Iterable[ImageLike] | AsyncIterable[ImageLike]) -> AsyncIterator[ImageLike]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


async def _wait(events: asyncio.Queue[_Event], window: Window) -> _Event:
    since = time.monotonic()
    while True:
        left = window.patience(since)
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                return await events.get()
