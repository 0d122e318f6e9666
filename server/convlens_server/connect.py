"""Our own service for browsers and curl: as JSON by the Connect protocol, and as gRPC-Web.

The same methods that the gRPC transport serves are asked; the connectrpc package speaks the protocols.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from connectrpc.code import Code
from connectrpc.compat import google_protobuf_codecs
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from protobuf.wkt import Any as AnyMessage

from convlens_server.errors import OK, Draining, InvalidRequest, Status, status_of
from convlens_server.http_call import HttpContext, HttpFailure, answer, open_call
from convlens_server.transport.aio import LoopCall
from convlens_server.transport.base import Method, dispatch, draining, half_closed

# Connect's words for the status codes; they differ from gRPC's in one.
_CODES = {**{code.name: code for code in Code}, "CANCELLED": Code.CANCELED}


class Connect:
    """A service over HTTP.

    It answers from the server's first moment on, with UNAVAILABLE until `serve`.

    Args:
        service: The service.
        is_taking: Whether the server takes requests.
        max_bytes: Most bytes of a request message.

    Attributes:
        path: Where an application has to mount it.
        app: What it has to mount.
    """

    def __init__(self, service: ServiceDescriptor, is_taking: Callable[[], bool], max_bytes: int) -> None:
        self.path = f"/{service.full_name}"
        self._is_taking = is_taking
        self._max_bytes = max_bytes
        self._methods: dict[str, Method] = {}
        self._open: set[LoopCall] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        endpoints = {f"{self.path}/{method.name}": self._endpoint(method) for method in service.methods}
        self.app = _Application(self.path, endpoints, max_bytes)

    def serve(self, methods: tuple[Method, ...]) -> None:
        """Begins to answer by the methods of the gRPC service."""
        self._methods = {method.name: method for method in methods}

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - after it the caller goes on
        """Tells endless calls, and waits until none is open; new ones are refused since `is_taking` is false."""
        for call in list(self._open):
            on_drain, call.on_drain = call.on_drain, None
            call.notify(on_drain)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)

    def _endpoint(self, method: MethodDescriptor) -> Any:
        name = f"{self.path}/{method.name}"
        output: type[Message] = GetMessageClass(method.output_type)
        kind = {
            (False, False): StreamType.UNARY,
            (False, True): StreamType.SERVER_STREAM,
            (True, True): StreamType.BIDI_STREAM,
        }[method.client_streaming, method.server_streaming]
        info: MethodInfo[Message, Message] = MethodInfo(
            name=method.name,
            service_name=method.containing_service.full_name,
            input=GetMessageClass(method.input_type),
            output=output,
            idempotency_level=IdempotencyLevel.NO_SIDE_EFFECTS,
            stream_type=kind,
        )

        async def unary(request: Message, context: RequestContext[Message, Message]) -> Message:
            with self._called(name, context) as (served, call):
                try:
                    response = await answer(served, request.SerializeToString(), call, self._max_bytes)
                except HttpFailure as failure:
                    raise _error(failure.status) from None
                return output.FromString(response)

        def server_stream(request: Message, context: RequestContext[Message, Message]) -> AsyncIterator[Message]:
            return self._stream(name, _only(request), context, output)

        def bidi_stream(
            requests: AsyncIterator[Message], context: RequestContext[Message, Message]
        ) -> AsyncIterator[Message]:
            return self._stream(name, requests, context, output)

        if kind is StreamType.UNARY:
            return Endpoint.unary(info, unary)
        if kind is StreamType.SERVER_STREAM:
            return Endpoint.server_stream(info, server_stream)
        return Endpoint.bidi_stream(info, bidi_stream)

    @contextlib.contextmanager
    def _called(self, name: str, context: RequestContext[Message, Message]) -> Any:
        if not self._is_taking():
            raise _error(draining() if self._methods else _STARTING)
        method = self._methods[name]
        milliseconds = context.timeout_ms
        call = open_call(
            method,
            HttpContext(
                tuple(context.request_headers.allitems()),
                context.client_address,
                None if milliseconds is None else milliseconds / 1000,
            ),
        )
        self._open.add(call)
        self._idle.clear()
        cancelled = True
        try:
            yield method, call
            cancelled = False
        except ConnectError:
            cancelled = False
            raise
        finally:
            self._open.discard(call)
            if not self._open:
                self._idle.set()
            call.closed(cancelled)

    async def _stream(
        self,
        name: str,
        requests: AsyncIterator[Message],
        context: RequestContext[Message, Message],
        output: type[Message],
    ) -> AsyncIterator[Message]:
        with self._called(name, context) as (method, call):
            window = asyncio.Semaphore(method.window)
            reader = asyncio.ensure_future(self._read(method, call, requests, window))
            try:
                async for message in call.outgoing():
                    yield output.FromString(message)
                    window.release()
            finally:
                reader.cancel()
                await asyncio.wait({reader})
            if call.status is not None and call.status.code is not OK.code:
                raise _error(call.status)

    async def _read(
        self, method: Method, call: LoopCall, requests: AsyncIterator[Message], window: asyncio.Semaphore
    ) -> None:
        try:
            async for request in requests:
                await window.acquire()
                if call.ended:
                    return
                dispatch(method, request.SerializeToString(), call, self._max_bytes)
            half_closed(method, call)
        except ConnectError as error:
            # What came is no message, or the caller has left.
            call.fail(InvalidRequest(f"the request cannot be read: {error.message}", reason="NOT_A_MESSAGE"))


class _Application(ConnectASGIApplication[None]):
    """The ASGI application of one service."""

    def __init__(self, path: str, endpoints: Mapping[str, Any], max_bytes: int) -> None:
        super().__init__(
            service=None,
            endpoints=lambda _: endpoints,
            read_max_bytes=max_bytes,
            codecs=google_protobuf_codecs(),
        )
        self._path = path

    @property
    def path(self) -> str:
        """Where it is mounted."""
        return self._path


_STARTING = status_of(Draining("the server is starting: its models are not loaded yet"))


async def _only(request: Message) -> AsyncIterator[Message]:
    yield request


def _error(status: Status) -> ConnectError:
    details = status_pb2.Status.FromString(status.details).details
    return ConnectError(
        _CODES[status.code.name],
        status.text,
        [ErrorDetail(AnyMessage(type_url=detail.type_url, value=detail.value)) for detail in details],
    )
