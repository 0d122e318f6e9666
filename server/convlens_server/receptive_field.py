"""The receptive field of every unit of a graph: which pixels of the image it can see.

Source: A. Araujo, W. Norris, J. Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019,
doi 10.23915/distill.00021. A unit sees `size` pixels, neighbouring units see fields `stride` pixels apart, and unit 0
sees from pixel `start` on. A window of kernel k, stride s, dilation d and padding p makes of them

    size + (k − 1) · d · stride,   stride · s,   start − p · stride,

in rows and columns alike. Where branches meet, a unit sees the union of what its inputs see. Sizes are those of
the arithmetic: they do not end at the image's border. A unit that depends on every position (dense, global pooling,
and all that follows), or on positions that this cannot follow (resizing, attention), sees the whole image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import onnx

from convlens.v1 import convlens_pb2 as pb
from convlens_server.graph import TRANSPARENT, Graph, attribute
from convlens_server.operators import window
from convlens_server.shapes import TensorType

Pair = tuple[int, int]

_NOWHERE = (0, 0)

# A unit of the output depends on the units of the inputs that stand where it stands, broadcast as numpy does.
ELEMENTWISE = TRANSPARENT | {
    "Abs", "Add", "And", "BatchNormalization", "BiasGelu", "Celu", "Ceil", "Clip", "Div", "Elu", "Equal", "Erf", "Exp",
    "Expand", "FastGelu", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "LRN", "LeakyRelu",
    "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "QuickGelu",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Sub", "Sum",
    "Swish", "Tanh", "ThresholdedRelu", "Where", "Xor",
}  # fmt: skip
REDUCTIONS = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """What the units of a tensor see, rows first.

    Attributes:
        size: Pixels that a unit sees.
        stride: Pixels between the fields of neighbouring units; 0 where all units see the whole image.
        start: First pixel that unit (0, 0) sees; negative where that is padding.
        axes: The tensor's axes of rows and columns, counted from its end (−1 is the last); None if it has none.
    """

    size: Pair
    stride: Pair
    start: Pair
    axes: Pair | None

    @property
    def is_whole(self) -> bool:
        """Whether every unit sees the whole image."""
        return self.stride == _NOWHERE


class ReceptiveFields:
    """Follows the receptive fields through a graph, node by node in the order of computation.

    Args:
        graph: The index of the graph.
        types: Of its tensors.
        image: Name of the input, N × height × width × channels.
        size: Height and width.

    Attributes:
        size: As given.
    """

    def __init__(self, graph: Graph, types: dict[str, TensorType], image: str, size: Pair) -> None:
        self._graph = graph
        self._types = types
        self.size = size
        self._fields = {image: ReceptiveField((1, 1), (1, 1), _NOWHERE, (-3, -2))}

    def __getitem__(self, tensor: str) -> ReceptiveField:
        """The field of a tensor that has been followed."""
        return self._fields[tensor]

    def region(self, tensor: str, row: int, column: int) -> pb.Region:
        """What the units at a row and column see; the whole image where those are none of the image's."""
        seen, rank = self._fields[tensor], len(self._types[tensor].dims)
        # Of other ranks or axes, what counts as rows and columns is not what the field moves along.
        if not (seen.is_whole or rank == 4 or (rank > 4 and seen.axes == (-2, -1))):
            return pb.Region(height=self.size[0], width=self.size[1])
        return pb.Region(
            top=seen.start[0] + row * seen.stride[0],
            left=seen.start[1] + column * seen.stride[1],
            height=seen.size[0],
            width=seen.size[1],
        )

    def follow(self, node: onnx.NodeProto) -> None:
        """Computes the fields of a node's outputs, if it takes the image or what was computed from it."""
        inputs = [name for name in node.input if name in self._fields]
        for output in node.output:
            if output in self._graph.on_path:
                self._fields[output] = self._of(node, inputs, output)

    def _of(self, node: onnx.NodeProto, inputs: list[str], output: str) -> ReceptiveField:
        if not inputs or output not in self._types or any(name not in self._types for name in inputs):
            return self._whole(None)
        first = self._fields[inputs[0]]
        if node.op_type in ELEMENTWISE:
            return self._union(inputs, output)
        if first.axes is None:
            return self._whole(None)
        dims = self._types[inputs[0]].dims
        rank = len(dims)
        axes = (first.axes[0] + rank, first.axes[1] + rank)
        match node.op_type:
            case "Conv" | "MaxPool" | "AveragePool" | "LpPool":
                return self._windowed(node, first)
            case "Transpose":
                order = list(attribute(node, "perm", range(rank)[::-1]))
                return replace(first, axes=(order.index(axes[0]) - rank, order.index(axes[1]) - rank))
            case "Concat":
                return self._whole(first.axes) if self._axis(node, 0, rank) in axes else self._union(inputs, output)
            case "Split":
                return self._whole(first.axes) if self._axis(node, 0, rank) in axes else first
            case "Slice" | "Pad":
                shifts = self._slice(node, axes) if node.op_type == "Slice" else self._pad(node, rank)
                return self._whole(first.axes) if shifts is None else self._shifted(first, axes, shifts)
            case "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Gather":
                if node.op_type == "Gather" and (self._axis(node, 0, rank) in axes or inputs[0] != node.input[0]):
                    return self._whole(None)
                return self._reshaped(first, inputs[0], output)
            case "MatMul":
                contracted = rank - 1 if inputs[0] == node.input[0] else rank - 2
                return self._unless(len(inputs) > 1 or contracted in axes, first)
            case "LayerNormalization":
                return self._unless(self._axis(node, -1, rank) <= max(axes), first)
            case "Softmax" | "LogSoftmax":
                axis = self._axis(node, -1 if self._graph.opset >= 13 else 1, rank)
                return self._unless(axis in axes if self._graph.opset >= 13 else axis <= max(axes), first)
            case name if name in REDUCTIONS:
                return self._reduced(node, first, axes, rank)
            case _:
                # Global pooling, ConvTranspose, Resize, normalisation over positions, and what is not known here.
                return self._whole(first.axes if rank == len(self._types[output].dims) else None)

    def _whole(self, axes: Pair | None) -> ReceptiveField:
        return ReceptiveField(self.size, _NOWHERE, _NOWHERE, axes)

    def _unless(self, mixes_positions: bool, field: ReceptiveField) -> ReceptiveField:
        return self._whole(field.axes) if mixes_positions else field

    def _axis(self, node: onnx.NodeProto, default: int, rank: int) -> int:
        axis = int(attribute(node, "axis", default))
        return axis + rank if axis < 0 else axis

    def _union(self, inputs: list[str], output: str) -> ReceptiveField:
        fields = [self._fields[name] for name in inputs]
        first = next((field for field in fields if field.axes is not None), fields[0])
        if first.axes is None:
            return self._whole(None)
        shape = self._types[output].dims
        for name, field in zip(inputs, fields, strict=True):
            dims = self._types[name].dims
            # One that is broadcast over positions is seen from all of them, which no stride can say.
            broadcast = field.axes != first.axes or any(
                -axis > len(dims) or dims[axis] != shape[axis] for axis in first.axes
            )
            if field.is_whole or broadcast or field.stride != first.stride:
                return self._whole(first.axes)
        start = tuple(min(field.start[n] for field in fields) for n in (0, 1))
        end = tuple(max(field.start[n] + field.size[n] for field in fields) for n in (0, 1))
        return replace(first, size=(end[0] - start[0], end[1] - start[1]), start=(start[0], start[1]))

    def _windowed(self, node: onnx.NodeProto, field: ReceptiveField) -> ReceptiveField:
        view = window(self._graph, node, self._types)
        if field.is_whole or view is None or field.axes != (-2, -1):
            return self._whole(field.axes)
        reach = [(view.kernel[n] - 1) * view.dilation[n] * field.stride[n] for n in (0, 1)]
        return replace(
            field,
            size=(field.size[0] + reach[0], field.size[1] + reach[1]),
            stride=(field.stride[0] * view.stride[0], field.stride[1] * view.stride[1]),
            start=(
                field.start[0] - view.padding[0] * field.stride[0],
                field.start[1] - view.padding[1] * field.stride[1],
            ),
        )

    def _slice(self, node: onnx.NodeProto, positions: Pair) -> dict[int, Pair] | None:
        """First index and step of the rows and columns where a Slice cuts them; None if computed or backwards."""
        starts = self._graph.parameter(node, "starts", 1)
        axes = self._graph.parameter(node, "axes", 3)
        steps = self._graph.parameter(node, "steps", 4)
        dims = self._types[node.input[0]].dims
        if axes is None and starts is None:
            return None
        shifts = {}
        for n, axis in enumerate(range(len(starts or ())) if axes is None else axes):
            if axis % len(dims) in positions:
                step = 1 if steps is None else steps[n]
                if starts is None or step < 1:
                    return None
                size = dims[axis]
                shifts[axis % len(dims)] = (min(max(starts[n] + size * (starts[n] < 0), 0), size), step)
        return shifts

    def _pad(self, node: onnx.NodeProto, rank: int) -> dict[int, Pair] | None:
        pads = self._graph.parameter(node, "pads", 1)
        axes = self._graph.parameter(node, "axes", 3) or range(rank)
        if pads is None:
            return None
        return {axis % rank: (-pad, 1) for axis, pad in zip(axes, pads, strict=False)}

    def _shifted(self, field: ReceptiveField, axes: Pair, shifts: dict[int, Pair]) -> ReceptiveField:
        if field.is_whole:
            return field
        rows, columns = (shifts.get(axis, (0, 1)) for axis in axes)
        return replace(
            field,
            stride=(field.stride[0] * rows[1], field.stride[1] * columns[1]),
            start=(field.start[0] + rows[0] * field.stride[0], field.start[1] + columns[0] * field.stride[1]),
        )

    def _reshaped(self, field: ReceptiveField, source: str, output: str) -> ReceptiveField:
        """Finds the rows and columns again: an axis is kept if as many values stand before it and behind it."""
        dims, shape = self._types[source].dims, self._types[output].dims
        if field.axes is None:
            return self._whole(None)
        found = []
        for axis in field.axes:
            behind = math.prod(dims[axis:][1:])
            size = dims[axis]
            matches = [n for n in range(-len(shape), 0) if shape[n] == size and math.prod(shape[n:][1:]) == behind]
            if not matches:
                return self._whole(None)
            found.append(matches[0])
        if found[0] == found[1]:
            return self._whole(None)
        return replace(field, axes=(found[0], found[1]))

    def _reduced(self, node: onnx.NodeProto, field: ReceptiveField, axes: Pair, rank: int) -> ReceptiveField:
        chosen = self._graph.parameter(node, "axes", 1)
        reduced = set(range(rank)) if not chosen else {axis % rank for axis in chosen}
        keep = attribute(node, "keepdims", 1)
        mixes = bool(reduced & set(axes))
        if keep:
            return self._unless(mixes, field)
        if mixes:
            return self._whole(None)
        left = [axis for axis in range(rank) if axis not in reduced]
        return replace(field, axes=(left.index(axes[0]) - len(left), left.index(axes[1]) - len(left)))
