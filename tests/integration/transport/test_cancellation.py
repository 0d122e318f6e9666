"""Callers who leave, on both transports: the handler is told, and nobody else notices."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import grpc
import grpc.aio
import pytest

from convlens_server.errors import OK, DeadlineExceeded
from convlens_server.transport.base import Call


@pytest.mark.parametrize("streams", [False, True])
async def test_cancelled_call(serve: Any, tools: Any, streams: bool) -> None:
    held = tools.Held()
    async with serve([tools.method("Hold", held, streams=streams)]) as peer:
        start = peer.server_stream("Hold") if streams else peer.unary("Hold")
        leaving, staying = start(b"leaving", timeout=50), start(b"staying", timeout=50)
        pending = asyncio.ensure_future(staying.read() if streams else staying)
        await tools.until(lambda: len(held.calls) == 2)
        left, stayed = (next(call for r, call in held.calls if r == name) for name in (b"leaving", b"staying"))
        assert not left.cancelled
        leaving.cancel()
        await tools.until(lambda: left.cancelled and held.closed)
        assert held.closed == [left]
        assert not stayed.cancelled

        # Too late, and harmless; the log's fields are still there.
        if streams:
            left.send(b"too late")
        else:
            left.reply(b"too late")
        left.fail(DeadlineExceeded("too late"))
        assert left.peer.startswith("ipv4:")
        assert left.request_id

        if streams:
            stayed.send(b"answer")
            stayed.finish(OK)
        else:
            stayed.reply(b"answer")
        assert await pending == b"answer"
        await tools.until(lambda: len(held.closed) == 2)
        assert not stayed.cancelled
        assert await peer.unary("Echo")(b"x", timeout=20) == b"x"


@pytest.mark.parametrize("streams", [False, True])
async def test_expired_call(serve: Any, tools: Any, streams: bool) -> None:
    held = tools.Held()
    async with serve([tools.method("Hold", held, streams=streams)]) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (
                peer.server_stream("Hold")(b"", timeout=0.2).read() if streams else peer.unary("Hold")(b"", timeout=0.2)
            )
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await tools.until(lambda: len(held.closed) == len(held.calls))
        assert all(call.cancelled for _, call in held.calls)
        assert await peer.unary("Echo")(b"x", timeout=20) == b"x"


async def test_disconnected_caller(serve: Any, tools: Any) -> None:
    held, stream = tools.Held(), tools.Held()
    async with serve([tools.method("Hold", held), tools.method("Stream", stream, streams=True)]) as peer:
        channel = tools.channel_to(peer.port)
        calls = [
            channel.unary_unary("/test.Test/Hold")(b""),
            channel.unary_stream("/test.Test/Stream")(b""),
        ]
        await tools.until(lambda: held.calls and stream.calls)
        await channel.close()
        await tools.until(lambda: held.closed and stream.closed)
        assert held.closed[0].cancelled
        assert stream.closed[0].cancelled
        del calls


async def test_on_close_of_a_call_that_ends_well(serve: Any, tools: Any) -> None:
    closed: list[bool] = []

    def unary(request: bytes, call: Call) -> None:
        call.on_close = lambda: closed.append(call.cancelled)
        call.reply(b"")

    def stream(request: bytes, call: Call) -> None:
        call.on_close = lambda: closed.append(call.cancelled)
        call.send(b"")
        call.finish(OK)

    async with serve([tools.method("Unary", unary), tools.method("Stream", stream, streams=True)]) as peer:
        await peer.unary("Unary")(b"", timeout=20)
        assert [answer async for answer in peer.server_stream("Stream")(b"", timeout=20)] == [b""]
        await tools.until(lambda: len(closed) == 2)
        assert closed == [False, False]


async def test_a_cancelled_stream_was_not_half_closed(serve: Any, tools: Any) -> None:
    """Core gives the end of a cancelled stream as the end of its messages."""
    half_closed: list[Call] = []
    closed: list[Call] = []

    def handle(request: bytes, call: Call) -> None:
        call.on_close = lambda: closed.append(call)
        call.send(request)

    chat = tools.method("Chat", handle, streams=True, half_close=half_closed.append, window=4)
    async with serve([chat]) as peer:
        for number in range(1, 101):
            call = peer.bidirectional("Chat")()
            await call.write(b"x")
            await call.read()
            call.cancel()
            await tools.until(lambda number=number: len(closed) == number)
        assert all(call.cancelled for call in closed)
        await peer.round_trips()
        assert not half_closed


async def test_cancelled_in_the_middle_of_much_traffic(serve: Any, tools: Any) -> None:
    """Streams that are dropped while messages go both ways leave no call open, and no neighbour disturbed."""
    opened: list[Call] = []
    closed: list[Call] = []

    def handle(request: bytes, call: Call) -> None:
        if call.state is None:
            call.state = True
            opened.append(call)
            call.on_close = lambda: closed.append(call)
        call.send(request * 100)

    chat = tools.method("Chat", handle, streams=True, half_close=lambda call: call.finish(OK), window=8)
    async with serve([chat]) as peer:

        async def leave(after: int) -> None:
            call = peer.bidirectional("Chat")(iter([b"%d" % number for number in range(300)]), timeout=50)
            read = 0
            async for _ in call:
                read += 1
                if read == after:
                    break
            call.cancel()

        async def stay() -> None:
            sent = [b"%d" % number for number in range(100)]
            answers = [answer async for answer in peer.bidirectional("Chat")(iter(sent), timeout=50)]
            assert answers == [message * 100 for message in sent]

        await asyncio.gather(*[leave(after) for after in range(1, 41)], *[stay() for _ in range(5)])
        await tools.until(lambda: len(closed) == len(opened))
        assert await peer.unary("Echo")(b"x", timeout=20) == b"x"


async def test_calls_leave_nothing_behind(serve: Any, tools: Any) -> None:
    """No call object survives its call, without help from the cycle collector."""

    def stream(request: bytes, call: Call) -> None:
        call.send(request)
        call.finish(OK)

    held = tools.Held()
    methods = [tools.method("Stream", stream, streams=True), tools.method("Hold", held)]

    def alive() -> int:
        return sum(isinstance(thing, Call) for thing in gc.get_objects())

    gc.collect()
    before = alive()
    async with serve(methods) as peer:
        gc.disable()
        try:
            for _ in range(50):
                await peer.unary("Echo")(b"", timeout=20)
                assert [answer async for answer in peer.server_stream("Stream")(b"x", timeout=20)] == [b"x"]
                with pytest.raises(grpc.aio.AioRpcError):
                    await peer.unary("Nothing")(b"", timeout=20)
            # The last calls' ends may still be on their way.
            await tools.until(lambda: alive() <= before)
        finally:
            gc.enable()
