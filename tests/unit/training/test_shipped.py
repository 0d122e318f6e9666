"""The models that ship: their cards say what the files are, and the server makes of them what torch computes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from convlens.manifest import PRECISIONS, Manifest, file_name
from convlens_server.catalogue import build_catalogue
from convlens_server.lens import Lens
from convlens_server.network import load_network
from convlens_training import networks
from convlens_training.export import IR_VERSION, OPSET

MODELS = Path(__file__).parents[3] / "models"
# E.g. lecture_cnn/1.
VERSIONS = sorted(str(path.parent.relative_to(MODELS)) for path in MODELS.glob("*/*/model.onnx"))

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
PHOTOS = (
    *("bell pepper", "espresso", "koala", "ladybug", "lifeboat"),
    *("orange", "pizza", "red panda", "school bus", "sport car"),
)
LABELS = {"lecture_cnn": tuple("0123456789"), "tiny_vgg": PHOTOS, "tiny_vgg_bn": PHOTOS}
# What each must reach, and must not exceed in parameters.
ACCURACY = {"lecture_cnn": 0.995, "tiny_vgg": 0.78, "tiny_vgg_bn": 0.88}
MOST_PARAMETERS = {"tiny_vgg_bn": 300_000}


def make_session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def torch_network(name: str, path: Path, manifest: Manifest) -> nn.Sequential:
    """The network as it was trained: the weights are the file's, the normalisation is the manifest's.

    The export folds a batch normalisation into the convolution before it. Here it gets the convolution's bias, and does
    nothing else.
    """
    network = networks.build(name, manifest.input, len(manifest.labels)).eval()
    graph = onnx.load(path).graph
    weights = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    biases = {node.name: weights[node.input[2]] for node in graph.node if node.op_type == "Conv"}
    state = {key: weights[key] for key in network.state_dict() if key in weights}
    before = ""
    for layer, module in network.named_children():
        if isinstance(module, nn.BatchNorm2d):
            ones = torch.ones(module.num_features)
            state |= {f"{layer}.weight": ones, f"{layer}.bias": biases[before]}
            state |= {f"{layer}.running_mean": 0 * ones, f"{layer}.running_var": (1 - module.eps) * ones}
            state[f"{layer}.num_batches_tracked"] = torch.tensor(0)
        before = layer
    network.load_state_dict(state)
    return network


@pytest.fixture(params=VERSIONS)
def shipped(request):
    """The name of a model, the folder of a version of it, its float32 network, and its catalogue."""
    folder = MODELS / request.param
    network = load_network(folder / "model.onnx")
    return folder.parent.name, folder, network, build_catalogue(network)


def test_what_ships():
    assert VERSIONS == ["lecture_cnn/1", "tiny_vgg/1", "tiny_vgg_bn/1"]
    allowed = {"samples", *(file_name(precision) for precision in PRECISIONS)}
    for path in MODELS.glob("*/[0-9]*/*"):
        assert path.name in allowed, "nothing but model files and samples"


def test_catalogue(shipped):
    name, folder, network, catalogue = shipped
    # Dropout and normalisation, which the export leaves out and folds, are no layers.
    modules = torch_network(name, folder / "model.onnx", network.manifest).named_children()
    layers = [key for key, module in modules if not isinstance(module, nn.Dropout | nn.BatchNorm2d)]
    assert list(catalogue.names) == layers[1:]
    if name in LAYERS:
        assert {layer.name: layer.parameters for layer in catalogue.layers} == LAYERS[name]
    assert catalogue.parameters <= MOST_PARAMETERS.get(name, 10**9)
    assert network.fixed_batch is None


def test_manifest(shipped):
    name, folder, network, _ = shipped
    assert network.manifest.labels == LABELS[name]
    assert network.manifest.metrics["test_accuracy"] >= ACCURACY[name]
    assert network.manifest.training["network"] == name
    for path in folder.glob("*.onnx"):
        model = onnx.load(path)
        assert (model.ir_version, [entry.version for entry in model.opset_import]) == (IR_VERSION, [OPSET])
        # Any three letters may stand among the bytes of a million weights.
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
        for text in (b".py", b"site-packages", b"stack_trace", b"File "):
            assert text not in model.SerializeToString()


def test_variants_are_the_same_network_in_another_precision(shipped):
    _, folder, network, catalogue = shipped
    expected = [dataclasses.replace(layer, tensor="") for layer in catalogue.layers]
    for precision in PRECISIONS[1:]:
        if not (folder / file_name(precision)).exists():
            continue
        variant = load_network(folder / file_name(precision))
        manifest = variant.manifest
        assert manifest.precision == precision
        assert (manifest.labels, manifest.input) == (network.manifest.labels, network.manifest.input)
        # The bound of `--max-drop`.
        assert manifest.metrics["test_accuracy"] >= network.manifest.metrics["test_accuracy"] - 0.002 - 1e-9
        own = [dataclasses.replace(layer, tensor="") for layer in build_catalogue(variant).layers]
        assert own == expected


def test_every_layer_equals_torch(shipped):
    name, folder, network, catalogue = shipped
    image = network.manifest.input
    # Noise, and smooth images that are closer to what the network was trained on.
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, image.height, image.width, image.channels), np.uint8)
    images[2:] = np.cumsum(images[2:], axis=1, dtype=np.int64) // np.arange(1, image.height + 1)[:, None, None]
    layers = torch_network(name, folder / "model.onnx", network.manifest)
    with torch.no_grad():
        values, expected, before = torch.from_numpy(images), {}, ""
        for key, module in layers.named_children():
            values = module(values)
            # What the convolution of the export gives is already normalised.
            expected[before if isinstance(module, nn.BatchNorm2d) else key] = values
            before = key
    maps = Lens(network, catalogue, make_session).maps(images, catalogue.layers)
    for layer, own in zip(catalogue.layers, maps, strict=True):
        theirs = expected[layer.name].numpy()
        assert own.shape == theirs.shape == (4, *layer.shape)
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-4, err_msg=layer.name)
    session = make_session(network.model.SerializeToString())
    scores, logits = session.run([network.scores_name, network.logits_name], {network.input_name: images})
    np.testing.assert_allclose(scores, expected["softmax"].numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits, expected["output"].numpy(), rtol=0, atol=1e-4)


class TestCards:
    """Each model has a README.md, whose figures are those of the files."""

    @pytest.fixture
    def card(self, shipped):
        name, folder, network, _ = shipped
        return (folder.parent / "README.md").read_text(), name, folder, network.manifest

    def test_accuracies(self, card):
        text, _, folder, _ = card
        for path in folder.glob("*.onnx"):
            accuracy = 100 * load_network(path).manifest.metrics["test_accuracy"]
            # With at least one decimal place, and rounded to those that are shown.
            shown = re.findall(r"(\d+\.(\d+)) ?%", text)
            assert any(f"{accuracy:.{len(places)}f}" == number for number, places in shown), (path.name, accuracy)

    def test_files(self, card):
        text, _, folder, _ = card
        for path in folder.iterdir():
            assert f"{folder.name}/{path.name}" in text
        assert f"opset {OPSET}" in text
        assert f"IR version {IR_VERSION}" in text

    def test_network_and_training(self, card):
        text, name, folder, manifest = card
        catalogue = build_catalogue(load_network(folder / "model.onnx"))
        assert text.startswith(f"# {name}\n")
        assert f"convlens train {name} " in text
        assert f"{manifest.training['recipe']['epochs']} epochs" in text
        assert re.search(rf"{manifest.input.height} × {manifest.input.width} (grey|RGB)", text)
        trained = sum(
            value.numel() for value in networks.build(name, manifest.input, len(manifest.labels)).parameters()
        )
        assert f"{trained:,}" in text
        for layer in catalogue.layers:
            assert layer.name in text

    def test_data(self, card):
        text, _, _, manifest = card
        count = manifest.training["data"]["test_images"]
        assert re.search(rf"\b({count:,}|{count})\b", text)
        numbers = manifest.labels == tuple(map(str, range(len(manifest.labels))))
        assert (
            f"{manifest.labels[0]} … {manifest.labels[-1]}" in text if numbers else ", ".join(manifest.labels) in text
        )
