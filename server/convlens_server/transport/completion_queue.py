"""The default transport: polls gRPC core's completion queue from one thread.

This is the layer under `grpc.server` and `grpc.aio`. A call costs 28–102 µs of CPU here and 240–385 µs on
grpc.aio (docs/decisions/0001). It is private to grpcio, so `choose` proves at start that it works.

What comes out of the queue is told apart by the type of its tag: a `_Registered` for a new call, a `_Call` for a
message that came in, a `_Closed` for the end of a call, a `_Sent` for a message that left, None for what needs no
attention. All of it is handled on the polling thread; only `reply`, `send` and `finish` come from elsewhere.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import math
import threading
import time
from typing import Any

import grpc
from grpc._cython import cygrpc

from convlens_server.errors import InvalidRequest, Status
from convlens_server.transport.base import (
    Call,
    Metadata,
    Method,
    Transport,
    TransportOptions,
    dispatch,
    unknown_method,
)

log = logging.getLogger(__name__)

# Calls of one method that may arrive before the next turn of the loop without waiting in core: 25,000 calls/s came
# through with 64.
_ARMED_CALLS = 64

_UNKNOWN = object()
_SHUTDOWN = object()


class _Registered:
    """A method, and the tag of its new calls."""

    __slots__ = ("call_type", "method")

    def __init__(self, method: Method) -> None:
        self.method = method
        self.call_type = _StreamingCall if method.streams else _Call


class _Closed:
    """The tag of a call's end."""

    __slots__ = ("call",)

    def __init__(self, call: _Call) -> None:
        self.call = call


class _Sent:
    """The tag of a message that left."""

    __slots__ = ("call",)

    def __init__(self, call: _StreamingCall) -> None:
        self.call = call


class _Call(Call):
    """A call that is answered by one message or by a status."""

    __slots__ = ("_core", "_metadata", "_over", "registered")

    def __init__(self, registered: _Registered, event: Any) -> None:
        deadline = event.call_details.deadline
        if deadline != math.inf:
            deadline += time.monotonic() - time.time()
        super().__init__(registered.method.name, deadline)
        self.registered = registered
        self._core = event.call
        self._metadata = event.invocation_metadata
        self._over = False

    @property
    def metadata(self) -> Metadata:
        return self._metadata  # type: ignore[no-any-return]

    @property
    def peer(self) -> str:
        peer = self._core.peer()
        return peer.decode() if isinstance(peer, bytes) else str(peer)

    def send(self, message: bytes) -> None:
        raise TypeError(f"{self.method} does not stream: use reply")

    def reply(self, message: bytes) -> None:
        if self._over:
            return
        self._over = True
        self._core.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation(None, 0),
                cygrpc.SendMessageOperation(message, 0),
                cygrpc.SendStatusFromServerOperation(None, 0, b"", 0),
            ),
            None,
        )

    def finish(self, status: Status) -> None:
        if self._over:
            return
        self._over = True
        self._core.start_server_batch((cygrpc.SendInitialMetadataOperation(None, 0), _status(status)), None)

    def start(self) -> None:
        self._core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self)
        self._core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), _Closed(self))

    def received(self, message: bytes | None, max_message_bytes: int) -> None:
        if message is not None:
            dispatch(self.registered.method, message, self, max_message_bytes)
        elif not self.cancelled:
            self.fail(InvalidRequest("the call was closed before its request message arrived"))

    def closed(self, cancelled: bool) -> None:
        if cancelled:
            self.cancelled = True
        self._over = True
        if self.on_close is not None:
            self.on_close()


class _StreamingCall(_Call):
    """A call that is answered by many messages, and may take many.

    `_lock` guards the outgoing side, which any thread may use; the incoming side belongs to the polling thread.
    """

    __slots__ = ("_half_closed", "_lock", "_outbox", "_reading", "_sending", "_started", "_status", "_unanswered")

    def __init__(self, registered: _Registered, event: Any) -> None:
        super().__init__(registered, event)
        self._lock = threading.Lock()
        self._outbox: collections.deque[bytes] = collections.deque()
        self._status: Status | None = None
        self._sending = False
        self._started = False
        self._reading = True
        self._half_closed = False
        self._unanswered = 0

    def send(self, message: bytes) -> None:
        with self._lock:
            if not self._over and self._status is None:
                self._outbox.append(message)
                self._advance()

    def reply(self, message: bytes) -> None:
        raise TypeError(f"{self.method} streams: use send and finish")

    def finish(self, status: Status) -> None:
        with self._lock:
            if not self._over and self._status is None:
                self._status = status
                self._advance()

    def _advance(self) -> None:
        """Starts what goes out next; one message at a time, as core demands. `_lock` is held."""
        if self._sending or self._over:
            return
        opening = () if self._started else (cygrpc.SendInitialMetadataOperation(None, 0),)
        if self._outbox:
            # No GRPC_WRITE_BUFFER_HINT: a message with it never completes until another follows.
            operation = cygrpc.SendMessageOperation(self._outbox.popleft(), 0)
            self._sending = self._started = True
            self._core.start_server_batch((*opening, operation), _Sent(self))
        elif self._status is not None:
            self._over = self._started = True
            self._core.start_server_batch((*opening, _status(self._status)), None)

    def sent(self) -> None:
        with self._lock:
            self._sending = False
            self._advance()
            idle = not self._sending and not self._over
        self._unanswered -= 1
        self._read_on()
        if idle and self.on_writable is not None:
            self.on_writable()

    def received(self, message: bytes | None, max_message_bytes: int) -> None:
        method = self.registered.method
        if method.half_close is None:
            super().received(message, max_message_bytes)
            return
        self._reading = False
        if message is None:
            self._half_closed = True
            if not self.cancelled:
                method.half_close(self)
            return
        self._unanswered += 1
        dispatch(method, message, self, max_message_bytes)
        self._read_on()

    def _read_on(self) -> None:
        method = self.registered.method
        if method.half_close is None or self._reading or self._half_closed or self._over:
            return
        if self._unanswered < method.window:
            self._reading = True
            self._core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self)

    def closed(self, cancelled: bool) -> None:
        with self._lock:
            self._over = True
            self._outbox.clear()
        super().closed(cancelled)


class CompletionQueueTransport(Transport):
    """Serves methods from one polling thread."""

    name = "completion_queue"

    def __init__(self, options: TransportOptions) -> None:
        self._options = options
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(options.channel_arguments(), False)
        self._server.register_completion_queue(self._queue)
        self._thread = threading.Thread(target=self._poll, name="transport", daemon=True)
        self._streaming: set[_StreamingCall] = set()
        self._draining = False
        self._drained = threading.Event()

    async def start(self) -> int:
        options = self._options
        address = options.address.encode()
        if options.tls_certificate:
            credentials = grpc.ssl_server_credentials(
                [(options.tls_key, options.tls_certificate)],
                root_certificates=options.tls_client_ca or None,
                require_client_auth=bool(options.tls_client_ca),
            )
            port = self._server.add_http2_port(address, credentials._credentials)
        else:
            port = self._server.add_http2_port(address)
        if not port:
            raise OSError(f"cannot listen on {options.address}: the address is in use or not of this machine")
        for method in options.methods:
            self._server.register_method(method.name)
        self._server.start()
        for method in options.methods:
            registered = _Registered(method)
            for _ in range(_ARMED_CALLS):
                self._server.request_registered_call(self._queue, self._queue, method.name, registered)
        self._server.request_call(self._queue, self._queue, _UNKNOWN)
        self._thread.start()
        return int(port)

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109
        self._draining = True
        self._server.shutdown(self._queue, _SHUTDOWN)
        for call in list(self._streaming):
            if call.on_drain is not None:
                call.on_drain()
        return await asyncio.to_thread(self._drained.wait, timeout)

    async def stop(self) -> None:
        if not self._draining:
            self._draining = True
            self._server.shutdown(self._queue, _SHUTDOWN)
        if not self._drained.is_set():
            self._server.cancel_all_calls()
            await asyncio.to_thread(self._drained.wait)
        self._queue.shutdown()
        await asyncio.to_thread(self._thread.join)
        self._server.destroy()

    def _poll(self) -> None:
        poll = self._queue.poll
        while True:
            event = poll()
            if event.completion_type == cygrpc.CompletionType.queue_shutdown:
                return
            try:
                self._handle(event)
            except Exception:
                log.exception("internal error in the transport")

    def _handle(self, event: Any) -> None:
        tag = event.tag
        kind = type(tag)
        if kind is _Call or kind is _StreamingCall:
            tag.received(event.batch_operations[0].message(), self._options.max_message_bytes)
        elif kind is _Closed:
            call = tag.call
            if type(call) is _StreamingCall:
                self._streaming.discard(call)
            call.closed(event.batch_operations[0].cancelled())
        elif kind is _Registered:
            if not event.success:
                return
            if not self._draining:
                self._server.request_registered_call(self._queue, self._queue, tag.method.name, tag)
            call = tag.call_type(tag, event)
            if type(call) is _StreamingCall:
                self._streaming.add(call)
            call.start()
        elif kind is _Sent:
            tag.call.sent()
        elif tag is _UNKNOWN and event.success:
            if not self._draining:
                self._server.request_call(self._queue, self._queue, _UNKNOWN)
            self._refuse(event)
        elif tag is _SHUTDOWN:
            self._drained.set()

    def _refuse(self, event: Any) -> None:
        name = event.call_details.method
        status = unknown_method(name.decode() if isinstance(name, bytes) else name)
        event.call.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation(None, 0),
                cygrpc.ReceiveCloseOnServerOperation(0),
                _status(status),
            ),
            None,
        )


def _status(status: Status) -> Any:
    trailing = (("grpc-status-details-bin", status.details),) if status.details else None
    return cygrpc.SendStatusFromServerOperation(trailing, status.code.value[0], status.text.encode(), 0)
