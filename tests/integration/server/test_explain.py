"""ExplainUnit: what an answer adds up to is what the same server's feature maps say."""

from __future__ import annotations

import base64
import functools
import json
import urllib.request
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from convlens.v1 import convlens_pb2 as pb
from convlens_server import subgraph
from explaining import check, patches, place_shape
from support import put, raw, serving

SHIPPED = Path(__file__).parents[3] / "models"
NETWORKS = ("resnet18", "mobilenet_v3_small", "densenet121", "efficientnet_b0")


class Asked:
    """A model of a server, and one image for it."""

    def __init__(self, server, model, seed=0):
        self._server = server
        self.model = model
        described = server.stub.GetModel(pb.GetModelRequest(model=model), timeout=30)
        self.layers = list(described.layers)
        size = (1, described.height, described.width, described.channels)
        self.images = raw(np.random.default_rng(seed).integers(0, 256, size, np.uint8))

    @functools.cached_property
    def maps(self):
        """All layers' maps, and the image as the network takes it."""
        names = ["input", *(layer.name for layer in self.layers)]
        request = pb.GetFeatureMapsRequest(model=self.model, images=self.images, layers=names)
        shapes, contents = {}, {}
        for message in self._server.stub.GetFeatureMaps(request, timeout=60):
            shapes.setdefault(message.layer, tuple(message.shape[1:]))
            contents[message.layer] = contents.get(message.layer, b"") + message.data
        assert list(contents) == names
        return {name: np.frombuffer(content, "<f4").reshape(shapes[name]) for name, content in contents.items()}

    def explain(self, layer, channel=0, row=0, column=0, **fields):
        unit = pb.Unit(layer=layer, channel=channel, row=row, column=column)
        request = pb.ExplainUnitRequest(model=self.model, images=self.images, unit=unit, **fields)
        return self._server.stub.ExplainUnit(request, timeout=60)

    def check_any(self, data, tolerance=1e-4):
        """Checks a unit of any layer."""
        layer = data.draw(st.sampled_from(self.layers))
        place = [data.draw(st.integers(0, size - 1)) for size in place_shape(layer.shape)]
        response = self.explain(layer.name, *place)
        assert (response.kind, response.model) == (layer.kind, self.model)
        assert response.compute_ms > 0
        check(response, self.maps, tolerance)
        sources = {patch.layer for patch in patches(response)} - {""}
        assert sources
        assert sources <= set(layer.inputs)


@pytest.fixture(scope="module")
def shipped():
    with serving(SHIPPED) as server:
        yield server


@pytest.fixture(scope="module")
def asked():
    """The same image for all units of a model."""
    return functools.cache(Asked)


any_units = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("model", ["lecture_cnn", "tiny_vgg", "tiny_vgg_bn"])
@any_units
@given(data=st.data())
def test_any_unit_of_a_shipped_network(shipped, asked, model, data):
    asked(shipped, model).check_any(data)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", NETWORKS)
@settings(any_units, max_examples=30)
@given(data=st.data())
def test_any_unit_of_a_torchvision_network(torchvision_models, asked, model, data):
    asked(torchvision_models, model).check_any(data)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", NETWORKS)
def test_every_kind_of_layer_of_a_torchvision_network(torchvision_models, asked, model):
    net = asked(torchvision_models, model)
    first = {layer.kind: layer for layer in reversed(net.layers)}
    for layer in first.values():
        place = [size // 2 for size in place_shape(layer.shape)]
        check(net.explain(layer.name, *place), net.maps)


def lecture(nodes, weights, size):
    """A network of the lecture's examples: values are pixels."""
    flat = helper.make_node("Flatten", ["made"], ["y"], "flatten")
    scale = helper.make_node("Mul", ["x", "pixels"], ["scaled"], "pixels")
    weights = {"pixels": np.float32(255), **weights}
    graph = helper.make_graph(
        [scale, *nodes, flat],
        "lecture",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 9])],
        [numpy_helper.from_array(np.asarray(values, np.float32), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="module")
def lectures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lecture")
    kernel = [[[[1, 0, 1], [1, 1, 1], [0, 0, 1]]]]
    conv = helper.make_node("Conv", ["scaled", "kernel"], ["made"], "conv")
    pool = helper.make_node("MaxPool", ["scaled"], ["made"], "pool", kernel_shape=[2, 2], strides=[2, 2])
    put(folder, "convolution", 1, lecture([conv], {"kernel": kernel}, 5))
    put(folder, "pooling", 1, lecture([pool], {}, 6))
    with serving(folder) as server:
        yield server


def explained(server, model, layer, image):
    """The explanations of a 3 × 3 map's units."""
    images = raw(np.array(image, np.uint8)[None, :, :, None])
    return [
        [
            server.stub.ExplainUnit(
                pb.ExplainUnitRequest(model=model, images=images, unit=pb.Unit(layer=layer, row=row, column=column)),
                timeout=30,
            )
            for column in range(3)
        ]
        for row in range(3)
    ]


def test_the_lectures_convolution_gives_4_3_5(lectures):
    rows = explained(lectures, "convolution", "conv", [[0, 1, 1, 0, 1]] * 5)
    assert [[round(each.result, 5) for each in row] for row in rows] == [[4, 3, 5]] * 3
    assert [[round(each.activation, 5) for each in row] for row in rows] == [[4, 3, 5]] * 3
    terms = rows[1][2].weighted_sum
    assert np.round(terms.patch.values, 5).tolist() == [1, 0, 1] * 3
    assert list(terms.weights) == [1, 0, 1, 1, 1, 1, 0, 0, 1]
    assert np.round(terms.products, 5).tolist() == [1, 0, 1, 1, 0, 1, 0, 0, 1]
    assert (round(terms.sum, 5), terms.bias) == (5, 0)
    assert (terms.patch.first_row, terms.patch.first_column, list(terms.patch.shape)) == (1, 2, [1, 3, 3])
    region = rows[1][2].receptive_field
    assert (region.top, region.left, region.height, region.width) == (1, 2, 3, 3)


def test_the_lectures_pooling_gives_8_2_6_and_2_8_9_and_3_3_8(lectures):
    image = "4 8 2 1 1 3 / 7 1 1 2 2 6 / 2 2 3 8 1 9 / 2 2 6 2 8 4 / 3 2 1 2 1 8 / 1 1 1 3 6 1"
    pixels = [[int(number) for number in row.split()] for row in image.split("/")]
    rows = explained(lectures, "pooling", "pool", pixels)
    assert [[round(each.result, 5) for each in row] for row in rows] == [[8, 2, 6], [2, 8, 9], [3, 3, 8]]
    assert np.round(rows[1][2].pooling.patch.values, 5).tolist() == [1, 9, 8, 4]
    assert rows[1][2].pooling.argmax == 1


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 2**-10), ("int8", 0.03)])
def test_files_of_less_precision(serve, precision, tolerance):
    """The arithmetic is that of the numbers that the network has; its activation is rounded to as many as it keeps."""
    with serve(SHIPPED, precision=precision) as server:
        net = Asked(server, "tiny_vgg_bn")
        for layer in net.layers:
            scale = max(float(np.abs(net.maps[layer.name]).max()), 1e-3)
            for seed in range(3):
                random = np.random.default_rng(seed)
                response = net.explain(layer.name, *[int(random.integers(size)) for size in place_shape(layer.shape)])
                assert response.kind == layer.kind
                # Levels of int8 end at 0 where a rectifier follows.
                low = float(net.maps[layer.name].min())
                high = float(net.maps[layer.name].max())
                assert abs(np.clip(response.result, low, high) - response.activation) <= tolerance * scale


def test_the_image_may_be_a_file(shipped):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    unit = pb.Unit(layer="conv_1", channel=3, row=4, column=5)
    answers = [
        shipped.stub.ExplainUnit(pb.ExplainUnitRequest(model="lecture_cnn", images=images, unit=unit), timeout=30)
        for images in (raw(pixels[None, :, :, None]), pb.Images(encoded=pb.EncodedImages(files=[file.getvalue()])))
    ]
    assert answers[0].weighted_sum == answers[1].weighted_sum


def test_many_units_of_a_layer_need_one_session(shipped, monkeypatch):
    made = []
    monkeypatch.setattr("convlens_server.lens.truncate", lambda *of: made.append(of) or subgraph.truncate(*of))
    net = Asked(shipped, "tiny_vgg", seed=3)
    for channel in range(10):
        net.explain("conv_2_2", channel, channel, channel)
        net.explain("relu_2_2", channel, channel, channel)
    assert len(made) <= 2


ERRORS = [
    ({"unit": pb.Unit(layer="conv_11")}, "NOT_FOUND", "LAYER_NOT_FOUND", "unit.layer", "did you mean conv_1"),
    ({"unit": pb.Unit()}, "NOT_FOUND", "LAYER_NOT_FOUND", "unit.layer", "layer ''"),
    ({"unit": pb.Unit(layer="input")}, "NOT_FOUND", "LAYER_NOT_FOUND", "unit.layer", "'input' is the image"),
    ({"unit": pb.Unit(layer="conv_1", channel=6)}, "NOT_FOUND", "UNIT_NOT_FOUND", "unit", "6 channels, 16 rows"),
    ({"unit": pb.Unit(layer="output", row=1)}, "NOT_FOUND", "UNIT_NOT_FOUND", "unit", "5 channels, 1 rows, 1 columns"),
    ({"model": "convv"}, "NOT_FOUND", "MODEL_NOT_FOUND", None, "did you mean conv"),
    ({"images": pb.Images()}, "INVALID_ARGUMENT", "NO_IMAGES", "images", "send at least one"),
    ({"images": raw(np.zeros((2, 16, 12, 3), np.uint8))}, "INVALID_ARGUMENT", "TOO_MANY_IMAGES", "images", "2 images"),
    ({"images": raw(np.zeros((1, 8, 12, 3), np.uint8))}, "INVALID_ARGUMENT", "WRONG_SIZE", "images.raw", "16 × 12"),
]


@pytest.mark.parametrize(("fields", "code", "reason", "field", "text"), ERRORS)
def test_errors(server, failing, fields, code, reason, field, text):
    images, unit = raw(np.zeros((1, 16, 12, 3), np.uint8)), pb.Unit(layer="conv_1")
    request = pb.ExplainUnitRequest(**{"model": "conv", "images": images, "unit": unit, **fields})
    failure = failing(lambda: server.stub.ExplainUnit(request, timeout=30))
    assert (failure.code.name, failure.reason) == (code, reason)
    assert text in failure.text
    if field is not None:
        assert failure.field == field


def test_a_kind_without_an_explanation(serve, failing, tmp_path):
    nodes = [
        helper.make_node("CumSum", ["x", "axis"], ["s"], "sums"),
        helper.make_node("Flatten", ["s"], ["y"], "flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.int64(3), "axis")],
    )
    put(tmp_path, "sums", 1, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    with serve(tmp_path) as server:
        images = raw(np.zeros((1, 2, 2, 1), np.uint8))
        request = pb.ExplainUnitRequest(images=images, unit=pb.Unit(layer="sums"))
        failure = failing(lambda: server.stub.ExplainUnit(request, timeout=30))
        assert (failure.code.name, failure.reason) == ("UNIMPLEMENTED", "NOT_EXPLAINED")
        assert "layer 'sums' is of the kind cum_sum" in failure.text
        assert server.metric("convlens_requests_total", method="ExplainUnit", code="UNIMPLEMENTED") == 1


def test_as_json(lectures):
    pixels = bytes([0, 1, 1, 0, 1] * 5)
    image = {"pixels": base64.b64encode(pixels).decode(), "height": 5, "width": 5, "channels": 1}
    body = {"model": "convolution", "images": {"raw": image}, "unit": {"layer": "conv", "row": 1, "column": 2}}
    request = urllib.request.Request(
        f"http://127.0.0.1:{lectures.state.http_port}/convlens.v1.ConvLens/ExplainUnit",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        message = json.load(response)
    assert round(message["result"], 5) == 5
    assert message["unit"] == {"layer": "conv", "row": 1, "column": 2}
    assert message["weightedSum"]["patch"]["shape"] == [1, 3, 3]


def test_the_image_as_the_network_takes_it(shipped):
    net = Asked(shipped, "tiny_vgg")
    image = np.frombuffer(net.images.raw.pixels, np.uint8).reshape(64, 64, 3).transpose(2, 0, 1)
    scales = [np.polyfit(image[n].ravel(), net.maps["input"][n].ravel(), 1) for n in range(3)]
    for n, (factor, term) in enumerate(scales):
        np.testing.assert_allclose(net.maps["input"][n], image[n] * factor + term, atol=1e-5)
