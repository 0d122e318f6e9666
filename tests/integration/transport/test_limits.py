"""Message sizes and flow control, on both transports."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from convlens_server.errors import OK, NotFound
from convlens_server.transport.base import Call


async def outcome(call: Any) -> tuple[grpc.StatusCode, str, Any]:
    code, text = await call.code(), await call.details()
    # Not dict(…): the metadata of grpc.aio has `keys` in grpcio 1.76, and they give pairs.
    pairs = await call.trailing_metadata() or ()
    return code, text, next((value for key, value in pairs if key == "grpc-status-details-bin"), None)


@pytest.mark.parametrize("kind", ["unary", "server_stream", "bidirectional"])
async def test_message_over_the_limit(serve: Any, tools: Any, kind: str) -> None:
    handled: list[int] = []

    def handle(request: bytes, call: Call) -> None:
        handled.append(len(request))
        if kind == "unary":
            call.reply(b"")
        else:
            call.finish(OK)

    half_close = (lambda call: call.finish(OK)) if kind == "bidirectional" else None
    big = tools.method("Big", handle, streams=kind != "unary", half_close=half_close)
    async with serve([big], max_message_bytes=1000) as peer:

        async def send(size: int) -> tuple[grpc.StatusCode, str, Any]:
            call = getattr(peer, kind)("Big")
            if kind != "bidirectional":
                return await outcome(call(bytes(size), timeout=20))
            stream = call(timeout=20)
            await stream.write(bytes(size))
            return await outcome(stream)

        assert (await send(1000))[0] is grpc.StatusCode.OK
        for size in (1001, 4000):
            code, text, details = await send(size)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert f"message of {size} bytes is over the limit of 1000" in text
            info = error_details_pb2.ErrorInfo()
            assert status_pb2.Status.FromString(details).details[0].Unpack(info)
            assert (info.reason, info.metadata["limit"]) == ("MESSAGE_TOO_LARGE", "1000")
        for size in (4001, 5_000_000):
            code, text, details = await send(size)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert details is None
        assert handled == [1000]
        assert await peer.unary("Echo")(b"x", timeout=20) == b"x"


async def test_core_s_own_limit_is_not_our_failure(serve: Any, tools: Any, caplog: pytest.LogCaptureFixture) -> None:
    closed = []

    def handle(request: bytes, call: Call) -> None:
        call.on_close = lambda: closed.append(call.cancelled)

    stream = tools.method("Stream", handle, streams=True, half_close=lambda call: call.finish(OK), window=4)
    async with serve([stream], max_message_bytes=1000) as peer:
        call = peer.bidirectional("Stream")(timeout=20)
        await call.write(b"small")
        await call.write(bytes(100_000))
        assert (await outcome(call))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        await tools.until(lambda: closed)
        assert closed == [True]
    assert not [record for record in caplog.records if record.name.startswith(("convlens", "grpc"))]


async def test_large_messages_both_ways(serve: Any, tools: Any) -> None:
    message = bytes(range(256)) * (15 * 2**12)
    stream = tools.method(
        "Stream", lambda request, call: call.send(request), streams=True, half_close=lambda call: call.finish(OK)
    )
    async with serve([stream]) as peer:
        assert await peer.unary("Echo")(message, timeout=50) == message
        assert [a async for a in peer.bidirectional("Stream")(iter([message, message]), timeout=50)] == [message] * 2


async def test_window_holds_a_caller_back(serve: Any, tools: Any) -> None:
    """The handler never has more unanswered messages than its window, and everything is answered in the end."""
    window = 3
    unanswered: list[tuple[bytes, Call]] = []
    most = 0

    def handle(request: bytes, call: Call) -> None:
        nonlocal most
        unanswered.append((request, call))
        most = max(most, len(unanswered))

    stream = tools.method("Stream", handle, streams=True, half_close=lambda call: None, window=window)
    sent = [b"%d" % number for number in range(50)]
    async with serve([stream]) as peer:
        call = peer.bidirectional("Stream")(iter(sent), timeout=50)
        await tools.until(lambda: len(unanswered) == window)
        await peer.round_trips()
        answers = []
        for number in range(len(sent)):
            await tools.until(lambda: unanswered)
            request, answering = unanswered.pop(0)
            answering.send(request)
            answers.append(await call.read())
            if number + window < len(sent):
                await tools.until(lambda: len(unanswered) == window)
        answering.finish(OK)
        assert await call.read() is grpc.aio.EOF
        assert answers == sent
        assert most == window


async def test_caller_that_does_not_read(serve: Any, tools: Any) -> None:
    """Neither its requests nor its answers fill the server's memory; when it reads, all is there and in order."""
    size, messages, window = 200_000, 400, 4
    handled = 0

    def handle(request: bytes, call: Call) -> None:
        nonlocal handled
        handled += 1
        call.send(request + bytes(size))

    stream = tools.method("Stream", handle, streams=True, half_close=lambda call: call.finish(OK), window=window)
    sent = [b"%6d" % number for number in range(messages)]
    async with serve([stream]) as peer:
        call = peer.bidirectional("Stream")(timeout=50)

        async def write() -> None:
            for message in sent:
                await call.write(message)
            await call.done_writing()

        writing = asyncio.ensure_future(write())
        await tools.until(lambda: handled >= window)
        await peer.round_trips(300)
        # What has left the server lies in the connection's and the caller's windows: 64 KiB … 17 MB were seen.
        assert handled < messages / 2
        answers = []
        while (answer := await call.read()) is not grpc.aio.EOF:
            answers.append(answer[:6])
        await writing
        assert answers == sent


async def test_on_writable_paces_a_producer(serve: Any, tools: Any) -> None:
    size, chunks = 200_000, 400
    sent = 0
    writable = 0

    def handle(request: bytes, call: Call) -> None:
        def more() -> None:
            nonlocal sent, writable
            writable += 1
            if sent < chunks:
                call.send(b"%6d" % sent + bytes(size))
                sent += 1
            else:
                call.finish(OK)

        call.on_writable = more
        call.send(b"header")

    async with serve([tools.method("Produce", handle, streams=True)]) as peer:
        call = peer.server_stream("Produce")(b"", timeout=50)
        assert await call.read() == b"header"
        await tools.until(lambda: sent >= 1)
        await peer.round_trips(300)
        assert sent < chunks / 2
        answers = []
        while (answer := await call.read()) is not grpc.aio.EOF:
            answers.append(answer[:6])
        assert answers == [b"%6d" % number for number in range(chunks)]
        assert writable == chunks + 1


async def test_on_writable_comes_when_all_has_left(serve: Any, tools: Any) -> None:
    """Once for messages that wait together, and not after the end."""
    times: list[int] = []

    def handle(request: bytes, call: Call) -> None:
        call.on_writable = lambda: times.append(1)
        for number in range(20):
            call.send(b"%d" % number)
        call.finish(OK)

    async with serve([tools.method("Produce", handle, streams=True)]) as peer:
        answers = [answer async for answer in peer.server_stream("Produce")(b"", timeout=20)]
        assert len(answers) == 20
        assert not times


async def test_long_error_texts_arrive(serve: Any, tools: Any) -> None:
    """A client refuses trailers of more than 8 … 16 KiB, and would see another status than the one sent."""

    def fail(request: bytes, call: Call) -> None:
        name = request.decode()
        raise NotFound(f"no model {name}", metadata={"model": name}, field="model")

    async with serve([tools.method("Fail", fail)]) as peer:
        for name in ("x" * 20_000, "ü" * 20_000):
            code, text, details = await outcome(peer.unary("Fail")(name.encode(), timeout=20))
            assert code is grpc.StatusCode.NOT_FOUND
            assert text.startswith(f"no model {name[:20]}")
            assert details
