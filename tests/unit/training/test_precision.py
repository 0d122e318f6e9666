"""Variants of a shipped network, as the file is written, and as the server looks into it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from convlens.manifest import METADATA_KEY
from convlens_server.catalogue import build_catalogue
from convlens_server.lens import Lens
from convlens_server.network import load_network
from convlens_training import precision
from convlens_training.parity import make_session, outputs_of

MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture(scope="module")
def original():
    return onnx.load(MODELS / "lecture_cnn" / "1" / "model.onnx")


@pytest.fixture(scope="module")
def images():
    """Bright strokes on black."""
    random = np.random.default_rng(3)
    images = np.zeros((96, 28, 28, 1), np.uint8)
    for image in images:
        top, left = random.integers(4, 12, 2)
        image[top : top + 14, left : left + 3] = image[top + 5 : top + 8, left : left + 11] = random.integers(120, 256)
    return images


@pytest.fixture(scope="module")
def variants(original, images):
    return {"float16": precision.to_float16(original), "int8": precision.to_int8(original, images)}


@pytest.fixture(params=["float16", "int8"])
def variant(request, variants):
    return request.param, variants[request.param]


@pytest.fixture
def opened(original, tmp_path):
    """Reads a model as the server does; gives the network, its catalogue and its lens."""

    def opened(model):
        model = onnx.ModelProto.FromString(model.SerializeToString())
        onnx.helper.set_model_props(model, {METADATA_KEY: original.metadata_props[0].value})
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        network = load_network(tmp_path / "model.onnx")
        catalogue = build_catalogue(network)
        return network, catalogue, Lens(network, catalogue, lambda part: make_session(part, 1))

    return opened


def tensors(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_what_stays(original, variant):
    _, model = variant
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import) == (original.ir_version, original.opset_import)
    assert model.graph.input == original.graph.input
    assert model.graph.output == original.graph.output
    names = [node.name for node in original.graph.node]
    assert [node.name for node in model.graph.node if node.name in names] == names
    assert (model.producer_name, len(model.metadata_props)) == (original.producer_name, 0)


def test_the_original_is_left_as_it_was(original, images):
    before = original.SerializeToString(deterministic=True)
    precision.to_float16(original)
    precision.to_int8(original, images)
    assert original.SerializeToString(deterministic=True) == before


def test_the_same_call_makes_the_same_file(original, images, variants, capfd):
    assert precision.to_float16(original) == variants["float16"]
    again = precision.to_int8(original, images)
    assert again.SerializeToString(deterministic=True) == variants["int8"].SerializeToString(deterministic=True)
    assert tuple(capfd.readouterr()) == ("", ""), "the quantiser's advice is not for our users"


def test_the_quantiser_s_warnings_are_kept_from_users():
    """It warns of axes of weights that have one dimension only, as in densenet121, where it does the right thing."""
    code = """
import logging, numpy as np
from convlens_training import precision

def quantize_static(*arguments, **options):
    logging.warning("Axis 1 is out-of-range")
    raise RuntimeError("enough")

precision.quantize_static = quantize_static
try:
    precision.to_int8(precision.onnx.load(MODEL), np.zeros((1, 28, 28, 1), np.uint8))
except RuntimeError as error:
    print(error)
assert not logging.getLogger().handlers
"""
    code = code.replace("MODEL", repr(str(MODELS / "lecture_cnn" / "1" / "model.onnx")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("enough\n", "")


def test_float16_holds_half_the_bytes(original, variants):
    made = tensors(variants["float16"])
    for name, values in tensors(original).items():
        if values.dtype == np.float32 and not name.startswith("preprocess"):
            assert made[name].dtype == np.float16
    assert variants["float16"].ByteSize() < 0.51 * original.ByteSize()


def test_int8_has_a_scale_for_each_output_channel(original, variants):
    model = variants["int8"]
    made, known = tensors(model), tensors(original)
    makers = {node.output[0]: node for node in model.graph.node}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert [node.name for node in layers] == ["conv_1", "conv_2", "dense_1", "output"]
    for layer in layers:
        weights = makers[layer.input[1]]
        assert weights.op_type == "DequantizeLinear"
        quantised, scales = made[weights.input[0]], made[weights.input[1]]
        original_weights = known[f"{layer.name}.weight"]
        channels = len(original_weights)
        assert quantised.dtype == np.int8
        assert scales.shape == (channels,)
        assert np.abs(quantised).max() <= 64, "seven bits: eight saturate on processors without VNNI"
        # Each weight is off by half a step of its channel at most.
        steps = scales.reshape(-1, *[1] * (quantised.ndim - 1))
        assert (np.abs(quantised * steps - original_weights) < steps * 0.501).all()
    # 8 bits for each of 1.2 million weights, instead of 32.
    assert model.ByteSize() < 0.26 * original.ByteSize()


def test_int8_rounds_activations_but_neither_the_image_s_preprocessing_nor_the_softmax(variants):
    model = variants["int8"]
    nodes = {node.name: node for node in model.graph.node}
    rounded = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert rounded == ["preprocess/shift", "relu_1", "relu_2", "max_pool_1", "flatten", "relu_3"]
    assert nodes["softmax"].input[0] == "output"
    made = tensors(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert made[node.input[1]].shape == (), "one scale for the whole tensor"
            assert made[node.input[2]].dtype == np.uint8


def test_int8_is_calibrated_on_images_from_first_to_last(original, images, monkeypatch):
    """A bright image at either end widens the ranges; those beyond the most that are used do not all count."""
    monkeypatch.setattr(precision, "CALIBRATION_IMAGES", 4)

    def largest(pictures):
        made = tensors(precision.to_int8(original, pictures))
        return float(made["preprocess/shift_scale"])

    dark = np.zeros_like(images[:10])
    bright = {}
    for place in (0, 1, 9):
        bright[place] = dark.copy()
        bright[place][place] = 255
    # Of ten the first, the fourth, the seventh and the last are used.
    assert largest(bright[0]) == largest(bright[9]) > largest(bright[1]) == largest(dark)


def test_it_computes_nearly_the_same(original, images, variant):
    name, model = variant
    _, expected = outputs_of(original, images, 1)
    scores, logits = outputs_of(model, images, 1)
    span = float(np.ptp(expected))
    assert 0 < np.abs(logits - expected).max() < {"float16": 2e-3, "int8": 0.05}[name] * span
    # Of strokes that are no digits, many of which are close between two.
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.85
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)


def test_the_catalogue_is_that_of_float32(original, variant, opened):
    layers = [opened(model)[1].layers for model in (original, variant[1])]
    expected, own = ([dataclasses.replace(layer, tensor="") for layer in each] for each in layers)
    assert own == expected


def test_feature_maps_are_float32_and_nearly_those_of_float32(original, images, variant, opened):
    name, model = variant
    _, catalogue, lens = opened(original)
    expected = lens.maps(images[:3], catalogue.layers)
    _, catalogue, lens = opened(model)
    maps = lens.maps(images[:3], catalogue.layers)
    for layer, theirs, own in zip(catalogue.layers, expected, maps, strict=True):
        assert own.dtype == np.float32
        limit = {"float16": 3e-3, "int8": 0.05}[name] * np.abs(theirs).max()
        np.testing.assert_allclose(own, theirs, rtol=0, atol=limit, err_msg=layer.name)
    # What the activation behind it cuts off is still there.
    by_name = dict(zip(catalogue.names, maps, strict=True))
    assert by_name["conv_1"].min() < -0.1
    np.testing.assert_allclose(by_name["relu_1"], np.maximum(by_name["conv_1"], 0), atol=limit)


def test_feature_maps_of_int8_are_what_is_left_after_rounding(variants, images, opened):
    _, catalogue, lens = opened(variants["int8"])
    [maps] = lens.maps(images[:3], [catalogue["relu_2"]])
    scale = float(tensors(variants["int8"])["relu_2_scale"])
    steps = maps / scale
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert 3 < len(np.unique(np.rint(steps))) <= 256


def test_a_network_with_branches_and_other_activations(small_model, tmp_path):
    model = small_model
    images = np.random.default_rng(1).integers(0, 256, (32, 8, 8, 3), np.uint8)
    _, expected = outputs_of(model, images, 1)
    path = tmp_path / "model.onnx"
    layers = {}
    for name, made in (
        ("float32", model),
        ("float16", precision.to_float16(model)),
        ("int8", precision.to_int8(model, images)),
    ):
        onnx.save(made, path)
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        layers[name] = [
            (each.name, each.inputs, each.parameters) for each in build_catalogue(load_network(path)).layers
        ]
        _, logits = outputs_of(made, images, 1)
        np.testing.assert_allclose(logits, expected, atol=0.05 * float(np.ptp(expected)))
    assert layers["float16"] == layers["int8"] == layers["float32"]
    assert ("add", ("way", "swish"), 0) in layers["int8"]
    assert ("hidden", ("mean",), 6 * 5 + 5) in layers["int8"]
