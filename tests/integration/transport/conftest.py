from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest

from convlens_server.transport.aio import AioTransport
from convlens_server.transport.base import Call, Method, Transport, TransportOptions
from convlens_server.transport.completion_queue import CompletionQueueTransport

TRANSPORTS: dict[str, type[Transport]] = {"completion_queue": CompletionQueueTransport, "aio": AioTransport}

CLIENT_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
)


def channel_to(port: int) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CLIENT_OPTIONS)


async def until(condition: Callable[[], Any], timeout: float = 20.0) -> None:  # noqa: ASYNC109 - what it raises says what did not come
    """Waits for a condition that another thread or task brings about."""
    ends = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < ends, "the condition did not come true"
        await asyncio.sleep(0.001)


class Peer:
    """A started transport with one channel to it."""

    def __init__(self, transport: Transport, port: int, channel: grpc.aio.Channel) -> None:
        self.transport = transport
        self.port = port
        self.channel = channel

    def unary(self, name: str) -> Any:
        return self.channel.unary_unary(f"/test.Test/{name}")

    def server_stream(self, name: str) -> Any:
        return self.channel.unary_stream(f"/test.Test/{name}")

    def bidirectional(self, name: str) -> Any:
        return self.channel.stream_stream(f"/test.Test/{name}")

    def client_stream(self, name: str) -> Any:
        return self.channel.stream_unary(f"/test.Test/{name}")

    async def round_trips(self, number: int = 100) -> None:
        """Gives the server occasion to do what it should not do: `Echo` must be among its methods."""
        echo = self.unary("Echo")
        for _ in range(number):
            await echo(b"")


class Held:
    """A unary or streaming handler that keeps its calls unanswered."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, Call]] = []
        self.closed: list[Call] = []

    def __call__(self, request: bytes, call: Call) -> None:
        call.on_close = lambda: self.closed.append(call)
        self.calls.append((request, call))


def echo(request: bytes, call: Call) -> None:
    call.reply(request)


def method(name: str, handle: Any, **options: Any) -> Method:
    return Method(f"/test.Test/{name}", handle, **options)


@pytest.fixture(params=list(TRANSPORTS))
def transport_class(request: pytest.FixtureRequest) -> type[Transport]:
    return TRANSPORTS[request.param]


@pytest.fixture
def serve(transport_class: type[Transport]) -> Any:
    """`async with serve(methods, **options) as peer`."""

    @contextlib.asynccontextmanager
    async def serve_methods(methods: Sequence[Method] = (), **options: Any) -> AsyncIterator[Peer]:
        methods = (*methods, method("Echo", echo))
        transport = transport_class(TransportOptions("127.0.0.1:0", methods, **options))
        port = await transport.start()
        channel = channel_to(port)
        try:
            yield Peer(transport, port, channel)
        finally:
            await channel.close()
            await transport.stop()

    return serve_methods


class Tools:
    Held = Held
    until = staticmethod(until)
    method = staticmethod(method)
    echo = staticmethod(echo)
    channel_to = staticmethod(channel_to)
    client_options = CLIENT_OPTIONS
    transports = TRANSPORTS


@pytest.fixture
def tools() -> type[Tools]:
    """What the tests of this folder share (there is nothing to import it from)."""
    return Tools


@pytest.fixture
def threads() -> Any:
    """`threads(target)` runs it in a thread that is joined when the test ends."""
    started: list[threading.Thread] = []

    def start(target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=target)
        started.append(thread)
        thread.start()
        return thread

    yield start
    for thread in started:
        thread.join(20)
        assert not thread.is_alive()
