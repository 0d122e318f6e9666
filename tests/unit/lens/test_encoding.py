from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from convlens.v1 import convlens_pb2 as pb
from convlens_server.encoding import encode


def decode(data, shape, value_type, scale, offset):
    """What a client does, in float64."""
    if value_type == pb.VALUE_TYPE_UINT8:
        per_channel = (*shape[:2], *[1] * (len(shape) - 2))
        steps = np.frombuffer(data, np.uint8).reshape(shape).astype(np.float64)
        return offset.astype(np.float64).reshape(per_channel) + scale.astype(np.float64).reshape(per_channel) * steps
    dtype = "<f2" if value_type == pb.VALUE_TYPE_FLOAT16 else "<f4"
    return np.frombuffer(data, dtype).reshape(shape).astype(np.float64)


def through(maps, value_type):
    encoded = encode(maps, value_type)
    return decode(encoded.data, maps.shape, value_type, encoded.scale, encoded.offset), encoded


shapes = array_shapes(min_dims=2, max_dims=4, max_side=6)
finite = arrays(np.float32, shapes, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
moderate = arrays(np.float32, shapes, elements=st.floats(-65504, 65504, width=32))
anything = arrays(np.float32, shapes, elements=st.floats(width=32))


@given(anything)
def test_float32_is_exact(maps):
    for value_type in (pb.VALUE_TYPE_FLOAT32, pb.VALUE_TYPE_UNSPECIFIED):
        decoded, encoded = through(maps, value_type)
        np.testing.assert_array_equal(decoded, maps)
        assert encoded.data.nbytes == 4 * maps.size
        assert encoded.data.format == "B"
        assert encoded.scale.size == encoded.offset.size == 0


@given(moderate)
def test_float16_has_eleven_bits(maps):
    decoded, encoded = through(maps, pb.VALUE_TYPE_FLOAT16)
    assert (np.abs(decoded - maps) <= np.maximum(np.abs(maps.astype(np.float64)) * 2.0**-11, 2.0**-25)).all()
    assert encoded.data.nbytes == 2 * maps.size


@pytest.mark.parametrize(
    ("value", "expected"), [(1e30, 65504), (-1e5, -65504), (np.inf, 65504), (-np.inf, -65504), (np.nan, np.nan)]
)
def test_float16_is_clipped(value, expected):
    decoded, _ = through(np.full((1, 1, 1), value, np.float32), pb.VALUE_TYPE_FLOAT16)
    np.testing.assert_array_equal(decoded, [[[expected]]])


@given(finite)
@example(np.array([[[0, 2.99e-42]]], np.float32))
@example(np.array([[[0, 1e-45]]], np.float32))
@example(np.array([[[-3.4e38, 3.4e38]]], np.float32))
def test_bytes_are_half_a_step_off_at_most(maps):
    decoded, encoded = through(maps, pb.VALUE_TYPE_UINT8)
    assert encoded.data.nbytes == maps.size
    assert encoded.scale.shape == encoded.offset.shape == (maps.shape[0] * maps.shape[1],)
    assert encoded.scale.dtype == encoded.offset.dtype == np.float32
    channels = maps.reshape(*maps.shape[:2], -1).astype(np.float64)
    error = np.abs(decoded.reshape(channels.shape) - channels).max(2).ravel()
    # The scale itself is rounded to float32, and the arithmetic to float64.
    assert (error <= encoded.scale.astype(np.float64) * (0.5 + 1e-4) + np.abs(channels).max(2).ravel() * 1e-15).all()
    np.testing.assert_array_equal(encoded.offset, channels.min(2).ravel())


def test_bytes_of_equal_values():
    maps = np.array([[[3.5, 3.5], [0, 0], [1, 2]]], np.float32)
    decoded, encoded = through(maps, pb.VALUE_TYPE_UINT8)
    np.testing.assert_array_equal(encoded.scale[:2], 0)
    np.testing.assert_array_equal(decoded[0, :2], maps[0, :2])
    np.testing.assert_allclose(decoded, maps, atol=1e-6)


def test_bytes_of_dense_units():
    maps = np.array([[1, -2, 3], [4, 5, -6]], np.float32)
    decoded, encoded = through(maps, pb.VALUE_TYPE_UINT8)
    np.testing.assert_array_equal(decoded, maps)
    assert encoded.offset.tolist() == maps.ravel().tolist()


@given(anything)
def test_bytes_of_what_is_not_finite(maps):
    decoded, encoded = through(maps, pb.VALUE_TYPE_UINT8)
    assert np.isfinite(decoded).all()
    assert np.isfinite(encoded.scale).all()
    channels = maps.reshape(*maps.shape[:2], -1)
    for channel, values, step in zip(
        channels.reshape(-1, channels.shape[2]),
        decoded.reshape(-1, channels.shape[2]),
        encoded.scale.astype(np.float64),
        strict=True,
    ):
        kept = channel[np.isfinite(channel)].astype(np.float64)
        low, high = (kept.min(), kept.max()) if len(kept) else (0, 0)
        wanted = np.where(np.isnan(channel), low, np.clip(channel.astype(np.float64), low, high))
        assert (np.abs(values - wanted) <= step * (0.5 + 1e-4) + abs(wanted) * 1e-15).all()
