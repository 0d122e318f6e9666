"""The portable transport, on grpc.aio's public interface: for where the completion queue cannot be used."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import math
import time
from collections.abc import AsyncIterator, Iterator
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
    draining,
    half_closed,
    unknown_method,
)

_CANCEL_TURNS = 8


class LoopCall(Call):
    """A call on an event loop, on which is done what other threads ask of it.

    Args:
        method: Full name.
        context: Tells of the caller, as grpc.aio's ServicerContext does: `time_remaining()`, `peer()`,
            `invocation_metadata()`.
        loop: The event loop.
    """

    __slots__ = ("_changed", "_context", "_loop", "_outbox", "_over", "_peer", "ended", "status")

    def __init__(self, method: str, context: Any, loop: asyncio.AbstractEventLoop) -> None:
        remaining = context.time_remaining()
        super().__init__(method, math.inf if remaining is None else time.monotonic() + remaining)
        self._context = context
        # Asked at once: grpc.aio ends the process with a segmentation fault if it is asked after the call is over.
        self._peer = str(context.peer())
        self._loop = loop
        self._over = False
        self._changed = asyncio.Event()
        self._outbox: collections.deque[bytes] = collections.deque()
        # Whether the handler has ended the call; `status` follows in order, after the messages sent before.
        self.ended = False
        self.status: Status | None = None

    @property
    def metadata(self) -> Metadata:
        """`Call.metadata`."""
        return tuple((key, value) for key, value in self._context.invocation_metadata() or ())

    @property
    def peer(self) -> str:
        """`Call.peer`."""
        return self._peer

    def send(self, message: bytes) -> None:
        """`Call.send`."""
        self._post(message, None)

    def reply(self, message: bytes) -> None:
        """`Call.reply`."""
        self._post(message, OK)

    def finish(self, status: Status) -> None:
        """`Call.finish`."""
        self._post(None, status)

    def _post(self, message: bytes | None, status: Status | None) -> None:
        if self._over or self.ended:
            return
        if status is not None:
            self.ended = True
            self.end_trace(status.code)
        # The loop is closed only after the transport has stopped, when all callers are gone.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._put, message, status)

    def _put(self, message: bytes | None, status: Status | None) -> None:
        if self._over or self.status is not None:
            return
        if message is not None:
            self._outbox.append(message)
        self.status = status
        self._changed.set()

    async def outgoing(self) -> AsyncIterator[bytes]:
        """Yields the messages in order until the call is finished."""
        while True:
            while self._outbox:
                yield self._outbox.popleft()
                if not self._outbox and self.status is None:
                    self.notify(self.on_writable)
            if self.status is not None:
                return
            self._changed.clear()
            await self._changed.wait()

    def closed(self, cancelled: bool) -> None:
        """The call is over; `cancelled` if its caller left."""
        if cancelled:
            self.cancelled = True
        self._over = True
        self.end_trace(grpc.StatusCode.CANCELLED if cancelled else OK.code)
        self.notify(self.on_close)


class AioTransport(Transport):
    """Serves methods on the running event loop."""

    name = "aio"

    def __init__(self, options: TransportOptions) -> None:
        super().__init__()
        self._options = options
        self._methods = {method.name: method for method in options.methods}
        self._server = grpc.aio.server(options=options.channel_arguments())
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        self._open: dict[LoopCall, asyncio.Task[Any]] = {}
        self._draining = False

    async def start(self) -> int:
        """`Transport.start`."""
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
        """`Transport.drain`."""
        ends = time.monotonic() + timeout
        self._draining = True
        for call in list(self._open):
            self._tell(call)
        await self._linger(timeout)
        # A grace longer than the timeout: what is left after the timeout is cancelled here, by the second stop.
        stopped = asyncio.ensure_future(self._server.stop(grace=timeout + 60.0))
        done, _ = await asyncio.wait({stopped}, timeout=max(ends - time.monotonic(), 0.0))
        await self.stop()
        await stopped
        return bool(done)

    async def stop(self) -> None:
        """`Transport.stop`."""
        await self._server.stop(grace=None)
        # grpc.aio has cancelled them, but does not wait for them.
        if self._open:
            await asyncio.wait(set(self._open.values()))

    def handler(self, name: str) -> Any:
        """The grpc.aio handler of a call; one that ends it where there is no such method, or where no more come in."""
        method = self._methods.get(name)
        if method is None or self._draining:
            self._refused += self._draining
            status = unknown_method(name) if method is None else draining()

            async def refuse(requests: AsyncIterator[bytes], context: Any) -> None:
                await _finish(context, status)

            return grpc.stream_stream_rpc_method_handler(refuse)
        if method.streams:

            async def stream(requests: AsyncIterator[bytes], context: Any) -> None:
                await self._stream(method, context)

            return grpc.stream_stream_rpc_method_handler(stream)

        async def unary(requests: AsyncIterator[bytes], context: Any) -> bytes:
            return await self._unary(method, context)

        # Not unary_unary: grpc.aio leaves a call unanswered that is closed before its message.
        return grpc.stream_unary_rpc_method_handler(unary)

    async def _unary(self, method: Method, context: Any) -> bytes:
        answer = b""
        with self._opened(method, context) as call:
            await self._read_one(method, context, call)
            async for message in call.outgoing():
                answer = message
        await _finish(context, call.status or OK)
        return answer

    async def _stream(self, method: Method, context: Any) -> None:
        window = asyncio.Semaphore(method.window)
        read = self._read_one if method.half_close is None else functools.partial(self._read, window=window)
        with self._opened(method, context) as call:
            reader = asyncio.ensure_future(read(method, context, call))
            try:
                async for message in call.outgoing():
                    await context.write(message)
                    window.release()
            finally:
                reader.cancel()
                await asyncio.wait({reader})
        await _finish(context, call.status or OK)

    @contextlib.contextmanager
    def _opened(self, method: Method, context: Any) -> Iterator[LoopCall]:
        call = LoopCall(method.name, context, asyncio.get_running_loop())
        task = asyncio.current_task()
        assert task is not None
        self._open[call] = task
        try:
            yield call
        except BaseException:
            # CancelledError, or what writing raises on a connection that broke.
            call.closed(cancelled=True)
            raise
        finally:
            del self._open[call]
        call.closed(cancelled=False)

    async def _read_one(self, method: Method, context: Any, call: LoopCall) -> None:
        request = await context.read()
        if request is grpc.aio.EOF:
            call.fail(InvalidRequest("the call was closed before its request message arrived"))
        else:
            self._dispatch(method, request, call)

    async def _read(self, method: Method, context: Any, call: LoopCall, window: asyncio.Semaphore) -> None:
        await window.acquire()
        while not call.ended and (request := await context.read()) is not grpc.aio.EOF:
            self._dispatch(method, request, call)
            await window.acquire()
        # A cancelled call looks as if it were half-closed, and its end is on its way: it comes before a second read,
        # and grpc.aio takes some turns of the loop to cancel `_stream`, which cancels this task.
        if not call.ended and await context.read() is grpc.aio.EOF:
            for _ in range(_CANCEL_TURNS):
                await asyncio.sleep(0)
            half_closed(method, call)

    def _dispatch(self, method: Method, request: bytes, call: LoopCall) -> None:
        dispatch(method, request, call, self._options.max_message_bytes)
        if self._draining:
            self._tell(call)

    def _tell(self, call: LoopCall) -> None:
        """Tells a call that the server drains, once: here, or when its handler has only now set `on_drain`."""
        on_drain, call.on_drain = call.on_drain, None
        call.notify(on_drain)


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
