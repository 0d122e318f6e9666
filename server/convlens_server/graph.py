"""An index over an ONNX graph, and the small questions that everything else asks of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

# Operators whose output is their input: its values are the same, at most in another number format.
TRANSPARENT = frozenset({"Cast", "CastLike", "DequantizeLinear", "Dropout", "Identity", "QuantizeLinear"})

# Operators that say how large a tensor is, not what is in it: the image's data ends in them.
_SHAPE_ONLY = frozenset({"Shape", "Size"})


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute as Python has it (int, float, bytes, list, TensorProto …), or the default."""
    for candidate in node.attribute:
        if candidate.name == name:
            return helper.get_attribute_value(candidate)
    return default


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node (the branches of If, the body of Loop), without those inside these."""
    for candidate in node.attribute:
        if candidate.HasField("g"):
            yield candidate.g
        yield from candidate.graphs


def taken(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node takes, those that its inner graphs take from outside included, without repeats."""
    names = dict.fromkeys(name for name in node.input if name)
    for inner in subgraphs(node):
        own = {value.name for value in inner.input} | set(_initializer_names(inner))
        for inner_node in inner.node:
            names.update(dict.fromkeys(name for name in taken(inner_node) if name not in own))
            own.update(inner_node.output)
        names.update(dict.fromkeys(value.name for value in inner.output if value.name and value.name not in own))
    return list(names)


def is_operand(tensor: onnx.TensorProto) -> bool:
    """Whether an initialiser is small enough to be axes, pads, a shape or a scale; weights are larger, or no matter."""
    return math.prod(tensor.dims) <= 64


def elem_type_name(elem_type: int) -> str:
    """The name of a tensor's number format; of one that this onnx does not know, its number."""
    names = dict(onnx.TensorProto.DataType.items())
    return next((name for name, value in names.items() if value == elem_type), f"type {elem_type}")


def unused(name: str, names: Iterable[str]) -> str:
    """The name itself, or with the first number behind it that makes it differ from all `names`."""
    names = set(names)
    if name not in names:
        return name
    return next(numbered for n in range(1, len(names) + 2) if (numbered := f"{name}_{n}") not in names)


def _initializer_names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (tensor.name for tensor in graph.initializer)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)


class Graph:
    """Who makes and who takes each tensor of a model's main graph.

    Attributes:
        proto: The graph.
        opset: Version of the standard operators.
        nodes: In the order of computation.
        initializers: Dense initialisers by name.
        producers: The node that makes a tensor, by the tensor's name.
        consumers: The nodes that take a tensor, by the tensor's name.
        on_path: The tensors that hold the image or anything computed from its pixels.
    """

    def __init__(self, model: onnx.ModelProto, image: str) -> None:
        """Args: the model, its nodes in the order of computation; the name of its image input."""
        self.proto = model.graph
        self.opset = max([entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")], default=1)
        self.nodes = list(model.graph.node)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        self.on_path = {image}
        self._varying = {image}
        for node in self.nodes:
            names = taken(node)
            for name in names:
                self.consumers.setdefault(name, []).append(node)
            for name in node.output:
                self.producers[name] = node
            if node.op_type not in _SHAPE_ONLY and any(name in self.on_path for name in names):
                self.on_path.update(name for name in node.output if name)
            if any(name in self._varying for name in names):
                self._varying.update(name for name in node.output if name)

    def names(self) -> set[str]:
        """The names of all tensors and nodes."""
        names = {value.name for value in self.proto.input} | set(_initializer_names(self.proto))
        return names.union(self.producers, (node.name for node in self.nodes))

    def is_constant(self, name: str) -> bool:
        """Whether a tensor's values are the same for every image and every batch size."""
        return name not in self._varying

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The values of an operand, looked for behind nodes that change nothing; None if it is not a constant one."""
        while (node := self.producers.get(name)) is not None and node.op_type in ("Identity", "Cast"):
            name = node.input[0]
        tensor = self.initializers.get(name)
        return np.asarray(numpy_helper.to_array(tensor)) if tensor is not None and is_operand(tensor) else None

    def initial(self, name: str) -> npt.NDArray[Any]:
        """The values of an initialiser, dense or sparse."""
        if (tensor := self.initializers.get(name)) is not None:
            return np.asarray(numpy_helper.to_array(tensor))
        sparse = next(tensor for tensor in self.proto.sparse_initializer if tensor.values.name == name)
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(list(sparse.dims), values.dtype)
        if indices.ndim == 1:
            dense.flat[indices] = values
        else:
            dense[tuple(indices.T)] = values
        return dense

    def parameter(self, node: onnx.NodeProto, name: str, position: int) -> list[int] | None:
        """Integers that are an attribute in old opsets and an input in newer ones (axes, pads, starts …).

        Returns:
            The values; None if they are absent or not constant.
        """
        value = attribute(node, name)
        if value is None and len(node.input) > position and node.input[position]:
            value = self.constant(node.input[position])
        return None if value is None else [int(number) for number in np.ravel(value)]
