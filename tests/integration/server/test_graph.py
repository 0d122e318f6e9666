"""GetGraph: enough to draw any network, and what each layer saves against a fully connected one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from convlens.v1 import convlens_pb2 as pb
from support import put, serving

SHIPPED = Path(__file__).parents[3] / "models"


def check(graph):
    """What holds for every graph."""
    layers = {each.layer.name: each for each in graph.layers}
    places = {(each.column, each.lane) for each in graph.layers}
    assert len(places) == len(layers) == len(graph.layers)
    assert graph.columns == 1 + max(each.column for each in graph.layers)
    assert [(edge.source, edge.target) for edge in graph.edges] == [
        (source, each.layer.name) for each in graph.layers for source in each.layer.inputs
    ]
    for edge in graph.edges:
        assert edge.source == "input" or layers[edge.source].column < layers[edge.target].column
    for each in graph.layers:
        assert each.units == math.prod(each.layer.shape)
        assert each.dense_connections == each.units * each.input_units
        assert 0 < each.connections <= each.dense_connections
        if each.layer.kind in ("conv", "dense"):
            assert each.connections <= each.layer.multiply_accumulates
    seen = set()
    for block in graph.blocks:
        assert block.parent in {"", *seen}
        assert set(block.layers) <= layers.keys()
        seen.add(block.name)
    return layers


def test_the_lecture_network():
    with serving(SHIPPED) as server:
        graph = server.stub.GetGraph(pb.GetGraphRequest(model="lecture_cnn"), timeout=30)
        catalogue = server.stub.GetModel(pb.GetModelRequest(model="lecture_cnn"), timeout=30).layers
    layers = check(graph)
    assert [each.layer for each in graph.layers] == list(catalogue)
    assert (graph.model, graph.version) == ("lecture_cnn", 1)
    assert [each.column for each in graph.layers] == list(range(1, len(layers) + 1))
    assert {each.lane for each in graph.layers} == {0}
    assert not graph.blocks
    conv = layers["conv_1"]
    assert (conv.input_units, conv.units) == (28 * 28, 32 * 26 * 26)
    assert conv.connections == 32 * 26 * 26 * 9
    assert conv.dense_connections == 28 * 28 * 32 * 26 * 26
    assert layers["dense_1"].connections == layers["dense_1"].dense_connections == 9216 * 128


def test_the_lectures_image_has_307_200_input_units(serve, tmp_path):
    """Of 640 × 480 pixels. Ten feature maps of its size, fully connected, have almost a million million weights."""
    weights = numpy_helper.from_array(np.ones((10, 1, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["c"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p"], ["g"], "mean"),
        helper.make_node("Flatten", ["g"], ["y"], "flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "lecture",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 480, 640])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [weights],
    )
    put(tmp_path, "lecture", 1, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    with serve(tmp_path, max_batch=1) as server:
        layers = check(server.stub.GetGraph(pb.GetGraphRequest(), timeout=30))
    conv = layers["conv"]
    assert conv.input_units == 307_200
    assert conv.units == 3_072_000
    assert conv.dense_connections == 943_718_400_000
    # 9 a unit, but for the border: 3 rows and columns of 480 and 640 pixels see one less at each end.
    assert conv.connections == 10 * (3 * 480 - 2) * (3 * 640 - 2) == 27_580_840
    assert layers["pool"].connections == 3_072_000


def test_edges_of_a_network_that_branches(serve, tmp_path):
    def conv(name, source, target):
        return helper.make_node("Conv", [source, f"w_{name}"], [target], name, pads=[1, 1, 1, 1])

    weights = {
        name: np.ones((4, 1 if name == "first" else 4, 3, 3), np.float32) for name in ("first", "a", "b", "side")
    }
    nodes = [
        conv("first", "x", "t0"),
        conv("a", "t0", "t1"),
        helper.make_node("Relu", ["t1"], ["t2"], "relu"),
        conv("b", "t2", "t3"),
        conv("side", "t0", "t4"),
        helper.make_node("Add", ["t3", "t4"], ["t5"], "sum"),
        helper.make_node("GlobalAveragePool", ["t5"], ["t6"], "mean"),
        helper.make_node("Flatten", ["t6"], ["y"], "flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "branches",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(values, f"w_{name}") for name, values in weights.items()],
    )
    put(tmp_path, "net", 1, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    with serve(tmp_path) as server:
        answer = server.stub.GetGraph(pb.GetGraphRequest(), timeout=30)
    layers = check(answer)
    places = {name: (each.column, each.lane) for name, each in layers.items()}
    assert places == {
        "first": (1, 0), "a": (2, 0), "relu": (3, 0), "b": (4, 0), "side": (2, 1), "sum": (5, 0), "mean": (6, 0),
        "flatten": (7, 0), "softmax": (8, 0),
    }  # fmt: skip
    assert [(block.name, list(block.layers)) for block in answer.blocks] == [
        ("block_1", ["a", "relu", "b", "side", "sum"])
    ]
    assert layers["sum"].input_units == 2 * layers["sum"].units
    assert layers["sum"].connections == 2 * layers["sum"].units


def test_no_such_model(server, failing):
    failure = failing(lambda: server.stub.GetGraph(pb.GetGraphRequest(model="convv"), timeout=30))
    assert failure.code.name == "NOT_FOUND"
    assert "did you mean conv" in failure.text


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("name", "blocks", "inside"),
    [
        (
            "resnet18",
            {f"layer{n}": "" for n in (1, 2, 3, 4)},
            {f"layer{n}.{m}": f"layer{n}" for n in (1, 2, 3, 4) for m in (0, 1)},
        ),
        (
            "mobilenet_v3_small",
            {f"features.{n}{'.block' if n in (1, 2, 4, 7, 9) else ''}": "" for n in range(1, 12)},
            {
                f"features.{n}.block.{1 if n == 1 else 2}": f"features.{n}{'.block' if n in (1, 4, 7, 9) else ''}"
                for n in (1, *range(4, 12))
            },
        ),
        (
            "densenet121",
            {f"features.denseblock{n}": "" for n in (1, 2, 3, 4)} | {f"features.transition{n}": "" for n in (1, 2, 3)},
            {
                f"features.denseblock{n}.denselayer{m}": f"features.denseblock{n}"
                for n, count in enumerate((6, 12, 24, 16), 1)
                for m in range(1, count + 1)
            },
        ),
    ],
    ids=["resnet18", "mobilenet_v3_small", "densenet121"],
)  # fmt: skip
def test_blocks_of_torchvision_networks(torchvision_models, name, blocks, inside):
    graph = torchvision_models.stub.GetGraph(pb.GetGraphRequest(model=name), timeout=30)
    check(graph)
    assert {block.name: block.parent for block in graph.blocks} == blocks | inside


@pytest.mark.timeout(180)
def test_blocks_of_efficientnet(torchvision_models):
    graph = torchvision_models.stub.GetGraph(pb.GetGraphRequest(model="efficientnet_b0"), timeout=30)
    check(graph)
    parents = {block.name: block.parent for block in graph.blocks}
    gates = {name: parent for name, parent in parents.items() if name.rpartition(".")[0].endswith(".block")}
    assert len(gates) == 16
    # Each of the 16 inverted bottlenecks has its gate inside; stages of one have no block around it.
    assert len(set(gates.values())) == 16
    stages = {parents[parent] for parent in gates.values()}
    assert stages == {"", *(f"features.{n}" for n in (2, 3, 4, 5, 6))}
