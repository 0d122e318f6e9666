"""Activations and normalisations: the formulas are read and computed as they stand in the answer."""

from __future__ import annotations

import numpy as np
import pytest

from convlens_server.explain.functions import ACTIVATIONS
from opened import Builder

# Attributes other than the defaults.
ATTRIBUTES = {
    "Celu": {"alpha": 0.7},
    "Elu": {"alpha": 1.3},
    "HardSigmoid": {"alpha": 0.4, "beta": 0.3},
    "LeakyRelu": {"alpha": 0.2},
    "QuickGelu": {"alpha": 1.2},
    "Selu": {"alpha": 1.5, "gamma": 1.1},
    "Swish": {"alpha": 0.8},
    "ThresholdedRelu": {"alpha": 0.4},
}
CONTRIBUTED = ("FastGelu", "QuickGelu")
# Opset 24 of Swish is younger than onnxruntime's builds for it.
YOUNG = ("Swish",)
POSITIVE = ("Log", "Reciprocal", "Sqrt")


def with_both_signs(net: Builder, low: float = -3.0, high: float = 3.0) -> str:
    """Pixels, spread from low to high."""
    return net.node("Add", net.node("Mul", "x", net.constant(high - low)), net.constant(low), name="spread")


@pytest.mark.parametrize("given", [False, True], ids=["defaults", "attributes"])
@pytest.mark.parametrize("op_type", sorted(set(ACTIVATIONS) - set(YOUNG)))
def test_activations(builder, explained, op_type, given):
    attributes = ATTRIBUTES.get(op_type, {}) if given else {}
    net = builder(["N", 1, 4, 5], opset=20)
    source = with_both_signs(net, *((0.1, 3.0) if op_type in POSITIVE else ()))
    domain = "com.microsoft" if op_type in CONTRIBUTED else ""
    made = net.node(op_type, source, name="layer", domain=domain, **attributes)
    opened = explained(net.model(net.head(made, 20)))
    for response in opened.all_units("layer"):
        assert list(response.function.patch.shape) == [1, 1, 1]
        for name, value in attributes.items():
            assert response.function.parameters[name] == pytest.approx(value)


def test_gelu_by_tanh(builder, explained):
    net = builder(["N", 1, 4, 5], opset=20)
    opened = explained(
        net.model(net.head(net.node("Gelu", with_both_signs(net), name="layer", approximate="tanh"), 20))
    )
    assert "tanh" in opened.all_units("layer")[0].function.formula


@pytest.mark.parametrize(
    ("bounds", "formula", "kind"),
    [
        ((0.0, 6.0), "min(max(x, min), max)", "relu6"),
        ((-1.0, 0.5), "min(max(x, min), max)", "clip"),
        ((None, 0.5), "min(x, max)", "clip"),
        ((-0.5, None), "max(x, min)", "clip"),
    ],
)
@pytest.mark.parametrize("opset", [10, 18])
def test_clip(builder, explained, bounds, formula, kind, opset):
    net = builder(["N", 1, 4, 5], opset=opset)
    source = with_both_signs(net, -2, 8) if opset > 10 else "x"
    if opset == 10:
        named = {name: bound for name, bound in zip(("min", "max"), bounds, strict=True) if bound is not None}
        clipped = net.node("Clip", source, name="layer", **named)
    else:
        operands = ["" if bound is None else net.constant(bound) for bound in bounds]
        clipped = net.node("Clip", source, *operands, name="layer")
    opened = explained(net.model(net.head(clipped, 20)))
    responses = opened.all_units("layer")
    assert {(response.kind, response.function.formula) for response in responses} == {(kind, formula)}


def test_prelu_has_a_slope_for_each_channel(builder, explained):
    net = builder(["N", 3, 3, 2])
    made = net.node("PRelu", with_both_signs(net), net.constant([[[0.1]], [[0.2]], [[0.3]]]), name="layer")
    opened = explained(net.model(net.head(made, 18)))
    for response in opened.all_units("layer"):
        assert response.function.parameters["slope"] == pytest.approx(0.1 * (response.unit.channel + 1))


def positive(net: Builder, size: int) -> str:
    return net.constant(net.random.uniform(0.5, 1.5, size))


def test_batch_norm(builder, explained):
    net = builder(["N", 3, 3, 2])
    conv = net.node("Conv", "x", net.weights(3, 3, 1, 1), name="conv")
    inputs = positive(net, 3), net.weights(3), net.weights(3), positive(net, 3)
    made = net.node("BatchNormalization", conv, *inputs, name="layer", epsilon=1e-3)
    opened = explained(net.model(net.head(made, 18)))
    for response in opened.all_units("layer"):
        assert set(response.function.parameters) == {"scale", "bias", "mean", "variance", "epsilon"}


@pytest.mark.parametrize("op_type", ["InstanceNormalization", "GroupNormalization", "LayerNormalization"])
def test_normalisations_of_the_image_itself(builder, explained, op_type):
    net = builder(["N", 3, 4, 2], opset=21)
    attributes = {
        "InstanceNormalization": {},
        "GroupNormalization": {"num_groups": 3},
        "LayerNormalization": {"axis": 2},
    }
    size = (4, 2) if op_type == "LayerNormalization" else (3,)
    scale = net.constant(net.random.uniform(0.5, 1.5, size))
    made = net.node(op_type, "x", scale, net.weights(*size), name="layer", **attributes[op_type])
    opened = explained(net.model(net.head(made, 24)))
    opened.all_units("layer")


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_norm(builder, explained, size):
    net = builder(["N", 3, 3, 2])
    wide = net.node("Conv", "x", net.weights(6, 3, 1, 1), name="conv")
    made = net.node("LRN", wide, name="layer", size=size, alpha=0.5, beta=0.6, bias=1.5)
    opened = explained(net.model(net.head(made, 36)))
    for response in opened.all_units("layer"):
        assert response.function.parameters["size"] == size


def test_a_float16_network(builder, explained):
    from onnx import TensorProto

    net = builder(["N", 1, 4, 5], TensorProto.FLOAT16)
    conv = net.node("Conv", "x", net.weights(2, 1, 3, 3, dtype=np.float16), name="conv")
    made = net.node("Sigmoid", conv, name="layer")
    opened = explained(net.model(net.head(made, 12, dtype=np.float16), shape=["N", 2]))
    for name in ("conv", "layer", "flatten", "output"):
        shape = (*opened.maps[name].shape, 1, 1)[:3]
        for place in np.ndindex(*shape):
            response = opened.explain(name, *map(int, place))
            # A value has 11 bits.
            assert response.result == pytest.approx(response.activation, rel=2**-10, abs=2**-11)
