"""What single operators are: their kind, window, trained values and multiply-accumulates."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from convlens_server.graph import Graph, attribute
from convlens_server.shapes import TensorType

_KINDS = {
    "BatchNormalization": "batch_norm",
    "Gemm": "dense",
    "GroupNormalization": "group_norm",
    "InstanceNormalization": "instance_norm",
    "LayerNormalization": "layer_norm",
    "PRelu": "prelu",
}

# Positions of the inputs that are trained. Of a batch normalisation's four, its running mean and variance are not.
_TRAINED = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "GRU": (1, 2, 3),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RNN": (1, 2, 3),
}
# Operators that move a window over rows and columns.
WINDOWED = frozenset({"AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"})

_ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution or a pooling moves over rows and columns; numbers are pixels of its input, rows first.

    Attributes:
        kernel: Rows and columns of the kernel or pooling window.
        stride: Of its steps.
        padding: Top, left, bottom, right.
        dilation: 1 is a dense kernel.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]


def window(graph: Graph, node: onnx.NodeProto, types: Mapping[str, TensorType]) -> Window | None:
    """The window of one of the operators `WINDOWED`; None if it does not have two dimensions."""
    kernel = list(attribute(node, "kernel_shape", ()))
    if not kernel and node.op_type in ("Conv", "ConvTranspose") and node.input[1] in types:
        kernel = list(types[node.input[1]].dims[2:])
    if len(kernel) != 2:
        return None
    stride = tuple(attribute(node, "strides", (1, 1)))
    dilation = tuple(attribute(node, "dilations", (1, 1)))
    padding = tuple(attribute(node, "pads", (0, 0, 0, 0)))
    same = attribute(node, "auto_pad", b"NOTSET")
    if same in (b"SAME_UPPER", b"SAME_LOWER") and node.op_type != "ConvTranspose":
        # As many positions as the stride leaves; of an odd number of padding pixels the last one is below (or above).
        before, after = [], []
        for n, size in enumerate(types[node.input[0]].dims[2:4]):
            steps = -(-size // stride[n])
            total = max((steps - 1) * stride[n] + (kernel[n] - 1) * dilation[n] + 1 - size, 0)
            less, more = total // 2, total - total // 2
            before.append(less if same == b"SAME_UPPER" else more)
            after.append(more if same == b"SAME_UPPER" else less)
        padding = (*before, *after)
    if node.op_type == "ConvTranspose" and (same.startswith(b"SAME") or attribute(node, "output_shape") is not None):
        # As its output's size asks for.
        sizes = [types[name].dims[2:4] for name in (node.input[0], node.output[0])]
        beyond = attribute(node, "output_padding", (0, 0))
        before, after = [], []
        for n in (0, 1):
            total = stride[n] * (sizes[0][n] - 1) + beyond[n] + (kernel[n] - 1) * dilation[n] + 1 - sizes[1][n]
            less, more = total // 2, total - total // 2
            before.append(less if same == b"SAME_UPPER" else more)
            after.append(more if same == b"SAME_UPPER" else less)
        padding = (*before, *after)
    if len(stride) != 2 or len(dilation) != 2 or len(padding) != 4:
        return None
    return Window((kernel[0], kernel[1]), (stride[0], stride[1]), padding, (dilation[0], dilation[1]))


def kind_of(graph: Graph, node: onnx.NodeProto, shape: tuple[int, ...], rank: int, positions: tuple[int, ...]) -> str:
    """A layer's kind, in lower snake case.

    Args:
        graph: The graph's index.
        node: The layer's node.
        shape: Of its output for one image.
        rank: Of its first input, the batch included.
        positions: The axes of rows and columns of its first input, counted from its end; empty if it has none.
    """
    op_type = node.op_type
    if op_type == "Clip":
        bounds = []
        for position, name in ((1, "min"), (2, "max")):
            value = attribute(node, name)
            if value is None and len(node.input) > position:
                value = graph.constant(node.input[position])
            bounds.append(None if value is None else float(value))
        return "relu6" if bounds == [0, 6] else "clip"
    if op_type in ("Reshape", "Squeeze") and len(shape) == 1 and rank > 2:
        return "flatten"
    if op_type in ("ReduceMean", "ReduceMax") and positions:
        axes = graph.parameter(node, "axes", 1) or ()
        if {axis % rank for axis in axes} == {axis % rank for axis in positions}:
            return "global_average_pool" if op_type == "ReduceMean" else "global_max_pool"
    if op_type == "MatMul" and any(graph.is_constant(name) for name in node.input):
        return "dense"
    return _KINDS.get(op_type) or _snake(op_type)


def trained_values(graph: Graph, node: onnx.NodeProto, types: Mapping[str, TensorType], behind_weights: bool) -> int:
    """The number of a node's trained values.

    Constants of additions and multiplications count if a layer with weights comes before them and they are not single
    numbers: before it they are the image's normalisation, as single numbers part of an activation's formula.
    """
    constants = {
        position: types[name].dims
        for position, name in enumerate(node.input)
        if name in types and graph.is_constant(name)
    }
    if node.op_type in _ARITHMETIC:
        return sum(math.prod(dims) for dims in constants.values() if behind_weights and math.prod(dims) > 1)
    return sum(math.prod(constants[position]) for position in _TRAINED.get(node.op_type, ()) if position in constants)


def multiply_accumulates(node: onnx.NodeProto, types: Mapping[str, TensorType], batch: int) -> int:
    """The multiply-accumulates of a node for one image: those of convolutions and matrix products, else 0."""
    if any(name not in types for name in node.input if name):
        return 0
    output = math.prod(types[node.output[0]].dims)
    match node.op_type:
        case "Conv":
            total = output * math.prod(types[node.input[1]].dims[1:])
        case "ConvTranspose":
            total = math.prod(types[node.input[0]].dims) * math.prod(types[node.input[1]].dims[1:])
        case "Gemm":
            total = output * types[node.input[0]].dims[0 if attribute(node, "transA", 0) else 1]
        case "MatMul":
            total = output * types[node.input[0]].dims[-1]
        case _:
            return 0
    return total // batch


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
