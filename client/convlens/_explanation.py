"""What the clients give back of one unit: the arithmetic that makes its activation.

Rows and columns are counted from the top left; regions of the image are in pixels of the model's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Values that are written out one by one.
_MOST_TERMS = 9


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of the image, in pixels. It may begin and end outside, in padding.

    Attributes:
        top: First row; negative above the image.
        left: First column; negative to the left of the image.
        height: Rows.
        width: Columns.
    """

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A part of a layer's output that goes into a unit.

    Attributes:
        layer: Name of the layer that the values are of, or "input": the image as the network takes it, after
            preprocessing. Empty for a constant of the network.
        values: float32, channels × rows × columns; values without positions have 1 row and 1 column. What lies in
            padding is 0 (for max pooling −∞). No rows or columns where nothing goes into a unit of a transposed
            convolution.
        first: Channel, row and column of the first value in the layer's output; row and column negative in padding.
        step: Rows and columns between neighbouring values: the dilation.
    """

    layer: str
    values: npt.NDArray[np.float32]
    first: tuple[int, int, int]
    step: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class WeightedSum:
    """A convolution or a dense unit: Σ value × weight + bias.

    Attributes:
        patch: The values.
        weights: float32, in the shape of the values.
        products: float32, in the shape of the values.
        channel_sums: float64, the products' sum over each channel.
        sum: Of all products.
        bias: 0 where the layer has none.
        largest: Positions among the flat products of those of largest magnitude, largest first; 20 at most.
    """

    patch: Patch
    weights: npt.NDArray[np.float32]
    products: npt.NDArray[np.float32]
    channel_sums: npt.NDArray[np.float64]
    sum: float
    bias: float
    largest: tuple[int, ...]

    def __str__(self) -> str:
        values, weights = self.patch.values.ravel(), self.weights.ravel()
        if values.size <= _MOST_TERMS:
            terms = " + ".join(f"{_factor(a)}·{_factor(b)}" for a, b in zip(values, weights, strict=True))
            return f"{terms or 0}{_plus(self.bias)}"
        return f"(Σ of {values.size:,} values × weights) + bias = {number(self.sum)}{_plus(self.bias)}"


@dataclass(frozen=True, slots=True, eq=False)
class Pooling:
    """The largest or the mean value of a window.

    Attributes:
        patch: The window.
        argmax: For max pooling the position of the largest value among the flat values; else None.
        sum: For average pooling, of the values.
        divisor: For average pooling what the sum is divided by; 0 for max pooling.
    """

    patch: Patch
    argmax: int | None
    sum: float
    divisor: int

    def __str__(self) -> str:
        values = self.patch.values.ravel()
        shown = ", ".join(map(number, values[:_MOST_TERMS])) + (", …" if values.size > _MOST_TERMS else "")
        if self.divisor:
            return f"mean({shown}) = {number(self.sum)} ÷ {self.divisor}"
        return f"max({shown})"


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A function of one value: an activation, or a normalisation.

    Attributes:
        patch: The value x.
        formula: In x and the names of `parameters`, e.g. "max(0, x)".
        parameters: The numbers that the formula names.
    """

    patch: Patch
    formula: str
    parameters: Mapping[str, float]

    def __str__(self) -> str:
        where = {"x": float(self.patch.values.ravel()[0]), **self.parameters}
        return f"{self.formula} with {', '.join(f'{name} = {number(value)}' for name, value in where.items())}"


@dataclass(frozen=True, slots=True, eq=False)
class Elementwise:
    """One value of each of several layers, put together by one operation.

    Attributes:
        patches: One number each.
        operation: "+", "−", "×", "÷", "max", "min" or "^", between each two.
    """

    patches: tuple[Patch, ...]
    operation: str

    def __str__(self) -> str:
        return f" {self.operation} ".join(_factor(patch.values.ravel()[0]) for patch in self.patches)


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """A value that is handed on as it is, by flatten or concat.

    Attributes:
        patch: The value.
    """

    patch: Patch

    def __str__(self) -> str:
        return f"{self.patch.layer}[{', '.join(map(str, self.patch.first))}]"


@dataclass(frozen=True, slots=True, eq=False)
class Softmax:
    """exp(logit) ÷ Σ exp(logits).

    Attributes:
        patch: The logits.
        exponentials: float64, exp(logit − largest logit) of each.
        sum: Of the exponentials.
        index: Position among the logits of the unit's own.
    """

    patch: Patch
    exponentials: npt.NDArray[np.float64]
    sum: float
    index: int

    def __str__(self) -> str:
        logits = self.patch.values.ravel()
        exponential = self.exponentials[self.index]
        return (
            f"exp({number(logits[self.index])} − {number(logits.max())}) ÷ Σ exp = "
            f"{number(exponential)} ÷ {number(self.sum)}"
        )


Arithmetic: TypeAlias = WeightedSum | Pooling | Function | Elementwise | Selection | Softmax


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """One unit explained: what it adds up to, and of what. `str()` of it is a line of arithmetic.

    Attributes:
        layer: The layer's name.
        channel: Its channel; for a layer without positions the unit.
        row: Row of the feature map; 0 for a layer without positions.
        column: Column of the feature map; 0 for a layer without positions.
        kind: The layer's kind.
        result: What the arithmetic adds up to, in double precision.
        activation: What the network computes for the unit; differs from `result` by rounding only.
        receptive_field: What the unit sees of the image.
        arithmetic: How the values before it make it.
        model: Name of the model that answered.
        version: Version that answered, positive.
        compute_ms: Time it took, milliseconds.
    """

    layer: str
    channel: int
    row: int
    column: int
    kind: str
    result: float
    activation: float
    receptive_field: Region
    arithmetic: Arithmetic
    model: str
    version: int
    compute_ms: float

    def __str__(self) -> str:
        unit = f"{self.layer}[{self.channel}, {self.row}, {self.column}]"
        arithmetic = f"log({self.arithmetic})" if self.kind == "log_softmax" else f"{self.arithmetic}"
        return f"{unit} = {arithmetic} = {number(self.result)}"

    def plot(self, figure: Figure | None = None) -> Figure:
        """Draws the values, what is done to them, and what comes of it. Arguments as in `Kernels.plot`."""
        from convlens import _plots

        return _plots.explanation(self, figure)

    def _repr_html_(self) -> str:
        from convlens import _html

        return _html.explanation(self)


def number(value: float | np.floating[Any]) -> str:
    """A number for people: four digits that count, with a minus that is one, and none before 0."""
    return f"{value or 0.0:.4g}".replace("-", "−").replace("inf", "∞")


def _plus(value: float) -> str:
    return f" − {number(-value)}" if value < 0 else f" + {number(value)}"


def _factor(value: np.floating[Any]) -> str:
    return f"({number(value)})" if value < 0 else number(value)
