"""Largest and mean values of windows and of all positions, of every form that their nodes may have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

small = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@small
@given(st.sampled_from(["MaxPool", "AveragePool"]), st.data())
def test_any_window(builder, explained, op_type, data):
    sizes = [data.draw(st.integers(4, 9)) for _ in range(2)]
    kernel = [data.draw(st.integers(1, 3)) for _ in range(2)]
    attributes = {"kernel_shape": kernel, "strides": [data.draw(st.integers(1, 3)) for _ in range(2)]}
    padding = data.draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding == "pads":
        attributes["pads"] = [data.draw(st.integers(0, size - 1)) for size in kernel * 2]
        attributes["ceil_mode"] = data.draw(st.integers(0, 1))
        attributes["dilations"] = [data.draw(st.integers(1, 2)) if not sum(attributes["pads"]) else 1] * 2
    else:
        attributes["auto_pad"] = padding
    if op_type == "AveragePool":
        attributes["count_include_pad"] = data.draw(st.integers(0, 1))
    net = builder(["N", 3, *sizes], opset=19)
    # Negative values too: the padding of a maximum is no 0.
    lowered = net.node("Sub", "x", net.constant(0.5), name="lowered")
    pooled = net.node(op_type, lowered, name="pool", **attributes)
    opened = explained(net.model(net.node("Flatten", net.node("GlobalMaxPool", pooled))))

    for _ in range(3):
        response = opened.checked("pool", *[data.draw(st.integers(0, size - 1)) for size in opened.maps["pool"].shape])
        assert list(response.pooling.patch.shape) == [1, *kernel]
        assert response.pooling.HasField("argmax") == (op_type == "MaxPool")


def test_the_lectures_pooling(builder, explained):
    net = builder(["N", 1, 6, 6])
    pooled = net.node("MaxPool", "x", name="pool", kernel_shape=[2, 2], strides=[2, 2])
    rows = "4 8 2 1 1 3 / 7 1 1 2 2 6 / 2 2 3 8 1 9 / 2 2 6 2 8 4 / 3 2 1 2 1 8 / 1 1 1 3 6 1"
    image = [[[int(n)] for n in row.split()] for row in rows.split("/")]
    opened = explained(net.model(net.head(pooled, 9)), image)

    responses = [[opened.checked("pool", 0, row, column) for column in range(3)] for row in range(3)]

    assert [[round(each.result * 255) for each in row] for row in responses] == [[8, 2, 6], [2, 8, 9], [3, 3, 8]]
    assert [[each.pooling.argmax for each in row] for row in responses] == [[1, 0, 3], [0, 1, 1], [0, 3, 1]]


def test_what_lies_in_padding_is_below_everything_for_a_maximum_and_0_for_a_mean(builder, explained):
    for op_type, padding in (("MaxPool", -np.inf), ("AveragePool", 0.0)):
        net = builder(["N", 1, 4, 4])
        pooled = net.node(op_type, "x", name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        opened = explained(net.model(net.head(pooled, 16)))
        response = opened.checked("pool")
        patch = response.pooling.patch
        assert (patch.first_row, patch.first_column) == (-1, -1)
        assert list(patch.values[:4]) == [padding] * 4
        region = response.receptive_field
        assert (region.top, region.left, region.height, region.width) == (-1, -1, 3, 3)
    assert response.pooling.divisor == 4


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global(builder, explained, op_type):
    net = builder(["N", 3, 5, 4])
    opened = explained(net.model(net.node("Flatten", net.node(op_type, "x", name="pool"))))
    for response in opened.all_units("pool"):
        assert list(response.pooling.patch.shape) == [1, 5, 4]
        assert response.pooling.patch.first_channel == response.unit.channel


@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceMax", "ReduceSum"])
@pytest.mark.parametrize("axes", [[2, 3], [-1], [1], [1, 3], [1, 2, 3]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(builder, explained, op_type, axes, keepdims):
    net = builder(["N", 3, 5, 4])
    reduced = net.node(op_type, "x", net.constant(axes, np.int64), name="reduced", keepdims=keepdims)
    if axes == [1, 2, 3] and not keepdims:
        reduced = net.node("Reshape", reduced, net.constant([0, 1], np.int64))
    opened = explained(net.model(net.node("Flatten", reduced)))
    kept = 60 // np.prod([(0, 3, 5, 4)[axis] for axis in axes])
    responses = opened.all_units("reduced")
    assert len(responses) == kept
    assert {len(response.pooling.patch.values) for response in responses} == {60 // kept}


@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceMax"])
def test_reductions_of_older_files_have_their_axes_as_an_attribute(builder, explained, op_type):
    net = builder(["N", 3, 5, 4], opset=13)
    reduced = net.node(op_type, "x", name="reduced", axes=[2, 3], keepdims=0)
    opened = explained(net.model(net.node("Identity", reduced)))
    assert len(opened.all_units("reduced")) == 3


@pytest.mark.parametrize(("keepdims", "seen"), [(1, (2, 1, 3, 3)), (0, (0, 0, 5, 4))])
def test_what_a_unit_sees_where_its_rows_are_not_those_of_the_image(builder, explained, keepdims, seen):
    """Without the channels' axis the image's rows are counted as channels, its columns as rows."""
    net = builder(["N", 3, 5, 4])
    conv = net.node("Conv", "x", net.weights(2, 3, 3, 3), pads=[0, 0, 0, 0], name="conv")
    reduced = net.node("ReduceMean", conv, net.constant([1], np.int64), name="reduced", keepdims=keepdims)
    opened = explained(net.model(net.node("Flatten", reduced)))
    place = (0, 2, 1) if keepdims else (2, 1, 0)
    region = opened.checked("reduced", *place).receptive_field
    assert (region.top, region.left, region.height, region.width) == seen
