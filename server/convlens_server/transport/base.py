"""The contract between a transport and what is served over it.

A service registers methods; a transport calls `Method.handle(request, call)` with each message's bytes and the
call it came on. Handlers run on the transport's own thread and must not block: they answer at once, or hand the
call to somebody who answers later, from any thread.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import grpc

from convlens_server.errors import Draining, MessageTooLarge, ServiceError, Status, Unimplemented, status_of

if TYPE_CHECKING:
    from convlens_server.tracing import Trace

log = logging.getLogger(__name__)

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

# gRPC core refuses a message over its own limit with a bare status and no details. Core's limit is therefore this
# many times ours, and what lies between is refused here, with the cure.
CORE_LIMIT_FACTOR = 4

# Core cancels the calls that arrive after its shutdown began: with 30 callers, 8 saw CANCELLED. So before that, new
# calls are refused until there were none for the first time, but not for longer than the second.
_QUIET_SECONDS = 0.2
_LINGER_SECONDS = 1.0


class Call(ABC):
    """One call, from its first message to its status.

    All methods may be called from any thread. Messages go out in the order of the `send` calls; sending on a call
    that is over is ignored, for its caller is gone.

    Attributes:
        method: Full name, "/package.Service/Method".
        deadline: When the caller stops waiting, in seconds of `time.monotonic()`; infinite if it never does.
        cancelled: True once the call is over without us having finished it: cancelled, timed out or disconnected.
        on_close: Called once when the call is over for whatever reason. Set by the handler, if it cares.
        on_writable: Called each time when all messages sent so far have left. Set by the handler, if it cares.
        on_drain: Called once when the server begins to drain while the call is open, or at once when the handler
            sets it later. A handler of an endless call sets it and finishes the call there.
        state: The handler's own, for what it must remember from one message of a stream to the next.
        trace: Of the last message that came, if that is traced. Whoever answers it may end it; with the call it ends.

    The transport calls the three callbacks; what one raises ends the call like what a handler raises.
    """

    __slots__ = (
        "_request_id", "cancelled", "deadline", "method", "on_close", "on_drain", "on_writable", "state", "trace",
    )  # fmt: skip

    def __init__(self, method: str, deadline: float) -> None:
        self.method = method
        self.deadline = deadline
        self.cancelled = False
        self.on_close: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self.on_drain: Callable[[], None] | None = None
        self.state: object = None
        self.trace: Trace | None = None
        self._request_id = ""

    @property
    @abstractmethod
    def metadata(self) -> Metadata:
        """The caller's metadata; values of keys that end in "-bin" are bytes."""

    @property
    @abstractmethod
    def peer(self) -> str:
        """The caller's address, as gRPC writes it: "ipv4:127.0.0.1:40000"."""

    @abstractmethod
    def send(self, message: bytes) -> None:
        """Sends one message of a streaming response. Only for methods that stream."""

    @abstractmethod
    def reply(self, message: bytes) -> None:
        """Sends the only message of a unary response and finishes with OK. Only for methods that do not stream."""

    @abstractmethod
    def finish(self, status: Status) -> None:
        """Ends the call, after what was sent before. Later calls of `finish`, `reply` and `send` are ignored."""

    @property
    def request_id(self) -> str:
        """The caller's "x-request-id" (its first 128 characters), or one of ours."""
        if not self._request_id:
            given = next((value for key, value in self.metadata if key == "x-request-id"), "")
            self._request_id = str(given)[:128] or uuid.uuid4().hex
        return self._request_id

    def fail(self, error: BaseException) -> None:
        """Ends the call with the status of an exception, and logs it."""
        log_failure(self, error)
        self.finish(status_of(error, self.request_id))

    def end_trace(self, code: grpc.StatusCode) -> None:
        """For transports: the call ends with this status, if it is traced."""
        if self.trace is not None:
            self.trace.end(code)

    def notify(self, callback: Callable[[], None] | None) -> None:
        """For transports: runs a callback, if there is one; what it raises ends the call."""
        try:
            if callback is not None:
                callback()
        except Exception as error:
            self.fail(error)


Handler: TypeAlias = Callable[[bytes, Call], None]


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service.

    Attributes:
        name: Full name, "/package.Service/Method".
        handle: Called with each message.
        streams: Whether it answers by `send` and `finish`; otherwise by `reply` or `finish` alone.
        half_close: Called when the caller has sent its last message; for methods that take a stream, else None.
        window: For methods that take a stream: the transport stops reading while this many messages more have
            come in than gone out, so that a fast caller waits instead of filling the memory. At least 1.
    """

    name: str
    handle: Handler
    streams: bool = False
    half_close: Callable[[Call], None] | None = None
    window: int = 1


class Transport(ABC):
    """A listening gRPC server.

    Life: `start`, `drain` (once), `stop` (once). `start` binds the address; OSError if it is taken.
    """

    name: str

    def __init__(self) -> None:
        # New calls refused since the drain began.
        self._refused = 0

    @abstractmethod
    async def start(self) -> int:
        """Binds and begins to answer. Returns the port, which was chosen by the system if 0 was asked for."""

    @abstractmethod
    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - after it the caller stops hard, no cancellation
        """Refuses new calls, tells endless ones, waits for open ones.

        First new calls are refused as UNAVAILABLE until no more come, for 0.2 … 1 s of the timeout. Then the listener
        closes and connections are told (GOAWAY), so that callers go elsewhere; what one sends before it has heard
        that, gRPC core ends with CANCELLED.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether every call ended by itself; otherwise what was left has been cancelled.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Cancels what is open and frees the port and the threads."""

    async def _linger(self, timeout: float) -> None:  # noqa: ASYNC109
        """Waits until the callers have heard that new calls are refused, for a tenth of the timeout at most."""
        most = min(_LINGER_SECONDS, timeout / 10)
        ends = time.monotonic() + most
        refused = -1
        while refused != self._refused and time.monotonic() < ends:
            refused = self._refused
            await asyncio.sleep(min(_QUIET_SECONDS, most))


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """What a transport listens on and allows.

    Attributes:
        address: "host:port", "[ipv6]:port" or "unix:path"; port 0 lets the system choose.
        methods: What it serves.
        max_message_bytes: Most bytes of a message received.
        tls_certificate: PEM of the server's certificate chain; empty for plain text.
        tls_key: PEM of its private key.
        tls_client_ca: PEM of the authorities that must have signed a caller's certificate; empty: none is asked for.
        max_connection_age: Seconds after which a connection is asked to reconnect, so that balancers see new replicas.
    """

    address: str
    methods: tuple[Method, ...]
    max_message_bytes: int = 16 * 2**20
    tls_certificate: bytes = b""
    tls_key: bytes = b""
    tls_client_ca: bytes = b""
    max_connection_age: float = 300.0

    def channel_arguments(self) -> tuple[tuple[str, int], ...]:
        """The gRPC core options that both transports set."""
        return (
            # Without this gRPC shares an occupied port in silence and gets every other connection.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self.max_message_bytes * CORE_LIMIT_FACTOR),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_connection_age_ms", int(self.max_connection_age * 1000)),
            # The SDK pings idle connections every 30 s; the defaults would answer that with GOAWAY.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        )


def dispatch(method: Method, request: bytes, call: Call, max_message_bytes: int) -> None:
    """Hands a message to its handler; what the handler raises ends the call."""
    try:
        if len(request) > max_message_bytes:
            raise MessageTooLarge(
                f"message of {len(request)} bytes is over the limit of {max_message_bytes}: send fewer or smaller "
                "images a request, or start the server with a larger --max-message-bytes",
                metadata={"size": len(request), "limit": max_message_bytes},
            )
        method.handle(request, call)
    except Exception as error:
        call.fail(error)


def half_closed(method: Method, call: Call) -> None:
    """Tells a handler that its caller has sent its last message; what the handler raises ends the call."""
    if method.half_close is not None:
        call.notify(functools.partial(method.half_close, call))


def unknown_method(name: str) -> Status:
    """How a call to a method that is not served ends."""
    return status_of(Unimplemented(f"unknown method {name}", metadata={"method": name}))


def draining() -> Status:
    """How a call ends that comes while the server drains."""
    return status_of(Draining("the server is shutting down: send the request to another"))


def log_failure(call: Call, error: BaseException) -> None:
    """Logs why a request failed: what is ours to mend with its trace, what is the caller's at debug level."""
    extra = {"request_id": call.request_id, "method": call.method, "peer": call.peer}
    if not isinstance(error, ServiceError):
        log.error("internal error", exc_info=error, extra=extra)
    elif error.code.name == "INTERNAL":
        log.error("%s", error, extra=extra)
    else:
        log.debug("%s: %s", error.code.name, error, extra=extra)
