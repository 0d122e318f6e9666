from __future__ import annotations

import time

import grpc
import numpy as np
import pytest
from onnx import numpy_helper

from convlens.v1 import convlens_pb2 as pb
from support import conv_model, linear_model, own_weights, put, raw, serving


def changed():
    """The conv network with other weights in its second convolution, and more of them in its first."""
    model = conv_model()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    second = numpy_helper.to_array(weights["weights_2"]).copy()
    second[1] *= -1
    weights["weights_2"].CopyFrom(numpy_helper.from_array(second, "weights_2"))
    return model


def wider():
    """The conv network whose second convolution has two channels less."""
    model = conv_model()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, part in (("weights_2", np.s_[:2]), ("weights_3", np.s_[:2]), ("weights_4", np.s_[:48])):
        values = numpy_helper.to_array(weights[name])[part]
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    put(folder, "conv", 1, conv_model())
    put(folder, "conv", 2, changed())
    put(folder, "other", 1, conv_model())
    put(folder, "wider", 1, wider())
    put(folder, "linear", 1, linear_model(own_weights(1)))
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder, max_feature_map_images=6) as served:
        yield served


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 12, 3), np.uint8)


def side(model="", version=0, pixels=None):
    return pb.CompareSide(model=model, version=version, images=None if pixels is None else raw(pixels))


def compare(server, **fields):
    """{layer: (first message, joined data)}, chunks checked."""
    found = {}
    for message in server.stub.Compare(pb.CompareRequest(**fields), timeout=30):
        assert len(message.data) <= 2**20
        if message.byte_offset == 0:
            assert message.layer not in found
            found[message.layer] = (message, bytearray())
        assert list(found)[-1] == message.layer
        data = found[message.layer][1]
        assert len(data) == message.byte_offset
        data += message.data
    for first, data in found.values():
        assert len(data) == first.total_bytes
    return found


def maps(server, model, version, pixels):
    """{layer: values}."""
    request = pb.GetFeatureMapsRequest(model=model, version=version, images=raw(pixels), all_layers=True)
    return {
        message.layer: np.frombuffer(message.data, "<f4").reshape(message.shape).astype(float)
        for message in server.stub.GetFeatureMaps(request, timeout=30)
    }


def cka(a, b):
    a, b = (side.reshape(len(side), -1) for side in (a, b))
    a, b = a - a.mean(0), b - b.mean(0)
    return np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))


def check(found, a, b):
    """Every figure, computed anew from feature maps."""
    for name, (message, _) in found.items():
        x, y = (values[name].reshape(len(values[name]), -1) for values in (a, b))
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        np.testing.assert_allclose(message.cosine, (x * y).sum(1) / norms, atol=1e-5)
        distances = np.linalg.norm(y - x, axis=1) / np.linalg.norm(x, axis=1)
        np.testing.assert_allclose(message.relative_difference, distances, rtol=1e-4, atol=1e-6)
        assert list(message.shape) == list(a[name].shape)
        if len(x) == 1:
            assert not message.HasField("cka")
        else:
            assert message.cka == pytest.approx(cka(x, y), abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_two_images(server, count):
    first, second = images(count), images(count, seed=1)
    found = compare(server, first=side("conv", 1, first), second=side(pixels=second))
    assert list(found) == ["conv_1", "relu_1", "pool_1", "conv_2", "relu_2", "flatten", "output", "softmax"]
    check(found, maps(server, "conv", 1, first), maps(server, "conv", 1, second))
    message, data = found["conv_1"]
    assert (message.kind, message.value_type, bytes(data)) == ("conv", 0, b"")
    assert [(each.model, each.version) for each in message.models] == [("conv", 1)] * 2


def test_two_versions(server):
    """Where they are the same they are equal: before the changed convolution."""
    pixels = images(4)
    found = compare(server, first=side("conv", 1, pixels), second=side(version=2))
    check(found, maps(server, "conv", 1, pixels), maps(server, "conv", 2, pixels))
    for name in ("conv_1", "relu_1", "pool_1"):
        message = found[name][0]
        assert max(message.relative_difference) < 1e-6
        assert message.cka == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(message.cosine, 1, atol=1e-6)
    assert min(found["conv_2"][0].relative_difference) > 0.1
    assert [(each.model, each.version) for each in found["conv_2"][0].models] == [("conv", 1), ("conv", 2)]


def test_two_models_and_images_of_each(server):
    first, second = images(3), images(3, seed=1)
    found = compare(server, first=side("conv", 2, first), second=side("other", pixels=second), layers=["relu_2"])
    assert list(found) == ["relu_2"]
    check(found, maps(server, "conv", 2, first), maps(server, "other", 1, second))


@pytest.mark.parametrize("value_type", pb.ValueType.values())
def test_differences(server, value_type):
    first, second = images(2), images(2, seed=1)
    found = compare(
        server,
        first=side("conv", 1, first),
        second=side(pixels=second),
        include_differences=True,
        value_type=value_type,
    )
    a, b = (maps(server, "conv", 1, pixels) for pixels in (first, second))
    for name, (message, data) in found.items():
        expected = b[name] - a[name]
        shape = tuple(message.shape)
        if message.value_type == pb.VALUE_TYPE_UINT8:
            each = (*shape[:2], *[1] * (len(shape) - 2))
            scale, offset = (np.reshape(values, each) for values in (message.scale, message.offset))
            values = offset + scale * np.frombuffer(data, np.uint8).reshape(shape)
            assert (np.abs(values - expected) <= scale * 0.51 + 1e-6).all()
        else:
            short = message.value_type == pb.VALUE_TYPE_FLOAT16
            values = np.frombuffer(data, "<f2" if short else "<f4").reshape(shape)
            np.testing.assert_allclose(values, expected, rtol=2**-10, atol=1e-5)
        assert message.value_type == (value_type or pb.VALUE_TYPE_FLOAT32)


def test_large_differences_come_in_chunks(tmp_path):
    model = conv_model()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 400
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 300
    pool = model.graph.node[2]
    del pool.attribute[:]
    pool.op_type = "GlobalAveragePool"
    del model.graph.node[3:5]
    model.graph.node[3].input[0] = "p1"
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights_4")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights)[:6], "weights_4"))
    put(tmp_path, "large", 1, model)
    with serving(tmp_path) as server:
        first, second = np.random.default_rng(0).integers(0, 256, (2, 1, 400, 300, 3), np.uint8)
        found = compare(
            server,
            first=side("large", 1, first),
            second=side(pixels=second),
            layers=["conv_1"],
            include_differences=True,
        )
        message, data = found["conv_1"]
        assert len(data) == 4 * 6 * 400 * 300 > 2 * 2**20
        values = np.frombuffer(data, "<f4").reshape(message.shape)
        request = pb.GetFeatureMapsRequest(
            model="large", images=raw(np.concatenate([first, second])), layers=["conv_1"]
        )
        both = b"".join(part.data for part in server.stub.GetFeatureMaps(request, timeout=30))
        a, b = np.frombuffer(both, "<f4").reshape(2, 6, 400, 300)
        np.testing.assert_allclose(values[0], b - a, atol=1e-5)


def test_a_side_that_is_all_zero(server):
    """Black images: the relu behind a negative bias gives nothing, and nothing is divided by it."""
    black = np.zeros((2, 16, 12, 3), np.uint8)
    found = compare(server, first=side("conv", 1, images(2)), second=side(pixels=black))
    for message, _ in found.values():
        values = [*message.cosine, *message.relative_difference, message.cka]
        assert not np.isnan(values).any()
    same = compare(server, first=side("conv", 1, black), second=side(pixels=black))
    for message, _ in same.values():
        assert list(message.relative_difference) == [0, 0]
        assert message.cka == 0


def test_a_second_side_that_has_to_be_loaded_first(folder):
    with serving(folder, lazy=True, max_loaded=1) as server:
        found = compare(server, first=side("conv", 1, images(2)), second=side("other"))
        assert max(found["output"][0].relative_difference) < 1e-6
        # Each has made room for the other; both still answer.
        again = compare(server, first=side("other", 1, images(2)), second=side("conv", 2))
        assert max(again["output"][0].relative_difference) > 0


@pytest.mark.parametrize(
    ("fields", "code", "reason", "text"),
    [
        ({"second": side()}, "INVALID_ARGUMENT", "SAME_SIDES", "both sides are version 1 of model 'conv'"),
        ({"second": side("conv", 1)}, "INVALID_ARGUMENT", "SAME_SIDES", "another model, version or images"),
        ({"second": side("conv", 9)}, "NOT_FOUND", "VERSION_NOT_FOUND", "9"),
        ({"second": side("unknown")}, "NOT_FOUND", "MODEL_NOT_FOUND", "unknown"),
        (
            {"second": side(pixels=images(3))},
            "INVALID_ARGUMENT",
            "DIFFERENT_NUMBERS_OF_IMAGES",
            "2 images and the second 3",
        ),
        ({"second": side(version=2), "layers": ["conv_9"]}, "NOT_FOUND", "LAYER_NOT_FOUND", "conv_9"),
        ({"second": side("linear"), "layers": ["conv_1"]}, "NOT_FOUND", "LAYER_NOT_FOUND", "conv_1"),
        (
            {"second": side("wider"), "layers": ["relu_2"]},
            "INVALID_ARGUMENT",
            "DIFFERENT_SHAPES",
            "4 × 6 × 4 in the first model and 2 × 6 × 4",
        ),
        ({"second": side(version=2), "value_type": 9}, "INVALID_ARGUMENT", "UNKNOWN_VALUE_TYPE", "value_type is 9"),
        ({"second": side("linear")}, "INVALID_ARGUMENT", "NOTHING_TO_COMPARE", "no layer of the same name and shape"),
        ({"second": side(pixels=images(7))}, "INVALID_ARGUMENT", "TOO_MANY_IMAGES", "--max-feature-map-images"),
    ],
)
def test_what_is_wrong_is_named(server, failing, fields, code, reason, text):
    request = pb.CompareRequest(**{"first": side("conv", 1, images(2)), **fields})
    failure = failing(lambda: list(server.stub.Compare(request, timeout=10)))
    assert failure.code == getattr(grpc.StatusCode, code)
    assert failure.reason == reason
    assert text in failure.text


def test_too_many_bytes(folder, failing):
    with serving(folder, max_feature_map_bytes=10_000) as server:
        request = pb.CompareRequest(first=side("conv", 1, images(2)), second=side(version=2))
        failure = failing(lambda: list(server.stub.Compare(request, timeout=10)))
        assert failure.reason == "TOO_MANY_BYTES"
        assert "--max-feature-map-bytes" in failure.text
        compare(server, first=side("conv", 1, images(2)), second=side(version=2), layers=["relu_2"])


def test_what_is_held_is_let_go(folder):
    """Readers who leave in the middle free what they held: else the fourth would be refused for ever."""
    request = pb.CompareRequest(first=side("conv", 1, images(2)), second=side(version=2), include_differences=True)
    with serving(folder, max_feature_map_bytes=40_000) as server:
        ends = time.monotonic() + 30
        left = 0
        while left < 12:
            call = server.stub.Compare(request, timeout=30)
            try:
                next(call)
            except grpc.RpcError as error:
                # Those who left may not have been noticed yet.
                if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED or time.monotonic() > ends:
                    raise
            else:
                left += 1
            call.cancel()
