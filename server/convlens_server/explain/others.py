"""Units that put together one value of each of several layers, hand a value on, or share in a softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convlens.v1 import convlens_pb2 as pb
from convlens_server.explain.operands import Operands, Values, broadcast_index
from convlens_server.graph import attribute

# What each operator does between each two values, as the message says it and as numpy does it.
ELEMENTWISE: Mapping[str, tuple[str, Callable[[np.float64, np.float64], np.float64]]] = {
    "Add": ("+", np.add),
    "Div": ("÷", np.divide),
    "Max": ("max", np.maximum),
    "Min": ("min", np.minimum),
    "Mul": ("×", np.multiply),
    "Pow": ("^", np.power),
    "Sub": ("−", np.subtract),
    "Sum": ("+", np.add),
}

# Operators whose units are values of what they take, and which of their inputs those are; None: all.
SELECTIONS: Mapping[str, tuple[int, ...] | None] = {
    "Concat": None,
    "DepthToSpace": (0,),
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "Pad": (0,),
    "Reshape": (0,),
    "Resize": (0,),
    "Slice": (0,),
    "SpaceToDepth": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Upsample": (0,),
    "Where": (1, 2),
}


def elementwise(operands: Operands) -> tuple[float, pb.Elementwise]:
    """Of the operators in `ELEMENTWISE`, broadcast as numpy does."""
    operation, function = ELEMENTWISE[operands.node.op_type]
    taken = [
        operands.point(name, broadcast_index(operands.values[name].shape, operands.index))
        for name in operands.node.input
    ]
    numbers = [np.float64(each.values[0]) for each in taken]
    with np.errstate(all="ignore"):
        result = float(list(accumulate(numbers, function))[-1])
    return result, pb.Elementwise(patches=[each.patch for each in taken], operation=operation)


def softmax(operands: Operands) -> tuple[float, pb.Softmax]:
    """Of Softmax; of LogSoftmax too, whose units are the logarithm of what the message adds up to."""
    node, rank = operands.node, operands.input(0).ndim
    one_axis = operands.anatomy.graph.opset >= 13
    axis = int(attribute(node, "axis", -1 if one_axis else 1)) % rank
    axes = (axis,) if one_axis else range(axis, rank)
    taken = operands.box(operands.name(0), operands.index, axes)
    position = operands.position(operands.name(0), operands.index, axes)
    shifted = taken.values - taken.values.max()
    exponentials = np.exp(shifted)
    total = float(exponentials.sum())
    message = pb.Softmax(patch=taken.patch, exponentials=exponentials, sum=total, index=position)
    if node.op_type == "LogSoftmax":
        return float(shifted[position]) - float(np.log(total)), message
    return float(exponentials[position]) / total, message


def selection(operands: Operands) -> tuple[float, pb.Selection]:
    """Of the operators in `SELECTIONS`: which value it is, the node itself says, run on the values' numbers."""
    node = operands.node
    if node.op_type in ("Resize", "Upsample") and attribute(node, "mode", b"nearest") != b"nearest":
        raise operands.unexplained(" where it interpolates")
    positions = SELECTIONS[node.op_type] or range(len(node.input))
    number = int(_run_on_numbers(operands, positions)[operands.index])
    for position in positions:
        values = operands.input(position)
        if 0 < number <= values.size:
            taken = operands.point(
                operands.name(position), [int(n) for n in np.unravel_index(number - 1, values.shape)]
            )
            return float(taken.values[0]), pb.Selection(patch=taken.patch)
        number -= values.size
    # What a Pad puts there is of no layer.
    filled = operands.number(2)
    value = float(attribute(node, "value", 0.0)) if filled is None else filled
    return value, pb.Selection(patch=pb.Patch(shape=(1, 1, 1), step=(1, 1), values=[value]))


def _run_on_numbers(operands: Operands, positions: range | tuple[int, ...]) -> Values:
    """The layer, had its inputs the numbers 1, 2, 3 … for values; what is of none of them is 0 (or less)."""
    import onnxruntime

    # onnxruntime has Resize for int32 and not for float64, DepthToSpace for float64 and not for int32.
    dtype = np.int32 if operands.node.op_type in ("Resize", "Upsample") else np.float64
    node = onnx.NodeProto()
    node.CopyFrom(operands.node)
    given, initializers, counted = {}, [], 0
    for position, name in enumerate(node.input):
        if not name:
            continue
        values = operands.values[name]
        node.input[position] = own = f"input_{position}"
        if position in positions:
            given[own] = np.arange(counted + 1, counted + values.size + 1, dtype=dtype).reshape(values.shape)
            counted += values.size
        else:
            # The constant of a Pad; all other inputs say where, not what.
            filling = node.op_type == "Pad" and position == 2
            initializers.append(numpy_helper.from_array(np.zeros((), dtype) if filling else values, own))
    if node.op_type == "Pad":
        # Until opset 10 its constant is an attribute.
        kept = [each for each in node.attribute if each.name != "value"]
        del node.attribute[:]
        node.attribute.extend(kept)
    elem_type = TensorProto.INT32 if dtype is np.int32 else TensorProto.DOUBLE
    output = node.output[operands.part]
    graph = helper.make_graph(
        [node],
        "selection",
        [helper.make_tensor_value_info(name, elem_type, values.shape) for name, values in given.items()],
        [helper.make_tensor_value_info(output, elem_type, None)],
        initializers,
    )
    opsets = [helper.make_opsetid("", operands.anatomy.graph.opset)]
    content = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    result: Values = session.run([output], given)[0]
    return result
