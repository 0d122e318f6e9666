"""Streams: order, bounds, errors of one image and of all."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import convlens
from convlens._window import Window
from convlens.v1 import convlens_pb2 as pb


def labels(outcomes):
    return [outcome.classification.label for outcome in outcomes]


def test_every_image_is_answered_in_order(client, fake, echo):
    fake.expect("ClassifyStream", echo)
    images = [str(i).encode() for i in range(500)]
    outcomes = list(client.stream(iter(images)))
    assert labels(outcomes) == [str(i) for i in range(500)]
    assert [outcome.position for outcome in outcomes] == list(range(500))
    assert all(outcome.error is None for outcome in outcomes)


def test_the_request_of_an_image(client, fake, classified):
    seen = []

    def answer(requests, _):
        for message in requests:
            seen.append(message.request)
            yield pb.ClassifyStreamResponse(id=message.id, response=classified("a"))

    fake.expect("ClassifyStream", answer)
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    (outcome,) = client.stream([pixels], model="m", version=2, top_k=3, scores=True, logits=True)
    raw = pb.RawImages(pixels=pixels.tobytes(), height=2, width=2, channels=3)
    assert seen == [
        pb.ClassifyRequest(
            model="m", version=2, images=pb.Images(raw=raw), top_k=3, include_scores=True, include_logits=True
        )
    ]
    assert outcome.classification.model == "lecture_cnn"


def test_no_images(client, fake, echo):
    fake.expect("ClassifyStream", echo)
    assert list(client.stream([])) == []


def test_answers_out_of_order_come_in_order(client, fake, classified):
    def answer(requests, _):
        held = []
        for message in requests:
            held.append(message)
            if len(held) == 10:
                while held:
                    last = held.pop()
                    label = last.request.images.encoded.files[0].decode()
                    yield pb.ClassifyStreamResponse(id=last.id, response=classified(label))

    fake.expect("ClassifyStream", answer)
    assert labels(client.stream([str(i).encode() for i in range(30)])) == [str(i) for i in range(30)]


def test_no_more_than_the_bound_are_in_flight(client, fake, classified):
    bound, drawn, taken, most = 3, 0, 0, 0
    lock = threading.Lock()

    def images():
        nonlocal drawn, most
        for i in range(50):
            with lock:
                drawn += 1
                most = max(most, drawn - taken)
            yield str(i).encode()

    fake.expect("ClassifyStream", lambda requests, _: echo_all(requests, classified))
    for outcome in client.stream(images(), in_flight=bound):
        assert outcome.classification.label == str(taken)
        with lock:
            taken += 1
    assert taken == 50
    # The bound in flight, one drawn that waits for its place, and one place given back just before its outcome.
    assert most <= bound + 2


def echo_all(requests, classified):
    for message in requests:
        label = message.request.images.encoded.files[0].decode()
        yield pb.ClassifyStreamResponse(id=message.id, response=classified(label))


def test_the_server_sees_no_more_than_the_bound(client, fake, classified):
    """It answers only when no further message comes: at the bound, exactly."""
    bound = 4
    counts = []

    def answer(requests, _):
        while True:
            batch = []
            for message in requests:
                batch.append(message)
                if len(batch) == bound:
                    break
            counts.append(len(batch))
            for message in batch:
                yield pb.ClassifyStreamResponse(id=message.id, response=classified("a"))
            if len(batch) < bound:
                return

    fake.expect("ClassifyStream", answer)
    assert len(list(client.stream([b"1"] * 10, in_flight=bound))) == 10
    assert counts == [4, 4, 2]


@pytest.mark.parametrize("value", [0, -1, 65536, 1.5, "3"])
def test_the_bound_must_be_positive(client, value):
    with pytest.raises(convlens.InvalidRequest, match="in_flight is"):
        client.stream([], in_flight=value)


def test_an_outcome_comes_before_the_next_image_is_there(address, fake, echo):
    """A slow source, e.g. a camera: what it has given is answered while it waits."""
    fake.expect("ClassifyStream", echo)
    answered = threading.Semaphore(0)

    def camera():
        for i in range(5):
            yield str(i).encode()
            assert answered.acquire(timeout=30)

    with convlens.Client(address) as client:
        for i, outcome in enumerate(client.stream(camera())):
            assert outcome.classification.label == str(i)
            answered.release()


def test_an_image_that_fails_leaves_the_others_alone(client, fake, classified, refusal):
    bad = refusal(grpc.StatusCode.INVALID_ARGUMENT, "not an image", reason="NOT_AN_IMAGE", field="images").status

    def answer(requests, _):
        for message in requests:
            if message.id == 1:
                yield pb.ClassifyStreamResponse(id=message.id, error=bad)
            else:
                yield pb.ClassifyStreamResponse(id=message.id, response=classified("a"))

    fake.expect("ClassifyStream", answer)
    first, second, third = client.stream([b"1", b"2", b"3"])
    assert first.error is None
    assert third.error is None
    assert type(second.error) is convlens.InvalidImage
    assert (second.error.reason, second.error.code) == ("NOT_AN_IMAGE", grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(convlens.InvalidImage, match="not an image"):
        _ = second.classification


def test_an_image_that_cannot_be_sent_leaves_the_others_alone(client, fake, echo, tmp_path):
    fake.expect("ClassifyStream", echo)
    images = [
        b"a",
        tmp_path / "missing.png",
        np.zeros((2, 2), np.float32),
        np.zeros((1, 2, 2, 1), np.uint8),
        [b"x"],
        b"b",
    ]
    outcomes = list(client.stream(images))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), *[convlens.InvalidImage] * 4, type(None)]
    assert labels([outcomes[0], outcomes[-1]]) == ["a", "b"]


def test_more_bad_images_than_places(client, fake, echo):
    fake.expect("ClassifyStream", echo)
    outcomes = list(client.stream(["/no/such/file"] * 20 + [b"a"], in_flight=2))
    assert [outcome.error is None for outcome in outcomes] == [False] * 20 + [True]


def test_a_refused_image_is_sent_again(client, fake, classified, refusal):
    full = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="QUEUE_FULL", retry_after=0.001)

    def answer(requests, _):
        for message in requests:
            if message.id == 1:
                yield pb.ClassifyStreamResponse(id=message.id, error=full.status)
            else:
                yield pb.ClassifyStreamResponse(id=message.id, response=classified("in the stream"))

    fake.expect("ClassifyStream", answer)
    fake.expect("Classify", full, classified("alone"))
    assert labels(client.stream([b"1", b"2", b"3"])) == ["in the stream", "alone", "in the stream"]
    assert [request.images.encoded.files[0] for method, request in fake.calls if method == "Classify"] == [b"2", b"2"]


def test_a_refusal_beyond_the_deadline_is_the_images_error(client, fake, refusal):
    full = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=3600)
    fake.expect("ClassifyStream", [pb.ClassifyStreamResponse(id=0, error=full.status)])
    (outcome,) = client.stream([b"1"])
    assert type(outcome.error) is convlens.ResourceExhausted


def test_no_answer_ends_the_stream(client, fake, patience):
    def answer(requests, _):
        next(requests)
        patience.wait()
        return []

    fake.expect("ClassifyStream", answer)
    with pytest.raises(convlens.DeadlineExceeded, match="1 images of the stream are in flight"):
        list(client.stream([b"1"], timeout=0.05))


def test_the_clock_runs_only_while_an_answer_is_due_and_waited_for(monkeypatch, classified):
    now = 0.0
    monkeypatch.setattr("convlens._window.time", SimpleNamespace(monotonic=lambda: now))
    window = Window(timeout=10)
    now = 100.0
    assert window.patience(waiting_since=0) == 10, "nothing is in flight"
    window.sent(0, pb.ClassifyRequest(images=pb.Images(encoded=pb.EncodedImages(files=[b"1"]))))
    window.sent(1, pb.ClassifyRequest(images=pb.Images(encoded=pb.EncodedImages(files=[b"1"]))))
    now = 106.0
    assert window.patience(waiting_since=0) == 4, "sent 6 seconds ago"
    assert window.patience(waiting_since=104) == 8, "the caller came back 2 seconds ago"
    list(window.arrived(pb.ClassifyStreamResponse(id=0, response=classified("a"))))
    now = 115.0
    assert window.patience(waiting_since=0) == 1, "the last answer came 9 seconds ago"
    now = 116.0
    with pytest.raises(convlens.DeadlineExceeded, match=r"1 images of the stream are in flight.* for 10 s"):
        window.patience(waiting_since=0)


def test_a_source_that_raises_ends_the_stream_with_its_error(client, fake, echo):
    class Mine(Exception):  # noqa: N818
        pass

    def source():
        yield b"1"
        raise Mine

    fake.expect("ClassifyStream", echo)
    with pytest.raises(Mine):
        list(client.stream(source()))


def test_leaving_early_ends_the_call(client, fake, classified):
    cancelled = threading.Event()

    def answer(requests, context):
        context.add_callback(cancelled.set)
        return echo_all(requests, classified)

    fake.expect("ClassifyStream", answer)
    outcomes = client.stream((b"1" for _ in range(10**9)), in_flight=4)
    assert next(outcomes).classification.label == "1"
    outcomes.close()
    assert cancelled.wait(30)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([], id="ends with an image unanswered"),
        pytest.param([pb.ClassifyStreamResponse(id=0)], id="empty"),
        pytest.param([pb.ClassifyStreamResponse(id=5, response=pb.ClassifyResponse())], id="unknown id"),
    ],
)
def test_a_broken_answer_is_the_servers_error(client, fake, answer):
    def answers(requests, _):
        next(requests)
        return answer

    fake.expect("ClassifyStream", answers)
    with pytest.raises(convlens.ServerError) as caught:
        list(client.stream([b"1"]))
    assert caught.value.reason == "BROKEN_ANSWER"


@pytest.mark.parametrize("run", range(20))
def test_a_connection_that_breaks_ends_the_stream(client, fake, refusal, classified, run):
    def answers(requests, context):
        yield pb.ClassifyStreamResponse(id=next(requests).id, response=classified("a"))
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    fake.expect("ClassifyStream", answers)
    outcomes = client.stream([b"1", b"2", b"3"])
    assert next(outcomes).classification.label == "a"
    with pytest.raises(convlens.Unavailable, match="gone"):
        list(outcomes)


@pytest.mark.parametrize("run", range(20))
def test_a_server_that_refuses_while_images_are_sent_is_heard(client, fake, refusal, run):
    fake.expect("ClassifyStream", refusal(grpc.StatusCode.NOT_FOUND, "no such thing"))
    with pytest.raises(convlens.NotFound, match="no such thing"):
        list(client.stream([b"1" * 1000] * 200))


async def test_an_asynchronous_source(address, fake, echo):
    async def source():
        for i in range(100):
            yield str(i).encode()

    fake.expect("ClassifyStream", echo)
    async with convlens.AsyncClient(address) as client:
        assert [o.classification.label async for o in client.stream(source())] == [str(i) for i in range(100)]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 7), min_size=8, max_size=8), bad=st.sets(st.integers(0, 7)))
def test_any_order_of_answers(address, fake, classified, order, bad):
    def answer(requests, _):
        messages = sorted(requests, key=lambda message: order[message.id])
        for message in messages:
            yield pb.ClassifyStreamResponse(id=message.id, response=classified(str(message.id)))

    fake.expect("ClassifyStream", answer)
    with convlens.Client(address) as client:
        outcomes = list(client.stream([7 if i in bad else b"1" for i in range(8)]))
    assert [outcome.position for outcome in outcomes] == list(range(8))
    assert {outcome.position for outcome in outcomes if outcome.error} == bad
