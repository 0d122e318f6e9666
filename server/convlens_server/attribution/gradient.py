"""The exact gradient of a class's logit with respect to a layer's maps, formed by graph surgery.

Two sessions make it: one of the network as it is, which gives besides the layer's maps what the gradient needs of the
layers behind it, and one of a graph that `rules.py` writes, which takes these and gives the gradient. So the network's
own operator set, number format and optimisations stay what they are.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from convlens_server.attribution.rules import gradient
from convlens_server.attribution.writer import OPSET, NoRule, Writer
from convlens_server.catalogue import Catalogue, Layer
from convlens_server.errors import NotApplicable
from convlens_server.graph import Graph
from convlens_server.network import Network
from convlens_server.shapes import tensor_types
from convlens_server.subgraph import truncate

if TYPE_CHECKING:
    import onnxruntime

Maps = npt.NDArray[np.float32]
MakeSession = Callable[[bytes], "onnxruntime.InferenceSession"]

_REACHING = "gradient/logits"


class Gradients:
    """Computes gradients within a network. Thread-safe.

    Args:
        network: The network.
        catalogue: Of its layers.
        make_session: Makes a session of a serialised model.
        cache_size: Most layers whose sessions are kept; the one that was not asked for longest goes first.
    """

    def __init__(self, network: Network, catalogue: Catalogue, make_session: MakeSession, cache_size: int = 2) -> None:
        self._network = network
        self._catalogue = catalogue
        self._make_session = make_session
        self._cache_size = cache_size
        self._lock = threading.Lock()
        self._tails: OrderedDict[str, _Tail] = OrderedDict()

    def of(self, layer: Layer, image: npt.NDArray[np.uint8], class_index: int) -> tuple[Maps, Maps]:
        """A layer's maps for an image, and the gradient of a class's logit with respect to them.

        Args:
            layer: Of the catalogue.
            image: uint8 height × width × channels.
            class_index: The class.

        Returns:
            Two of the layer's shape.

        Raises:
            NotApplicable: The gradient cannot be formed.
            ModelError: `make_session` refuses a part of the network.
        """
        with self._lock:
            tail = self._tails.get(layer.name)
            if tail is None:
                tail = self._tails[layer.name] = _Tail(
                    self._network, self._catalogue.anatomy.graph, layer, self._make_session
                )
                if len(self._tails) > self._cache_size:
                    self._tails.popitem(last=False)
            self._tails.move_to_end(layer.name)
        order = self._catalogue.arrangements.get(layer.name)
        maps, gradients = tail.run(image, class_index)
        if order is not None:
            maps, gradients = maps.transpose(order), gradients.transpose(order)
        return maps[0], gradients[0]


class _Tail:
    """What stands between a layer and the logits, forwards and backwards."""

    def __init__(self, network: Network, graph: Graph, layer: Layer, make_session: MakeSession) -> None:
        self._network = network
        self._tensor = layer.tensor
        self._images = network.fixed_batch or 1
        between = _between(graph, layer.tensor, network.logits_name)
        if not between:
            raise NotApplicable(
                f"the logits do not depend on layer {layer.name!r}, so it has no gradient: take another layer",
                field="layer",
                metadata={"layer": layer.name},
            )
        tensors = dict.fromkeys(name for node in between for name in (*node.input, *node.output) if name)
        types = tensor_types(network.model, graph, self._images, tensors)

        def evaluate(tensor: str) -> npt.NDArray[Any]:
            session = make_session(truncate(network.model, graph, [tensor]).SerializeToString())
            image = np.zeros((self._images, *network.input_form[0]), np.uint8)
            values: npt.NDArray[Any] = session.run(None, {network.input_name: image})[0]
            return values

        writer = Writer(graph, types, evaluate)
        result = _write(writer, between, layer, network.logits_name)
        weights = [name for name in writer.forward if name in graph.initializers]
        self._values = [name for name in writer.forward if name not in graph.initializers]
        self._indices = dict(writer.indices)
        made = dict.fromkeys([layer.tensor, *self._values])
        self._outputs = [*made, *self._indices.values()]
        self._forwards = make_session(_forwards(network, graph, list(made), self._indices).SerializeToString())
        for name in weights:
            value = numpy_helper.to_array(graph.initializers[name]).astype(np.float32)
            writer.constants.append(numpy_helper.from_array(value, name))
        inputs = [
            helper.make_tensor_value_info(_REACHING, TensorProto.FLOAT, types[network.logits_name].dims),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, types[name].dims) for name in self._values),
            *(
                helper.make_tensor_value_info(name, TensorProto.INT64, types[pooled].dims)
                for pooled, name in self._indices.items()
            ),
        ]
        outputs = [onnx.ValueInfoProto(name=result)]
        made_graph = helper.make_graph(writer.nodes, "gradient", inputs, outputs, writer.constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(made_graph, opset_imports=opset, ir_version=8)
        self._backwards = make_session(model.SerializeToString())

    def run(self, image: npt.NDArray[np.uint8], class_index: int) -> tuple[Maps, Maps]:
        """The layer's tensor and its gradient, for as many images as the network takes, of which the first counts."""
        network = self._network
        images = np.broadcast_to(image, (self._images, *image.shape))
        run = self._forwards.run(self._outputs, {network.input_name: np.ascontiguousarray(images)})
        values: dict[str, npt.NDArray[Any]] = dict(zip(self._outputs, run, strict=True))
        reaching = np.zeros((self._images, network.classes), np.float32)
        reaching[0, class_index] = 1
        feeds: dict[str, npt.NDArray[Any]] = {_REACHING: reaching}
        feeds.update((name, values[name].astype(np.float32)) for name in self._values)
        feeds.update((name, values[name]) for name in self._indices.values())
        (gradients,) = self._backwards.run(None, feeds)
        return values[self._tensor].astype(np.float32), gradients


def _between(graph: Graph, first: str, last: str) -> list[onnx.NodeProto]:
    """The nodes by which a tensor depends on another, in the order of computation."""
    behind = {first}
    nodes = []
    for node in graph.nodes:
        if not behind.isdisjoint(node.input) and not graph.on_path.isdisjoint(node.output):
            behind.update(node.output)
            nodes.append(node)
    needed = {last}
    between = []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed.update(name for name in node.input if name in behind)
            between.append(node)
    return between[::-1]


def _write(writer: Writer, between: list[onnx.NodeProto], layer: Layer, logits: str) -> str:
    """Writes the gradients of all nodes, last first; gives the name of the layer's. Raises NotApplicable."""
    behind = {layer.tensor}.union(*(node.output for node in between))
    parts: defaultdict[str, list[str]] = defaultdict(list, {logits: [_REACHING]})

    def reaching(tensor: str) -> str:
        found = parts.pop(tensor, [])
        return writer.node("Sum", *found) if found else ""

    for node in reversed(between):
        outputs = [reaching(name) for name in node.output]
        for position, name in enumerate(node.input):
            if name in behind and any(outputs):
                try:
                    if not writer.types[name].is_float:
                        raise NoRule("that takes whole numbers")
                    parts[name].append(gradient(writer, node, position, outputs))
                except NoRule as error:
                    what = " ".join(["an operator", node.op_type, str(error)]).rstrip()
                    raise NotApplicable(
                        f"Grad-CAM needs the gradient of what is behind layer {layer.name!r}, but there is {what}, of "
                        "which none can be formed: take a layer behind it, or Score-CAM, Eigen-CAM or occlusion, which "
                        "need no gradient",
                        reason="NO_GRADIENT",
                        field="method",
                        metadata={"layer": layer.name, "operator": node.op_type},
                    ) from None
    return reaching(layer.tensor)


def _forwards(network: Network, graph: Graph, tensors: list[str], indices: dict[str, str]) -> onnx.ModelProto:
    """The network up to all of some tensors, and of some of its max poolings which values they took."""
    part = truncate(network.model, graph, [*tensors, *indices])
    for node in part.graph.node:
        if (name := indices.get(node.output[0])) is not None and len(node.output) == 1:
            node.output.append(name)
    del part.graph.output[:]
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (*tensors, *indices.values()))
    return part
