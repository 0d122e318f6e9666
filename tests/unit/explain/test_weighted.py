"""Convolutions, dense layers and matrix products, of every form that their nodes may have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convlens_server.errors import Unimplemented

small = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def convolutions(draw):
    """Attributes of a Conv or ConvTranspose, its channels, and the size of its input."""
    sizes = draw(st.tuples(st.integers(4, 9), st.integers(4, 9)))
    kernel = [draw(st.integers(1, 3)) for _ in range(2)]
    attributes = {
        "strides": [draw(st.integers(1, 3)) for _ in range(2)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(2)],
        "group": draw(st.sampled_from([1, 3])),
    }
    padding = draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding == "pads":
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(4)]
    else:
        attributes["auto_pad"] = padding
        attributes["dilations"] = [1, 1]
    return sizes, kernel, attributes, 3 * draw(st.integers(1, 2)), draw(st.booleans())


@small
@given(convolutions(), st.data())
def test_any_convolution(builder, explained, form, data):
    (height, width), kernel, attributes, channels, has_bias = form
    net = builder(["N", 3, height, width])
    weights = net.weights(channels, 3 // attributes["group"], *kernel)
    inputs = [weights, net.weights(channels)] if has_bias else [weights]
    conv = net.node("Conv", "x", *inputs, name="conv", **attributes)
    opened = explained(net.model(net.node("Flatten", net.node("GlobalMaxPool", conv))))

    unit = [data.draw(st.integers(0, size - 1)) for size in opened.maps["conv"].shape]
    response = opened.checked("conv", *unit)

    assert list(response.weighted_sum.patch.shape) == [3 // attributes["group"], *kernel]
    assert list(response.weighted_sum.patch.step) == attributes["dilations"]
    assert response.weighted_sum.patch.layer == "input"
    layer = opened.catalogue["conv"]
    for n, (name, first) in enumerate((("top", "first_row"), ("left", "first_column"))):
        place = unit[1 + n] * layer.stride[n] - layer.padding[n]
        assert getattr(response.receptive_field, name) == getattr(response.weighted_sum.patch, first) == place
    reach = [(kernel[n] - 1) * attributes["dilations"][n] + 1 for n in (0, 1)]
    assert [response.receptive_field.height, response.receptive_field.width] == reach


@small
@given(convolutions(), st.tuples(st.integers(0, 1), st.integers(0, 1)), st.data())
def test_any_transposed_convolution(builder, explained, form, beyond, data):
    (height, width), kernel, attributes, channels, has_bias = form
    attributes["output_padding"] = [min(beyond[n], attributes["strides"][n] - 1) for n in (0, 1)]
    attributes["kernel_shape"] = kernel
    for n in (0, 1):
        size = (height, width)[n]
        reach = (size - 1) * attributes["strides"][n] + (kernel[n] - 1) * attributes["dilations"][n] + 1
        pads = attributes.get("pads", [0] * 4)
        if reach - pads[n] - pads[n + 2] < 1:
            attributes["pads"] = [0] * 4
    if attributes.get("auto_pad", "").startswith("SAME"):
        attributes["output_padding"] = [0, 0]
    net = builder(["N", 3, height, width])
    groups = attributes["group"]
    weights = net.weights(3, channels // groups, *kernel)
    inputs = [weights, net.weights(channels)] if has_bias else [weights]
    conv = net.node("ConvTranspose", "x", *inputs, name="up", **attributes)
    opened = explained(net.model(net.node("Flatten", net.node("GlobalMaxPool", conv))))

    for _ in range(3):
        opened.checked("up", *[data.draw(st.integers(0, size - 1)) for size in opened.maps["up"].shape])


def test_the_lectures_convolution(builder, explained):
    net = builder(["N", 1, 5, 5])
    scaled = net.node("Mul", "x", net.constant(255.0))
    kernel = net.constant([[[[1, 0, 1], [1, 1, 1], [0, 0, 1]]]])
    conv = net.node("Conv", scaled, kernel, name="conv")
    opened = explained(net.model(net.head(conv, 9)), [[[n] for n in (0, 1, 1, 0, 1)]] * 5)

    results = [[opened.checked("conv", 0, row, column) for column in range(3)] for row in range(3)]

    assert [[round(each.result, 4) for each in row] for row in results] == [[4, 3, 5]] * 3
    terms = results[0][0].weighted_sum
    assert np.round(terms.patch.values, 4).tolist() == [0, 1, 1] * 3
    assert list(terms.weights) == [1, 0, 1, 1, 1, 1, 0, 0, 1]
    assert np.round(terms.products, 4).tolist() == [0, 0, 1, 0, 1, 1, 0, 0, 1]


def test_a_quantised_convolution_has_its_weights_dequantised(builder, explained):
    net = builder(["N", 1, 6, 6])
    scale, zero = net.constant(0.02), net.constant(3, np.uint8)
    image = net.node("DequantizeLinear", net.node("QuantizeLinear", "x", scale, zero), scale, zero)
    weights = net.constant(net.random.integers(-127, 128, (2, 1, 3, 3)), np.int8)
    scales, zeros = net.constant([0.01, 0.02]), net.constant([0, 0], np.int8)
    kernel = net.node("DequantizeLinear", weights, scales, zeros, axis=0)
    conv = net.node("Conv", image, kernel, name="conv")
    step = net.constant(0.05), net.constant(100, np.uint8)
    made = net.node("DequantizeLinear", net.node("QuantizeLinear", conv, *step), *step)
    opened = explained(net.model(net.head(net.node("Relu", made, name="relu"), 32)))

    quantised = np.array(net_values(net, weights), float) * np.array([0.01, 0.02])[:, None, None, None]
    for place in np.ndindex(2, 4, 4):
        response = opened.explain("conv", *place)
        np.testing.assert_allclose(response.weighted_sum.weights, quantised[place[0]].ravel(), rtol=1e-6)
        # What the network goes on with is rounded to steps of 0.05, from −5 to 7.75.
        assert abs(np.clip(response.result, -5, 7.75) - response.activation) <= 0.0251
        opened.checked("relu", *place)


def net_values(net, name):
    from onnx import numpy_helper

    return next(numpy_helper.to_array(tensor) for tensor in net.initializers if tensor.name == name)


@pytest.mark.parametrize("across_first", [0, 1])
@pytest.mark.parametrize("across_second", [0, 1])
@pytest.mark.parametrize("bias", [(), (1,), (4,), (1, 4)])
def test_gemm(builder, explained, across_first, across_second, bias):
    net = builder(["N", 1, 3, 2])
    flat = net.node("Flatten", "x", name="flatten")
    if across_first:
        flat = net.node("Transpose", flat, perm=[1, 0], name="turned")
    weights = net.weights(4, 6) if across_second else net.weights(6, 4)
    more = [net.weights(*bias)]
    dense = net.node(
        "Gemm", flat, weights, *more, name="dense", alpha=0.5, beta=2.0, transA=across_first, transB=across_second
    )
    opened = explained(net.model(dense))
    responses = opened.all_units("dense")
    assert len(responses) == 4
    assert {len(response.weighted_sum.weights) for response in responses} == {6}
    assert all(response.receptive_field.height == 3 for response in responses)


@pytest.mark.parametrize("where", ["second", "first"])
def test_a_matrix_product_with_its_bias_is_one_layer(builder, explained, where):
    net = builder(["N", 1, 3, 2])
    if where == "second":
        flat = net.node("Flatten", "x", name="flatten")
        product = net.node("MatMul", flat, net.weights(6, 4), name="dense")
        opened = explained(net.model(net.node("Add", product, net.weights(4))))
        assert all(response.weighted_sum.bias for response in opened.all_units("dense"))
    else:
        product = net.node("MatMul", net.weights(4, 3), "x", name="dense")
        opened = explained(net.model(net.node("Flatten", product, name="flatten")))
        responses = opened.all_units("dense")
        assert list(responses[0].weighted_sum.weights) == list(net_values(net, "constant_0")[0])


def test_attention_takes_the_weights_from_another_layer(builder, explained):
    net = builder(["N", 3, 4, 4])
    tokens = net.node("Reshape", "x", net.constant([0, 3, 16], np.int64), name="tokens")
    turned = net.node("Transpose", tokens, perm=[0, 2, 1], name="turned")
    product = net.node("MatMul", tokens, turned, name="product")
    opened = explained(net.model(net.node("Flatten", net.node("Softmax", product, name="attention"))))
    for response in opened.all_units("product"):
        assert response.weighted_sum.patch.layer == "tokens"
        assert response.unit.channel == response.weighted_sum.patch.first_channel
    opened.all_units("attention")
    opened.all_units("turned")


def test_a_dense_layer_over_channels_that_stand_last(builder, explained):
    net = builder(["N", 3, 4, 5])
    last = net.node("Transpose", "x", perm=[0, 2, 3, 1], name="last")
    product = net.node("MatMul", last, net.weights(3, 2), name="dense")
    opened = explained(
        net.model(net.node("Flatten", net.node("ReduceMean", product, net.constant([1, 2], np.int64), name="mean")))
    )
    for response in opened.all_units("dense"):
        patch = response.weighted_sum.patch
        assert (patch.first_row, patch.first_column) == (response.unit.row, response.unit.column)
        assert list(patch.shape) == [3, 1, 1]
        region = response.receptive_field
        assert (region.top, region.left, region.height, region.width) == (response.unit.row, response.unit.column, 1, 1)
    opened.all_units("mean")


def test_a_convolution_that_does_not_move_over_rows_and_columns(builder, explained):
    net = builder(["N", 1, 3, 8])
    line = net.node("Reshape", "x", net.constant([0, 3, 8], np.int64), name="line")
    conv = net.node("Conv", line, net.weights(2, 3, 3), name="conv")
    opened = explained(net.model(net.node("Flatten", conv)))
    with pytest.raises(Unimplemented, match="layer 'conv' is of the kind conv"):
        opened.explain("conv")
