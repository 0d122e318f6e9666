"""How many connections a layer has: pairs of an input unit and a unit that depends on it, padding not counted.

Counted, not measured: from the operators' definitions and the shapes, so a weight of 0 is a connection too. What an
operator does that is not known here might make every unit depend on every input unit, and is counted so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from convlens_server.anatomy import Anatomy
from convlens_server.catalogue import Layer
from convlens_server.graph import attribute
from convlens_server.operators import Window, window
from convlens_server.receptive_field import ELEMENTWISE, REDUCTIONS

# Each unit is one input unit.
_MOVING = frozenset({
    "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip


def count_connections(anatomy: Anatomy, layer: Layer, input_units: int) -> int:
    """The connections of a layer for one image.

    Args:
        anatomy: Of the network.
        layer: Of its catalogue.
        input_units: Units of all the layer's inputs together.
    """
    operation = anatomy.operations[layer.name]
    node = operation.node
    units = math.prod(layer.shape)
    taken = [name for name in dict.fromkeys(node.input) if name in anatomy.sources]
    if not taken or any(name not in anatomy.types for name in taken):
        return units * input_units
    dims = anatomy.types[taken[0]].dims
    match node.op_type:
        case "Conv" | "ConvTranspose" | "MaxPool" | "AveragePool" | "LpPool":
            view = window(anatomy.graph, node, anatomy.types)
            if view is None:
                return units * input_units
            return _windowed(node, view, dims, anatomy.types[operation.output].dims, anatomy)
        case "Gemm":
            return units * dims[0 if attribute(node, "transA", 0) else 1] * len(taken)
        case "MatMul":
            return units * anatomy.types[node.input[0]].dims[-1] * len(taken)
        case "GlobalAveragePool" | "GlobalLpPool" | "GlobalMaxPool":
            return anatomy.units(taken[0])
        case "Softmax" | "LogSoftmax" | "Hardmax":
            one_axis = anatomy.graph.opset >= 13
            axis = int(attribute(node, "axis", -1 if one_axis else 1)) % len(dims)
            return units * (dims[axis] if one_axis else math.prod(dims[axis:]))
        case "LayerNormalization":
            return units * math.prod(dims[int(attribute(node, "axis", -1)) % len(dims) :])
        case "InstanceNormalization":
            return units * math.prod(dims[2:])
        case "GroupNormalization":
            return units * math.prod(dims[1:]) // int(attribute(node, "num_groups", 1))
        case "LpNormalization":
            return units * dims[int(attribute(node, "axis", -1)) % len(dims)]
        case "LRN":
            size = int(attribute(node, "size"))
            before = (size - 1) // 2
            return _pairs(dims[1], dims[1], size, 1, before, 1) * math.prod(dims[2:])
        case "Pad":
            return _padded(node, anatomy, dims, units)
        case "Resize" | "Upsample" if attribute(node, "mode", b"nearest") == b"nearest":
            return units
        case name if name in REDUCTIONS:
            return anatomy.units(taken[0])
        case "Concat":
            # A constant among them depends on nothing.
            return sum(anatomy.units(name) for name in node.input if name in anatomy.sources)
        case name if name in _MOVING:
            return units
        case name if name in ELEMENTWISE:
            return units * len(taken)
        case _:
            return units * input_units


def _windowed(node: onnx.NodeProto, view: Window, dims: Sequence[int], output: Sequence[int], anatomy: Anatomy) -> int:
    pairs = 1
    for n in (0, 1):
        size, made = dims[2 + n], output[2 + n]
        if node.op_type == "ConvTranspose":
            # The same window, looked at from the other side.
            size, made = made, size
        pairs *= _pairs(size, made, view.kernel[n], view.stride[n], view.padding[n], view.dilation[n])
    if node.op_type not in ("Conv", "ConvTranspose"):
        return pairs * dims[1]
    # Output channels × input channels of a group for Conv, the other way round for ConvTranspose.
    return pairs * math.prod(anatomy.types[node.input[1]].dims[:2])


def _pairs(size: int, steps: int, kernel: int, stride: int, before: int, dilation: int) -> int:
    """In one direction: pairs of a step of a window and a position in it that is not in padding."""
    positions = np.arange(steps)[:, None] * stride - before + np.arange(kernel) * dilation
    return int(((positions >= 0) & (positions < size)).sum())


def _padded(node: onnx.NodeProto, anatomy: Anatomy, dims: Sequence[int], units: int) -> int:
    """Of a Pad: what it puts there of its own depends on nothing."""
    pads = anatomy.graph.parameter(node, "pads", 1)
    if attribute(node, "mode", b"constant") != b"constant" or pads is None:
        return units
    axes = anatomy.graph.parameter(node, "axes", 3) or list(range(len(dims)))
    kept = list(dims)
    for n, axis in enumerate(axes):
        kept[axis] += min(pads[n], 0) + min(pads[n + len(axes)], 0)
    return math.prod(kept) // anatomy.batch
