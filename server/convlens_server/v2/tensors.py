"""The protocol's tensors: datatypes, raw and typed contents, BYTES, parameters."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from convlens_server.errors import shown
from convlens_server.v2 import model_config_pb2 as config_pb
from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.errors import invalid

BYTES = "BYTES"


@dataclass(frozen=True, slots=True)
class Datatype:
    """A datatype that a network's tensors may have.

    Attributes:
        name: In requests.
        dtype: Little-endian.
        config: In ModelConfig.
        contents: The field of InferTensorContents; empty: it only travels raw.
    """

    name: str
    dtype: np.dtype[Any]
    config: config_pb.DataType.ValueType
    contents: str


DATATYPES: dict[int, Datatype] = {
    TensorProto.UINT8: Datatype("UINT8", np.dtype("u1"), config_pb.TYPE_UINT8, "uint_contents"),
    TensorProto.FLOAT: Datatype("FP32", np.dtype("<f4"), config_pb.TYPE_FP32, "fp32_contents"),
    TensorProto.FLOAT16: Datatype("FP16", np.dtype("<f2"), config_pb.TYPE_FP16, ""),
}

_length = struct.Struct("<I")


def written(shape: Iterable[int]) -> str:
    """A shape as Triton writes it: [-1,3,64,64]."""
    return f"[{','.join(map(str, shape))}]"


def packed(elements: Iterable[bytes]) -> bytes:
    """Elements of BYTES, each with its length before it."""
    return b"".join([part for element in elements for part in (_length.pack(len(element)), element)])


def unpacked(data: bytes, count: int, mismatch: Callable[[str], Exception]) -> list[bytes]:
    """Elements of BYTES.

    Args:
        data: As they travel.
        count: How many there must be.
        mismatch: Makes the error of a text that says what does not fit.
    """
    elements: list[bytes] = []
    position, end = 0, len(data)
    while position < end and len(elements) < count:
        if position + 4 > end:
            raise mismatch(f"element {len(elements)} has no whole length")
        (size,) = _length.unpack_from(data, position)
        position += 4
        if position + size > end:
            raise mismatch(f"element {len(elements)} says that it has {size} bytes, but {end - position} follow")
        elements.append(data[position : position + size])
        position += size
    if len(elements) < count or position < end:
        raise mismatch(f"expected {count} elements, got {'more' if position < end else len(elements)}")
    return elements


def typed(contents: pb.InferTensorContents, datatype: Datatype, name: str, model: str) -> bytes:
    """A tensor's bytes from its typed contents. Raises InvalidRequest."""
    _only(contents, datatype.contents, datatype.name, name, model)
    values: npt.NDArray[Any] = np.array(getattr(contents, datatype.contents))
    if datatype.name == "UINT8" and values.size and values.max() > 255:
        raise invalid(
            f"input {shown(name)!r} for model {model!r} has the value {values.max()}, but UINT8 ends at 255", "inputs"
        )
    return values.astype(datatype.dtype).tobytes()


def typed_bytes(contents: pb.InferTensorContents, name: str, model: str) -> Sequence[bytes]:
    """The elements of BYTES from their typed contents. Raises InvalidRequest."""
    _only(contents, "bytes_contents", BYTES, name, model)
    return contents.bytes_contents


def _only(contents: pb.InferTensorContents, wanted: str, datatype: str, name: str, model: str) -> None:
    if not wanted:
        raise invalid(
            f"input {shown(name)!r} for model {model!r} is {datatype}, which only raw_input_contents can hold", "inputs"
        )
    for field, _ in contents.ListFields():
        if field.name != wanted:
            raise invalid(
                f"unexpected explicit tensor data for input tensor {shown(name)!r} for model {model!r} of type "
                f"{datatype!r}: it has {field.name}, expected {wanted}",
                "inputs",
            )


def whole(parameter: pb.InferParameter, name: str) -> int:
    """A parameter that is a number of 0 or more. Raises InvalidRequest."""
    choice = parameter.WhichOneof("parameter_choice")
    if choice not in ("int64_param", "uint64_param"):
        raise invalid(f"parameter {name!r} must be an int64_param or uint64_param", "parameters")
    value = int(getattr(parameter, choice))
    if value < 0:
        raise invalid(f"parameter {name!r} is {value}, but must be 0 or more", "parameters")
    return value
