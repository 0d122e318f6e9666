"""Joins tensors from the chunks that they come in, and decodes their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from convlens._errors import ServerError
from convlens.v1 import convlens_pb2 as pb

_DTYPES = {pb.VALUE_TYPE_FLOAT32: "<f4", pb.VALUE_TYPE_FLOAT16: "<f2", pb.VALUE_TYPE_UINT8: "u1"}


class Chunk(Protocol):
    """What the contract's messages that carry a layer's values have in common."""

    @property
    def layer(self) -> str:
        """In every chunk."""

    @property
    def byte_offset(self) -> int:
        """Of `data` within the layer's bytes."""

    @property
    def data(self) -> bytes:
        """A run of the layer's bytes."""

    @property
    def shape(self) -> Sequence[int]:
        """Of all values. This and what follows: in the first chunk only."""

    @property
    def value_type(self) -> pb.ValueType.ValueType:
        """Encoding of `data`."""

    @property
    def scale(self) -> Sequence[float]:
        """For uint8."""

    @property
    def offset(self) -> Sequence[float]:
        """For uint8."""

    @property
    def total_bytes(self) -> int:
        """Of the layer."""


_Chunk = TypeVar("_Chunk", bound=Chunk)


class Joiner(Generic[_Chunk]):
    """Joins the chunks of tensors that follow each other.

    Args:
        scaled: How many leading dimensions have a scale and an offset each, where values travel as uint8.
        optional: Whether a layer may come without values.
    """

    def __init__(self, scaled: int, optional: bool = False) -> None:
        self._scaled = scaled
        self._optional = optional
        self._head: _Chunk | None = None
        self._buffer = bytearray()
        self._filled = 0

    def add(self, chunk: _Chunk) -> tuple[_Chunk, npt.NDArray[np.float32] | None] | None:
        """Takes the next message.

        Returns:
            When the tensor is complete, its first chunk and its values in a new array, None where it has none.

        Raises:
            ServerError: The message is not what is due.
        """
        if self._head is None:
            if self._optional and not chunk.value_type and not chunk.total_bytes and not chunk.data:
                return chunk, None
            self._begin(chunk)
        head = self._head or chunk
        end = self._filled + len(chunk.data)
        if chunk.layer != head.layer or chunk.byte_offset != self._filled or end > len(self._buffer):
            raise broken(
                f"bytes {chunk.byte_offset} … of layer {chunk.layer!r}, where byte {self._filled} of "
                f"{len(self._buffer)} of layer {head.layer!r} was due"
            )
        self._buffer[self._filled : end] = chunk.data
        self._filled = end
        if end < len(self._buffer):
            return None
        self._head = None
        return head, self._values(head)

    def end(self) -> None:
        """There are no more messages. Raises ServerError where the last tensor is not complete."""
        if self._head is not None:
            raise broken(f"only {self._filled} of {len(self._buffer)} bytes of layer {self._head.layer!r}")

    def _begin(self, head: _Chunk) -> None:
        dtype = _DTYPES.get(head.value_type)
        if dtype is None or head.total_bytes != math.prod(head.shape) * np.dtype(dtype).itemsize or not head.shape:
            raise broken(
                f"layer {head.layer!r} with shape {list(head.shape)}, value type {head.value_type} and "
                f"{head.total_bytes} bytes"
            )
        if head.value_type == pb.VALUE_TYPE_UINT8:
            channels = math.prod(head.shape[: self._scaled])
            if len(head.scale) != channels or len(head.offset) != channels:
                raise broken(f"layer {head.layer!r} with {len(head.scale)} scales for {channels} channels")
        self._head, self._buffer, self._filled = head, bytearray(head.total_bytes), 0

    def _values(self, head: _Chunk) -> npt.NDArray[np.float32]:
        values = np.frombuffer(self._buffer, _DTYPES[head.value_type]).reshape(tuple(head.shape))
        if head.value_type == pb.VALUE_TYPE_UINT8:
            return self._dequantised(values, head)
        return values.astype(np.float32, copy=False)

    def _dequantised(self, values: npt.NDArray[Any], head: _Chunk) -> npt.NDArray[np.float32]:
        shape = (*head.shape[: self._scaled], *(1 for _ in head.shape[self._scaled :]))
        # In float64: 255 × scale may be no float32. Row by row, which keeps that copy small.
        scale = np.array(head.scale, np.float64).reshape(shape)
        offset = np.array(head.offset, np.float64).reshape(shape)
        result = np.empty(values.shape, np.float32)
        for index, row in enumerate(result):
            np.add(offset[index], scale[index] * values[index], out=row, casting="same_kind")
        return result


def broken(what: str) -> ServerError:
    """The error for an answer that the contract does not allow."""
    return ServerError(f"the server's answer breaks the contract: it has {what}", reason="BROKEN_ANSWER")
