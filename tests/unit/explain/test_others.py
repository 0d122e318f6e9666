"""Arithmetic between layers, values that are handed on, softmax, and what has no explanation."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from convlens_server.errors import NotFound, Unimplemented
from explaining import patches

OPERATIONS = {"Add": "+", "Div": "÷", "Max": "max", "Min": "min", "Mul": "×", "Pow": "^", "Sub": "−", "Sum": "+"}


@pytest.mark.parametrize("op_type", OPERATIONS)
def test_between_two_layers(builder, explained, op_type):
    net = builder(["N", 3, 3, 2])
    one = net.node("Sigmoid", "x", name="one")
    # As the gate of a squeeze-and-excitation block: a number for each channel.
    two = net.node("GlobalAveragePool", "x", name="two")
    opened = explained(net.model(net.head(net.node(op_type, one, two, name="layer"), 18)))
    for response in opened.all_units("layer"):
        assert response.elementwise.operation == OPERATIONS[op_type]
        first, second = response.elementwise.patches
        assert (first.layer, first.first_row, first.first_column) == ("one", response.unit.row, response.unit.column)
        assert (second.layer, second.first_channel, second.first_row) == ("two", response.unit.channel, 0)


def test_constants_and_more_than_two(builder, explained):
    net = builder(["N", 3, 3, 2])
    one = net.node("Add", "x", net.constant([[[1.0]], [[2.0]], [[3.0]]]), name="shifted")
    opened = explained(net.model(net.head(net.node("Sum", one, "x", one, name="layer"), 18)))
    for response in opened.all_units("shifted"):
        assert response.elementwise.patches[1].layer == ""
        assert response.elementwise.patches[1].values[0] == response.unit.channel + 1
    assert all(len(patches(response)) == 3 for response in opened.all_units("layer"))


def test_a_layer_with_itself(builder, explained):
    net = builder(["N", 1, 3, 2])
    opened = explained(net.model(net.head(net.node("Mul", "x", "x", name="layer"), 6)))
    opened.all_units("layer")


@pytest.mark.parametrize(("opset", "axis"), [(11, 1), (13, 1), (13, -1), (18, 2)])
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_softmax(builder, explained, op_type, opset, axis):
    net = builder(["N", 3, 2, 4], opset=opset)
    scaled = net.node("Mul", "x", net.constant(20.0), name="logits")
    opened = explained(net.model(net.head(net.node(op_type, scaled, name="layer", axis=axis), 24)))
    responses = opened.all_units("layer")
    expected = 24 if opset < 13 else (0, 3, 2, 4)[axis]
    assert {len(response.softmax.exponentials) for response in responses} == {expected}


def test_the_networks_own_scores(builder, explained):
    net = builder(["N", 1, 3, 2])
    opened = explained(net.model(net.head("x", 6)))
    results = [response.result for response in opened.all_units("softmax")]
    assert sum(results) == pytest.approx(1)
    assert [response.softmax.index for response in opened.all_units("softmax")] == [0, 1]


def moved(net, what):
    """A layer that hands on values of an image of 4 channels, 4 × 6 pixels, and how it is made."""

    def ints(*values):
        return net.constant(values, np.int64)

    x = net.node("Concat", "x", net.node("Sigmoid", "x", name="other"), axis=1, name="both")
    made = {
        "concat with a constant": lambda: net.node("Concat", x, net.constant(np.full((1, 1, 4, 6), 7.0)), axis=1),
        "depth to space": lambda: net.node("DepthToSpace", x, blocksize=2, mode="CRD"),
        "expand": lambda: net.node("Expand", net.node("GlobalMaxPool", x, name="small"), ints(1, 6, 2, 3)),
        "flatten": lambda: net.node("Flatten", x),
        "gather": lambda: net.node("Gather", x, ints(2, 0), axis=1),
        "pad": lambda: net.node("Pad", x, ints(0, 0, 1, 2, 0, 0, -1, 3), net.constant(0.5)),
        "pad by reflection": lambda: net.node("Pad", x, ints(0, 0, 1, 2, 0, 0, 1, 3), mode="reflect"),
        "reshape": lambda: net.node("Reshape", x, ints(0, 2, 3, 4, 6)),
        "resize": lambda: net.node("Resize", x, "", net.constant([1, 1, 2, 1.5]), mode="nearest"),
        "slice": lambda: net.node("Slice", x, ints(1, 5), ints(4, -7), ints(1, 3), ints(1, -2)),
        "space to depth": lambda: net.node("SpaceToDepth", x, blocksize=2),
        "tile": lambda: net.node("Tile", x, ints(1, 2, 1, 1)),
        "transpose": lambda: net.node("Transpose", x, perm=[0, 3, 1, 2]),
        "unsqueeze": lambda: net.node("Unsqueeze", x, ints(1)),
        "where": lambda: net.node("Where", net.constant(np.arange(6) % 2, np.bool_), x, net.constant(3.0)),
    }[what]()
    net.nodes[-1].name = "layer"
    return made


MOVES = (
    "concat with a constant", "depth to space", "expand", "flatten", "gather", "pad", "pad by reflection", "reshape",
    "resize", "slice", "space to depth", "tile", "transpose", "unsqueeze", "where",
)  # fmt: skip


@pytest.mark.parametrize("what", MOVES)
def test_a_value_that_is_handed_on(builder, explained, what):
    image = np.arange(4 * 6).reshape(4, 6, 1).repeat(3, 2) * 3 + np.arange(3)
    net = builder(["N", 3, 4, 6])
    if what in ("depth to space", "concat with a constant"):
        # Channels that a block of 2 × 2 divides; a batch of one.
        net = builder([1, 1 if what.startswith("concat") else 4, 4, 6])
        if what == "depth to space":
            net = builder([1, 1, 4, 6])
        image = image[..., :1]
    if what == "depth to space":
        wide = net.node("Concat", "x", "x", axis=1, name="wide")
        net.inputs[0].name = "x"
        layer = net.node("DepthToSpace", net.node("Concat", wide, wide, axis=1, name="both"), blocksize=2, mode="CRD")
        net.nodes[-1].name = "layer"
    else:
        layer = moved(net, what)
    opened = explained(net.model(net.node("Flatten", layer, axis=1)), image)
    responses = opened.all_units("layer")
    names = {patch.layer for response in responses for patch in patches(response)}
    sources = {"expand": {"small"}, "pad": {"both", ""}, "concat with a constant": {"both", ""}, "where": {"both", ""}}
    assert names == sources.get(what, {"both"})
    assert all(response.result == response.activation for response in responses)


@pytest.mark.parametrize(("opset", "ir"), [(10, 5), (13, 7), (21, 10), (23, 11)])
def test_a_pad_of_any_opset(builder, explained, opset, ir):
    net = builder(["N", 1, 2, 3], opset=opset, ir=ir)
    if opset == 10:
        padded = net.node("Pad", "x", name="layer", pads=[0, 0, 1, 0, 0, 0, 0, 2], value=0.5)
    else:
        padded = net.node("Pad", "x", net.constant([0, 0, 1, 0, 0, 0, 0, 2], np.int64), net.constant(0.5), name="layer")
    opened = explained(net.model(net.head(padded, 15)))
    results = {(each.unit.row, each.unit.column): each for each in opened.all_units("layer")}
    assert results[0, 0].result == results[1, 3].result == 0.5
    assert results[0, 0].selection.patch.layer == ""
    assert results[1, 0].selection.patch.layer == "input"


def test_the_parts_of_a_split_are_layers_of_their_own(builder, explained):
    net = builder(["N", 3, 4, 2])
    first, second = net.node("Split", "x", net.constant([1, 2], np.int64), outputs=2, axis=1, name="split")
    joined = net.node("Concat", net.node("Relu", second), first, axis=1, name="joined")
    opened = explained(net.model(net.head(joined, 24)))
    for name, offset in (("split.0", 0), ("split.1", 1)):
        for response in opened.all_units(name):
            assert response.selection.patch.first_channel == response.unit.channel + offset
    opened.all_units("joined")


def test_a_fixed_batch(builder, explained):
    net = builder([3, 1, 6, 6])
    conv = net.node("Conv", "x", net.weights(2, 1, 3, 3), name="conv")
    turned = net.node("Transpose", net.node("Reshape", conv, net.constant([3, 32], np.int64)), perm=[1, 0])
    dense = net.node("MatMul", net.node("Transpose", turned, perm=[1, 0]), net.weights(32, 2), name="dense")
    opened = explained(net.model(dense))
    assert opened.opened.network.fixed_batch == 3
    opened.all_units("conv")
    opened.all_units("dense")


def test_what_has_no_explanation(builder, explained):
    net = builder(["N", 1, 3, 2])
    opened = explained(net.model(net.head(net.node("CumSum", "x", net.constant(2, np.int64), name="sums"), 6)))
    with pytest.raises(Unimplemented) as caught:
        opened.explain("sums")
    error = caught.value
    assert "layer 'sums' is of the kind cum_sum" in str(error)
    assert "convolutions" in str(error)
    assert (error.reason, error.field) == ("NOT_EXPLAINED", "unit.layer")
    assert error.metadata == {"layer": "sums", "kind": "cum_sum", "op_type": "CumSum"}


def test_resizing_by_interpolation_has_no_explanation(builder, explained):
    net = builder(["N", 1, 4, 4])
    resized = net.node("Resize", "x", "", net.constant([1, 1, 2, 2]), mode="linear", name="resized")
    opened = explained(net.model(net.head(resized, 64)))
    with pytest.raises(Unimplemented, match="where it interpolates"):
        opened.explain("resized")


@pytest.mark.parametrize("place", [(2, 0, 0), (0, 4, 0), (0, 0, 4), (2**32 - 1, 0, 0)])
def test_no_such_unit(builder, explained, place):
    net = builder(["N", 1, 6, 6])
    opened = explained(net.model(net.head(net.node("Conv", "x", net.weights(2, 1, 3, 3), name="conv"), 32)))
    with pytest.raises(NotFound, match="it has 2 channels, 4 rows, 4 columns") as caught:
        opened.explain("conv", *place)
    assert (caught.value.reason, caught.value.field) == ("UNIT_NOT_FOUND", "unit")


def test_a_sparse_weight(builder, explained):
    from onnx import helper, numpy_helper

    net = builder(["N", 1, 2, 2])
    flat = net.node("Flatten", "x", name="flatten")
    product = net.node("MatMul", flat, "sparse", name="dense")
    model = net.model(product)
    values = numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "sparse")
    indices = numpy_helper.from_array(np.array([1, 4], np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 2]))
    opened = explained(model)
    weights = [list(response.weighted_sum.weights) for response in opened.all_units("dense")]
    assert weights == [[0, 0, 3, 0], [2, 0, 0, 0]]


def test_an_image_that_the_file_takes_as_bytes(builder, explained):
    net = builder(["N", 6, 6, 1], TensorProto.UINT8)
    values = net.node("Cast", net.node("Transpose", "x", perm=[0, 3, 1, 2], name="preprocess/transpose"), to=1)
    conv = net.node("Conv", values, net.weights(2, 1, 3, 3), name="conv")
    opened = explained(net.model(net.head(conv, 32)))
    response = opened.checked("conv")
    assert response.weighted_sum.patch.layer == "input"
    assert max(response.weighted_sum.patch.values) > 1
