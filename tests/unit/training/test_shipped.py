"""The models that ship: what the server makes of them equals what torch computes with the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from convlens.manifest import Manifest
from convlens_server.catalogue import build_catalogue
from convlens_server.lens import Lens
from convlens_server.network import load_network
from convlens_training import networks

MODELS = Path(__file__).parents[3] / "models"

# The layers with their parameters, in order.
LAYERS = {
    "lecture_cnn": {
        "conv_1": 320,
        "relu_1": 0,
        "conv_2": 18_496,
        "relu_2": 0,
        "max_pool_1": 0,
        "flatten": 0,
        "dense_1": 1_179_776,
        "relu_3": 0,
        "output": 1_290,
        "softmax": 0,
    },
    "tiny_vgg": {
        "conv_1_1": 280,
        "relu_1_1": 0,
        "conv_1_2": 910,
        "relu_1_2": 0,
        "max_pool_1": 0,
        "conv_2_1": 910,
        "relu_2_1": 0,
        "conv_2_2": 910,
        "relu_2_2": 0,
        "max_pool_2": 0,
        "flatten": 0,
        "output": 16_910,
        "softmax": 0,
    },
}
LABELS = {
    "lecture_cnn": tuple("0123456789"),
    "tiny_vgg": (
        "bell pepper",
        "espresso",
        "koala",
        "ladybug",
        "lifeboat",
        "orange",
        "pizza",
        "red panda",
        "school bus",
        "sport car",
    ),
}
ACCURACY = {"lecture_cnn": 0.993, "tiny_vgg": 0.76}


def make_session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def torch_network(name: str, path: Path, manifest: Manifest) -> torch.nn.Sequential:
    """The network as it was trained: the weights are the file's, the normalisation is the manifest's."""
    network = networks.build(name, manifest.input, len(manifest.labels)).eval()
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    network.load_state_dict({key: torch.from_numpy(weights[key].copy()) for key in network.state_dict()})
    return network


@pytest.fixture(params=LAYERS)
def shipped(request):
    path = MODELS / request.param / "1" / "model.onnx"
    network = load_network(path)
    return request.param, path, network, build_catalogue(network)


def test_catalogue(shipped):
    name, _, network, catalogue = shipped
    assert {layer.name: layer.parameters for layer in catalogue.layers} == LAYERS[name]
    assert list(catalogue.names) == list(LAYERS[name])
    assert catalogue.parameters == {"lecture_cnn": 1_199_882, "tiny_vgg": 19_920}[name]
    assert network.fixed_batch is None


def test_manifest(shipped):
    name, path, network, _ = shipped
    assert network.manifest.labels == LABELS[name]
    assert network.manifest.metrics["test_accuracy"] >= ACCURACY[name]
    assert network.manifest.training["network"] == name
    model = onnx.load(path)
    # Any three letters may stand among the bytes of a million weights.
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    for text in (b".py", b"site-packages", b"stack_trace", b"File "):
        assert text not in model.SerializeToString()


def test_every_layer_equals_torch(shipped):
    name, path, network, catalogue = shipped
    image = network.manifest.input
    # Noise, and smooth images that are closer to what the network was trained on.
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, image.height, image.width, image.channels), np.uint8)
    images[2:] = np.cumsum(images[2:], axis=1, dtype=np.int64) // np.arange(1, image.height + 1)[:, None, None]
    layers = torch_network(name, path, network.manifest)
    with torch.no_grad():
        values, expected = torch.from_numpy(images), {}
        for key, module in layers.named_children():
            expected[key] = values = module(values)
    maps = Lens(network, catalogue, make_session).maps(images, catalogue.layers)
    for layer, own in zip(catalogue.layers, maps, strict=True):
        theirs = expected[layer.name].numpy()
        assert own.shape == theirs.shape == (4, *layer.shape)
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-4, err_msg=layer.name)
    session = make_session(network.model.SerializeToString())
    scores, logits = session.run([network.scores_name, network.logits_name], {network.input_name: images})
    np.testing.assert_allclose(scores, expected["softmax"].numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits, expected["output"].numpy(), rtol=0, atol=1e-4)
