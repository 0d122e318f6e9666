"""What a call carries, on both transports: messages, metadata, statuses, from any thread, each to its own caller."""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import random
import threading
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from convlens_server.errors import OK, InvalidRequest, QueueFull
from convlens_server.transport.base import Call


def rpc_status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    # Not dict(…): the metadata of grpc.aio has `keys` in grpcio 1.76, and they give pairs.
    details = next(value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin")
    assert isinstance(details, bytes)
    return status_pb2.Status.FromString(details)


def detail(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    for packed in rpc_status(error).details:
        if packed.Is(kind.DESCRIPTOR):
            return kind.FromString(packed.value)
    raise AssertionError(f"no {kind.DESCRIPTOR.name} in {rpc_status(error)}")


def count(request: bytes, call: Call) -> None:
    for number in range(int(request)):
        call.send(b"%d" % number)
    call.finish(OK)


def chat(request: bytes, call: Call) -> None:
    call.send(request)


async def test_unary(serve: Any) -> None:
    async with serve() as peer:
        for message in (b"x", b"", bytes(range(256)) * 1000):
            assert await peer.unary("Echo")(message, timeout=20) == message


async def test_synchronous_client(serve: Any, tools: Any) -> None:
    async with serve([tools.method("Count", count, streams=True)]) as peer:

        def calls() -> list[bytes]:
            with grpc.insecure_channel(f"127.0.0.1:{peer.port}", options=tools.client_options) as channel:
                first = channel.unary_unary("/test.Test/Echo")(b"first", timeout=20)
                return [first, *channel.unary_stream("/test.Test/Count")(b"2", timeout=20)]

        assert await asyncio.to_thread(calls) == [b"first", b"0", b"1"]


@pytest.mark.parametrize("number", [0, 1, 3000])
async def test_server_streaming_in_order(serve: Any, tools: Any, number: int) -> None:
    async with serve([tools.method("Count", count, streams=True)]) as peer:
        answers = [answer async for answer in peer.server_stream("Count")(b"%d" % number, timeout=30)]
        assert answers == [b"%d" % n for n in range(number)]


async def test_empty_messages_of_a_stream(serve: Any, tools: Any) -> None:
    ended: list[Call] = []

    def half_close(call: Call) -> None:
        ended.append(call)
        call.finish(OK)

    async with serve([tools.method("Chat", chat, streams=True, half_close=half_close, window=4)]) as peer:
        call = peer.bidirectional("Chat")(iter([b"", b"a", b""]), timeout=20)
        assert [answer async for answer in call] == [b"", b"a", b""]
        assert len(ended) == 1


async def test_bidirectional_in_turns(serve: Any, tools: Any) -> None:
    chat_method = tools.method("Chat", chat, streams=True, half_close=lambda call: call.finish(OK), window=1)
    async with serve([chat_method]) as peer:
        call = peer.bidirectional("Chat")(timeout=30)
        for number in range(100):
            await call.write(b"%d" % number)
            assert await call.read() == b"%d" % number
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_bidirectional_many_in_order(serve: Any, tools: Any) -> None:
    chat_method = tools.method("Chat", chat, streams=True, half_close=lambda call: call.finish(OK), window=16)
    sent = [b"%d" % number for number in range(3000)]
    async with serve([chat_method]) as peer:
        assert [answer async for answer in peer.bidirectional("Chat")(iter(sent), timeout=50)] == sent


async def test_answers_to_the_last_messages_follow_the_half_close(serve: Any, tools: Any, threads: Any) -> None:
    """The caller ends its side first; what is answered later still arrives, then the status."""
    calls: queue.SimpleQueue[tuple[bytes, Call] | None] = queue.SimpleQueue()
    closed = threading.Event()

    def answer() -> None:
        closed.wait(20)
        call = None
        while (entry := calls.get()) is not None:
            request, call = entry
            call.send(request.upper())
        assert call is not None
        call.finish(OK)

    def half_close(call: Call) -> None:
        calls.put(None)
        closed.set()

    chat_method = tools.method(
        "Chat", lambda request, call: calls.put((request, call)), streams=True, half_close=half_close, window=8
    )
    async with serve([chat_method]) as peer:
        threads(answer)
        assert [a async for a in peer.bidirectional("Chat")(iter([b"a", b"b"]), timeout=20)] == [b"A", b"B"]


async def test_what_comes_after_the_end_is_ignored(serve: Any, tools: Any) -> None:
    def twice(request: bytes, call: Call) -> None:
        call.reply(b"first")
        call.reply(b"second")
        call.finish(OK)
        call.fail(InvalidRequest("third"))

    def stream_twice(request: bytes, call: Call) -> None:
        call.send(b"first")
        call.finish(OK)
        call.send(b"second")
        call.fail(InvalidRequest("third"))

    async with serve([tools.method("Twice", twice), tools.method("Stream", stream_twice, streams=True)]) as peer:
        assert await peer.unary("Twice")(b"", timeout=20) == b"first"
        assert [answer async for answer in peer.server_stream("Stream")(b"", timeout=20)] == [b"first"]
        assert await peer.unary("Echo")(b"x", timeout=20) == b"x"


async def test_one_end_where_many_threads_race_for_it(serve: Any, tools: Any) -> None:
    """Ends of a call from several threads at once: one wins, and the call is whole."""
    held = tools.Held()
    stream = tools.Held()
    async with serve([tools.method("Hold", held), tools.method("Stream", stream, streams=True)]) as peer:
        for _ in range(50):
            held.calls.clear()
            stream.calls.clear()
            pending = asyncio.ensure_future(peer.unary("Hold")(b"", timeout=20))
            streaming = peer.server_stream("Stream")(b"", timeout=20)
            await tools.until(lambda: held.calls and stream.calls)
            unary_call, stream_call = held.calls[0][1], stream.calls[0][1]
            start = threading.Barrier(4)

            def end(number: int, unary_call: Call = unary_call, stream_call: Call = stream_call) -> None:
                start.wait(20)  # noqa: B023
                unary_call.reply(b"%d" % number)
                stream_call.send(b"%d" % number)
                stream_call.finish(OK)

            await asyncio.gather(*[asyncio.to_thread(end, number) for number in range(4)])
            assert await pending in (b"0", b"1", b"2", b"3")
            answers = [answer async for answer in streaming]
            assert 1 <= len(answers) <= 4
            assert len(set(answers)) == len(answers)


async def test_metadata_peer_and_request_id(serve: Any, tools: Any) -> None:
    seen: list[Call] = []

    def look(request: bytes, call: Call) -> None:
        seen.append(call)
        call.reply(call.request_id.encode())

    metadata = (("x-request-id", "abc"), ("x-text", "one"), ("x-text", "two"), ("x-bytes-bin", b"\x00\xff"))
    async with serve([tools.method("Look", look)]) as peer:
        assert await peer.unary("Look")(b"", metadata=metadata, timeout=20) == b"abc"
        given = [(key, value) for key, value in seen[0].metadata if key.startswith("x-")]
        assert sorted(given, key=str) == sorted(metadata, key=str)
        assert seen[0].peer.startswith("ipv4:127.0.0.1:")
        assert seen[0].method == "/test.Test/Look"

        long = await peer.unary("Look")(b"", metadata=(("x-request-id", "y" * 500),), timeout=20)
        assert long == b"y" * 128
        ours = {await peer.unary("Look")(b"", timeout=20) for _ in range(3)}
        assert len(ours) == 3
        assert all(len(identity) == 32 for identity in ours)


async def test_deadline_is_seen(serve: Any, tools: Any) -> None:
    held = tools.Held()
    async with serve([tools.method("Hold", held)]) as peer:
        before = time.monotonic()
        calls = [
            asyncio.ensure_future(peer.unary("Hold")(b"with", timeout=1000)),
            asyncio.ensure_future(peer.unary("Hold")(b"without")),
        ]
        await tools.until(lambda: len(held.calls) == 2)
        deadlines = {request: call.deadline for request, call in held.calls}
        assert before + 900 < deadlines[b"with"] <= time.monotonic() + 1050  # gRPC rounds timeouts up
        assert deadlines[b"without"] == math.inf
        for _, call in held.calls:
            call.reply(b"")
        await asyncio.gather(*calls)


async def test_error_with_details(serve: Any, tools: Any) -> None:
    def fail(request: bytes, call: Call) -> None:
        if request == b"full":
            raise QueueFull("queue is full: try again", metadata={"limit": 7}, retry_after=1.5)
        raise InvalidRequest("größe ist 0 … 10 %", reason="BAD_SIZE", field="size")

    async with serve([tools.method("Fail", fail), tools.method("Stream", fail, streams=True)]) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.unary("Fail")(b"", metadata=(("x-request-id", "r1"),), timeout=20)
        error = caught.value
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "größe ist 0 … 10 %"
        assert rpc_status(error).code == 3
        assert rpc_status(error).message == error.details()
        info = detail(error, error_details_pb2.ErrorInfo)
        assert (info.reason, info.domain) == ("BAD_SIZE", "convlens")
        assert detail(error, error_details_pb2.BadRequest).field_violations[0].field == "size"
        assert detail(error, error_details_pb2.RequestInfo).request_id == "r1"

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in peer.server_stream("Stream")(b"full", timeout=20):
                pass
        error = caught.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1500
        assert detail(error, error_details_pb2.ErrorInfo).metadata == {"limit": "7"}


async def test_error_after_messages(serve: Any, tools: Any) -> None:
    def fail(request: bytes, call: Call) -> None:
        call.send(b"one")
        call.send(b"two")
        raise InvalidRequest("three is too many")

    async with serve([tools.method("Fail", fail, streams=True)]) as peer:
        call = peer.server_stream("Fail")(b"", timeout=20)
        assert [await call.read(), await call.read()] == [b"one", b"two"]
        with pytest.raises(grpc.aio.AioRpcError, match="three is too many"):
            await call.read()


@pytest.mark.parametrize("where", ["handle", "half_close", "on_writable", "on_close"])
async def test_handler_that_raises(serve: Any, tools: Any, caplog: pytest.LogCaptureFixture, where: str) -> None:
    """INTERNAL for the caller, the trace for the log, and the server goes on."""

    def raise_secret(*_: object) -> None:
        raise ValueError("secret")

    def unary(request: bytes, call: Call) -> None:
        if where == "on_close":
            call.on_close = raise_secret
            call.reply(b"answer")
        else:
            raise_secret()

    def stream(request: bytes, call: Call) -> None:
        if where == "handle":
            raise_secret()
        if where == "on_writable":
            call.on_writable = raise_secret
        if where == "on_close":
            call.on_close = raise_secret
            call.send(b"answer")
            call.finish(OK)
        call.send(b"answer")

    half_close = raise_secret if where == "half_close" else lambda call: None
    methods = [
        tools.method("Unary", unary),
        tools.method("Stream", stream, streams=True, half_close=half_close, window=4),
    ]
    async with serve(methods) as peer:
        for _ in range(3):
            if where == "on_close":
                assert await peer.unary("Unary")(b"", timeout=20) == b"answer"
                assert [a async for a in peer.bidirectional("Stream")(iter([b""]), timeout=20)] == [b"answer"]
                continue
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in peer.bidirectional("Stream")(iter([b""]), timeout=20):
                    pass
            errors = [caught.value]
            if where == "handle":
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await peer.unary("Unary")(b"", timeout=20)
                errors.append(caught.value)
            for error in errors:
                assert error.code() is grpc.StatusCode.INTERNAL
                assert error.details() == "internal error"
                assert "secret" not in str(error.trailing_metadata()) + str(rpc_status(error))
        assert await peer.unary("Echo")(b"still here", timeout=20) == b"still here"
        await tools.until(lambda: any(r.exc_info and "secret" in str(r.exc_info[1]) for r in caplog.records))
        assert all(record.name.startswith("convlens_server") for record in caplog.records if record.exc_info)


@pytest.mark.parametrize("name", ["/test.Test/Nothing", "/nothing.At/All", "/test.Test/", "/x"])
async def test_unknown_method(serve: Any, name: str) -> None:
    async with serve() as peer:
        for kind in ("unary_unary", "stream_stream"):
            if kind == "unary_unary":
                call = peer.channel.unary_unary(name)(b"x" * 1000, timeout=20)
            else:
                call = peer.channel.stream_stream(name)(timeout=20).read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            error = caught.value
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
            assert error.details() == f"unknown method {name}"
            assert detail(error, error_details_pb2.ErrorInfo).reason == "METHOD_NOT_FOUND"


@pytest.mark.parametrize("streams", [False, True])
async def test_call_closed_before_its_message(serve: Any, tools: Any, streams: bool) -> None:
    held = tools.Held()
    async with serve([tools.method("Hold", held, streams=streams)]) as peer:
        if streams:
            call = peer.bidirectional("Hold")(iter([]), timeout=20).read()
        else:
            call = peer.client_stream("Hold")(iter([]), timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "before its request message arrived" in str(caught.value.details())
        assert not held.calls


async def test_stream_without_messages(serve: Any, tools: Any) -> None:
    chat_method = tools.method("Chat", chat, streams=True, half_close=lambda call: call.finish(OK), window=1)
    async with serve([chat_method]) as peer:
        assert [answer async for answer in peer.bidirectional("Chat")(iter([]), timeout=20)] == []


async def test_thousands_of_calls_each_get_their_own_answer(serve: Any, tools: Any, threads: Any) -> None:
    """Answered from three threads, out of order, over several connections."""
    waiting: queue.SimpleQueue[tuple[bytes, Call] | None] = queue.SimpleQueue()

    def answer() -> None:
        order = random.Random(threading.get_ident())
        batch: list[tuple[bytes, Call]] = []
        while (entry := waiting.get()) is not None:
            batch.append(entry)
            if len(batch) >= 16 or waiting.empty():
                order.shuffle(batch)
                for request, call in batch:
                    call.reply(b"answer to " + request)
                batch.clear()
        waiting.put(None)

    async with serve([tools.method("Ask", lambda request, call: waiting.put((request, call)))]) as peer:
        for _ in range(3):
            threads(answer)
        channels = [tools.channel_to(peer.port) for _ in range(3)]
        asks = [channel.unary_unary("/test.Test/Ask") for channel in channels]

        async def ask(start: int) -> None:
            for number in range(start, 3000, 100):
                request = b"%d" % number
                assert await asks[number % 3](request, timeout=50) == b"answer to " + request

        try:
            await asyncio.gather(*[ask(start) for start in range(100)])
        finally:
            waiting.put(None)
            for channel in channels:
                await channel.close()


async def test_streams_answered_from_other_threads(serve: Any, tools: Any, threads: Any) -> None:
    """Many streams at once, answered from three threads: each gets exactly the answers to its own messages."""
    waiting: queue.SimpleQueue[tuple[bytes, Call] | None] = queue.SimpleQueue()
    lock = threading.Lock()

    def answer() -> None:
        while (entry := waiting.get()) is not None:
            request, call = entry
            call.send(request)
            with lock:
                state: Any = call.state
                state[0] -= 1
                last = state[1] and state[0] == 0
            if last:
                call.finish(OK)
        waiting.put(None)

    def handle(request: bytes, call: Call) -> None:
        with lock:
            if call.state is None:
                call.state = [0, False]
            state: Any = call.state
            state[0] += 1
        waiting.put((request, call))

    def half_close(call: Call) -> None:
        with lock:
            state: Any = call.state
            state[1] = True
            done = state[0] == 0
        if done:
            call.finish(OK)

    async with serve([tools.method("Chat", handle, streams=True, half_close=half_close, window=32)]) as peer:
        for _ in range(3):
            threads(answer)

        async def converse(stream: int) -> None:
            sent = [b"%d %d" % (stream, number) for number in range(100)]
            answers = [answer async for answer in peer.bidirectional("Chat")(iter(sent), timeout=50)]
            assert sorted(answers) == sorted(sent)

        try:
            await asyncio.gather(*[converse(stream) for stream in range(20)])
        finally:
            waiting.put(None)


@pytest.mark.parametrize("log_level", [logging.DEBUG])
async def test_failures_are_logged_with_their_request(
    serve: Any, tools: Any, caplog: pytest.LogCaptureFixture, log_level: int
) -> None:
    def fail(request: bytes, call: Call) -> None:
        raise InvalidRequest("too small")

    caplog.set_level(log_level, "convlens_server")
    async with serve([tools.method("Fail", fail)]) as peer:
        with pytest.raises(grpc.aio.AioRpcError):
            await peer.unary("Fail")(b"", metadata=(("x-request-id", "r7"),), timeout=20)
        record = next(record for record in caplog.records if "too small" in record.getMessage())
        assert record.__dict__["request_id"] == "r7"
        assert record.__dict__["method"] == "/test.Test/Fail"
        assert record.__dict__["peer"].startswith("ipv4:")
