"""The portable transport, on grpc.aio's public interface: for where the completion queue cannot be used."""

from __future__ import annotations

import asyncio
import collections
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from convlens_server.errors import OK, InvalidRequest, Status
from convlens_server.transport.base import (
    Call,
    Metadata,
    Method,
    Transport,
    TransportOptions,
    dispatch,
    unknown_method,
)


class _Call(Call):
    """A call; what other threads ask of it is done on the event loop."""

    __slots__ = ("_changed", "_context", "_loop", "_over", "outbox", "status")

    def __init__(self, method: str, context: Any, loop: asyncio.AbstractEventLoop) -> None:
        remaining = context.time_remaining()
        super().__init__(method, math.inf if remaining is None else time.monotonic() + remaining)
        self._context = context
        self._loop = loop
        self._over = False
        self._changed = asyncio.Event()
        self.outbox: collections.deque[bytes] = collections.deque()
        self.status: Status | None = None

    @property
    def metadata(self) -> Metadata:
        return tuple((key, value) for key, value in self._context.invocation_metadata() or ())

    @property
    def peer(self) -> str:
        return str(self._context.peer())

    def send(self, message: bytes) -> None:
        self._loop.call_soon_threadsafe(self._put, message, None)

    def reply(self, message: bytes) -> None:
        self._loop.call_soon_threadsafe(self._put, message, OK)

    def finish(self, status: Status) -> None:
        self._loop.call_soon_threadsafe(self._put, None, status)

    def _put(self, message: bytes | None, status: Status | None) -> None:
        if self._over or self.status is not None:
            return
        if message is not None:
            self.outbox.append(message)
        self.status = status
        self._changed.set()

    async def outgoing(self) -> AsyncIterator[bytes]:
        """Yields the messages in order until the call is finished."""
        while True:
            while self.outbox:
                yield self.outbox.popleft()
                if not self.outbox and self.status is None and self.on_writable is not None:
                    self.on_writable()
            if self.status is not None:
                return
            self._changed.clear()
            await self._changed.wait()

    def closed(self, cancelled: bool) -> None:
        self._over = True
        if cancelled:
            self.cancelled = True
        if self.on_close is not None:
            self.on_close()


class AioTransport(Transport):
    """Serves methods on the running event loop."""

    name = "aio"

    def __init__(self, options: TransportOptions) -> None:
        self._options = options
        self._methods = {method.name: method for method in options.methods}
        self._server = grpc.aio.server(options=options.channel_arguments())
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        self._open: set[_Call] = set()

    async def start(self) -> int:
        options = self._options
        try:
            if options.tls_certificate:
                credentials = grpc.ssl_server_credentials(
                    [(options.tls_key, options.tls_certificate)],
                    root_certificates=options.tls_client_ca or None,
                    require_client_auth=bool(options.tls_client_ca),
                )
                port = self._server.add_secure_port(options.address, credentials)
            else:
                port = self._server.add_insecure_port(options.address)
        except RuntimeError:
            port = 0
        if not port:
            raise OSError(f"cannot listen on {options.address}: the address is in use or not of this machine")
        await self._server.start()
        return int(port)

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109
        stopped = asyncio.ensure_future(self._server.stop(grace=timeout))
        # stop() closes the listener at its first turn; open calls are told after that.
        await asyncio.sleep(0)
        for call in list(self._open):
            if call.on_drain is not None:
                call.on_drain()
        ended = time.monotonic() + timeout
        await stopped
        return time.monotonic() < ended

    async def stop(self) -> None:
        await self._server.stop(grace=None)

    def handler(self, name: str) -> Any:
        """The grpc.aio handler of a method; of one that ends the call where there is no such method."""
        method = self._methods.get(name)
        if method is None:

            async def refuse(requests: AsyncIterator[bytes], context: Any) -> None:
                await _finish(context, unknown_method(name))

            return grpc.stream_stream_rpc_method_handler(refuse)
        if method.streams:

            async def stream(requests: AsyncIterator[bytes], context: Any) -> None:
                await self._stream(method, requests, context)

            return grpc.stream_stream_rpc_method_handler(stream)

        async def unary(request: bytes, context: Any) -> bytes:
            return await self._unary(method, request, context)

        return grpc.unary_unary_rpc_method_handler(unary)

    async def _unary(self, method: Method, request: bytes, context: Any) -> bytes:
        call = self._opened(method, context)
        try:
            dispatch(method, request, call, self._options.max_message_bytes)
            message = b""
            async for message in call.outgoing():
                pass
        except asyncio.CancelledError:
            self._closed(call, cancelled=True)
            raise
        self._closed(call, cancelled=False)
        await _finish(context, call.status or OK)
        return message

    async def _stream(self, method: Method, requests: AsyncIterator[bytes], context: Any) -> None:
        call = self._opened(method, context)
        window = asyncio.Semaphore(method.window or 1)
        reader = asyncio.ensure_future(self._read(method, requests, call, window))
        try:
            async for message in call.outgoing():
                await context.write(message)
                window.release()
        except asyncio.CancelledError:
            self._closed(call, cancelled=True)
            raise
        finally:
            reader.cancel()
        self._closed(call, cancelled=False)
        await _finish(context, call.status or OK)

    async def _read(
        self, method: Method, requests: AsyncIterator[bytes], call: _Call, window: asyncio.Semaphore
    ) -> None:
        limit = self._options.max_message_bytes
        if method.half_close is None:
            async for request in requests:
                dispatch(method, request, call, limit)
                return
            call.fail(InvalidRequest("the call was closed before its request message arrived"))
            return
        await window.acquire()
        async for request in requests:
            dispatch(method, request, call, limit)
            await window.acquire()
        method.half_close(call)

    def _opened(self, method: Method, context: Any) -> _Call:
        call = _Call(method.name, context, asyncio.get_running_loop())
        self._open.add(call)
        return call

    def _closed(self, call: _Call, cancelled: bool) -> None:
        self._open.discard(call)
        call.closed(cancelled)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, transport: AioTransport) -> None:
        self._transport = transport

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._transport.handler(handler_call_details.method)


async def _finish(context: Any, status: Status) -> None:
    if status.code is grpc.StatusCode.OK:
        return
    trailing = (("grpc-status-details-bin", status.details),) if status.details else ()
    await context.abort(status.code, status.text, trailing)
