"""How the layers of a network stand in its graph: the nodes that compute them, and what each tensor is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from convlens_server.graph import Graph
from convlens_server.receptive_field import ReceptiveFields
from convlens_server.shapes import TensorType


@dataclass(frozen=True, slots=True)
class Operation:
    """What computes a layer.

    Attributes:
        node: Its node; of a matrix product with a bias the product.
        bias: The node that adds the bias, where that is one of its own.
        output: The tensor that holds the layer as it was computed, before any quantisation.
    """

    node: onnx.NodeProto
    bias: onnx.NodeProto | None
    output: str


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Where the layers of a network are in its graph.

    Attributes:
        graph: The graph's index.
        batch: Images in a batch: what the file fixes, or `BATCH` of shapes.py.
        types: Of the tensors on the image's way and what is put together with them.
        fields: Receptive fields of the tensors on the image's way.
        operations: By the layer's name.
        sources: By a tensor's name, the layers whose values it holds or was computed of, without other layers between;
            "input" is the image.
    """

    graph: Graph
    batch: int
    types: Mapping[str, TensorType]
    fields: ReceptiveFields
    operations: Mapping[str, Operation]
    sources: Mapping[str, tuple[str, ...]]

    def source(self, tensor: str) -> str:
        """The layer that a tensor is the output of, or "input"; empty where that cannot be said."""
        sources = self.sources.get(tensor, ())
        return sources[0] if len(sources) == 1 else ""

    def order(self, tensor: str) -> tuple[int, ...]:
        """The axes of a tensor in the order images, channels, height, width; of another rank images first."""
        return axis_order(tensor, self.types, self.fields, self.batch)

    def units(self, tensor: str) -> int:
        """The numbers that a tensor has for one image."""
        return math.prod(self.image_dims(tensor))

    def image_dims(self, tensor: str) -> tuple[int, ...]:
        """The dimensions of a tensor in its own order, without that of the images."""
        kind = self.types[tensor]
        batch = kind.batch_axis(self.batch)
        return tuple(dim for axis, dim in enumerate(kind.dims) if axis != batch)


def axis_order(tensor: str, types: Mapping[str, TensorType], fields: ReceptiveFields, batch: int) -> tuple[int, ...]:
    """As `Anatomy.order`."""
    dims = types[tensor].dims
    rank = len(dims)
    first = types[tensor].batch_axis(batch) or 0
    axes = fields[tensor].axes
    last = () if axes is None or rank != 4 else (axes[0] + rank, axes[1] + rank)
    return (first, *[axis for axis in range(rank) if axis != first and axis not in last], *last)
