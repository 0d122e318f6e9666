from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convlens.v1 import convlens_pb2 as pb
from convlens_server.answers import Answers, field, stream_response, varint

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
labels_of_any_length = st.lists(st.text(max_size=300), min_size=1, max_size=20)


def answers(labels: list[str], model: str = "m", version: int = 1) -> Answers:
    return Answers(model, version, labels)


def parsed(results: bytes, made: Answers | None = None) -> Any:
    response = pb.ClassifyResponse.FromString((made or answers(["a"])).response(results, 0.0, 0.0))
    return [[(p.label, p.index, p.score) for p in result.predictions] for result in response.results]


@given(st.integers(0, 2**64 - 1))
def test_varint_reads_back(value: int) -> None:
    message = pb.ClassifyStreamResponse.FromString(b"\x08" + varint(value))
    assert message.id == value


@pytest.mark.parametrize("exponent", [7, 14, 21, 28, 35, 63])
def test_varint_borders(exponent: int) -> None:
    for value in (2**exponent - 1, 2**exponent):
        assert pb.ClassifyStreamResponse.FromString(b"\x08" + varint(value)).id == value
        assert varint(value) == pb.ClassifyStreamResponse(id=value).SerializeToString()[1:]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 16_383, 16_384, 3_000_000])
def test_field_borders(size: int) -> None:
    payload = b"x" * size
    assert pb.RawImages.FromString(field(b"\x0a", payload)).pixels == payload


@given(
    labels=labels_of_any_length,
    model=st.text(max_size=200),
    version=st.integers(1, 2**62),
    data=st.data(),
    times=st.tuples(floats, floats),
)
def test_everything_reads_back(
    labels: list[str], model: str, version: int, data: st.DataObject, times: tuple[float, float]
) -> None:
    shape = (data.draw(st.integers(1, 5)), len(labels))
    scores = data.draw(hnp.arrays(np.float32, shape, elements=floats))
    logits = data.draw(hnp.arrays(np.float32, shape, elements=floats))
    top_k = data.draw(st.integers(1, len(labels)))
    all_scores, all_logits = data.draw(st.booleans()), data.draw(st.booleans())
    made = answers(labels, model, version)
    results = made.results(scores, logits, top_k, all_scores, all_logits)

    expected = pb.ClassifyResponse(model=model, version=version, queue_ms=times[0], compute_ms=times[1])
    for row, row_logits in zip(scores.tolist(), logits.tolist(), strict=True):
        result = expected.results.add(scores=row if all_scores else [], logits=row_logits if all_logits else [])
        for index in sorted(range(len(row)), key=lambda i: -row[i])[:top_k]:
            result.predictions.add(label=labels[index], index=index, score=row[index])
    assert pb.ClassifyResponse.FromString(made.response(results, *times)) == expected
    if top_k == 1 and not all_scores and not all_logits:
        assert b"".join(made.top_one(scores)) == results

    identity = data.draw(st.integers(0, 2**64 - 1))
    streamed = pb.ClassifyStreamResponse.FromString(stream_response(identity, made.response(results, *times)))
    assert streamed == pb.ClassifyStreamResponse(id=identity, response=expected)


def test_top_one_of_a_batch() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25], [0.0, 0.0, 1.0]], np.float32)
    made = answers(["a", "b", "c"])
    lines = made.top_one(scores)
    assert len(lines) == 3
    assert parsed(b"".join(lines), made) == [[("b", 1, np.float32(0.7))], [("a", 0, 0.5)], [("c", 2, 1.0)]]


def test_equal_scores_come_in_the_order_of_their_indices() -> None:
    scores = np.array([[0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.1, 0.4], [-0.0, 0.0, -0.0, 0.0]], np.float32)
    made = answers(list("abcd"))
    results = parsed(made.results(scores, scores, 4, False, False), made)
    assert [[index for _, index, _ in row] for row in results] == [[0, 1, 2, 3], [1, 3, 0, 2], [0, 1, 2, 3]]
    assert [row[0][1] for row in parsed(b"".join(made.top_one(scores)), made)] == [0, 1, 0]


def test_many_classes() -> None:
    labels = [f"class {number} " + "x" * (number % 300) for number in range(1000)]
    scores = np.random.default_rng(0).random((3, 1000), np.float32)
    made = answers(labels)
    results = parsed(made.results(scores, scores, 1000, True, True), made)
    for row, result in zip(scores, results, strict=True):
        assert [index for _, index, _ in result] == np.argsort(-row, kind="stable").tolist()
        assert all(label == labels[index] for label, index, _ in result)


def test_numbers_that_are_none() -> None:
    """A network may give anything: the answer still reads back, with as many predictions as asked for."""
    scores = np.full((1, 3), np.nan, np.float32)
    logits = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    made = answers(["a", "b", "c"])
    response = pb.ClassifyResponse.FromString(made.response(made.results(scores, logits, 2, True, True), 0.0, 0.0))
    assert [prediction.index for prediction in response.results[0].predictions] == [0, 1]
    assert all(math.isnan(score) for score in response.results[0].scores)
    assert list(response.results[0].logits)[1:] == [math.inf, -math.inf]
    (single,) = parsed(made.top_one(scores)[0], made)
    assert single[0][:2] == ("a", 0)


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(width=32)))
def test_both_ways_agree_on_the_first(scores: np.ndarray[Any, Any]) -> None:
    made = answers(list("abcd"))
    one = parsed(b"".join(made.top_one(scores)), made)
    several = parsed(made.results(scores, scores, 3, False, False), made)
    if not np.isnan(scores).any():
        assert [row[0] for row in several] == [row[0] for row in one]
    assert all(len({index for _, index, _ in row}) == 3 for row in several)
