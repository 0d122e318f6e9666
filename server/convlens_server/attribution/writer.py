"""Writes the graph of a gradient, by the standard operators of `OPSET`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from convlens_server.graph import Graph
from convlens_server.shapes import TensorType

OPSET = 18

Shape = tuple[int, ...]


class NoRule(Exception):  # noqa: N818
    """The gradient of a node cannot be formed; the text says of what."""


class Writer:
    """Writes the graph of a gradient.

    Args:
        graph: Of the network.
        types: Of its tensors, for the number of images that it runs on.
        evaluate: Gives the values of a tensor that does not depend on the image.

    Attributes:
        graph: As given.
        types: As given.
        nodes: Written so far, in the order of computation.
        constants: Initialisers of the new graph.
        forward: Tensors of the network that the new graph takes.
        indices: For max poolings that have to say which values they took: the name of that output, by their output's.
    """

    def __init__(
        self, graph: Graph, types: Mapping[str, TensorType], evaluate: Callable[[str], npt.NDArray[Any]]
    ) -> None:
        self.graph = graph
        self.types = types
        self._evaluate = evaluate
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.forward: dict[str, None] = {}
        self.indices: dict[str, str] = {}
        self._count = 0

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; the name of its output."""
        name = self._name()
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """Adds an initialiser; its name."""
        name = self._name()
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def value(self, tensor: str) -> str:
        """A tensor of the network as an operand, float32."""
        self.forward[tensor] = None
        return tensor

    def parameter(self, node: onnx.NodeProto, name: str, position: int) -> list[int] | None:
        """Integers that are an attribute or an input of a node of the network; None where it has neither.

        Raises:
            NoRule: They depend on the image.
        """
        found = self.graph.parameter(node, name, position)
        if found is not None or len(node.input) <= position or not node.input[position]:
            return found
        if node.input[position] in self.graph.on_path:
            raise NoRule(f"whose {name} depend on the image")
        # Computed from shapes, as exporters like to do.
        return [int(number) for number in np.ravel(self._evaluate(node.input[position]))]

    def shape(self, tensor: str) -> Shape:
        """Of a tensor of the network."""
        return self.types[tensor].dims

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """Another shape for the same numbers."""
        return self.node("Reshape", name, self.constant(shape, np.int64))

    def total(self, name: str, axes: Sequence[int], keepdims: bool) -> str:
        """The sum over axes."""
        return self.node("ReduceSum", name, self.constant(axes, np.int64), keepdims=int(keepdims))

    def mean(self, name: str, axes: Sequence[int]) -> str:
        """The mean over axes, which are kept."""
        return self.node("ReduceMean", name, self.constant(axes, np.int64), keepdims=1)

    def scaled(self, name: str, factor: float) -> str:
        """Each number times a factor."""
        return self.node("Mul", name, self.constant(factor))

    def where(self, condition: str, name: str) -> str:
        """The numbers where a condition holds, 0 elsewhere."""
        return self.node("Where", condition, name, self.constant(0.0))

    def between(self, name: str, low: float | None, high: float | None) -> str:
        """Whether each number is strictly between two limits; None is no limit."""
        conditions = []
        if low is not None and low > -math.inf:
            conditions.append(self.node("Greater", name, self.constant(low)))
        if high is not None and high < math.inf:
            conditions.append(self.node("Less", name, self.constant(high)))
        if not conditions:
            return self.node("Equal", name, name)
        return conditions[0] if len(conditions) == 1 else self.node("And", *conditions)

    def unbroadcast(self, name: str, shape: Shape, tensor: str) -> str:
        """The sum over what was broadcast, so that what has `shape` gets the shape of a tensor."""
        wanted = self.shape(tensor)
        extra = len(shape) - len(wanted)
        axes = [n for n, size in enumerate(shape) if n < extra or (wanted[n - extra] == 1 and size != 1)]
        if not axes:
            return name
        return self.reshape(self.total(name, axes, keepdims=True), wanted)

    def _name(self) -> str:
        self._count += 1
        # No tensor of a network is likely to have such a name.
        return f"gradient/{self._count}"


# Gets the writer, the node, which of its inputs and the gradients of its outputs ("" where nothing reaches one);
# gives the gradient of that input.
Rule = Callable[[Writer, onnx.NodeProto, int, list[str]], str]
