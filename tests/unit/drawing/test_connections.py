"""Connections are counted as somebody would who changes one input unit after the other and looks what changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from convlens_server.drawing.connections import count_connections
from opened import Builder, Opened

small = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def opened(tmp_path, net, layer, **options):
    path = tmp_path / "model.onnx"
    path.write_bytes(net.model(net.node("Flatten", net.node("GlobalMaxPool", layer)), **options).SerializeToString())
    return Opened(path)


def counted(network, name="layer"):
    layer = network.catalogue[name]
    height, width = network.network.manifest.input.height, network.network.manifest.input.width
    units = {"input": height * width * network.network.manifest.input.channels}
    units |= {each.name: math.prod(each.shape) for each in network.catalogue.layers}
    return count_connections(network.catalogue.anatomy, layer, sum(units[source] for source in layer.inputs))


def observed(network, name="layer"):
    """Pairs of an input unit and a unit that differs once the input unit is no longer as the others are."""
    image = network.network.manifest.input
    size = image.height * image.width * image.channels
    images = np.full((size + 1, size), 51, np.uint8)
    images[np.arange(size), np.arange(size)] = 255
    [maps] = network.maps(images.reshape(-1, image.height, image.width, image.channels), name)
    return int((np.abs(maps[:-1] - maps[-1]) > 1e-5).sum())


def positive(net, *shape):
    return net.constant(net.random.uniform(0.5, 1.5, shape))


@small
@given(st.sampled_from(["Conv", "ConvTranspose", "MaxPool", "AveragePool"]), st.data())
def test_windows(tmp_path, op_type, data):
    net = Builder(["N", 3, data.draw(st.integers(4, 6)), data.draw(st.integers(4, 6))])
    kernel = [data.draw(st.integers(1, 3)) for _ in range(2)]
    attributes = {"strides": [data.draw(st.integers(1, 2)) for _ in range(2)], "kernel_shape": kernel}
    if op_type != "AveragePool":
        attributes["dilations"] = [data.draw(st.integers(1, 2)) for _ in range(2)]
    attributes["pads"] = [data.draw(st.integers(0, size - 1)) for size in kernel * 2]
    weights = []
    if op_type.startswith("Conv"):
        attributes["group"] = data.draw(st.sampled_from([1, 3]))
        weights = [positive(net, *((6, 3 // attributes["group"]) if op_type == "Conv" else (3, 2)), *kernel)]
    elif data.draw(st.booleans()):
        attributes["ceil_mode"] = 1
    network = opened(tmp_path, net, net.node(op_type, "x", *weights, name="layer", **attributes))
    assert counted(network) == observed(network)


def ints(net, *values):
    return net.constant(values, np.int64)


LAYERS = {
    "activation": lambda net: net.node("Sigmoid", "x", name="layer"),
    "add a constant": lambda net: net.node("Add", "x", net.constant(1.0), name="layer"),
    "add with itself": lambda net: net.node("Add", "x", "x", name="layer"),
    "batch norm": lambda net: net.node("BatchNormalization", "x", *[positive(net, 3) for _ in range(4)], name="layer"),
    "dense over columns": lambda net: net.node("MatMul", "x", positive(net, 4, 5), name="layer"),
    "gather": lambda net: net.node("Gather", "x", ints(net, 2, 0, 2), axis=2, name="layer"),
    "global average": lambda net: net.node("GlobalAveragePool", "x", name="layer"),
    "group norm": lambda net: net.node(
        "GroupNormalization", "x", positive(net, 3), positive(net, 3), num_groups=3, name="layer"
    ),
    "instance norm": lambda net: net.node(
        "InstanceNormalization", "x", positive(net, 3), positive(net, 3), name="layer"
    ),
    "layer norm": lambda net: net.node("LayerNormalization", "x", positive(net, 4), positive(net, 4), name="layer"),
    "local response norm": lambda net: net.node("LRN", "x", size=3, alpha=3.0, name="layer"),
    "mean over channels": lambda net: net.node("ReduceMean", "x", ints(net, 1), name="layer"),
    "pad": lambda net: net.node("Pad", "x", ints(net, 0, 0, 1, -1, 0, 0, 2, 3), name="layer"),
    "pad two axes": lambda net: net.node("Pad", "x", ints(net, 1, 2, 0, -1), "", ints(net, 2, 3), name="layer"),
    "nearest": lambda net: net.node("Resize", "x", "", net.constant([1.0, 1, 2, 2]), mode="nearest", name="layer"),
    "slice": lambda net: net.node("Slice", "x", ints(net, 1), ints(net, 3), ints(net, 3), name="layer"),
    "softmax": lambda net: net.node("Softmax", "x", axis=1, name="layer"),
    "tile": lambda net: net.node("Tile", "x", ints(net, 1, 2, 1, 1), name="layer"),
    "transpose": lambda net: net.node("Transpose", "x", perm=[0, 2, 3, 1], name="layer"),
}


@pytest.mark.parametrize("what", sorted(LAYERS))
def test_kinds(tmp_path, what):
    net = Builder(["N", 3, 3, 4], opset=21)
    network = opened(tmp_path, net, LAYERS[what](net))
    assert counted(network) == observed(network)


def test_a_gate_takes_two_units_a_unit(tmp_path):
    net = Builder(["N", 3, 3, 4])
    gate = net.node("GlobalAveragePool", "x", name="pool")
    network = opened(tmp_path, net, net.node("Mul", "x", gate, name="layer"))
    assert counted(network) == 2 * 36


def test_a_dense_layer_is_fully_connected(tmp_path):
    net = Builder(["N", 3, 3, 4])
    path = tmp_path / "model.onnx"
    path.write_bytes(net.model(net.head("x", 36, classes=5)).SerializeToString())
    network = Opened(path)
    assert counted(network, "output") == 36 * 5
    assert counted(network, "flatten") == 36
    assert counted(network, "softmax") == 25


def test_two_layers_multiplied_as_matrices(tmp_path):
    net = Builder(["N", 3, 3, 4])
    other = net.node("Transpose", "x", perm=[0, 1, 3, 2], name="turned")
    network = opened(tmp_path, net, net.node("MatMul", "x", other, name="layer"))
    assert counted(network) == 27 * 2 * 4


def test_what_is_not_known_counts_every_pair(tmp_path):
    net = Builder(["N", 1, 3, 4], TensorProto.FLOAT)
    network = opened(tmp_path, net, net.node("CumSum", "x", net.constant(2, np.int64), name="layer"))
    assert counted(network) == 12 * 12


def test_the_lectures_image(tmp_path):
    """640 × 480 pixels are 307,200 input units; a fully connected layer has a weight for each pair."""
    net = Builder(["N", 1, 480, 640])
    network = opened(tmp_path, net, net.node("Conv", "x", positive(net, 1, 1, 3, 3), name="layer"))
    assert counted(network) == 478 * 638 * 9
