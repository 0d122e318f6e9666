"""The gradients of functions of one value: activations, roots, exponentials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx

from convlens_server.attribution.writer import NoRule, Rule, Writer
from convlens_server.graph import attribute


def _by(derivative: Callable[[Writer, onnx.NodeProto], str]) -> Rule:
    """The rule of a function of one value, by its derivative."""

    def rule(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
        if position:
            raise NoRule("whose parameters depend on the image")
        return w.node("Mul", reaching[0], derivative(w, node))

    return rule


def _piecewise(inside: Callable[[Writer, onnx.NodeProto], tuple[float | None, float | None, float]]) -> Rule:
    """The rule of a function that is a straight line between two limits and constant beyond them."""

    def rule(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
        if position:
            raise NoRule("whose limits depend on the image")
        low, high, slope = inside(w, node)
        name = reaching[0] if slope == 1 else w.scaled(reaching[0], slope)
        return w.where(w.between(w.value(node.input[0]), low, high), name)

    return rule


def _clip_limits(w: Writer, node: onnx.NodeProto) -> tuple[float | None, float | None, float]:
    limits: list[float | None] = []
    for position, name in ((1, "min"), (2, "max")):
        limit = attribute(node, name)
        if limit is None and len(node.input) > position and node.input[position]:
            values = w.graph.constant(node.input[position])
            if values is None:
                raise NoRule("whose limits depend on the image")
            limit = float(values)
        limits.append(limit)
    return limits[0], limits[1], 1.0


def _hard_sigmoid_limits(alpha: float, beta: float) -> tuple[float, float, float]:
    return -beta / alpha, (1 - beta) / alpha, alpha


def _hard_sigmoid(w: Writer, node: onnx.NodeProto) -> tuple[float | None, float | None, float]:
    return _hard_sigmoid_limits(float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5)))


def _hard_swish(w: Writer, node: onnx.NodeProto) -> str:
    """0 below −3, 1 above 3, (2 x + 3) ÷ 6 between."""
    value = w.value(node.input[0])
    line = w.node("Add", w.scaled(value, 1 / 3), w.constant(0.5))
    above = w.node("Where", w.between(value, None, 3.0), line, w.constant(1.0))
    return w.where(w.between(value, -3.0, None), above)


def _leaky(w: Writer, node: onnx.NodeProto) -> str:
    value = w.value(node.input[0])
    slope = w.value(node.input[1]) if node.op_type == "PRelu" else w.constant(float(attribute(node, "alpha", 0.01)))
    return w.node("Where", w.between(value, 0.0, None), w.constant(1.0), slope)


def _elu(w: Writer, node: onnx.NodeProto) -> str:
    below = w.node("Add", w.value(node.output[0]), w.constant(float(attribute(node, "alpha", 1.0))))
    return w.node("Where", w.between(w.value(node.input[0]), 0.0, None), w.constant(1.0), below)


def _sigmoid(w: Writer, node: onnx.NodeProto) -> str:
    output = w.value(node.output[0])
    return w.node("Mul", output, w.node("Sub", w.constant(1.0), output))


def _tanh(w: Writer, node: onnx.NodeProto) -> str:
    output = w.value(node.output[0])
    return w.node("Sub", w.constant(1.0), w.node("Mul", output, output))


def _erf(w: Writer, node: onnx.NodeProto) -> str:
    value = w.value(node.input[0])
    return w.scaled(w.node("Exp", w.node("Neg", w.node("Mul", value, value))), 2 / math.sqrt(math.pi))


def _gelu(w: Writer, node: onnx.NodeProto) -> str:
    """Φ(x) + x φ(x), the normal distribution and its density."""
    if attribute(node, "approximate", b"none") != b"none":
        raise NoRule("by its approximation")
    value = w.value(node.input[0])
    below = w.scaled(w.node("Add", w.node("Erf", w.scaled(value, math.sqrt(0.5))), w.constant(1.0)), 0.5)
    density = w.scaled(w.node("Exp", w.scaled(w.node("Mul", value, value), -0.5)), 1 / math.sqrt(2 * math.pi))
    return w.node("Add", below, w.node("Mul", value, density))


def _sqrt(w: Writer, node: onnx.NodeProto) -> str:
    return w.node("Div", w.constant(0.5), w.value(node.output[0]))


FUNCTIONS: Mapping[str, Rule] = {
    "Clip": _piecewise(_clip_limits),
    "Elu": _by(_elu),
    "Erf": _by(_erf),
    "Exp": _by(lambda w, node: w.value(node.output[0])),
    "Gelu": _by(_gelu),
    "HardSigmoid": _piecewise(_hard_sigmoid),
    "HardSwish": _by(_hard_swish),
    "LeakyRelu": _by(_leaky),
    "Log": lambda w, node, position, reaching: w.node("Div", reaching[0], w.value(node.input[0])),
    "Neg": lambda w, node, position, reaching: w.node("Neg", reaching[0]),
    "PRelu": _by(_leaky),
    "Relu": _piecewise(lambda w, node: (0.0, None, 1.0)),
    "Sigmoid": _by(_sigmoid),
    "Sqrt": _by(_sqrt),
    "Tanh": _by(_tanh),
}
