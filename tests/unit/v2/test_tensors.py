from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from convlens_server.errors import InvalidRequest
from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.errors import invalid
from convlens_server.v2.tensors import DATATYPES, packed, typed, unpacked, whole, written


def mismatch(text: str) -> InvalidRequest:
    return invalid(text, "inputs")


@given(st.lists(st.binary(max_size=40)))
def test_what_is_packed_is_unpacked(elements: list[bytes]) -> None:
    assert unpacked(packed(elements), len(elements), mismatch) == elements


@given(st.binary(max_size=60), st.integers(0, 5))
def test_whatever_is_not_packed_is_refused(data: bytes, count: int) -> None:
    try:
        elements = unpacked(data, count, mismatch)
    except InvalidRequest:
        return
    assert packed(elements) == data
    assert len(elements) == count


@given(st.lists(st.floats(width=32)))
def test_typed_floats_are_the_same_bits(values: list[float]) -> None:
    contents = pb.InferTensorContents(fp32_contents=values)
    data = typed(contents, DATATYPES[TensorProto.FLOAT], "x", "m")
    np.testing.assert_array_equal(np.frombuffer(data, "<f4"), np.array(values, np.float32))


def test_written() -> None:
    assert written((-1, 3, 64, 64)) == "[-1,3,64,64]"
    assert written(()) == "[]"


@pytest.mark.parametrize(
    "parameter",
    [
        pb.InferParameter(),
        pb.InferParameter(bool_param=True),
        pb.InferParameter(double_param=1),
        pb.InferParameter(string_param="1"),
        pb.InferParameter(int64_param=-1),
    ],
)
def test_what_is_no_whole_number_is_refused(parameter: pb.InferParameter) -> None:
    with pytest.raises(InvalidRequest):
        whole(parameter, "timeout")
