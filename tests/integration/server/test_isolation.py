"""Callers do not meet: each gets its own answer, whatever happens to those beside it."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from convlens.v1 import convlens_pb2 as pb
from support import TRANSPORTS, expected_logits, pixels, raw

IMAGES = pixels(4000, seed=11)
LOGITS = expected_logits(IMAGES)


def request(first, last):
    return pb.ClassifyRequest(model="linear", images=raw(IMAGES[first:last]), top_k=1, include_logits=True)


def check(response, first, last):
    got = [result.logits for result in response.results]
    np.testing.assert_allclose(got, LOGITS[first:last], rtol=1e-4, atol=1e-4)


@pytest.mark.timeout(120)
def test_thousands_of_images_under_load_with_callers_who_leave(server):
    """Requests of 1 … 5 images; a fifth of the callers cancel, a fifth have a deadline that is too short."""
    random_ = random.Random(5)
    spans, at = [], 0
    while at < len(IMAGES):
        spans.append((at, min(at + random_.randint(1, 5), len(IMAGES))))
        at = spans[-1][1]
    answered = []

    def work(part):
        own = random.Random(part[0][0])
        for start in range(0, len(part), 16):
            calls = []
            for first, last in part[start : start + 16]:
                fate = own.random()
                timeout = 0.002 if fate < 0.2 else 60
                calls.append((first, last, fate, server.stub.Classify.future(request(first, last), timeout=timeout)))
            for _, _, fate, call in calls:
                if 0.2 <= fate < 0.4:
                    call.cancel()
            for first, last, fate, call in calls:
                try:
                    check(call.result(), first, last)
                    answered.append((first, last))
                except grpc.FutureCancelledError:
                    assert 0.2 <= fate < 0.4
                except grpc.RpcError as error:
                    expected = {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
                    assert error.code() in expected  # noqa: PT017 - either an answer or one of these
                    assert fate < 0.4

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [spans[n::8] for n in range(8)]))

    assert len(answered) >= 0.55 * len(spans)


@pytest.mark.timeout(120)
def test_streams_answer_each_request_once(server):
    def stream(part):
        ids = list(range(part, 2000, 4))
        requests = (pb.ClassifyStreamRequest(id=n, request=request(n, n + 1)) for n in ids)
        seen = []
        for answer in server.stub.ClassifyStream(requests, timeout=60):
            check(answer.response, answer.id, answer.id + 1)
            seen.append(answer.id)
        assert sorted(seen) == ids

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(stream, range(4)))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_has_left_is_not_computed(serve, models, transport):
    """The engine is kept busy by a large request while small ones queue behind it, and are cancelled there."""
    with serve(models, transport=transport, max_images=200_000, max_queue=400_000, max_message_bytes=2**26) as server:
        big = pb.ClassifyRequest(model="linear", images=raw(np.tile(IMAGES, (50, 1, 1, 1))), top_k=1)
        blocker = server.stub.Classify.future(big, timeout=60)
        while server.metric("convlens_queue_images", model="linear") == 0 and not blocker.done():
            pass
        doomed = [server.stub.Classify.future(request(n, n + 1), timeout=60) for n in range(50)]
        kept = [server.stub.Classify.future(request(n, n + 1), timeout=60) for n in range(50, 100)]
        for call in doomed:
            call.cancel()

        assert len(blocker.result().results) == 200_000
        for n, call in enumerate(kept, 50):
            check(call.result(), n, n + 1)

        def counted(code):
            return server.metric("convlens_requests_total", model="linear", method="Classify", code=code)

        def computed():
            return server.metric("convlens_images_total", model="linear")

        # When it is answered, all is over that was before it in the queue.
        check(server.stub.Classify(request(100, 101), timeout=60), 100, 101)
        ends = time.monotonic() + 20
        while computed() != 200_000 + counted("OK") - 1 and time.monotonic() < ends:
            pass
        # A call that was cancelled before its message had left the client never was a request.
        assert counted("OK") + counted("CANCELLED") <= 102
        assert computed() == 200_000 + counted("OK") - 1


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(serve, models, failing):
    with serve(models, max_queue=64, max_images=64) as server:
        refused, answered = [], []
        lock = threading.Lock()

        def work(n):
            for _ in range(20):
                try:
                    check(server.stub.Classify(request(64 * n, 64 * n + 64), timeout=30), 64 * n, 64 * n + 64)
                    with lock:
                        answered.append(n)
                except grpc.RpcError as error:
                    with lock:
                        refused.append(error)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))

        assert answered
        assert refused

        def again():
            raise refused[0]

        failure = failing(again)
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert "over its limit of 64" in failure.text
        assert 0.01 <= failure.retry_seconds <= 10
        check(server.stub.Classify(request(0, 64), timeout=30), 0, 64)
