"""Units that are a function of one value: activations and normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from convlens.v1 import convlens_pb2 as pb
from convlens_server.explain.operands import Operands
from convlens_server.graph import attribute

_NORMALISED = "scale × (x − mean) ÷ √(variance + epsilon) + bias"


class _Formula(NamedTuple):
    """An activation.

    Attributes:
        text: In x and the names of the parameters.
        compute: The same, of x and the parameters by name.
        parameters: Attributes of the node, with their defaults.
    """

    text: str
    compute: Callable[..., float]
    parameters: Mapping[str, float] = {}


def _exp(x: float) -> float:
    return float(np.exp(np.float64(x)))


def _sigmoid(x: float) -> float:
    return 1 / (1 + _exp(-x))


def _softplus(x: float) -> float:
    return float(np.logaddexp(0.0, x))


def _gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def _gelu_tanh(x: float) -> float:
    return x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


_GELU_TANH = _Formula("x × (1 + tanh(√(2 ÷ π) × (x + 0.044715 × x³))) ÷ 2", _gelu_tanh)

ACTIVATIONS: Mapping[str, _Formula] = {
    "Abs": _Formula("|x|", abs),
    "Ceil": _Formula("⌈x⌉", np.ceil),
    "Celu": _Formula(
        "max(0, x) + min(0, alpha × (e^(x ÷ alpha) − 1))",
        lambda x, alpha: max(0.0, x) + min(0.0, alpha * (_exp(x / alpha) - 1)),
        {"alpha": 1.0},
    ),
    "Elu": _Formula(
        "x if x ≥ 0, else alpha × (e^x − 1)", lambda x, alpha: x if x >= 0 else alpha * (_exp(x) - 1), {"alpha": 1.0}
    ),
    "Erf": _Formula("erf(x)", math.erf),
    "Exp": _Formula("e^x", _exp),
    "FastGelu": _GELU_TANH,
    "Floor": _Formula("⌊x⌋", np.floor),
    "Gelu": _Formula("x × (1 + erf(x ÷ √2)) ÷ 2", _gelu),
    "HardSigmoid": _Formula(
        "max(0, min(1, alpha × x + beta))",
        lambda x, alpha, beta: max(0.0, min(1.0, alpha * x + beta)),
        {"alpha": 0.2, "beta": 0.5},
    ),
    "HardSwish": _Formula("x × max(0, min(1, x ÷ 6 + 0.5))", lambda x: x * max(0.0, min(1.0, x / 6 + 0.5))),
    "LeakyRelu": _Formula("x if x ≥ 0, else alpha × x", lambda x, alpha: x if x >= 0 else alpha * x, {"alpha": 0.01}),
    "Log": _Formula("ln(x)", np.log),
    "Mish": _Formula("x × tanh(ln(1 + e^x))", lambda x: x * math.tanh(_softplus(x))),
    "Neg": _Formula("−x", lambda x: -x),
    "QuickGelu": _Formula("x ÷ (1 + e^(−alpha × x))", lambda x, alpha: x * _sigmoid(alpha * x), {"alpha": 1.702}),
    "Reciprocal": _Formula("1 ÷ x", np.reciprocal),
    "Relu": _Formula("max(0, x)", lambda x: max(0.0, x)),
    "Round": _Formula("x rounded, halves to even", np.rint),
    "Selu": _Formula(
        "gamma × x if x ≥ 0, else gamma × alpha × (e^x − 1)",
        lambda x, alpha, gamma: gamma * (x if x >= 0 else alpha * (_exp(x) - 1)),
        {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    ),
    "Sigmoid": _Formula("1 ÷ (1 + e^(−x))", _sigmoid),
    "Softplus": _Formula("ln(1 + e^x)", _softplus),
    "Softsign": _Formula("x ÷ (1 + |x|)", lambda x: x / (1 + abs(x))),
    "Sqrt": _Formula("√x", np.sqrt),
    "Swish": _Formula("x ÷ (1 + e^(−alpha × x))", lambda x, alpha: x * _sigmoid(alpha * x), {"alpha": 1.0}),
    "Tanh": _Formula("tanh(x)", math.tanh),
    "ThresholdedRelu": _Formula("x if x > alpha, else 0", lambda x, alpha: x if x > alpha else 0.0, {"alpha": 1.0}),
}


def activation(operands: Operands) -> tuple[float, pb.Function]:
    """Of the operators in `ACTIVATIONS`."""
    node = operands.node
    if len(node.input) > 1:
        raise operands.unexplained(" with a bias of its own")
    formula = ACTIVATIONS[node.op_type]
    if node.op_type == "Gelu" and attribute(node, "approximate", b"none") == b"tanh":
        formula = _GELU_TANH
    parameters = {name: float(attribute(node, name, default)) for name, default in formula.parameters.items()}
    return _function(operands, formula.text, formula.compute, parameters)


def clip(operands: Operands) -> tuple[float, pb.Function]:
    """Of Clip, relu6 among them."""
    parameters = {}
    for position, name in ((1, "min"), (2, "max")):
        bound = operands.number(position)
        bound = attribute(operands.node, name) if bound is None else bound
        if bound is not None:
            parameters[name] = float(bound)
    text = "max(x, min)" if "min" in parameters else "x"
    text = f"min({text}, max)" if "max" in parameters else text

    def compute(x: float, min: float = -math.inf, max: float = math.inf) -> float:  # noqa: A002 - as the formula has it
        return float(np.minimum(np.maximum(x, min), max))

    return _function(operands, text, compute, parameters)


def prelu(operands: Operands) -> tuple[float, pb.Function]:
    """Of PRelu."""
    slope = float(np.broadcast_to(operands.input(1), operands.input(0).shape)[operands.index])
    text = "x if x ≥ 0, else slope × x"
    return _function(operands, text, lambda x, slope: x if x >= 0 else slope * x, {"slope": slope})


def batch_norm(operands: Operands) -> tuple[float, pb.Function]:
    """Of BatchNormalization: mean and variance are those of training."""
    scale, bias, mean, variance = (float(operands.input(n)[operands.index[1]]) for n in (1, 2, 3, 4))
    return _normalised(operands, scale, bias, mean, variance)


def layer_norm(operands: Operands) -> tuple[float, pb.Function]:
    """Of LayerNormalization: mean and variance are those of the unit's own position."""
    values = operands.input(0)
    axis = int(attribute(operands.node, "axis", -1)) % values.ndim
    own = values[operands.index[:axis]].astype(np.float64)
    factors = []
    for position, default in ((1, 1.0), (2, 0.0)):
        given = operands.optional(position)
        factors.append(default if given is None else float(np.broadcast_to(given, values.shape)[operands.index]))
    return _normalised(operands, factors[0], factors[1], float(own.mean()), float(own.var()))


def instance_norm(operands: Operands) -> tuple[float, pb.Function]:
    """Of InstanceNormalization: mean and variance are those of the unit's channel."""
    channel = operands.index[1]
    own = operands.input(0)[0, channel].astype(np.float64)
    scale, bias = (float(operands.input(n)[channel]) for n in (1, 2))
    return _normalised(operands, scale, bias, float(own.mean()), float(own.var()))


def group_norm(operands: Operands) -> tuple[float, pb.Function]:
    """Of GroupNormalization: mean and variance are those of the unit's group of channels."""
    channel, channels = operands.index[1], operands.input(0).shape[1]
    groups = int(attribute(operands.node, "num_groups"))
    own = operands.input(0)[0].reshape(groups, -1)[channel * groups // channels].astype(np.float64)
    scale, bias = (float(operands.input(n)[channel]) for n in (1, 2))
    return _normalised(operands, scale, bias, float(own.mean()), float(own.var()))


def local_response_norm(operands: Operands) -> tuple[float, pb.Function]:
    """Of LRN: `square_sum` is that of the `size` channels around the unit's."""
    values, channel = operands.input(0), operands.index[1]
    size = int(attribute(operands.node, "size"))
    first = max(channel - (size - 1) // 2, 0)
    around = range(first, min(channel + size // 2 + 1, values.shape[1]))
    squares = [float(values[(0, n, *operands.index[2:])]) ** 2 for n in around]
    parameters = {"size": float(size), "square_sum": math.fsum(squares)}
    for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)):
        parameters[name] = float(attribute(operands.node, name, default))

    def compute(x: float, size: float, square_sum: float, alpha: float, beta: float, bias: float) -> float:
        return float(x / (bias + alpha / size * square_sum) ** beta)

    return _function(operands, "x ÷ (bias + alpha ÷ size × square_sum)^beta", compute, parameters)


def _normalised(
    operands: Operands, scale: float, bias: float, mean: float, variance: float
) -> tuple[float, pb.Function]:
    parameters = {"scale": scale, "bias": bias, "mean": mean, "variance": variance}
    parameters["epsilon"] = float(attribute(operands.node, "epsilon", 1e-5))

    def compute(x: float, scale: float, bias: float, mean: float, variance: float, epsilon: float) -> float:
        return scale * (x - mean) / math.sqrt(variance + epsilon) + bias

    return _function(operands, _NORMALISED, compute, parameters)


def _function(
    operands: Operands, text: str, compute: Callable[..., float], parameters: Mapping[str, float]
) -> tuple[float, pb.Function]:
    taken = operands.point(operands.name(0), operands.index)
    with np.errstate(all="ignore"):
        result = float(compute(np.float64(taken.values[0]), **parameters))
    return result, pb.Function(patch=taken.patch, formula=text, parameters=parameters)
