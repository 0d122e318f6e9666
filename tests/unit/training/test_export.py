from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from convlens.manifest import METADATA_KEY, ImageInput, Manifest
from convlens_training import export, networks
from convlens_training.errors import TrainingError

PREPROCESSING = ["preprocess/transpose", "preprocess/cast", "preprocess/scale", "preprocess/shift"]
NAMES = {
    "lecture_cnn": [
        *("conv_1", "relu_1", "conv_2", "relu_2", "max_pool_1"),
        *("flatten", "dense_1", "relu_3", "output", "softmax"),
    ],
    "tiny_vgg": [
        *("conv_1_1", "relu_1_1", "conv_1_2", "relu_1_2", "max_pool_1"),
        *("conv_2_1", "relu_2_1", "conv_2_2", "relu_2_2", "max_pool_2"),
        *("flatten", "output", "softmax"),
    ],
}
INPUTS = {
    "lecture_cnn": ImageInput(28, 28, 1, mean=(0.13,), std=(0.31,), in_graph=True),
    "tiny_vgg": ImageInput(64, 64, 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), in_graph=True),
}


def session(content):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=NAMES)
def exported(request):
    """A network with random weights, and the model made of it."""
    torch.manual_seed(0)
    image = INPUTS[request.param]
    network = networks.build(request.param, image, 10)
    return request.param, network, export.to_onnx(network, (image.height, image.width, image.channels))


def test_names_and_form(exported):
    name, _, model = exported
    nodes = {node.name: node.op_type for node in model.graph.node}
    assert list(nodes) == PREPROCESSING + NAMES[name]
    assert [nodes[name] for name in PREPROCESSING] == ["Transpose", "Cast", "Mul", "Add"]
    assert (model.ir_version, [entry.version for entry in model.opset_import]) == (8, [18])
    image, scores = model.graph.input[0], model.graph.output[0]
    size = INPUTS[name]
    dims = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert (image.name, dims) == ("image", ["batch", size.height, size.width, size.channels])
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert (scores.name, scores.type.tensor_type.elem_type) == ("scores", onnx.TensorProto.FLOAT)
    for node in model.graph.node[:-1]:
        assert node.output == [node.name]
    assert model.graph.node[-1].output == ["scores"]


@pytest.mark.parametrize("count", [1, 2, 33])
def test_any_batch(exported, count):
    name, network, model = exported
    size = INPUTS[name]
    images = np.random.default_rng(count).integers(0, 256, (count, size.height, size.width, size.channels), np.uint8)
    (scores,) = session(model.SerializeToString()).run(None, {"image": images})
    with torch.no_grad():
        np.testing.assert_allclose(scores, network(torch.from_numpy(images)).numpy(), atol=1e-5)


def test_the_file_has_the_manifest_and_nothing_of_this_machine(exported):
    name, _, model = exported
    manifest = Manifest(tuple("abcdefghij"), INPUTS[name], "Ä", {"test_accuracy": 0.5}, {"seed": 1})
    content = export.with_manifest(model, manifest)
    read = onnx.load_from_string(content)
    onnx.checker.check_model(read, full_check=True)
    assert {entry.key: entry.value for entry in read.metadata_props} == {METADATA_KEY: manifest.to_json()}
    assert Manifest.from_json(read.metadata_props[0].value) == manifest
    assert not model.metadata_props, "the model itself is left as it was"
    assert content == export.with_manifest(model, manifest)
    # What torch writes for debugging has paths of its own files and of the caller's.
    for path in (Path.cwd(), Path.home(), Path(sys.prefix), Path(torch.__file__).parent, Path(export.__file__).parent):
        assert os.fsencode(path) + b"/" not in content
    # Any three letters may stand among the bytes of a million weights.
    for tensor in read.graph.initializer:
        tensor.ClearField("raw_data")
    for text in (b".py", b"aten", b"stack_trace", b"File "):
        assert text not in read.SerializeToString()


def test_an_exporter_that_makes_something_else(monkeypatch, digits_input):
    network = networks.build("lecture_cnn", digits_input, 10)
    monkeypatch.setitem(export._PREPROCESSING, "Transpose", "shuffle")
    monkeypatch.setattr(export, "_SCOPES", "another key")
    with pytest.raises(
        TrainingError, match=r"exporter made the nodes .* instead of preprocess/shuffle, .* in opset 18"
    ):
        export.to_onnx(network, (28, 28, 1))
