"""What `AsyncClient` asks through: a channel of its event loop, and calls that are tried again."""

# ruff: noqa: ASYNC109 - the timeouts become deadlines of grpc, which the server is told

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio

from convlens._channel import Attempts, Endpoint
from convlens._errors import Cancelled, Error, UnusableClient
from convlens._images import takes_long
from convlens._reader import Reader
from convlens.v1.convlens_pb2_grpc import ConvLensStub

if TYPE_CHECKING:
    from convlens.v1.convlens_pb2_grpc import ConvLensAsyncStub

_Given = TypeVar("_Given")
_Built = TypeVar("_Built")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Result = TypeVar("_Result")


class AsyncConnection:
    """A channel to a server, made in the event loop of the first call.

    Args:
        endpoint: Where and how.

    Attributes:
        endpoint: As given.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._home: _Loop | None = None
        self._closed = False

    async def close(self) -> None:
        """Ends the calls under way. May be called twice."""
        self._closed = True
        if self._home is not None:
            await self._home.channel.close()

    async def unary(
        self,
        method: Callable[[ConvLensAsyncStub], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]],
        request: _Request,
        timeout: float | None,
        refusal: Error | None = None,
    ) -> _Response:
        """The answer to a request.

        Args:
            method: Of the stub, which needs the event loop.
            request: Of its type.
            timeout: Seconds, repetitions included; None means the client's.
            refusal: How the request was refused before, so that this is another try.
        """

        async def attempt(stub: ConvLensAsyncStub, left: float) -> _Response:
            return await method(stub)(request, timeout=left, metadata=self.endpoint.metadata)

        return await self.repeat(attempt, timeout, refusal)

    async def read(
        self,
        method: Callable[[ConvLensAsyncStub], grpc.aio.UnaryStreamMultiCallable[_Request, _Response]],
        request: _Request,
        make_reader: Callable[[], Reader[_Response, _Result]],
        timeout: float | None,
    ) -> _Result:
        """What a reader makes of the stream that answers a request; every try has a reader of its own."""

        async def attempt(stub: ConvLensAsyncStub, left: float) -> _Result:
            reader = make_reader()
            call = method(stub)(request, timeout=left, metadata=self.endpoint.metadata)
            try:
                messages: AsyncIterable[_Response] = call
                async for message in messages:
                    reader.add(message)
            finally:
                call.cancel()
            return reader.result()

        return await self.repeat(attempt, timeout)

    async def repeat(
        self,
        attempt: Callable[[ConvLensAsyncStub, float], Awaitable[_Result]],
        timeout: float | None,
        refusal: Error | None = None,
    ) -> _Result:
        """Makes attempts, each told the seconds left, until one succeeds; after a refusal, first waits as it says."""
        attempts = Attempts(self.endpoint.seconds(timeout))
        while True:
            if refusal is not None:
                await asyncio.sleep(attempts.pause(refusal))
            stub = self._connected()
            try:
                return await attempt(stub, attempts.remaining())
            except grpc.RpcError as failure:
                refusal = self.endpoint.error(failure)
            except asyncio.CancelledError:
                # Either this task is cancelled, or the channel was closed under the call.
                task = asyncio.current_task()
                if not self._closed or (task and task.cancelling()):
                    raise
                refusal = Cancelled(f"the client of {self.endpoint.target} was closed", code=grpc.StatusCode.CANCELLED)

    def _connected(self) -> ConvLensAsyncStub:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise self.endpoint.closed()
        if self._home is None:
            self._home = _Loop(self.endpoint, loop)
        if self._home.loop is not loop:
            raise UnusableClient(
                f"the client of {self.endpoint.target} belongs to another event loop: make one in each loop"
            )
        return self._home.stub


class _Loop:
    """What needs the event loop."""

    def __init__(self, endpoint: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.channel = (
            grpc.aio.secure_channel(endpoint.address, endpoint.credentials, endpoint.options)
            if endpoint.credentials
            else grpc.aio.insecure_channel(endpoint.address, endpoint.options)
        )
        self.stub = ConvLensStub(self.channel)


async def built(build: Callable[[_Given], _Built], images: _Given) -> _Built:
    """What `build` makes of images, in a thread if files have to be read."""
    return await asyncio.to_thread(build, images) if takes_long(images) else build(images)
