"""Feature maps: what is asked for, how chunks are joined, how values are decoded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convlens
from convlens._answers import MapsReader
from convlens.v1 import convlens_pb2 as pb


def chunks(layer, values, size=1 << 20, value_type=pb.VALUE_TYPE_FLOAT32, kind="conv", **head):
    """A layer's messages, `size` bytes each."""
    data = values.tobytes()
    messages = []
    for start in range(0, max(len(data), 1), size):
        message = pb.GetFeatureMapsResponse(layer=layer, byte_offset=start, data=data[start : start + size])
        if start == 0:
            message.MergeFrom(
                pb.GetFeatureMapsResponse(
                    kind=kind, shape=values.shape, value_type=value_type, total_bytes=len(data), model="m", version=2,
                    queue_ms=0.5, compute_ms=1.5, **head,
                )
            )  # fmt: skip
        messages.append(message)
    return messages


def test_the_request(client, fake):
    fake.expect("GetFeatureMaps", [], [])
    client.maps(b"1", model="m", version=2, layers=["a", "b"], kinds="conv", channels=[3, 0], dtype="uint8")
    client.maps(b"1", layers="relu_1", all_layers=True)
    images = pb.Images(encoded=pb.EncodedImages(files=[b"1"]))
    assert [request for _, request in fake.calls] == [
        pb.GetFeatureMapsRequest(
            model="m", version=2, images=images, layers=["a", "b"], kinds=["conv"], channels=[3, 0],
            value_type=pb.VALUE_TYPE_UINT8,
        ),
        pb.GetFeatureMapsRequest(
            images=images, layers=["relu_1"], all_layers=True, value_type=pb.VALUE_TYPE_FLOAT32
        ),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"dtype": "int8"}, "dtype is 'int8', but must be one of float32, float16, uint8"),
        ({"channels": [0, -1]}, "channels is -1"),
        ({"channels": [0.5]}, "channels is 0.5, but must be an integer"),
        ({"layers": [3]}, "layers is 3, but must be a string"),
        ({"version": -1}, "version is -1"),
    ],
)
def test_wrong_arguments_are_refused_before_any_call(client, arguments, text):
    with pytest.raises(convlens.InvalidRequest, match=text):
        client.maps(b"1", **arguments)


def test_layers_in_chunks(client, fake, rng):
    first = rng.normal(size=(1, 3, 5, 7)).astype(np.float32)
    second = rng.normal(size=(1, 10)).astype(np.float32)
    answer = chunks("conv_1", first, 100) + chunks("dense", second, 16, kind="dense", channels=range(5, 15))
    assert len(answer) > 6
    fake.expect("GetFeatureMaps", answer)
    conv, dense = client.maps(b"1", all_layers=True)
    assert (conv.layer, conv.kind, conv.model, conv.version, conv.queue_ms, conv.compute_ms) == (
        "conv_1", "conv", "m", 2, 0.5, 1.5,
    )  # fmt: skip
    assert conv.activation.dtype == dense.activation.dtype == np.float32
    # A single image: no first dimension.
    np.testing.assert_array_equal(conv.activation, first[0])
    np.testing.assert_array_equal(dense.activation, second[0])
    assert conv.channels == (0, 1, 2)
    assert dense.channels == tuple(range(5, 15))
    conv.activation[0, 0, 0] = 7


@pytest.mark.parametrize("images", [[b"1", b"2"], np.zeros((2, 4, 4, 1), np.uint8)], ids=["list", "array"])
def test_many_images_keep_the_first_dimension(client, fake, rng, images):
    values = rng.normal(size=(2, 3, 5, 7)).astype(np.float32)
    fake.expect("GetFeatureMaps", chunks("conv_1", values))
    (conv,) = client.maps(images)
    np.testing.assert_array_equal(conv.activation, values)


def test_a_list_of_one_keeps_the_first_dimension(client, fake, rng):
    values = rng.normal(size=(1, 3, 5, 7)).astype(np.float32)
    fake.expect("GetFeatureMaps", chunks("conv_1", values))
    assert client.maps([b"1"])[0].activation.shape == (1, 3, 5, 7)


def test_float16_is_widened(client, fake, rng):
    values = rng.normal(size=(1, 3, 5, 7)).astype(np.float16)
    fake.expect("GetFeatureMaps", chunks("conv_1", values, 33, pb.VALUE_TYPE_FLOAT16))
    (conv,) = client.maps(b"1", dtype="float16")
    assert conv.activation.dtype == np.float32
    np.testing.assert_array_equal(conv.activation, values[0].astype(np.float32))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 4)])
def test_uint8_is_dequantised_by_channel_and_image(client, fake, rng, shape):
    values = rng.integers(0, 256, shape, np.uint8)
    scale = rng.uniform(0, 2, shape[:2]).astype(np.float32)
    offset = rng.normal(size=shape[:2]).astype(np.float32)
    answer = chunks("a", values, 50, pb.VALUE_TYPE_UINT8, scale=scale.ravel(), offset=offset.ravel())
    fake.expect("GetFeatureMaps", answer)
    (result,) = client.maps([b"1", b"2"], dtype="uint8")
    assert result.activation.dtype == np.float32
    for image, channel in np.ndindex(*shape[:2]):
        expected = offset[image, channel] + scale[image, channel] * values[image, channel].astype(np.float64)
        np.testing.assert_allclose(result.activation[image, channel], expected, rtol=1e-6, atol=1e-6)


def test_uint8_over_the_whole_range_of_float32(client, fake):
    largest = np.finfo(np.float32).max
    values = np.array([[[[0, 255]]]], np.uint8)
    scale = np.float32(2 * float(largest) / 255)
    fake.expect("GetFeatureMaps", chunks("a", values, 50, pb.VALUE_TYPE_UINT8, scale=[scale], offset=[-largest]))
    (result,) = client.maps(b"1")
    assert np.isfinite(result.activation).all()


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    size=st.integers(1, 97),
    layers=st.integers(1, 3),
)
def test_any_shape_in_any_chunks(shape, size, layers):
    values = [np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1000 * i for i in range(layers)]
    reader = MapsReader(single=False)
    for i, layer in enumerate(values):
        for chunk in chunks(f"layer {i}", layer, size):
            reader.add(chunk)
    maps = reader.result()
    assert [m.layer for m in maps] == [f"layer {i}" for i in range(layers)]
    for m, layer in zip(maps, values, strict=True):
        np.testing.assert_array_equal(m.activation, layer)


def _broken():
    values = np.zeros((1, 3, 5, 7), np.float32)
    good = chunks("a", values, 100)
    yield "incomplete", good[:-1]
    yield "a chunk missing", [good[0], *good[2:]]
    yield "another layer between", [good[0], *chunks("b", values)]
    yield "begins in the middle", good[1:]
    yield "too long", [*good[:-1], pb.GetFeatureMapsResponse(layer="a", byte_offset=400, data=b"0" * 21)]
    head = pb.GetFeatureMapsResponse()
    head.CopyFrom(good[0])
    head.total_bytes = 8
    yield "total is not the shape", [head]
    head = pb.GetFeatureMapsResponse()
    head.CopyFrom(good[0])
    head.value_type = pb.VALUE_TYPE_UNSPECIFIED
    yield "no value type", [head]
    quantised = chunks("a", np.zeros((1, 3, 2), np.uint8), value_type=pb.VALUE_TYPE_UINT8, scale=[1], offset=[1, 2, 3])
    yield "scales missing", quantised


@pytest.mark.parametrize("answer", [pytest.param(answer, id=name) for name, answer in _broken()])
def test_a_broken_answer_is_the_servers_error(client, fake, answer):
    fake.expect("GetFeatureMaps", answer)
    with pytest.raises(convlens.ServerError, match="breaks the contract") as caught:
        client.maps(b"1")
    assert caught.value.reason == "BROKEN_ANSWER"
