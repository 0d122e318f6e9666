from __future__ import annotations

import math
import queue
import threading
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from convlens_server.batcher import Batcher
from convlens_server.engine import Engine, Engines, EngineThreads, Run
from convlens_server.errors import DeadlineExceeded, EngineFailed, ServiceError
from convlens_server.settings import QueuePolicy

SHAPE = (2, 2, 1)


def small_session() -> onnxruntime.InferenceSession:
    """Scores: an image's own four pixels divided by 4; logits: the pixels."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["floats"], ["logits"]),
            helper.make_node("Div", ["logits", "four"], ["scores"]),
        ],
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *SHAPE])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4]),
        ],
        [helper.make_tensor("four", TensorProto.FLOAT, [], [4.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class FakeSession:
    """Notes the sizes of its runs; fails when told to."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.failures: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, outputs: list[str], feeds: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        self.gate.wait(20)
        (images,) = feeds.values()
        self.sizes.append(len(images))
        if self.failures:
            raise self.failures.pop()
        flat = images.reshape(len(images), -1).astype(np.float32)
        return [flat / 4, flat]


def engine(session: Any, max_batch: int = 8, buckets: tuple[int, ...] = ()) -> Engine:
    return Engine(session, "images", ("scores", "logits"), SHAPE, np.uint8, max_batch, buckets)


def pixels(count: int, first: int = 0) -> bytes:
    return bytes((first + number) % 256 for number in range(4 * count))


def check(engine: Engine, count: int) -> None:
    scores, logits = engine.run(pixels(count))
    expected = np.frombuffer(pixels(count), np.uint8).reshape(count, 4).astype(np.float32)
    assert scores.dtype == logits.dtype == np.float32
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(scores, expected / 4)


@pytest.mark.parametrize("buckets", [(), (1, 4, 8), (8,)])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 9, 16, 27])
def test_real_session(buckets: tuple[int, ...], count: int) -> None:
    check(engine(small_session(), buckets=buckets), count)


def test_runs_are_padded_to_buckets() -> None:
    session = FakeSession()
    padded = engine(session, buckets=(1, 4, 8))
    for count in (1, 2, 4, 5, 8):
        check(padded, count)
    assert session.sizes == [1, 4, 4, 8, 8]


def test_more_than_the_maximum_is_run_in_parts() -> None:
    session = FakeSession()
    check(engine(session), 20)
    assert session.sizes == [8, 8, 4]
    session.sizes.clear()
    check(engine(session, buckets=(2, 8)), 17)
    assert session.sizes == [8, 8, 2]


@pytest.mark.parametrize(
    ("max_batch", "buckets", "sizes"),
    [(8, (), [1, 2, 4, 8]), (10, (), [1, 2, 4, 8, 10]), (8, (1, 8), [1, 8]), (1, (), [1])],
)
def test_warm_runs_every_size(max_batch: int, buckets: tuple[int, ...], sizes: list[int]) -> None:
    session = FakeSession()
    engine(session, max_batch, buckets).warm()
    assert session.sizes == sizes


class Request:
    def __init__(self, first: int, count: int = 1) -> None:
        self.pixels = pixels(count, first)
        self.count = count
        self.batch_key: object = None
        self.deadline = math.inf
        self.enqueued = math.nan
        self.gone = False
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def fail(self, error: ServiceError) -> None:
        self.answers.put(error)

    def answer(self) -> Any:
        answer = self.answers.get(timeout=20)
        assert self.answers.empty()
        return answer


def both(session: Any) -> Engines:
    """An engine for what runs alone and for what does not."""
    each = engine(session)
    return Engines(each, each)


def respond(batch: list[Request], scores: Any, logits: Any, run: Run) -> None:
    start = 0
    for request in batch:
        assert request.enqueued <= run.began
        request.answers.put(logits[start : start + request.count].tolist())
        start += request.count
    assert start == len(scores)
    assert 0 <= run.input_seconds <= run.seconds


class Running:
    def __init__(self, respond: Any = respond) -> None:
        self.session = FakeSession()
        self.batcher: Batcher[Request] = Batcher(8, QueuePolicy(1000))
        self._thread = EngineThreads("test", both(self.session), self.batcher, respond)

    def submit(self, *requests: Request) -> None:
        """Has them taken as one batch."""
        self.session.gate.clear()
        blocker = Request(0)
        self.batcher.submit(blocker)
        while self.batcher.waiting:
            pass
        for request in requests:
            self.batcher.submit(request)
        self.session.gate.set()
        blocker.answer()

    def close(self) -> None:
        self.batcher.close()
        self._thread.join()


def own(request: Request) -> list[list[float]]:
    return [[float(v) for v in request.pixels[i : i + 4]] for i in range(0, len(request.pixels), 4)]


@pytest.fixture
def running() -> Any:
    running = Running()
    yield running
    running.close()


def test_each_gets_its_own(running: Running) -> None:
    requests = [Request(1), Request(10, 3), Request(50), Request(60, 3)]
    running.submit(*requests)
    for request in requests:
        assert request.answer() == own(request)
    assert running.session.sizes == [1, 8]


def test_failure_then_success(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    failed = [Request(1), Request(2), Request(3)]
    running.session.failures = [RuntimeError("secret of the session")]
    # The blocker takes the failure: another one for the batch itself.
    running.session.failures.append(RuntimeError("secret of the session"))
    running.submit(*failed)
    for request in failed:
        error = request.answer()
        assert isinstance(error, EngineFailed)
        assert str(error) == "the engine failed on this batch: RuntimeError"
    assert "batch of 3 requests failed" in caplog.text
    assert "secret of the session" in caplog.text
    good = Request(4)
    running.batcher.submit(good)
    assert good.answer() == own(good)


def test_cancel_one_of_three(running: Running) -> None:
    one, two, three = Request(1), Request(2), Request(3)
    two.gone = True
    running.submit(one, two, three)
    assert one.answer() == own(one)
    assert three.answer() == own(three)
    assert isinstance(two.answer(), ServiceError)
    assert running.session.sizes == [1, 2]


def test_one_over_the_maximum(running: Running) -> None:
    big, small = Request(1, 20), Request(100)
    running.submit(big, small)
    assert big.answer() == own(big)
    assert small.answer() == own(small)
    assert running.session.sizes == [1, 8, 8, 4, 1]


def test_a_responder_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    def broken(batch: list[Request], *rest: Any) -> None:
        if batch[0].count == 2:
            raise ValueError("cannot respond")
        respond(batch, *rest)

    running = Running(broken)
    bad, good = Request(1, 2), Request(2)
    running.batcher.submit(bad)
    assert isinstance(bad.answer(), EngineFailed)
    running.batcher.submit(good)
    assert good.answer() == own(good)
    running.close()


def test_items_that_cannot_be_failed_do_not_end_the_thread(running: Running) -> None:
    class Broken(Request):
        def fail(self, error: ServiceError) -> None:
            super().fail(error)
            raise RuntimeError("cannot be failed")

    running.session.failures = [RuntimeError("no")]
    broken = Broken(1)
    running.batcher.submit(broken)
    assert isinstance(broken.answer(), EngineFailed)
    good = Request(2)
    running.batcher.submit(good)
    assert good.answer() == own(good)


def test_closing_answers_what_waits() -> None:
    running = Running()
    running.session.gate.clear()
    requests = [Request(number) for number in range(100)]
    for request in requests:
        running.batcher.submit(request)
    running.batcher.close()
    running.session.gate.set()
    running.close()
    for request in requests:
        assert request.answer() == own(request)


def test_threads_share_a_batcher() -> None:
    batcher: Batcher[Request] = Batcher(8, QueuePolicy(10_000), help_from=16)
    threads = EngineThreads("test", both(FakeSession()), batcher, respond, count=3)
    requests = [Request(number % 250, 1 + number % 5) for number in range(500)]
    for request in requests:
        batcher.submit(request)
    batcher.close()
    threads.join()
    for request in requests:
        assert request.answer() == own(request)
    assert batcher.waiting == 0


def test_what_runs_alone_has_an_engine_of_its_own() -> None:
    shared, alone = FakeSession(), FakeSession()
    batcher: Batcher[Request] = Batcher(8, QueuePolicy(10_000), help_from=16)
    threads = EngineThreads("test", Engines(engine(shared), engine(alone)), batcher, respond, count=2)
    for _ in range(3):
        request = Request(5)
        batcher.submit(request)
        request.answer()
    assert (alone.sizes, shared.sizes) == ([1, 1, 1], [])

    # While that one is kept busy the queue grows long, and the helper takes of it beside.
    alone.gate.clear()
    first = Request(0)
    batcher.submit(first)
    while batcher.waiting:
        pass
    rest = [Request(number) for number in range(1, 17)]
    for request in rest:
        batcher.submit(request)
    answers = [request.answer() for request in rest[:8]]
    assert answers == [own(request) for request in rest[:8]]
    assert shared.sizes == [8]
    alone.gate.set()
    batcher.close()
    threads.join()
    for request in [first, *rest[8:]]:
        assert request.answer() == own(request)


def test_a_batch_key_has_its_own_engine(running: Running) -> None:
    session = FakeSession()
    key = both(session)
    images, others = [Request(n) for n in range(1, 4)], [Request(n) for n in range(10, 13)]
    for other in others:
        other.batch_key = key
    running.submit(images[0], images[1], *others, images[2])
    for request in (*images, *others):
        assert request.answer() == own(request)
    assert (running.session.sizes, session.sizes) == ([1, 2, 1], [3])


def test_float32_in() -> None:
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["logits"]), helper.make_node("Softmax", ["logits"], ["scores"])],
        "floats",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 2, 2])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    floats = Engine(session, "x", ("scores", "logits"), (1, 2, 2), np.float32, 4, (1, 2, 4))
    floats.warm()
    values = np.random.default_rng(0).standard_normal((7, 1, 2, 2)).astype(np.float32)
    _, logits = floats.run(values.tobytes())
    np.testing.assert_array_equal(logits, values.reshape(7, 4))


def test_instances_take_what_waits_at_once() -> None:
    sessions = [FakeSession() for _ in range(3)]
    first, *further = [engine(session) for session in sessions]
    batcher: Batcher[Request] = Batcher(8, QueuePolicy(10_000), help_from=10_000)
    threads = EngineThreads("test", Engines(first, first), batcher, respond, instances=further)
    for session in sessions:
        session.gate.clear()
    requests = [Request(number, 8) for number in range(3)]
    for request in requests:
        batcher.submit(request)
    # Each of them has one, though none is done.
    while batcher.waiting:
        pass
    for session in sessions:
        session.gate.set()
    assert [request.answer() for request in requests] == [own(request) for request in requests]
    batcher.close()
    threads.join()
    assert [session.sizes for session in sessions] == [[8], [8], [8]]


def test_late_ones_are_answered_after_the_end() -> None:
    session = FakeSession()
    batcher: Batcher[Request] = Batcher(8, QueuePolicy(10_000))
    threads = EngineThreads("test", Engines(engine(session), engine(session)), batcher, respond)
    batcher.close(threads.late())
    threads.join()
    requests = [Request(number, 1 + number) for number in range(3)]
    for request in requests:
        batcher.submit(request)
        assert request.answer() == own(request)
    session.failures = [RuntimeError("no")]
    bad = Request(4)
    batcher.submit(bad)
    assert isinstance(bad.answer(), EngineFailed)
    passed = Request(5)
    passed.deadline = 0.0
    batcher.submit(passed)
    assert isinstance(passed.answer(), DeadlineExceeded)
