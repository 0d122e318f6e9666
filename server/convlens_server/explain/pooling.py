"""Units that are the largest or the mean value of a window, or of all positions."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from convlens.v1 import convlens_pb2 as pb
from convlens_server.explain.operands import Operands, Taken
from convlens_server.explain.weighted import cut_window
from convlens_server.graph import attribute
from convlens_server.operators import window


def max_pool(operands: Operands) -> tuple[float, pb.Pooling]:
    """Of MaxPool: what lies in padding is −∞."""
    taken, _, _ = _window(operands, -np.inf)
    return _largest(taken)


def average_pool(operands: Operands) -> tuple[float, pb.Pooling]:
    """Of AveragePool; padding is counted or not, as the node says, but never what lies beyond it in ceil mode."""
    taken, inside, padded = _window(operands, 0.0)
    return _mean(taken, padded if attribute(operands.node, "count_include_pad", 0) else inside)


def global_pool(operands: Operands) -> tuple[float, pb.Pooling]:
    """Of GlobalAveragePool and GlobalMaxPool."""
    axes = range(2, operands.input(0).ndim)
    taken = operands.box(operands.name(0), operands.index, axes)
    return _largest(taken) if operands.node.op_type == "GlobalMaxPool" else _mean(taken, len(taken.values))


def reduction(operands: Operands) -> tuple[float, pb.Pooling]:
    """Of ReduceMax, ReduceMean and ReduceSum; the divisor of a sum is 1."""
    node, rank = operands.node, operands.input(0).ndim
    chosen = operands.optional(1)
    axes = attribute(node, "axes") if chosen is None else [int(axis) for axis in np.ravel(chosen)]
    reduced = {axis % rank for axis in axes} if axes else set(range(rank))
    if not axes and attribute(node, "noop_with_empty_axes", 0):
        reduced = set()
    taken = operands.box(operands.name(0), _before(operands, reduced, rank), reduced)
    if node.op_type == "ReduceMax":
        return _largest(taken)
    return _mean(taken, len(taken.values) if node.op_type == "ReduceMean" else 1)


def _before(operands: Operands, reduced: Collection[int], rank: int) -> list[int]:
    """The index of one of the values that a reduction takes for the unit."""
    index = list(operands.index)
    if attribute(operands.node, "keepdims", 1):
        return [0 if axis in reduced else n for axis, n in enumerate(index)]
    return [0 if axis in reduced else index.pop(0) for axis in range(rank)]


def _window(operands: Operands, fill: float) -> tuple[Taken, int, int]:
    """The values under the unit's window, how many are inside, and how many are inside or in padding."""
    view = window(operands.anatomy.graph, operands.node, operands.anatomy.types)
    values = operands.input(0)
    if view is None or values.ndim != 4:
        raise operands.unexplained(" where it does not move over rows and columns")
    _, channel, row, column = operands.index
    first = (row * view.stride[0] - view.padding[0], column * view.stride[1] - view.padding[1])
    cut, inside = cut_window(values[0, channel : channel + 1], first, view.kernel, view.dilation, fill)
    taken = operands.patch(operands.name(0), (1, *view.kernel), (channel, *first), np.ravel(cut), view.dilation)
    padded = 1
    for n in (0, 1):
        positions = first[n] + view.dilation[n] * np.arange(view.kernel[n])
        # The window begins in padding at the earliest, so it can only end beyond it.
        padded *= int((positions < values.shape[2 + n] + view.padding[2 + n]).sum())
    return taken, int(inside.sum()), padded


def _largest(taken: Taken) -> tuple[float, pb.Pooling]:
    argmax = int(np.argmax(taken.values))
    return float(taken.values[argmax]), pb.Pooling(patch=taken.patch, argmax=argmax)


def _mean(taken: Taken, divisor: int) -> tuple[float, pb.Pooling]:
    total = float(taken.values.sum())
    return total / divisor, pb.Pooling(patch=taken.patch, sum=total, divisor=divisor)
