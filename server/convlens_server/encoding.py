"""How the values of feature maps travel: as float32, float16 or bytes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from convlens.v1 import convlens_pb2 as pb
from convlens_server.errors import InvalidRequest

_FLOAT16_MAX = 65504.0
_NONE = np.zeros(0, np.float32)


class Encoded(NamedTuple):
    """Values as they travel.

    Attributes:
        data: Little-endian, in row-major order.
        scale: For bytes, float32, one for each channel of each image, row-major; empty otherwise.
        offset: As `scale`.
    """

    data: memoryview
    scale: npt.NDArray[np.float32]
    offset: npt.NDArray[np.float32]


def check_value_type(value_type: pb.ValueType.ValueType) -> pb.ValueType.ValueType:
    """What a request asks for: float32 if unspecified. Raises InvalidRequest."""
    if value_type not in pb.ValueType.values():
        raise InvalidRequest(
            f"value_type is {value_type}, but must be one of {', '.join(pb.ValueType.keys()[1:])}",
            reason="UNKNOWN_VALUE_TYPE",
            field="value_type",
        )
    return value_type or pb.VALUE_TYPE_FLOAT32


def encode(maps: npt.NDArray[np.float32], value_type: pb.ValueType.ValueType) -> Encoded:
    """Encodes feature maps.

    float32 is exact. float16 has a relative error of at most 2^-11 (below 6.1e-5 an absolute one of 3e-8); magnitudes
    over 65504, infinities too, become 65504, and NaN stays NaN. Bytes have an error of at most scale / 2, with the
    smallest value of a channel as offset and a 255th of its range as scale; they cannot say what is not finite: it is
    left out of offset and scale, then +∞ becomes the channel's largest value, −∞ and NaN its smallest.

    Args:
        maps: float32 images × channels, and any further dimensions.
        value_type: float32 if unspecified.
    """
    if value_type == pb.VALUE_TYPE_UINT8:
        return _to_bytes(maps)
    if value_type == pb.VALUE_TYPE_FLOAT16:
        return Encoded(_view(np.clip(maps, -_FLOAT16_MAX, _FLOAT16_MAX).astype("<f2")), _NONE, _NONE)
    return Encoded(_view(maps.astype("<f4", copy=False)), _NONE, _NONE)


def _to_bytes(maps: npt.NDArray[np.float32]) -> Encoded:
    channels = maps.reshape(len(maps), maps.shape[1] if maps.ndim > 1 else 1, -1)
    low, high = channels.min(2, keepdims=True), channels.max(2, keepdims=True)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        finite = np.isfinite(channels)
        low = channels.min(2, keepdims=True, where=finite, initial=np.inf)
        high = channels.max(2, keepdims=True, where=finite, initial=-np.inf)
        low, high = np.where(low > high, np.float32(0), (low, high)).astype(np.float32)
        channels = np.clip(np.where(np.isnan(channels), low, channels), low, high)
    # In float64: the range of float32 values may be no float32.
    spread = high.astype(np.float64) - low
    scale = (spread / 255).astype(np.float32)
    # Rounded up: 255 steps have to reach the largest value; below 1e-38, where float32 has few bits left, that matters.
    scale = np.where(scale * np.float64(255) < spread, np.nextafter(scale, np.float32(np.inf)), scale)
    steps = (channels - low.astype(np.float64)) / np.where(scale > 0, scale, np.float32(1))
    data = np.clip(np.rint(steps, out=steps), 0, 255, out=steps).astype(np.uint8)
    return Encoded(_view(data), scale.ravel(), low.ravel())


def _view(values: npt.NDArray[np.generic]) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
