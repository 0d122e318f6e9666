"""Units that are a weighted sum: of convolutions, dense layers and matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from convlens.v1 import convlens_pb2 as pb
from convlens_server.explain.operands import Operands, Taken, Values, broadcast_index
from convlens_server.graph import attribute
from convlens_server.operators import window

_MOST_LARGEST = 20


def convolution(operands: Operands) -> tuple[float, pb.WeightedSum]:
    """Of Conv: any stride, padding, dilation and groups."""
    view = window(operands.anatomy.graph, operands.node, operands.anatomy.types)
    values, weights, bias = operands.input(0), operands.input(1), operands.optional(2)
    if view is None or values.ndim != 4:
        raise operands.unexplained(" where it does not move over rows and columns")
    _, channel, row, column = operands.index
    count = weights.shape[1]
    first_channel = channel // (len(weights) // operands.layer.groups) * count
    first = (row * view.stride[0] - view.padding[0], column * view.stride[1] - view.padding[1])
    cut, _ = cut_window(values[0, first_channel : first_channel + count], first, view.kernel, view.dilation, 0.0)
    taken = operands.patch(
        operands.name(0), (count, *view.kernel), (first_channel, *first), np.ravel(cut), view.dilation
    )
    return _weighted_sum(taken, weights[channel], 0.0 if bias is None else float(bias[channel]))


def transposed_convolution(operands: Operands) -> tuple[float, pb.WeightedSum]:
    """Of ConvTranspose: the input units whose windows reach the unit, each with the weight that lies on it."""
    view = window(operands.anatomy.graph, operands.node, operands.anatomy.types)
    values, weights, bias = operands.input(0), operands.input(1), operands.optional(2)
    if view is None or values.ndim != 4:
        raise operands.unexplained(" where it does not move over rows and columns")
    _, channel, *place = operands.index
    outputs, count = weights.shape[1], len(weights) // operands.layer.groups
    first_channel = channel // outputs * count
    positions, offsets, steps = [], [], []
    for n in (0, 1):
        kernel, stride, dilation = view.kernel[n], view.stride[n], view.dilation[n]
        shifted = place[n] + view.padding[n]
        # Of one input unit, stride × its position + dilation × its weight's offset is `shifted`.
        reached = [k for k in range(kernel - 1, -1, -1) if (shifted - k * dilation) % stride == 0]
        positions.append([(shifted - k * dilation) // stride for k in reached])
        offsets.append(reached)
        steps.append(dilation // math.gcd(dilation, stride))
    kernel_part = weights[first_channel : first_channel + count, channel % outputs][:, offsets[0]][:, :, offsets[1]]
    rows, columns = positions
    first = (rows[0] if rows else 0, columns[0] if columns else 0)
    sizes = (len(rows), len(columns))
    step = (steps[0], steps[1])
    cut, _ = cut_window(values[0, first_channel : first_channel + count], first, sizes, step, 0.0)
    taken = operands.patch(operands.name(0), (count, *sizes), (first_channel, *first), np.ravel(cut), step)
    return _weighted_sum(taken, kernel_part, 0.0 if bias is None else float(bias[channel]))


def general_matrix_product(operands: Operands) -> tuple[float, pb.WeightedSum]:
    """Of Gemm; its factor alpha is in the weights, beta in the bias."""
    node, (row, column) = operands.node, operands.index
    first, second, bias = operands.input(0), operands.input(1), operands.optional(2)
    across_first, across_second = bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0))
    lines = (
        ((0, row) if across_first else (row, 0), 0 if across_first else 1),
        ((column, 0) if across_second else (0, column), 1 if across_second else 0),
    )
    added = 0.0
    if bias is not None:
        shape = operands.values[operands.layer.tensor].shape
        added = float(np.broadcast_to(bias, shape)[operands.index]) * float(attribute(node, "beta", 1.0))
    return _product(operands, (first, second), lines, float(attribute(node, "alpha", 1.0)), added)


def matrix_product(operands: Operands) -> tuple[float, pb.WeightedSum]:
    """Of MatMul, with the bias that is added behind it; of two activations the second's values are the weights."""
    first, second = operands.input(0), operands.input(1)
    index = list(operands.index)
    column = index.pop() if second.ndim > 1 else 0
    row = index.pop() if first.ndim > 1 else 0
    lines: list[tuple[tuple[int, ...], int]] = []
    for values, is_second in ((first, False), (second, True)):
        if values.ndim == 1:
            lines.append(((0,), 0))
            continue
        outer = broadcast_index(values.shape[:-2], index)
        own = (*outer, 0, column) if is_second else (*outer, row, 0)
        lines.append((own, values.ndim - (2 if is_second else 1)))
    bias = 0.0
    if operands.bias is not None:
        name = next(name for name in operands.bias.input if operands.anatomy.graph.is_constant(name))
        bias = float(np.ravel(operands.values[name])[operands.index[-1]])
    return _product(operands, (first, second), lines, 1.0, bias)


def cut_window(
    values: Values, first: tuple[int, int], size: tuple[int, int], step: tuple[int, int], fill: float
) -> tuple[Values, npt.NDArray[np.bool_]]:
    """The values under a window: channels × rows × columns.

    Args:
        values: Channels × height × width.
        first: Row and column of the window's first position; may lie outside.
        size: Rows and columns of the window.
        step: Rows and columns between its positions.
        fill: For positions outside.

    Returns:
        The values, and for each row and column whether it is inside.
    """
    rows, columns = (first[n] + step[n] * np.arange(size[n]) for n in (0, 1))
    inside = ((rows >= 0) & (rows < values.shape[1]))[:, None] & (columns >= 0) & (columns < values.shape[2])
    last_row, last_column = values.shape[1] - 1, values.shape[2] - 1
    cut = values[:, np.clip(rows, 0, last_row)[:, None], np.clip(columns, 0, last_column)]
    return np.where(inside, cut, np.asarray(fill, values.dtype)), inside


def _product(
    operands: Operands,
    factors: tuple[Values, Values],
    lines: Sequence[tuple[Sequence[int], int]],
    alpha: float,
    bias: float,
) -> tuple[float, pb.WeightedSum]:
    """A line of one factor times one of the other; lines are an index and the axis along which they go."""
    taking = 1 if operands.is_constant(0) and not operands.is_constant(1) else 0
    taken = operands.box(operands.name(taking), lines[taking][0], (lines[taking][1],))
    index, axis = lines[1 - taking]
    weights = factors[1 - taking][tuple(slice(None) if n == axis else at for n, at in enumerate(index))]
    return _weighted_sum(taken, weights.astype(np.float64) * alpha, bias)


def _weighted_sum(taken: Taken, weights: Values, bias: float) -> tuple[float, pb.WeightedSum]:
    factors = np.ravel(weights).astype(np.float64)
    products = taken.values * factors
    total = float(products.sum())
    message = pb.WeightedSum(
        patch=taken.patch,
        weights=factors,
        products=products,
        channel_sums=products.reshape(taken.patch.shape[0], -1).sum(1),
        sum=total,
        bias=bias,
        largest=np.argsort(-np.abs(products), kind="stable")[:_MOST_LARGEST],
    )
    return total + bias, message
