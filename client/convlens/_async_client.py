"""The client for asyncio."""

# ruff: noqa: ASYNC109 - the timeouts become deadlines of grpc, which the server is told

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, overload

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from convlens import _answers, _requests
from convlens._channel import DEFAULT_TIMEOUT, TLS, Attempts, Endpoint
from convlens._errors import Cancelled, Error, UnusableClient
from convlens._images import is_many, takes_long
from convlens._types import (
    Classification,
    FeatureMap,
    FileLike,
    ImageLike,
    Layer,
    MapDtype,
    Model,
    ModelVersion,
    Outcome,
)
from convlens._window import Window
from convlens.v1 import convlens_pb2 as pb
from convlens.v1.convlens_pb2_grpc import ConvLensStub

if TYPE_CHECKING:
    from convlens.v1.convlens_pb2_grpc import ConvLensAsyncStub

_Built = TypeVar("_Built")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Result = TypeVar("_Result")
# What a stream waits for: an answer, an image that could not be sent, the failure of all, or the end.
_Event: TypeAlias = pb.ClassifyStreamResponse | Outcome | Exception | None


class AsyncClient:
    """Asks a convlens server from asyncio: `Client`, with `await` before its calls.

    It can be made anywhere, and connects in the event loop of its first call, to which it then belongs. Close it, or
    use it in an `async with` statement. Files are read in a thread.

    Args:
        target: As for `Client`; so are the others.
        timeout: Seconds that a call may take, repetitions included, unless it is given another number.
        tls: True to trust the certificates that come with grpc; a TLS for one's own.
        metadata: Sent with every call, e.g. {"authorization": "Bearer …"}.

    Raises:
        InvalidRequest: An argument is wrong.

    All methods raise the errors of `convlens.Error`'s tree, and no others; see `convlens._errors`.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        tls: bool | TLS = False,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._endpoint = Endpoint(target, timeout, tls, metadata)
        self._connection: _Connection | None = None
        self._closed = False

    # A path is a sequence of strings, hence of images; the first signature that fits is meant. What an array gives
    # depends on its number of dimensions, of which its type seldom tells.
    @overload
    async def classify(  # type: ignore[overload-overlap]
        self,
        images: FileLike,
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        timeout: float | None = None,
    ) -> Classification: ...
    @overload
    async def classify(
        self,
        images: Sequence[ImageLike],
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        timeout: float | None = None,
    ) -> list[Classification]: ...
    @overload
    async def classify(
        self,
        images: npt.NDArray[np.uint8],
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        timeout: float | None = None,
    ) -> Any: ...
    async def classify(
        self,
        images: ImageLike | Sequence[ImageLike],
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        timeout: float | None = None,
    ) -> Classification | list[Classification]:
        """Classifies one image or many. See `Client.classify`."""
        query = _requests.Query(model, version, top_k, scores, logits)
        request = await _built(query.request, images)
        results = await self._classify(request, timeout)
        return results if is_many(images) else results[0]

    def stream(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        timeout: float | None = None,
        in_flight: int = 64,
    ) -> AsyncIterator[Outcome]:
        """Classifies any number of images, each on its own, over one call. See `Client.stream`.

        `images` may be an asynchronous iterable too; an ordinary one is drawn from in the event loop.
        """
        query = _requests.Query(model, version, top_k, scores, logits)
        return self._stream(images, query, self._endpoint.seconds(timeout), _requests.in_flight(in_flight))

    async def maps(
        self,
        images: ImageLike | Sequence[ImageLike],
        model: str = "",
        version: int = 0,
        layers: str | Iterable[str] = (),
        kinds: str | Iterable[str] = (),
        all_layers: bool = False,
        channels: Iterable[int] = (),
        dtype: MapDtype = "float32",
        timeout: float | None = None,
    ) -> list[FeatureMap]:
        """Computes the feature maps of any layers. See `Client.maps`."""
        request = await _built(
            lambda given: _requests.maps(given, model, version, layers, kinds, all_layers, channels, dtype), images
        )

        async def read(stub: ConvLensAsyncStub, seconds: float) -> list[FeatureMap]:
            reader = _answers.MapsReader(single=not is_many(images))
            call = stub.GetFeatureMaps(request, timeout=seconds, metadata=self._endpoint.metadata)
            try:
                async for chunk in call:
                    reader.add(chunk)
            finally:
                call.cancel()
            return reader.maps()

        return await self._repeat(read, timeout)

    async def models(self, timeout: float | None = None) -> list[ModelVersion]:
        """Every version of every model. See `Client.models`."""
        request = pb.ListModelsRequest()
        return _answers.model_versions(await self._unary(lambda stub: stub.ListModels, request, timeout))

    async def model(self, name: str = "", version: int = 0, timeout: float | None = None) -> Model:
        """One version of a model, in full. See `Client.model`."""
        request = _requests.model(name, version)
        return _answers.model(await self._unary(lambda stub: stub.GetModel, request, timeout))

    async def layers(self, model: str = "", version: int = 0, timeout: float | None = None) -> list[Layer]:
        """The layer catalogue of a model. See `Client.layers`."""
        return list((await self.model(model, version, timeout)).layers)

    async def close(self) -> None:
        """Ends the connection; calls under way raise Cancelled. May be called twice."""
        self._closed = True
        if self._connection is not None:
            await self._connection.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _stream(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        query: _requests.Query,
        seconds: float,
        bound: int,
    ) -> AsyncIterator[Outcome]:
        window = Window(seconds)
        events: asyncio.Queue[_Event] = asyncio.Queue()
        places = asyncio.Semaphore(bound)

        async def send() -> AsyncIterator[pb.ClassifyStreamRequest]:
            position = 0
            try:
                async for image in _each(images):
                    await places.acquire()
                    try:
                        message = window.sent(position, await _built(query.single, image))
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
                events.put_nowait(None if status.code() is grpc.StatusCode.OK else self._endpoint.error(status))
            except asyncio.CancelledError:
                events.put_nowait(Cancelled(f"the client of {self._endpoint.target} was closed"))
                raise

        statuses: list[grpc.aio.AioRpcError] = []

        async def begin(
            stub: ConvLensAsyncStub, _: float
        ) -> grpc.aio.StreamStreamCall[pb.ClassifyStreamRequest, pb.ClassifyStreamResponse]:
            call = stub.ClassifyStream(send(), metadata=self._endpoint.metadata)
            call.add_done_callback(lambda ended: statuses.append(_status(ended)))
            return call

        call = await self._repeat(begin, seconds)
        receiver = asyncio.create_task(receive())
        try:
            while (event := await _wait(events, window)) is not None:
                if isinstance(event, Exception):
                    raise event
                for outcome, request in window.arrived(event):
                    places.release()
                    yield await self._settled(outcome, request, seconds)
            window.ended()
        finally:
            call.cancel()
            receiver.cancel()
            with suppress(asyncio.CancelledError):
                await receiver

    async def _settled(self, outcome: Outcome, request: pb.ClassifyRequest | None, seconds: float) -> Outcome:
        """The outcome, after another try where the server asks for one."""
        if outcome.error is None or request is None:
            return outcome
        try:
            return Outcome(outcome.position, None, (await self._classify(request, seconds, outcome.error))[0])
        except Error as error:
            return Outcome(outcome.position, error)

    async def _classify(
        self, request: pb.ClassifyRequest, timeout: float | None, refusal: Error | None = None
    ) -> list[Classification]:
        response = await self._unary(lambda stub: stub.Classify, request, timeout, refusal)
        return _answers.classifications(response, request.images)

    async def _unary(
        self,
        method: Callable[[ConvLensAsyncStub], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]],
        request: _Request,
        timeout: float | None,
        refusal: Error | None = None,
    ) -> _Response:
        async def attempt(stub: ConvLensAsyncStub, left: float) -> _Response:
            return await method(stub)(request, timeout=left, metadata=self._endpoint.metadata)

        return await self._repeat(attempt, timeout, refusal)

    async def _repeat(
        self,
        attempt: Callable[[ConvLensAsyncStub, float], Awaitable[_Result]],
        timeout: float | None,
        refusal: Error | None = None,
    ) -> _Result:
        """Makes attempts, each told the seconds left, until one succeeds; after a refusal, first waits as it says."""
        attempts = Attempts(self._endpoint.seconds(timeout))
        while True:
            if refusal is not None:
                await asyncio.sleep(attempts.pause(refusal))
            stub = self._connected()
            try:
                return await attempt(stub, attempts.remaining())
            except grpc.RpcError as failure:
                refusal = self._endpoint.error(failure)
            except asyncio.CancelledError:
                # Either this task is cancelled, or the channel was closed under the call.
                task = asyncio.current_task()
                if not self._closed or (task and task.cancelling()):
                    raise
                refusal = Cancelled(f"the client of {self._endpoint.target} was closed", code=grpc.StatusCode.CANCELLED)

    def _connected(self) -> ConvLensAsyncStub:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise self._endpoint.closed()
        if self._connection is None:
            self._connection = _Connection(self._endpoint, loop)
        if self._connection.loop is not loop:
            raise UnusableClient(
                f"the client of {self._endpoint.target} belongs to another event loop: make one in each loop"
            )
        return self._connection.stub


class _Connection:
    """What needs the event loop."""

    def __init__(self, endpoint: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.channel = (
            grpc.aio.secure_channel(endpoint.address, endpoint.credentials, endpoint.options)
            if endpoint.credentials
            else grpc.aio.insecure_channel(endpoint.address, endpoint.options)
        )
        self.stub = ConvLensStub(self.channel)


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


async def _built(build: Callable[[object], _Built], images: object) -> _Built:
    """What `build` makes of images, in a thread if files have to be read."""
    return await asyncio.to_thread(build, images) if takes_long(images) else build(images)


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
