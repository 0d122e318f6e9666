"""The catalogue of a network's layers: what each is, how large, and what it sees."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx

from convlens_server.anatomy import Anatomy, Operation, axis_order
from convlens_server.composition import AROUND
from convlens_server.graph import TRANSPARENT, Graph, attribute, taken
from convlens_server.naming import IMAGE, Unnamed, layer_names
from convlens_server.network import Network
from convlens_server.operators import WINDOWED, kind_of, multiply_accumulates, trained_values, window
from convlens_server.receptive_field import ReceptiveFields
from convlens_server.shapes import BATCH, tensor_types

# Stands among the indices of layers for the image.
_IMAGE = -1


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer, with the fields of the message `Layer` of convlens.proto.

    Attributes:
        name: Unique within the network.
        kind: In lower snake case, e.g. conv.
        op_type: The ONNX operator, e.g. Conv.
        inputs: Names of the layers whose outputs it takes; "input" is the image.
        shape: Of its output for one image: channels, height, width; or units.
        kernel: Of a convolution or pooling: rows and columns, pixels of its input. Empty for others, as the next three.
        stride: Rows and columns, pixels of its input.
        padding: Top, left, bottom, right, pixels of its input.
        dilation: Rows and columns; 1 is a dense kernel.
        groups: Of a convolution; 0 for others.
        parameters: Trained values: weights and biases.
        multiply_accumulates: For one image.
        receptive_field: Rows and columns that a unit sees, pixels of the image; may exceed the image by padding.
        receptive_field_stride: Pixels between the fields of neighbouring units; 0, 0 where all see the whole image.
        receptive_field_start: First row and column that unit (0, 0) sees; negative where that is padding.
        tensor: The graph's tensor that holds its output.
    """

    name: str
    kind: str
    op_type: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    parameters: int
    multiply_accumulates: int
    receptive_field: tuple[int, ...]
    receptive_field_stride: tuple[int, ...]
    receptive_field_start: tuple[int, ...]
    tensor: str


@dataclass(frozen=True)
class Catalogue:
    """The layers of a network.

    Attributes:
        layers: In the order of computation.
        arrangements: By a layer's name, the order in which its tensor's axes become images, channels, height, width;
            only where that is not the tensor's own order.
        image: What the first layers take, as a layer of the kind "input" that stands before all others: the image after
            preprocessing. None where that is no single tensor of floating-point numbers.
        anatomy: Where they are in the network's graph.
    """

    layers: tuple[Layer, ...]
    arrangements: Mapping[str, tuple[int, ...]]
    image: Layer | None
    anatomy: Anatomy = field(compare=False, repr=False)

    @property
    def names(self) -> Collection[str]:
        """The names of the layers, in the order of computation."""
        return self._index.keys()

    @property
    def kinds(self) -> Collection[str]:
        """The kinds there are, in the order of their first layers."""
        return dict.fromkeys(layer.kind for layer in self.layers).keys()

    @property
    def parameters(self) -> int:
        """Trained values of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_accumulates(self) -> int:
        """Multiply-accumulates of all layers for one image."""
        return sum(layer.multiply_accumulates for layer in self.layers)

    def __getitem__(self, name: str) -> Layer:
        """The layer of that name. Raises KeyError."""
        return self._index[name]

    def get(self, name: str) -> Layer | None:
        """The layer of that name; None if there is none."""
        return self._index.get(name)

    @cached_property
    def _index(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}


def build_catalogue(network: Network) -> Catalogue:
    """Walks a network's graph once and describes its layers.

    A layer is a node on the image's way that makes floating-point numbers; of one with several outputs each is one.
    A matrix product and the bias added to it are one layer. Preprocessing, changes of number format (those of quantised
    networks included), dropout and integer arithmetic on shapes are none. Neither is what merges the images of a batch
    with another dimension, as attention does in places.

    Raises:
        ModelError: A shape can only be told by running the graph, and onnxruntime cannot run it.
    """
    return _Walk(network).catalogue()


@dataclass(frozen=True, slots=True)
class _Draft:
    """A layer before it has a name."""

    unnamed: Unnamed
    operation: Operation
    tensor: str
    sources: tuple[int, ...]
    parameters: int


class _Walk:
    def __init__(self, network: Network) -> None:
        self._batch = network.fixed_batch or BATCH
        self._graph = graph = Graph(network.model, network.input_name)
        path = [node for node in graph.nodes if not graph.on_path.isdisjoint(node.output)]
        wanted = dict.fromkeys(name for node in path for name in (*node.input, *node.output) if name)
        self._types = tensor_types(network.model, graph, self._batch, wanted)
        size = (network.manifest.input.height, network.manifest.input.width)
        self._fields = ReceptiveFields(graph, self._types, network.input_name, size)
        self._drafts: list[_Draft] = []
        self._behind_weights: list[bool] = []
        self._sources: dict[str, tuple[int, ...]] = {network.input_name: (_IMAGE,)}
        for node in path:
            self._fields.follow(node)
            self._visit(node)

    def catalogue(self) -> Catalogue:
        names = layer_names([draft.unnamed for draft in self._drafts])
        layers: list[Layer] = []
        arrangements: dict[str, tuple[int, ...]] = {}
        for name, draft in zip(names, self._drafts, strict=True):
            inputs = tuple(IMAGE if source == _IMAGE else names[source] for source in draft.sources)
            layers.append(self._layer(name, draft, inputs))
        image = self._image()
        for layer in (*layers, *([image] if image else [])):
            order = self._order(layer.tensor)
            if order != tuple(range(len(order))):
                arrangements[layer.name] = order
        operations = {name: draft.operation for name, draft in zip(names, self._drafts, strict=True)}
        sources = {
            tensor: tuple(IMAGE if source == _IMAGE else names[source] for source in found)
            for tensor, found in self._sources.items()
        }
        anatomy = Anatomy(self._graph, self._batch, self._types, self._fields, operations, sources)
        return Catalogue(tuple(layers), arrangements, image, anatomy)

    def _image(self) -> Layer | None:
        taken_first = {
            name
            for draft in self._drafts
            for name in taken(draft.unnamed.node)
            if self._sources.get(name) == (_IMAGE,) and name in self._graph.producers
        }
        if len(taken_first) != 1:
            return None
        tensor = taken_first.pop()
        kind, seen = self._types[tensor], self._fields[tensor]
        if not kind.is_float or kind.batch_axis(self._batch) is None:
            return None
        shape = tuple(kind.dims[axis] for axis in self._order(tensor)[1:])
        nothing: tuple[int, ...] = ()
        field_of_view = (seen.size, seen.stride, seen.start)
        return Layer(IMAGE, IMAGE, "", (), shape, nothing, nothing, nothing, nothing, 0, 0, 0, *field_of_view, tensor)

    def _visit(self, node: onnx.NodeProto) -> None:
        if all(name in self._sources for name in node.output if name):
            return  # The bias of a matrix product.
        sources = tuple(dict.fromkeys(source for name in taken(node) for source in self._sources.get(name, ())))
        for name in node.output:
            self._sources[name] = sources
        if node.op_type in TRANSPARENT or node.name.startswith(AROUND):
            return
        activations = [name for name in node.output if self._is_activation(name)]
        for part, name in enumerate(activations):
            self._add(node, name, part if len(activations) > 1 else None, sources)

    def _add(self, node: onnx.NodeProto, tensor: str, part: int | None, sources: tuple[int, ...]) -> None:
        index = len(self._drafts)
        behind_weights = any(source != _IMAGE and self._behind_weights[source] for source in sources)
        parameters = 0 if part else trained_values(self._graph, node, self._types, behind_weights)
        kind = self._kind(node, tensor)
        self._sources[tensor] = (index,)
        bias = self._bias(node) if kind == "dense" else None
        if bias is not None:
            parameters += trained_values(self._graph, bias, self._types, behind_weights=True)
            tensor = bias.output[0]
            self._sources[tensor] = (index,)
        weight = next((name for name in node.input[1:2] if self._graph.is_constant(name)), "")
        unnamed, operation = Unnamed(node, kind, weight, part), Operation(node, bias, tensor)
        self._drafts.append(_Draft(unnamed, operation, self._dequantised(tensor), sources, parameters))
        self._behind_weights.append(behind_weights or parameters > 0)

    def _is_activation(self, name: str) -> bool:
        """Whether a tensor holds floating-point numbers for each image that somebody takes."""
        kind = self._types.get(name)
        if kind is None or not kind.is_float or kind.batch_axis(self._batch) is None:
            return False
        return name in self._graph.consumers or any(name == output.name for output in self._graph.proto.output)

    def _kind(self, node: onnx.NodeProto, tensor: str) -> str:
        source = next(name for name in taken(node) if name in self._graph.on_path)
        axes = self._fields[source].axes or ()
        shape = self._types[tensor].dims[1:]
        return kind_of(self._graph, node, shape, len(self._types[source].dims), axes)

    def _bias(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The addition of one constant for each unit that alone takes a matrix product, if there is one."""
        product = self._dequantised(node.output[0])
        consumers = self._graph.consumers.get(product, [])
        if node.op_type != "MatMul" or len(consumers) != 1 or consumers[0].op_type != "Add":
            return None
        if any(output.name in (node.output[0], product) for output in self._graph.proto.output):
            return None
        bias = next((name for name in consumers[0].input if name != product), "")
        units = self._types[node.output[0]].dims[-1]
        fits = bias in self._types and self._graph.is_constant(bias) and self._types[bias].dims == (units,)
        return consumers[0] if fits else None

    def _dequantised(self, tensor: str) -> str:
        """The tensor itself, or what is left of it where the graph goes on with its quantised values only."""
        for op_type in ("QuantizeLinear", "DequantizeLinear"):
            consumers = self._graph.consumers.get(tensor, [])
            if not consumers or any(consumer.op_type != op_type for consumer in consumers):
                return tensor
            tensor = consumers[0].output[0]
        return tensor

    def _order(self, tensor: str) -> tuple[int, ...]:
        return axis_order(tensor, self._types, self._fields, self._batch)

    def _layer(self, name: str, draft: _Draft, inputs: tuple[str, ...]) -> Layer:
        node = draft.unnamed.node
        view = window(self._graph, node, self._types) if node.op_type in WINDOWED else None
        dims = self._types[draft.tensor].dims
        seen = self._fields[draft.tensor]
        return Layer(
            name=name,
            kind=draft.unnamed.kind,
            op_type=node.op_type,
            inputs=inputs,
            shape=tuple(dims[axis] for axis in self._order(draft.tensor)[1:]),
            kernel=view.kernel if view else (),
            stride=view.stride if view else (),
            padding=view.padding if view else (),
            dilation=view.dilation if view else (),
            groups=int(attribute(node, "group", 1)) if node.op_type in ("Conv", "ConvTranspose") else 0,
            parameters=draft.parameters,
            multiply_accumulates=0 if draft.unnamed.part else multiply_accumulates(node, self._types, self._batch),
            receptive_field=seen.size,
            receptive_field_stride=seen.stride,
            receptive_field_start=seen.start,
            tensor=draft.tensor,
        )
