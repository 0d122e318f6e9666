"""The gradient of each operator: what reaches its inputs of what reaches its output.

A rule writes nodes that make a vector-Jacobian product of one node. Values of the forward run, and weights, stand in
the new graph under the names that they have in the network's. All is float32 and of a known shape, since the number of
images is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from convlens_server.attribution.functions import FUNCTIONS
from convlens_server.attribution.writer import NoRule, Rule, Writer
from convlens_server.graph import attribute
from convlens_server.operators import Window, window


def gradient(writer: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    """Writes the gradient of an input of a node.

    Args:
        writer: Of the new graph.
        node: Of the network.
        position: Of the input.
        reaching: Gradients of the node's outputs; "" for one that nothing reaches.

    Returns:
        The tensor's name.

    Raises:
        NoRule: There is no rule for such a node.
    """
    rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        raise NoRule("")
    return rule(writer, node, position, reaching)


def _window(w: Writer, node: onnx.NodeProto) -> Window:
    view = window(w.graph, node, w.types)
    if view is None or len(w.shape(node.input[0])) != 4:
        raise NoRule("over other than two dimensions")
    return view


def _spread(w: Writer, node: onnx.NodeProto, name: str, kernel: str, view: Window, groups: int) -> str:
    """What reaches the input of a sliding window: the convolution's transpose."""
    size, steps = w.shape(node.input[0])[2:], w.shape(node.output[0])[2:]
    # Rows and columns that the last window leaves over get nothing.
    rest = [
        size[n]
        + view.padding[n]
        + view.padding[n + 2]
        - ((steps[n] - 1) * view.stride[n] + (view.kernel[n] - 1) * view.dilation[n] + 1)
        for n in (0, 1)
    ]
    if min(rest) < 0:
        raise NoRule("with windows that go beyond the padding (ceil_mode)")
    # Not output_padding, which must be less than the stride: a smaller padding at the end says the same, and what it
    # gives too little is padded.
    ends = [view.padding[n + 2] - rest[n] for n in (0, 1)]
    made = w.node(
        "ConvTranspose",
        name,
        kernel,
        strides=view.stride,
        dilations=view.dilation,
        pads=[*view.padding[:2], *(max(end, 0) for end in ends)],
        group=groups,
    )
    missing = [max(-end, 0) for end in ends]
    if any(missing):
        made = w.node("Pad", made, w.constant([0, 0, 0, 0, 0, 0, *missing], np.int64))
    return made


def _conv(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    if position:
        raise NoRule("whose kernels depend on the image")
    view = _window(w, node)
    return _spread(w, node, reaching[0], w.value(node.input[1]), view, int(attribute(node, "group", 1)))


def _average_pool(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    view = _window(w, node)
    channels, *size = w.shape(node.input[0])[1:]
    steps = w.shape(node.output[0])[2:]
    counts = []
    for n in (0, 1):
        first = np.arange(steps[n]) * view.stride[n] - view.padding[n]
        taken = first[:, None] + np.arange(view.kernel[n]) * view.dilation[n]
        inside = (taken >= 0) & (taken < size[n])
        counts.append(np.full(steps[n], view.kernel[n]) if attribute(node, "count_include_pad", 0) else inside.sum(1))
    shares = w.node("Div", reaching[0], w.constant(np.outer(*counts)))
    ones = w.constant(np.ones((channels, 1, *view.kernel)))
    return _spread(w, node, shares, ones, view, channels)


def _max_pool(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    """Adds each value of the gradient at the place of the value that the pooling took: windows may overlap."""
    _window(w, node)
    if reaching[1:] and reaching[1]:
        raise NoRule("whose indices are used")
    if attribute(node, "storage_order", 0):
        raise NoRule("whose indices go column by column")
    shape = w.shape(node.input[0])
    indices = w.indices.setdefault(
        node.output[0], node.output[1] if len(node.output) > 1 else f"{node.output[0]}/indices"
    )
    zeros = w.node(
        "ConstantOfShape",
        w.constant([math.prod(shape)], np.int64),
        value=numpy_helper.from_array(np.zeros(1, np.float32)),
    )
    flat = [w.reshape(name, [-1]) for name in (indices, reaching[0])]
    return w.reshape(w.node("ScatterElements", zeros, *flat, axis=0, reduction="add"), shape)


def _global_average(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    shape = w.shape(node.input[0])
    return w.node("Expand", w.scaled(reaching[0], 1 / math.prod(shape[2:])), w.constant(shape, np.int64))


def _global_max(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    shape = w.shape(node.input[0])
    flat = [*shape[:2], math.prod(shape[2:])]
    values = w.reshape(w.value(node.input[0]), flat)
    largest = w.node("ArgMax", values, axis=2, keepdims=1)
    zeros = w.node("Mul", values, w.constant(0.0))
    return w.reshape(w.node("ScatterElements", zeros, largest, w.reshape(reaching[0], [*shape[:2], 1]), axis=2), shape)


def _reduce(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    shape = w.shape(node.input[0])
    axes = w.parameter(node, "axes", 1)
    if not axes and attribute(node, "noop_with_empty_axes", 0):
        return reaching[0]
    reduced = {axis % len(shape) for axis in axes} if axes else set(range(len(shape)))
    name = w.reshape(reaching[0], [1 if n in reduced else size for n, size in enumerate(shape)])
    if node.op_type == "ReduceMean":
        name = w.scaled(name, 1 / math.prod(shape[axis] for axis in reduced))
    return w.node("Expand", name, w.constant(shape, np.int64))


def _gemm(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    options = {"alpha": float(attribute(node, "alpha", 1.0))}
    left, right = int(attribute(node, "transA", 0)), int(attribute(node, "transB", 0))
    if position == 2:
        beta = float(attribute(node, "beta", 1.0))
        return w.unbroadcast(w.scaled(reaching[0], beta), w.shape(node.output[0]), node.input[2])
    other = w.value(node.input[1 - position])
    if position == 0:
        if left:
            return w.node("Gemm", other, reaching[0], transA=right, transB=1, **options)
        return w.node("Gemm", reaching[0], other, transB=1 - right, **options)
    if right:
        return w.node("Gemm", reaching[0], other, transA=1, transB=left, **options)
    return w.node("Gemm", other, reaching[0], transA=1 - left, **options)


def _matmul(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    tensor, other = node.input[position], node.input[1 - position]
    if min(len(w.shape(tensor)), len(w.shape(other))) < 2:
        raise NoRule("with a vector")
    order = list(range(len(w.shape(other))))
    turned = w.node("Transpose", w.value(other), perm=[*order[:-2], order[-1], order[-2]])
    made = w.node("MatMul", reaching[0], turned) if position == 0 else w.node("MatMul", turned, reaching[0])
    lead = np.broadcast_shapes(w.shape(node.output[0])[:-2], w.shape(other)[:-2])
    return w.unbroadcast(made, (*lead, *w.shape(tensor)[-2:]), tensor)


def _batch_norm(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    if position or attribute(node, "training_mode", 0) or len(reaching) > 1:
        raise NoRule("as in training")
    epsilon = w.constant(float(attribute(node, "epsilon", 1e-5)))
    deviation = w.node("Sqrt", w.node("Add", w.value(node.input[4]), epsilon))
    factor = w.node("Div", w.value(node.input[1]), deviation)
    return w.node("Mul", reaching[0], w.reshape(factor, [1, -1, *[1] * (len(w.shape(node.input[0])) - 2)]))


def _layer_norm(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    """(g − mean(g) − n · mean(g · n)) ÷ deviation, where n is the normalised value and g what reaches it."""
    if position or any(reaching[1:]):
        raise NoRule("whose mean or scale depends on the image")
    rank = len(w.shape(node.input[0]))
    axes = list(range(int(attribute(node, "axis", -1)) % rank, rank))
    value = w.value(node.input[0])
    centred = w.node("Sub", value, w.mean(value, axes))
    variance = w.mean(w.node("Mul", centred, centred), axes)
    deviation = w.node("Sqrt", w.node("Add", variance, w.constant(float(attribute(node, "epsilon", 1e-5)))))
    normal = w.node("Div", centred, deviation)
    name = w.node("Mul", reaching[0], w.value(node.input[1]))
    along = w.node("Mul", normal, w.mean(w.node("Mul", name, normal), axes))
    return w.node("Div", w.node("Sub", w.node("Sub", name, w.mean(name, axes)), along), deviation)


def _add(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    name = w.node("Neg", reaching[0]) if node.op_type == "Sub" and position == 1 else reaching[0]
    return w.unbroadcast(name, w.shape(node.output[0]), node.input[position])


def _mul(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    name = w.node("Mul", reaching[0], w.value(node.input[1 - position]))
    return w.unbroadcast(name, w.shape(node.output[0]), node.input[position])


def _div(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    name = w.node("Div", reaching[0], w.value(node.input[1]))
    if position == 1:
        name = w.node("Neg", w.node("Mul", name, w.value(node.output[0])))
    return w.unbroadcast(name, w.shape(node.output[0]), node.input[position])


def _pow(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    if position:
        raise NoRule("whose exponent depends on the image")
    value, exponent = w.value(node.input[0]), w.value(node.input[1])
    less = w.node("Pow", value, w.node("Sub", exponent, w.constant(1.0)))
    name = w.node("Mul", reaching[0], w.node("Mul", exponent, less))
    return w.unbroadcast(name, w.shape(node.output[0]), node.input[0])


def _concat(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    axis = int(attribute(node, "axis", 1)) % len(w.shape(node.output[0]))
    start = sum(w.shape(name)[axis] for name in node.input[:position])
    end = start + w.shape(node.input[position])[axis]
    return w.node("Slice", reaching[0], *(w.constant([n], np.int64) for n in (start, end, axis)))


def _split(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    axis = int(attribute(node, "axis", 0)) % len(w.shape(node.input[0]))
    parts = [name or w.constant(np.zeros(w.shape(output))) for name, output in zip(reaching, node.output, strict=True)]
    return w.node("Concat", *parts, axis=axis)


def _slice(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    shape = w.shape(node.input[0])
    starts, ends = w.parameter(node, "starts", 1) or [], w.parameter(node, "ends", 2) or []
    axes, steps = w.parameter(node, "axes", 3), w.parameter(node, "steps", 4)
    if any(step != 1 for step in steps or ()):
        raise NoRule("with steps other than 1")
    pads = np.zeros((2, len(shape)), np.int64)
    for n, axis in enumerate(range(len(starts)) if axes is None else axes):
        first, last, _ = slice(starts[n], ends[n]).indices(shape[axis])
        pads[:, axis % len(shape)] = first, shape[axis] - max(first, last)
    return w.node("Pad", reaching[0], w.constant(pads.ravel(), np.int64))


def _gather(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    index = w.parameter(node, "indices", 1) or []
    if position or len(index) != 1:
        raise NoRule("of several places")
    shape = w.shape(node.input[0])
    axis = int(attribute(node, "axis", 0)) % len(shape)
    pads = np.zeros((2, len(shape)), np.int64)
    pads[:, axis] = index[0] % shape[axis], shape[axis] - 1 - index[0] % shape[axis]
    part = w.reshape(reaching[0], [1 if n == axis else size for n, size in enumerate(shape)])
    return w.node("Pad", part, w.constant(pads.ravel(), np.int64))


def _pad(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    shape = w.shape(node.input[0])
    pads, axes = w.parameter(node, "pads", 1) or [], w.parameter(node, "axes", 3)
    if attribute(node, "mode", b"constant") != b"constant" or min(pads, default=0) < 0:
        raise NoRule("that repeats or cuts off values")
    axes = list(range(len(shape))) if axes is None else axes
    starts = pads[: len(axes)]
    ends = [start + shape[axis] for start, axis in zip(starts, axes, strict=True)]
    return w.node("Slice", reaching[0], *(w.constant(each, np.int64) for each in (starts, ends, axes)))


def _expand(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    return w.unbroadcast(reaching[0], w.shape(node.output[0]), node.input[0])


def _reshape(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    return w.reshape(reaching[0], w.shape(node.input[0]))


def _transpose(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    order = list(attribute(node, "perm", range(len(w.shape(node.input[0])))[::-1]))
    return w.node("Transpose", reaching[0], perm=[order.index(n) for n in range(len(order))])


def _same(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    return reaching[0]


def _cast(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    if not (w.types[node.input[0]].is_float and w.types[node.output[0]].is_float):
        raise NoRule("to whole numbers")
    return reaching[0]


def _softmax(w: Writer, node: onnx.NodeProto, position: int, reaching: list[str]) -> str:
    rank = len(w.shape(node.input[0]))
    axis = int(attribute(node, "axis", -1 if w.graph.opset >= 13 else 1)) % rank
    if w.graph.opset < 13 and axis != rank - 1:
        raise NoRule("over several dimensions")
    output = w.value(node.output[0])
    if node.op_type == "LogSoftmax":
        return w.node("Sub", reaching[0], w.node("Mul", w.node("Exp", output), w.total(reaching[0], [axis], True)))
    weighted = w.node("Mul", reaching[0], output)
    return w.node("Sub", weighted, w.node("Mul", output, w.total(weighted, [axis], True)))


_RULES: Mapping[str, Rule] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _div,
    "Dropout": _same,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "Identity": _same,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "Pad": _pad,
    "Pow": _pow,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _reshape,
    "Sub": _add,
    "Sum": _add,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
    **FUNCTIONS,
}
