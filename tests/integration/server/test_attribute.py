from __future__ import annotations

import base64
import json
import shutil
import threading
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convlens.v1 import convlens_pb2 as pb
from support import put, raw, serving

SHIPPED = Path(__file__).parents[3] / "models"
CAMS = (pb.ATTRIBUTION_METHOD_SCORE_CAM, pb.ATTRIBUTION_METHOD_EIGEN_CAM, pb.ATTRIBUTION_METHOD_GRAD_CAM)
METHODS = (pb.ATTRIBUTION_METHOD_OCCLUSION, *CAMS)
# Where the patch is: rows and columns of the image.
ROWS, COLUMNS = slice(12, 20), slice(5, 13)


def finder() -> onnx.ModelProto:
    """Takes 24 × 32 RGB images; class 1 is "there is a red patch", seen by one of three kernels of 4 × 4."""
    kernels = np.zeros((3, 3, 4, 4), np.float32)
    kernels[0, 0] = 1 / 16
    kernels[0, 1:] = -1 / 16
    kernels[1] = 1 / 48
    kernels[2, 2] = 1 / 16
    weights = np.array([[0, 40], [0.5, 0.5], [0.2, 0]], np.float32)
    tensors = {
        "k": kernels, "kb": np.array([-0.3, -0.9, -0.9], np.float32), "w": weights, "b": np.array([1, 0], np.float32)
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "k", "kb"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], "output"),
    ]
    graph = helper.make_graph(
        nodes,
        "finder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 24, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(values, name) for name, values in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def stepped() -> onnx.ModelProto:
    """The same with steps in its activation, which have no gradient."""
    model = finder()
    model.graph.node[1].op_type = "Floor"
    return model


def long() -> onnx.ModelProto:
    """Takes 128 × 128 RGB images and some milliseconds for each: occlusion pixel by pixel takes a minute."""
    random = np.random.default_rng(0)
    tensors = {
        "k": random.standard_normal((64, 3, 5, 5)).astype(np.float32),
        "w": random.standard_normal((64, 2)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "conv"),
        helper.make_node("GlobalMaxPool", ["c"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "w"], ["y"], "output"),
    ]
    graph = helper.make_graph(
        nodes,
        "long",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 128, 128])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(values, name) for name, values in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finder")
    put(folder, "finder", 1, finder())
    put(folder, "stepped", 1, stepped())
    put(folder, "long", 1, long())
    for name in ("tiny_vgg", "tiny_vgg_bn", "lecture_cnn"):
        shutil.copytree(SHIPPED / name, folder / name, ignore=shutil.ignore_patterns(".convlens"))
    with serving(folder) as served:
        yield served


def picture(seed=0):
    image = np.random.default_rng(seed).integers(90, 130, (1, 24, 32, 3), np.uint8)
    image[:, ROWS, COLUMNS] = [250, 10, 10]
    return image


def attribute(server, image, **fields):
    """The response, and its map and overlay as arrays."""
    answer = server.stub.Attribute(pb.AttributeRequest(images=raw(image), **fields), timeout=30)
    values = np.frombuffer(answer.map, "<f4").reshape(answer.height, answer.width)
    shape = (answer.height, answer.width, 4)
    return answer, values, np.frombuffer(answer.overlay, np.uint8).reshape(shape) if answer.overlay else None


@pytest.mark.parametrize("method", METHODS)
def test_each_method_finds_what_the_answer_comes_from(server, method):
    image = picture()
    answer, values, _ = attribute(server, image, model="finder", method=method, class_index=1)

    assert values.shape == (24, 32)
    inside = values[ROWS, COLUMNS]
    assert inside.max() == values.max() > 0
    row, column = np.unravel_index(values.argmax(), values.shape)
    assert ROWS.start <= row < ROWS.stop
    assert COLUMNS.start <= column < COLUMNS.stop
    around = np.ones_like(values, bool)
    around[ROWS.start - 4 : ROWS.stop + 4, COLUMNS.start - 4 : COLUMNS.stop + 4] = False
    assert np.abs(values[around]).max() < 0.1 * values.max()
    assert answer.method == method
    assert (answer.model, answer.version) == ("finder", 1)
    assert (answer.prediction.index, answer.prediction.label) == (1, "class_1")
    assert answer.compute_ms > 0
    if method == pb.ATTRIBUTION_METHOD_OCCLUSION:
        # Squares of 3 pixels, 1 apart: 22 × 30 of them, and the image as it is.
        assert (answer.images, answer.layer) == (1 + 22 * 30, "")
    else:
        assert answer.layer == "relu"
        assert values.max() == 1
        assert values.min() >= 0


def test_the_class_is_the_best_one_unless_asked(server):
    image = picture()
    best, values, _ = attribute(server, image, model="finder")
    assert best.method == pb.ATTRIBUTION_METHOD_OCCLUSION
    classified = server.stub.Classify(pb.ClassifyRequest(model="finder", images=raw(image)), timeout=10)
    top = classified.results[0].predictions[0]
    assert (best.prediction.index, best.prediction.label) == (top.index, top.label)
    assert best.prediction.score == pytest.approx(top.score, rel=1e-5)
    other, opposite, _ = attribute(server, image, model="finder", class_index=1 - top.index)
    assert other.prediction.score == pytest.approx(1 - top.score, abs=1e-5)
    # The two scores add up to 1: what takes from one gives to the other.
    np.testing.assert_allclose(opposite, -values, atol=1e-5)


def test_window_and_stride(server):
    image = picture()
    answer, values, _ = attribute(server, image, model="finder", class_index=1, window=6, stride=5)
    # Rows 0, 5, 10, 15, 18; columns 0, 5, …, 25, 26.
    assert answer.images == 1 + 5 * 7
    # Squares of 6 that are 5 apart share a row and a column: within one, but for these, a value is the same.
    assert (values[11:15, 6:10] == values[11, 6]).all()
    whole, _, _ = attribute(server, image, model="finder", window=24, stride=24)
    assert whole.images == 1 + 2


def test_files_and_other_layers(server):
    sample = SHIPPED / "tiny_vgg" / "1" / "model.onnx"
    assert sample.is_file()
    image = np.random.default_rng(3).integers(0, 256, (1, 64, 64, 3), np.uint8)
    for layer in ("conv_1_1", "max_pool_1", "relu_2_1"):
        for method in CAMS:
            answer, values, _ = attribute(server, image, model="tiny_vgg", method=method, layer=layer)
            assert answer.layer == layer
            assert values.shape == (64, 64)
            assert values.max() in (0, 1)


def test_the_overlay(server):
    image = picture()
    answer, values, overlay = attribute(
        server, image, model="finder", method=pb.ATTRIBUTION_METHOD_GRAD_CAM, class_index=1, include_overlay=True
    )
    assert len(answer.overlay) == 24 * 32 * 4
    assert (overlay[..., 3] == 255).all()
    np.testing.assert_array_equal(overlay[values <= 0][:, :3], image[0][values <= 0])
    _, _, none = attribute(server, image, model="finder", method=pb.ATTRIBUTION_METHOD_GRAD_CAM)
    assert none is None


def area(curve):
    return float((curve[1:] + curve[:-1]).mean() / 2)


def advantage(server, model, method, images, chance):
    """By how much taking away, and giving back, by an attribution beats doing it by `chance`, on the mean of images."""

    def faithful(image, values, class_index):
        order = np.argsort(-values.ravel(), kind="stable")
        rank = np.empty(order.size, int)
        rank[order] = np.arange(order.size)
        taken = (rank < np.linspace(0, order.size, 17)[:, None]).reshape(-1, *values.shape, 1)
        plain = np.rint(image.mean((0, 1))).astype(np.uint8)
        both = np.concatenate([np.where(taken, plain, image), np.where(taken, image, plain)])
        results = server.stub.Classify(
            pb.ClassifyRequest(model=model, images=raw(both), include_scores=True), timeout=30
        ).results
        deletion, insertion = np.array([each.scores[class_index] for each in results]).reshape(2, -1)
        return area(insertion) - area(deletion)

    gains = []
    for image, random in zip(images, chance, strict=True):
        answer, values, _ = attribute(server, image[None], model=model, method=method)
        index = answer.prediction.index
        gains.append(faithful(image, values, index) - np.mean([faithful(image, each, index) for each in random]))
    return np.mean(gains)


@pytest.mark.parametrize("model", ["tiny_vgg", "tiny_vgg_bn", "lecture_cnn"])
def test_each_method_beats_random_on_the_shipped_models(server, model):
    """On the samples that ship, which are drawn: the sum of what insertion and deletion gain. bench/attribution.py has
    the figures for photos."""
    from convlens_server.codec import decode

    described = server.stub.GetModel(pb.GetModelRequest(model=model), timeout=10)
    shape = (described.height, described.width, described.channels)
    files = server.stub.GetSamples(pb.GetSamplesRequest(model=model), timeout=10).samples
    images = [np.frombuffer(decode(each.file, shape, 10**6), np.uint8).reshape(shape) for each in files]
    assert len(images) >= 8
    random = np.random.default_rng(0)
    coarse = random.random((len(images), 3, 8, 8), np.float32)
    grid = [np.linspace(0, 7, size) for size in shape[:2]]
    columns = np.apply_along_axis(lambda line: np.interp(grid[1], np.arange(8), line), 3, coarse)
    chance = np.apply_along_axis(lambda line: np.interp(grid[0], np.arange(8), line), 2, columns)
    # Behind the digits' maps each position has weights of its own, so that a map's mean gradient says little of it.
    methods = [each for each in METHODS if model != "lecture_cnn" or each != pb.ATTRIBUTION_METHOD_GRAD_CAM]
    for method in methods:
        gain = advantage(server, model, method, images, chance)
        assert gain > 0.02, pb.AttributionMethod.Name(method)


# Errors


@pytest.mark.parametrize(
    ("fields", "reason", "field", "text"),
    [
        ({"method": 9}, "UNKNOWN_ATTRIBUTION_METHOD", "method", "method is 9"),
        ({"layer": "relu"}, "NOT_OF_THE_METHOD", "layer", "OCCLUSION has none"),
        ({"method": 3, "window": 4}, "NOT_OF_THE_METHOD", "window", "EIGEN_CAM has none"),
        ({"method": 4, "stride": 4}, "NOT_OF_THE_METHOD", "stride", "GRAD_CAM has none"),
        ({"window": 25}, "WINDOW_OUT_OF_RANGE", "window", "window is 25 pixels, but must be 1 … 24"),
        ({"window": 0}, "WINDOW_OUT_OF_RANGE", "window", "window is 0 pixels"),
        ({"window": 4, "stride": 5}, "STRIDE_OUT_OF_RANGE", "stride", "stride is 5 pixels, but must be 1 … 4"),
        ({"stride": 0}, "STRIDE_OUT_OF_RANGE", "stride", "stride is 0 pixels"),
        ({"class_index": 2}, "CLASS_NOT_FOUND", "class_index", "it has 2 classes, counted from 0"),
        ({"method": 3, "layer": "rely"}, "LAYER_NOT_FOUND", "layer", "did you mean relu?"),
        ({"method": 4, "layer": "flatten"}, "NOT_APPLICABLE", "layer", "'flatten' is 3: its maps cannot"),
        ({"method": 2, "layer": "pool"}, "NOT_APPLICABLE", "layer", "'pool' is 3 × 1 × 1: its maps cannot"),
        ({"images": raw(np.zeros((2, 24, 32, 3), np.uint8))}, "TOO_MANY_IMAGES", "images", "2 images"),
        ({"images": pb.Images()}, "NO_IMAGES", "images", "no images"),
        ({"images": raw(np.zeros((1, 8, 8, 3), np.uint8))}, "WRONG_SIZE", "images.raw", "8 × 8"),
    ],
)
def test_what_is_wrong_is_named(server, failing, fields, reason, field, text):
    request = pb.AttributeRequest(**{"model": "finder", "images": raw(picture()), **fields})
    failure = failing(lambda: server.stub.Attribute(request, timeout=10))
    assert (failure.reason, failure.field) == (reason, field)
    assert text in failure.text
    if reason == "NOT_APPLICABLE":
        assert failure.code == grpc.StatusCode.FAILED_PRECONDITION
        assert "such as 'relu'" in failure.text


def test_a_network_without_a_gradient_has_the_other_methods(server, failing):
    request = pb.AttributeRequest(model="stepped", images=raw(picture()), method=4, layer="conv")
    failure = failing(lambda: server.stub.Attribute(request, timeout=10))
    assert failure.code == grpc.StatusCode.FAILED_PRECONDITION
    assert (failure.reason, failure.field) == ("NO_GRADIENT", "method")
    assert "Floor" in failure.text
    assert "Score-CAM, Eigen-CAM or occlusion" in failure.text
    assert failure.info.metadata["operator"] == "Floor"
    for method in METHODS[:3]:
        attribute(server, picture(), model="stepped", method=method)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_other_precisions(server, failing, precision):
    """float16 differs by its rounding; a quantised network has steps, and so no gradient."""
    image = np.random.default_rng(5).integers(0, 256, (1, 64, 64, 3), np.uint8)
    image[:, 20:40, 10:30] = [200, 160, 20]
    with serving(SHIPPED, precision=precision) as other:
        assert "model.int8.onnx" in {path.name for path in (SHIPPED / "tiny_vgg_bn" / "1").iterdir()}
        for method in METHODS:
            if precision == "int8" and method == pb.ATTRIBUTION_METHOD_GRAD_CAM:
                request = pb.AttributeRequest(model="tiny_vgg_bn", images=raw(image), method=method)
                failure = failing(lambda request=request: other.stub.Attribute(request, timeout=10))
                assert failure.reason == "NO_GRADIENT"
                assert "DequantizeLinear that takes whole numbers" in failure.text
                continue
            answer, exact, _ = attribute(server, image, model="tiny_vgg_bn", method=method)
            index = answer.prediction.index
            _, values, _ = attribute(other, image, model="tiny_vgg_bn", method=method, class_index=index)
            apart = np.abs(values - exact).max() / np.abs(exact).max()
            assert apart < (0.05 if precision == "float16" else 0.5), (method, apart)


def test_as_json(server):
    image = picture()
    body = {
        "model": "finder",
        "images": {
            "raw": {
                "pixels": base64.b64encode(image.tobytes()).decode(), "height": 24, "width": 32, "channels": 3
            }
        },
        "method": "ATTRIBUTION_METHOD_EIGEN_CAM",
        "includeOverlay": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.state.http_port}/convlens.v1.ConvLens/Attribute",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        answer = json.load(response)
    _, values, overlay = attribute(server, image, model="finder", method=3, include_overlay=True)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(answer["map"]), "<f4"), values.ravel())
    assert base64.b64decode(answer["overlay"]) == overlay.tobytes()
    assert (answer["layer"], answer["method"]) == ("relu", "ATTRIBUTION_METHOD_EIGEN_CAM")


def test_a_deadline_ends_it(server):
    image = np.zeros((1, 128, 128, 3), np.uint8)
    request = pb.AttributeRequest(model="long", images=raw(image), window=1, stride=1)
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.Attribute(request, timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    # The server has stopped, and answers others.
    attribute(server, image, model="long", method=pb.ATTRIBUTION_METHOD_EIGEN_CAM)


def test_a_caller_who_leaves_stops_it(server):
    """Nothing is computed for nobody: the images that were run stay far below what was asked for."""
    before = server.metric("convlens_images_total", model="long")
    image = np.zeros((1, 128, 128, 3), np.uint8)
    call = server.stub.Attribute.future(pb.AttributeRequest(model="long", images=raw(image), window=1, stride=1))
    while server.metric("convlens_images_total", model="long") <= before:
        assert not call.done()
    call.cancel()
    while not server.metric("convlens_requests_total", model="long", method="Attribute", code="CANCELLED"):
        pass
    assert server.metric("convlens_images_total", model="long") - before < 128 * 128


def test_callers_do_not_wait_for_each_other(server):
    """Several at once, of all methods, and classifications in between: each gets its own answer."""
    images = [picture(seed) for seed in range(4)]
    expected = {(n, method): attribute(server, image, model="finder", method=method)[1]
                for n, image in enumerate(images) for method in METHODS}  # fmt: skip
    found, errors = {}, []

    def ask(n, method):
        try:
            found[n, method] = attribute(server, images[n], model="finder", method=method)[1]
            server.stub.Classify(pb.ClassifyRequest(model="finder", images=raw(images[n])), timeout=30)
        except grpc.RpcError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=each) for each in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, atol=1e-5)
