"""Requests over HTTP as calls of the service's methods: bodies in, messages out."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from starlette.requests import Request

from convlens_server.errors import InvalidRequest, Status, shown
from convlens_server.http_call import HttpContext, HttpFailure, answer, open_call
from convlens_server.transport.aio import LoopCall
from convlens_server.transport.base import Method, draining
from convlens_server.v2.errors import invalid
from convlens_server.v2.rest_tensors import document

# Above this a body is read and an answer written in a thread, so that nothing else on the event loop waits for it.
_LARGE = 64 * 1024
# The body's size was checked before, and what is made of it is no larger.
_ANY_BYTES = 2**31
_READ = "read"
_STARTING = Status(grpc.StatusCode.UNAVAILABLE, "the server is starting: its models are not loaded yet")
_NOT_THERE = Status(grpc.StatusCode.UNIMPLEMENTED, "shared memory is off: start the server with --allow-shared-memory")

R = TypeVar("R", bound=Message)
T = TypeVar("T")


class TooLarge(Exception):  # noqa: N818 - as in convlens_server.errors
    """The body is over the limit."""


class Calls:
    """Reads requests and makes calls of them. Calls are refused until `serve`.

    Args:
        is_taking: Whether the server takes requests.
        max_bytes: Most bytes of a body, also when it is decompressed.
    """

    def __init__(self, is_taking: Callable[[], bool], max_bytes: int) -> None:
        self._is_taking = is_taking
        self._max_bytes = max_bytes
        self._methods: dict[str, Method] = {}

    def serve(self, methods: tuple[Method, ...]) -> None:
        """Begins to call these methods."""
        self._methods = {method.name.rpartition("/")[2]: method for method in methods}

    async def call(self, request: Request, method: str, message: Message) -> tuple[LoopCall, bytes]:
        """Makes a call; the caller of this closes it when the answer is written.

        Raises:
            HttpFailure: It was refused, or failed.
            TooLarge: The body is over the limit.
        """
        if not self._is_taking():
            raise HttpFailure(draining() if self._methods else _STARTING)
        if method not in self._methods:
            raise HttpFailure(_NOT_THERE)
        if not hasattr(request.state, _READ):
            # To its end, so that what comes then is that the caller has left.
            await self.body(request)
        served = self._methods[method]
        client = request.client
        address = f"{client.host}:{client.port}" if client is not None else None
        call = open_call(served, HttpContext(request.headers.items(), address))
        answering = asyncio.ensure_future(answer(served, message.SerializeToString(), call, _ANY_BYTES))
        try:
            # One turn of the loop: what is answered at once needs no watch over the caller.
            await asyncio.sleep(0)
            if not answering.done():
                await _watch(request, call, answering)
            return call, await answering
        except BaseException:
            answering.cancel()
            call.closed(cancelled=True)
            raise

    async def ask(self, request: Request, method: str, message: Message, kind: type[R]) -> R:
        """Makes a call and gives its answer. Raises as `call`."""
        call, content = await self.call(request, method, message)
        call.closed(cancelled=False)
        return kind.FromString(content)

    async def body(self, request: Request) -> bytes:
        """The whole body, decompressed. Raises TooLarge and InvalidRequest."""
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._max_bytes:
                raise TooLarge
            parts.append(part)
        setattr(request.state, _READ, True)
        body = b"".join(parts)
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            return body
        if encoding not in ("gzip", "deflate"):
            raise invalid(f"Content-Encoding is {shown(encoding)!r}, but must be gzip or deflate", "Content-Encoding")
        return await aside(len(body), lambda: _decompressed(body, encoding, self._max_bytes))

    async def fields(self, request: Request) -> dict[str, Any]:
        """The body's JSON object; empty where there is no body. Raises TooLarge and InvalidRequest."""
        return document(await self.body(request))


async def aside(size: int, work: Callable[[], T]) -> T:
    """Does work on so many bytes where nothing else waits for it."""
    return await asyncio.to_thread(work) if size > _LARGE else work()


async def _watch(request: Request, call: LoopCall, answering: asyncio.Future[bytes]) -> None:
    """Waits for the answer, and tells the call if its caller leaves before."""
    left = asyncio.ensure_future(request.receive())
    waiting: set[asyncio.Future[Any]] = {answering, left}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if left.done():
        call.cancelled = True
    else:
        left.cancel()


def _decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    # 31: gzip. Deflate is meant to have zlib's header, which not everybody writes: 15 or −15.
    for bits in (31,) if encoding == "gzip" else (15, -15):
        decompressor = zlib.decompressobj(bits)
        try:
            content = decompressor.decompress(body, limit + 1)
        except zlib.error:
            continue
        if len(content) > limit:
            raise TooLarge
        if decompressor.eof and not decompressor.unused_data:
            return content
    raise InvalidRequest(f"the body is not {encoding}, or not all of it", field="Content-Encoding")
