"""Checks explanations of units as somebody would who has nothing but the answers: by computing them again."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from convlens.v1 import convlens_pb2 as pb

_BETWEEN = {
    "+": np.add,
    "−": np.subtract,
    "×": np.multiply,
    "÷": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "^": np.power,
}
# From what people read to what Python does.
_SPOKEN = {
    "x rounded, halves to even": "round(x)",
    "×": "*",
    "÷": "/",
    "−": "-",
    "^": "**",
    "³": "**3",
    "√2": "sqrt(2)",
    "√": "sqrt",
    ", else": " else",
    "≥": ">=",
    "ln(": "log(",
}


def place_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, rows and columns of a layer."""
    if len(shape) > 3:
        return math.prod(shape[:-2]), shape[-2], shape[-1]
    channels, rows, columns = (*shape, 1, 1, 1)[:3]
    return channels, rows, columns


def recomputed(response: pb.ExplainUnitResponse) -> tuple[float, float]:
    """What an explanation adds up to, and the sum of its terms' magnitudes."""
    kind = response.WhichOneof("arithmetic")
    if kind == "weighted_sum":
        terms = response.weighted_sum
        values, weights = np.array(terms.patch.values, float), np.array(terms.weights, float)
        np.testing.assert_allclose(terms.products, values * weights, rtol=1e-6, atol=1e-30)
        channels = (values * weights).reshape(terms.patch.shape[0], -1).sum(1)
        np.testing.assert_allclose(terms.channel_sums, channels, rtol=1e-6, atol=1e-9 * np.abs(values * weights).sum())
        order = np.abs(values * weights)[list(terms.largest)]
        assert len(order) == len(set(terms.largest)) == min(20, len(values))
        assert (order[:-1] >= order[1:] * (1 - 1e-6)).all()
        return float(values @ weights) + terms.bias, float(np.abs(values) @ np.abs(weights)) + abs(terms.bias)
    if kind == "pooling":
        values = np.array(response.pooling.patch.values, float)
        if response.pooling.HasField("argmax"):
            assert response.pooling.divisor == 0
            assert response.pooling.argmax == values.argmax()
            return values.max(), 0.0
        divisor = response.pooling.divisor
        return float(values.sum()) / divisor, float(np.abs(values).sum()) / divisor
    if kind == "function":
        text = response.function.formula
        for spoken, python in _SPOKEN.items():
            text = text.replace(spoken, python)
        text = re.sub(r"\|(x)\|", r"abs(\1)", text)
        text = re.sub(r"sqrt(x)", r"sqrt(\1)", text)
        text = re.sub(r"⌊(x)⌋", r"floor(\1)", text)
        text = re.sub(r"⌈(x)⌉", r"ceil(\1)", text)
        text = re.sub(r"\b(min|max)\b(?!\()", r"\1_", text)
        names = {name: getattr(math, name) for name in ("sqrt", "tanh", "erf", "log", "floor", "ceil", "e", "pi")}
        names |= {"π": math.pi, "min": min, "max": max, "abs": abs, "round": round}
        given = {
            "min_" if n == "min" else "max_" if n == "max" else n: v for n, v in response.function.parameters.items()
        }
        [x] = response.function.patch.values
        result = float(eval(text, {"__builtins__": {}}, {**names, **given, "x": x}))
        extra = sum(abs(given.get(name, 0.0)) for name in ("bias",)) + abs(x)
        return result, abs(result) + extra
    if kind == "elementwise":
        numbers = [patch.values[0] for patch in response.elementwise.patches]
        result = functools.reduce(_BETWEEN[response.elementwise.operation], map(np.float64, numbers))
        terms = sum(map(abs, numbers)) if response.elementwise.operation in "+−" else abs(result)
        return float(result), float(terms)
    if kind == "selection":
        return response.selection.patch.values[0], 0.0
    logits = np.array(response.softmax.patch.values, float)
    exponentials = np.exp(logits - logits.max())
    np.testing.assert_allclose(response.softmax.exponentials, exponentials, rtol=1e-9)
    assert math.isclose(response.softmax.sum, exponentials.sum(), rel_tol=1e-9)
    score = exponentials[response.softmax.index] / exponentials.sum()
    result = float(np.log(score)) if response.kind == "log_softmax" else float(score)
    return result, abs(result) + (response.kind == "log_softmax")


def patches(response: pb.ExplainUnitResponse) -> Sequence[pb.Patch]:
    """The patches of an explanation."""
    arithmetic = getattr(response, response.WhichOneof("arithmetic"))
    return arithmetic.patches if isinstance(arithmetic, pb.Elementwise) else [arithmetic.patch]


def check(
    response: pb.ExplainUnitResponse, maps: Mapping[str, npt.NDArray[np.float32]], tolerance: float = 1e-4
) -> None:
    """Checks that an explanation adds up to what the network computes, of values that stand where it says.

    Args:
        response: The explanation.
        maps: By layer, "input" included, the maps of its image: channels × height × width, or as the layer has them.
        tolerance: Relative to the sum of the terms' magnitudes; also that of values against maps.
    """
    unit = response.unit
    own = maps[unit.layer]
    activation = own.reshape(place_shape(own.shape))[unit.channel, unit.row, unit.column]
    result, terms = recomputed(response)
    text = f"{unit.layer} {response.kind} {unit.channel} {unit.row} {unit.column}"
    assert math.isclose(response.activation, activation, rel_tol=tolerance, abs_tol=tolerance * terms + 1e-6), text
    assert math.isclose(response.result, result, rel_tol=1e-6, abs_tol=1e-6 * terms), text
    assert abs(response.result - response.activation) <= tolerance * terms + 1e-30, (
        f"{text}: {response.result} {response.activation} {terms}"
    )
    for patch in patches(response):
        _check_patch(patch, maps, -np.inf if response.pooling.HasField("argmax") else 0.0, tolerance, text)


def _check_patch(
    patch: pb.Patch, maps: Mapping[str, npt.NDArray[np.float32]], outside: float, tolerance: float, text: str
) -> None:
    assert math.prod(patch.shape) == len(patch.values), text
    if not patch.layer:
        return
    source = maps[patch.layer]
    if source.ndim > 3:
        return  # Its positions are those of a table with more than three dimensions.
    source = source.reshape(place_shape(source.shape))
    values = np.array(patch.values).reshape(patch.shape)
    scale = float(np.abs(source).max())
    for (n, r, c), value in np.ndenumerate(values):
        place = (patch.first_channel + n, patch.first_row + r * patch.step[0], patch.first_column + c * patch.step[1])
        inside = all(0 <= position < size for position, size in zip(place, source.shape, strict=True))
        expected = source[place] if inside else outside
        assert value == expected or abs(value - expected) <= tolerance * scale, f"{text}: {place} of {patch.layer}"
