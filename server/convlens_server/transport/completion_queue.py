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
import grpc._cython.cygrpc as cygrpc

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

log = logging.getLogger(__name__)

# Calls of one method that may arrive before the next turn of the loop without waiting in core: 25,000 calls/s came
# through with 64.
_ARMED_CALLS = 64

# Cancelled calls end within milliseconds; if one does not, the process must still be able to end.
_STOP_SECONDS = 10.0

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
    """A call that is answered by one message or by a status.

    `_lock` guards the outgoing side, which any thread may use; the incoming side belongs to the polling thread. Once
    `_over` nothing is started on the call any more: core ends the process if that happens after the queue's end.
    """

    __slots__ = ("_core", "_lock", "_metadata", "_over", "registered")

    def __init__(self, registered: _Registered, event: Any) -> None:
        deadline = event.call_details.deadline
        # Core's infinite future comes as 2^63 seconds.
        deadline = math.inf if deadline > 2**62 else deadline + time.monotonic() - time.time()
        super().__init__(registered.method.name, deadline)
        self.registered = registered
        self._core = event.call
        self._metadata = event.invocation_metadata
        self._lock = threading.Lock()
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
        operations = (
            cygrpc.SendInitialMetadataOperation(None, 0),
            cygrpc.SendMessageOperation(message, 0),
            cygrpc.SendStatusFromServerOperation(None, 0, b"", 0),
        )
        with self._lock:
            if self._over:
                return
            self._over = True
            self._core.start_server_batch(operations, None)
        self.end_trace(OK.code)

    def finish(self, status: Status) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
            self._core.start_server_batch((cygrpc.SendInitialMetadataOperation(None, 0), _status(status)), None)
        self.end_trace(status.code)

    def start(self) -> None:
        self._core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), _Closed(self))
        self._core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self)

    def received(self, event: Any, max_message_bytes: int) -> None:
        # Not a success: core refused the message by its size limit, and has ended the call itself.
        if self._over or not event.success:
            return
        message = event.batch_operations[0].message()
        if message is None:
            self.fail(InvalidRequest("the call was closed before its request message arrived"))
        else:
            dispatch(self.registered.method, message, self, max_message_bytes)

    def closed(self, cancelled: bool) -> None:
        with self._lock:
            if cancelled:
                self.cancelled = True
            self._over = True
        self.end_trace(grpc.StatusCode.CANCELLED if cancelled else OK.code)
        self.notify(self.on_close)


class _StreamingCall(_Call):
    """A call that is answered by many messages, and may take many."""

    __slots__ = ("_half_closed", "_outbox", "_reading", "_sending", "_started", "_status", "_unanswered")

    def __init__(self, registered: _Registered, event: Any) -> None:
        super().__init__(registered, event)
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
            if self._over or self._status is not None:
                return
            self._status = status
            self._advance()
        self.end_trace(status.code)

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

    def sent(self, event: Any) -> None:
        if not event.success:
            # The caller has gone; the end of the call follows.
            return
        with self._lock:
            self._sending = False
            self._advance()
            idle = not self._sending and not self._over
        self._unanswered -= 1
        if self.registered.method.half_close is not None:
            self._read_on()
        if idle:
            self.notify(self.on_writable)

    def received(self, event: Any, max_message_bytes: int) -> None:
        method = self.registered.method
        if method.half_close is None:
            super().received(event, max_message_bytes)
            return
        self._reading = False
        if self._over or self._status is not None or not event.success:
            return
        message = event.batch_operations[0].message()
        if message is not None:
            self._unanswered += 1
            dispatch(method, message, self, max_message_bytes)
            self._read_on()
        elif self._half_closed:
            half_closed(method, self)
        else:
            # A cancelled call looks like this too, and its end is on its way; it comes before what is read now.
            self._half_closed = True
            self._read()

    def _read_on(self) -> None:
        if not self._reading and not self._half_closed and self._unanswered < self.registered.method.window:
            self._read()

    def _read(self) -> None:
        with self._lock:
            if not self._over:
                self._reading = True
                self._core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self)

    def closed(self, cancelled: bool) -> None:
        super().closed(cancelled)
        self._outbox.clear()


class CompletionQueueTransport(Transport):
    """Serves methods from one polling thread."""

    name = "completion_queue"

    def __init__(self, options: TransportOptions) -> None:
        super().__init__()
        self._options = options
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(options.channel_arguments(), False)
        self._server.register_completion_queue(self._queue)
        self._thread = threading.Thread(target=self._poll, name="transport", daemon=True)
        self._open: set[_Call] = set()
        self._draining = False
        self._drain_lock = threading.Lock()
        self._stopping = False
        self._core_stopped = False
        self._drained = threading.Event()

    async def start(self) -> int:
        """`Transport.start`."""
        options = self._options
        port = self._bind()
        if not port:
            self._queue.shutdown()
            self._server.destroy()
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
        return port

    def _bind(self) -> int:
        options = self._options
        address = options.address.encode()
        if options.tls_certificate:
            credentials = grpc.ssl_server_credentials(
                [(options.tls_key, options.tls_certificate)],
                root_certificates=options.tls_client_ca or None,
                require_client_auth=bool(options.tls_client_ca),
            )
            return int(self._server.add_http2_port(address, credentials._credentials))  # type: ignore[attr-defined]
        return int(self._server.add_http2_port(address))

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109
        """`Transport.drain`."""
        ends = time.monotonic() + timeout
        self._draining = True
        for call in list(self._open):
            self._tell(call)
        await self._linger(timeout)
        self._shut_down()
        if await asyncio.to_thread(self._drained.wait, ends - time.monotonic()):
            return True
        self._server.cancel_all_calls()
        return False

    async def stop(self) -> None:
        """`Transport.stop`."""
        if self._thread.ident is None:
            return
        self._draining = True
        self._shut_down()
        if not self._drained.is_set():
            self._server.cancel_all_calls()
            if not await asyncio.to_thread(self._drained.wait, _STOP_SECONDS):
                log.error(
                    "%d calls did not end when they were cancelled: leaving them to the process's end", len(self._open)
                )
                return
        self._queue.shutdown()
        await asyncio.to_thread(self._thread.join)
        self._server.destroy()

    def _shut_down(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._server.shutdown(self._queue, _SHUTDOWN)

    def _tell(self, call: _Call) -> None:
        """Tells a call that the server drains, once: here, or when its handler has only now set `on_drain`."""
        with self._drain_lock:
            on_drain, call.on_drain = call.on_drain, None
        call.notify(on_drain)

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
            tag.received(event, self._options.max_message_bytes)
            if self._draining:
                self._tell(tag)
        elif kind is _Closed:
            self._open.discard(tag.call)
            tag.call.closed(event.batch_operations[0].cancelled())
        elif kind is _Registered:
            if not event.success:
                return
            if not self._stopping:
                self._server.request_registered_call(self._queue, self._queue, tag.method.name, tag)
            if self._draining:
                self._refused += 1
                _refuse(event, draining())
                return
            call = tag.call_type(tag, event)
            call.start()
            self._open.add(call)
        elif kind is _Sent:
            tag.call.sent(event)
        elif tag is _UNKNOWN and event.success:
            if not self._stopping:
                self._server.request_call(self._queue, self._queue, _UNKNOWN)
            name = event.call_details.method
            _refuse(event, unknown_method(name.decode() if isinstance(name, bytes) else name))
        elif tag is _SHUTDOWN:
            self._core_stopped = True
        # Core reports its shutdown when all connections are closed, which may be before their calls are over here.
        if self._core_stopped and not self._open:
            self._drained.set()


def _refuse(event: Any, status: Status) -> None:
    """Ends a new call at once."""
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
    return cygrpc.SendStatusFromServerOperation(trailing, status.code.value[0], status.text.encode(errors="replace"), 0)
