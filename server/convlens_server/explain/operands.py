"""What a layer's node takes for one image, and where in the layers before it that stands."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from convlens.v1 import convlens_pb2 as pb
from convlens_server.catalogue import Catalogue, Layer
from convlens_server.errors import NotFound, Unimplemented
from convlens_server.naming import IMAGE

Values: TypeAlias = npt.NDArray[Any]
Place: TypeAlias = tuple[int, int, int]


class Taken(NamedTuple):
    """Values that go into a unit.

    Attributes:
        patch: As the message says it.
        values: float64, in the patch's order.
    """

    patch: pb.Patch
    values: npt.NDArray[np.float64]


def place_shape(shape: Sequence[int]) -> Place:
    """How many channels, rows and columns the units of a layer have.

    What is missing is 1; of more than three dimensions the first ones together count channels.

    Args:
        shape: Of the layer for one image.
    """
    if len(shape) > 3:
        return math.prod(shape[:-2]), shape[-2], shape[-1]
    channels, rows, columns = (*shape, 1, 1, 1)[:3]
    return channels, rows, columns


def broadcast_index(shape: Sequence[int], index: Sequence[int]) -> tuple[int, ...]:
    """The index of a value in an array that is broadcast, from that in the result."""
    return tuple(0 if size == 1 else n for size, n in zip(shape, index[len(index) - len(shape) :], strict=True))


class Operands:
    """The operands of one unit.

    Args:
        catalogue: Of the network.
        layer: The unit's.
        unit: Which.

    Attributes:
        layer: As given.
        anatomy: Of the network.
        node: The layer's node.
        bias: The node that adds a bias to a matrix product, if that is one of its own.
        part: Which of the node's outputs the layer is.
        index: Of the unit in the layer's tensor, image 0.
        values: By name, the tensors that the node takes, and the layer's; to be filled in.

    Raises:
        NotFound: The layer has no such unit.
    """

    def __init__(self, catalogue: Catalogue, layer: Layer, unit: pb.Unit) -> None:
        self.layer = layer
        self.values: dict[str, Values] = {}
        self._catalogue = catalogue
        self.anatomy = catalogue.anatomy
        operation = self.anatomy.operations[layer.name]
        self.node: onnx.NodeProto = operation.node
        self.bias = operation.bias
        self.part = 0 if self.bias is not None else list(self.node.output).index(operation.output)
        place = (unit.channel, unit.row, unit.column)
        shape = place_shape(layer.shape)
        if any(position >= size for position, size in zip(place, shape, strict=True)):
            raise NotFound(
                f"layer {layer.name!r} has no unit at channel {place[0]}, row {place[1]}, column {place[2]}: it has "
                f"{shape[0]} channels, {shape[1]} rows, {shape[2]} columns, each counted from 0",
                reason="UNIT_NOT_FOUND",
                field="unit",
                metadata={"layer": layer.name, "unit": "/".join(map(str, place)), "shape": "/".join(map(str, shape))},
            )
        order = self.anatomy.order(layer.tensor)
        arranged = np.unravel_index(np.ravel_multi_index(place, shape), layer.shape or (1,))
        index = [0] * len(order)
        for axis, position in zip(order[1:], arranged, strict=False):
            index[axis] = int(position)
        self.index = tuple(index)

    @property
    def names(self) -> set[str]:
        """The tensors that `values` must have."""
        nodes = (self.node,) if self.bias is None else (self.node, self.bias)
        return {self.layer.tensor, *(name for node in nodes for name in node.input if name)}

    @property
    def activation(self) -> float:
        """What the network computes for the unit."""
        return float(self.values[self.layer.tensor][self.index])

    def name(self, position: int) -> str:
        """The tensor that the node takes as its input of that number; empty if it takes none."""
        return str(self.node.input[position]) if position < len(self.node.input) else ""

    def input(self, position: int) -> Values:
        """The values of an input that the node must have."""
        return self.values[self.node.input[position]]

    def optional(self, position: int) -> Values | None:
        """The values of an input that the node may have."""
        name = self.name(position)
        return self.values[name] if name else None

    def is_constant(self, position: int) -> bool:
        """Whether an input is the same for every image."""
        return self.name(position) not in self.anatomy.sources

    def number(self, position: int) -> float | None:
        """The only number of an input that the node may have."""
        values = self.optional(position)
        return None if values is None else float(np.ravel(values)[0])

    def source(self, tensor: str) -> str:
        """The layer that a tensor's values are of, or "input"; empty for constants and where there is no such layer."""
        name = self.anatomy.source(tensor)
        layer = self._catalogue.image if name == IMAGE else self._catalogue.get(name)
        if layer is None or layer.shape != tuple(
            self.values[tensor].shape[axis] for axis in self.anatomy.order(tensor)[1:]
        ):
            return ""
        return name

    def point(self, tensor: str, index: Sequence[int]) -> Taken:
        """One value of a tensor."""
        return self.box(tensor, index, ())

    def box(self, tensor: str, index: Sequence[int], axes: Collection[int]) -> Taken:
        """The values of a tensor along some of its axes.

        Args:
            tensor: Its name.
            index: Of one of the values.
            axes: Along which all values are taken; of the others that of the index alone.
        """
        values = self.values[tensor]
        cut = values[tuple(slice(None) if axis in axes else slice(n, n + 1) for axis, n in enumerate(index))]
        if tensor not in self.anatomy.sources:
            patch = pb.Patch(shape=(cut.size, 1, 1), step=(1, 1), values=np.ravel(cut))
            return Taken(patch, np.ravel(cut).astype(np.float64))
        order = self.anatomy.order(tensor)
        cut = cut.transpose(order)
        shape = place_shape(cut.shape[1:]) if len(order) <= 4 else (cut.size, 1, 1)
        first = self._place(values, order, [0 if axis in axes else n for axis, n in enumerate(index)])
        return self.patch(tensor, shape, first, np.ravel(cut))

    def position(self, tensor: str, index: Sequence[int], axes: Collection[int]) -> int:
        """Where one value stands among those of `box`."""
        order = self.anatomy.order(tensor)
        dims = self.values[tensor].shape
        sizes = [dims[axis] if axis in axes else 1 for axis in order]
        places = [index[axis] if axis in axes else 0 for axis in order]
        return int(np.ravel_multi_index(places, sizes)) if order else 0

    def patch(self, tensor: str, shape: Place, first: Place, values: Values, step: tuple[int, int] = (1, 1)) -> Taken:
        """Values of a layer, as message and as numbers.

        Args:
            tensor: That they are of.
            shape: Channels, rows and columns of them.
            first: Where the first one stands.
            values: In row-major order of `shape`.
            step: Rows and columns between neighbours.
        """
        patch = pb.Patch(
            layer=self.source(tensor),
            shape=shape,
            first_channel=first[0],
            first_row=first[1],
            first_column=first[2],
            step=step,
            values=values,
        )
        return Taken(patch, values.astype(np.float64))

    def unexplained(self, why: str = "") -> Unimplemented:
        """The error for a layer without an explanation."""
        kind = self.layer.kind
        return Unimplemented(
            f"layer {self.layer.name!r} is of the kind {kind}, whose units have no explanation{why}; explained are "
            "convolutions, dense layers, pooling, normalisations, activations, arithmetic between layers, softmax, and "
            "what hands values on (flatten, concat, …)",
            reason="NOT_EXPLAINED",
            field="unit.layer",
            metadata={"layer": self.layer.name, "kind": kind, "op_type": self.node.op_type},
        )

    @staticmethod
    def _place(values: Values, order: Sequence[int], index: Sequence[int]) -> Place:
        sizes = [values.shape[axis] for axis in order[1:]]
        if not sizes:
            return 0, 0, 0
        flat = np.ravel_multi_index([index[axis] for axis in order[1:]], sizes)
        channel, row, column = np.unravel_index(flat, place_shape(sizes))
        return int(channel), int(row), int(column)
