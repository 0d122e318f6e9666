"""Start, drain and stop, on both transports: addresses, refusals, who is told, and what is left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from convlens_server.errors import OK, Draining, status_of
from convlens_server.transport.base import Call, TransportOptions


@contextlib.asynccontextmanager
async def running(transport: Any) -> Any:
    port = await transport.start()
    try:
        yield port
    finally:
        await transport.stop()


def options(tools: Any, address: str = "127.0.0.1:0", **more: Any) -> TransportOptions:
    return TransportOptions(address, (tools.method("Echo", tools.echo),), **more)


async def echo_to(address: str, tools: Any) -> None:
    async with grpc.aio.insecure_channel(address, options=tools.client_options) as channel:
        assert await channel.unary_unary("/test.Test/Echo")(b"x", timeout=20) == b"x"


async def test_port_zero_is_chosen(transport_class: Any, tools: Any) -> None:
    async with running(transport_class(options(tools))) as one, running(transport_class(options(tools))) as two:
        assert 0 < one != two > 0
        await echo_to(f"127.0.0.1:{one}", tools)
        await echo_to(f"127.0.0.1:{two}", tools)


async def test_unix_socket(transport_class: Any, tools: Any, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    async with running(transport_class(options(tools, address))):
        await echo_to(address, tools)


async def test_ipv6(transport_class: Any, tools: Any) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    async with running(transport_class(options(tools, "[::1]:0"))) as port:
        await echo_to(f"[::1]:{port}", tools)


async def test_port_taken_by_a_socket(transport_class: Any, tools: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        transport = transport_class(options(tools, address))
        with pytest.raises(OSError, match=f"cannot listen on {address}"):
            await transport.start()
        await transport.stop()


@pytest.mark.parametrize("other", ["completion_queue", "aio", "grpc"])
async def test_port_taken_by_another_server(transport_class: Any, tools: Any, other: str) -> None:
    """Two gRPC servers share a port by default, and each gets half of the connections."""
    if other == "grpc":
        async with _plain_server() as port:
            with pytest.raises(OSError, match="cannot listen"):
                await transport_class(options(tools, f"127.0.0.1:{port}")).start()
        return
    async with running(tools.transports[other](options(tools))) as port:
        with pytest.raises(OSError, match="cannot listen"):
            await transport_class(options(tools, f"127.0.0.1:{port}")).start()
        await echo_to(f"127.0.0.1:{port}", tools)


@contextlib.asynccontextmanager
async def _plain_server() -> Any:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@pytest.mark.parametrize("address", ["no.such.host.invalid:0", "192.0.2.1:0", "nonsense"])
async def test_address_that_cannot_be(transport_class: Any, tools: Any, address: str) -> None:
    with pytest.raises(OSError, match="cannot listen"):
        await transport_class(options(tools, address)).start()


async def test_the_port_is_free_afterwards(transport_class: Any, tools: Any) -> None:
    async with running(transport_class(options(tools))) as port:
        await echo_to(f"127.0.0.1:{port}", tools)
    async with running(transport_class(options(tools, f"127.0.0.1:{port}"))) as again:
        assert again == port
        await echo_to(f"127.0.0.1:{port}", tools)


async def test_drain_finishes_what_is_open_and_refuses_the_rest(serve: Any, tools: Any) -> None:
    held, stream = tools.Held(), tools.Held()
    async with serve([tools.method("Hold", held), tools.method("Stream", stream, streams=True)]) as peer:
        open_call = asyncio.ensure_future(peer.unary("Hold")(b"", timeout=50))
        open_stream = peer.server_stream("Stream")(b"", timeout=50)
        await tools.until(lambda: held.calls and stream.calls)
        stream_call = stream.calls[0][1]
        draining = asyncio.ensure_future(peer.transport.drain(50))

        # Refused on this connection and on a new one, by us and then by the closed port.
        async def refused() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await peer.unary("Echo")(b"", timeout=20)
                return False
            return True

        while not await refused():
            pass
        async with tools.channel_to(peer.port) as channel:
            for asked in (peer.channel, channel):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await asked.unary_unary("/test.Test/Echo")(b"", timeout=20)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not draining.done()

        held.calls[0][1].reply(b"answer")
        assert await open_call == b"answer"
        assert not draining.done()
        stream_call.send(b"one")
        stream_call.send(b"two")
        stream_call.finish(OK)
        assert [answer async for answer in open_stream] == [b"one", b"two"]
        assert await draining
        assert not stream_call.cancelled


async def test_callers_amid_traffic_are_refused_as_unavailable(transport_class: Any, tools: Any) -> None:
    """Nobody hangs, and nothing looks like a failed request: a caller may try another server."""
    held = tools.Held()
    methods = (tools.method("Echo", tools.echo), tools.method("Hold", held))
    for _ in range(5):
        held.calls.clear()
        transport = transport_class(TransportOptions("127.0.0.1:0", methods))
        port = await transport.start()
        async with tools.channel_to(port) as channel:
            pending = asyncio.ensure_future(channel.unary_unary("/test.Test/Hold")(b"", timeout=50))
            await tools.until(lambda: held.calls)
            codes: set[grpc.StatusCode] = set()
            texts: set[str] = set()

            async def ask(channel: Any = channel, codes: Any = codes, texts: Any = texts) -> None:
                while grpc.StatusCode.UNAVAILABLE not in codes:
                    call = channel.unary_unary("/test.Test/Echo")(b"", timeout=20)
                    codes.add(await call.code())
                    texts.add(await call.details())

            asking = [asyncio.ensure_future(ask()) for _ in range(20)]
            await tools.until(lambda codes=codes: codes)
            draining = asyncio.ensure_future(transport.drain(50))
            await asyncio.gather(*asking)
            assert codes == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
            assert texts == {"", "the server is shutting down: send the request to another"}
            held.calls[0][1].reply(b"answer")
            assert await pending == b"answer"
            assert await draining
        await transport.stop()


async def test_drain_tells_endless_streams_once(serve: Any, tools: Any) -> None:
    told: list[Call] = []
    end = status_of(Draining("the server is shutting down"))

    def handle(request: bytes, call: Call) -> None:
        def drain() -> None:
            told.append(call)
            call.send(b"last words")
            call.finish(end)

        call.on_drain = drain
        call.send(b"first words")

    watch = tools.method("Watch", handle, streams=True)
    chat = tools.method("Chat", handle, streams=True, half_close=lambda call: None, window=4)
    async with serve([watch, chat]) as peer:
        calls = [peer.server_stream("Watch")(b"") for _ in range(5)]
        for _ in range(5):
            calls.append(peer.bidirectional("Chat")())
            await calls[-1].write(b"")
        for call in calls:
            assert await call.read() == b"first words"
        assert await peer.transport.drain(50)
        for call in calls:
            assert await call.read() == b"last words"
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert len(told) == len(set(map(id, told))) == 10


async def test_stream_that_opens_as_the_drain_begins(serve: Any, tools: Any) -> None:
    """Its handler sets on_drain only with its first message, which comes after the drain began."""
    told: list[Call] = []

    def handle(request: bytes, call: Call) -> None:
        if call.on_drain is None and request == b"first":
            call.on_drain = lambda: (told.append(call), call.finish(OK))
        call.send(request)

    chat = tools.method("Chat", handle, streams=True, half_close=lambda call: None, window=4)
    async with serve([chat]) as peer:
        call = peer.bidirectional("Chat")(timeout=50)
        await call.write(b"zeroth")
        assert await call.read() == b"zeroth"
        draining = asyncio.ensure_future(peer.transport.drain(50))
        while True:
            # The drain has begun when new calls are refused.
            if await peer.unary("Echo")(b"", timeout=20).code() is not grpc.StatusCode.OK:
                break
        await call.write(b"first")
        assert await draining
        assert await call.read() == b"first"
        assert await call.code() is grpc.StatusCode.OK
        assert len(told) == 1


async def test_on_drain_that_raises(serve: Any, tools: Any) -> None:
    def handle(request: bytes, call: Call) -> None:
        def drain() -> None:
            raise ValueError("secret")

        call.on_drain = drain
        call.send(b"")

    async with serve([tools.method("Watch", handle, streams=True)]) as peer:
        call = peer.server_stream("Watch")(b"")
        await call.read()
        assert await peer.transport.drain(50)
        assert await call.code() is grpc.StatusCode.INTERNAL
        assert await call.details() == "internal error"


async def test_drain_that_times_out(serve: Any, tools: Any) -> None:
    held, stream = tools.Held(), tools.Held()
    async with serve([tools.method("Hold", held), tools.method("Stream", stream, streams=True)]) as peer:
        calls = [peer.unary("Hold")(b""), peer.server_stream("Stream")(b"")]
        await tools.until(lambda: held.calls and stream.calls)
        assert await peer.transport.drain(0.05) is False
        await peer.transport.stop()
        for call in calls:
            assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        await tools.until(lambda: held.closed and stream.closed)
        assert held.closed[0].cancelled
        assert stream.closed[0].cancelled
        # An engine that answers now does no harm.
        held.closed[0].reply(b"")
        stream.closed[0].send(b"")
        stream.closed[0].finish(OK)


async def test_drain_of_an_idle_server(serve: Any) -> None:
    async with serve() as peer:
        await peer.unary("Echo")(b"", timeout=20)
        assert await peer.transport.drain(50)


async def test_stop_without_drain(serve: Any, tools: Any) -> None:
    held = tools.Held()
    async with serve([tools.method("Hold", held)]) as peer:
        call = peer.unary("Hold")(b"")
        await tools.until(lambda: held.calls)
        await peer.transport.stop()
        assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert held.calls[0][1].cancelled


async def test_stop_amid_traffic(transport_class: Any, tools: Any, threads: Any) -> None:
    """Answers from other threads race with the end: nobody hangs, and the process lives."""
    import queue

    waiting: queue.SimpleQueue[tuple[bytes, Call] | None] = queue.SimpleQueue()

    def answer() -> None:
        while (entry := waiting.get()) is not None:
            request, call = entry
            if call.method.endswith("Ask"):
                call.reply(request)
            else:
                call.send(request)
                call.finish(OK)
        waiting.put(None)

    def handle(request: bytes, call: Call) -> None:
        waiting.put((request, call))

    for _ in range(2):
        threads(answer)
    try:
        for _ in range(10):
            methods = (tools.method("Ask", handle), tools.method("Stream", handle, streams=True))
            transport = transport_class(TransportOptions("127.0.0.1:0", methods))
            port = await transport.start()
            async with tools.channel_to(port) as channel:
                answered = 0

                async def ask(channel: grpc.aio.Channel = channel) -> None:
                    nonlocal answered
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        while True:
                            await channel.unary_unary("/test.Test/Ask")(b"x", timeout=20)
                            async for _ in channel.unary_stream("/test.Test/Stream")(b"x", timeout=20):
                                pass
                            answered += 1

                asking = [asyncio.ensure_future(ask()) for _ in range(20)]
                await tools.until(lambda: answered > 20)  # noqa: B023
                await transport.stop()
                await asyncio.gather(*asking)
    finally:
        waiting.put(None)


async def test_starting_and_stopping_leaves_nothing(transport_class: Any, tools: Any) -> None:
    async def once() -> None:
        async with running(transport_class(options(tools))) as port:
            await echo_to(f"127.0.0.1:{port}", tools)

    async def failed(address: str) -> None:
        with pytest.raises(OSError, match="cannot listen"):
            await transport_class(options(tools, address)).start()

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for _ in range(3):
            await once()
            await failed(address)
        before = descriptors()
        for _ in range(20):
            await once()
            await failed(address)
        await tools.until(lambda: descriptors() <= before + 3)
    assert not [thread for thread in threading.enumerate() if thread.name == "transport"]
