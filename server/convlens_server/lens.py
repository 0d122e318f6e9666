"""The lens: the feature maps of any layers of a network, from a session of just the part that they need."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from convlens_server.catalogue import Catalogue, Layer
from convlens_server.errors import InvalidRequest, NotFound, near, shown
from convlens_server.graph import Graph
from convlens_server.network import Network
from convlens_server.subgraph import truncate

if TYPE_CHECKING:
    import onnxruntime

_SESSIONS = 8
# Of a VGG-16 three sessions: one for the maps of all layers, and two for what is asked of single ones.
_SESSION_BYTES = 2**31
# Room for the first dense layer of a VGG, 411 MB: protobuf copies it for each who asks, which takes 0.3 s.
_CONSTANT_BYTES = 2**29


class Lens:
    """Looks into a network.

    Each set of layers has a session of its own, built when it is first asked for; the session that classifies is never
    touched. Thread-safe; maps of different requests are computed at the same time.

    Args:
        network: The network.
        catalogue: Of its layers.
        make_session: Makes a session of a serialised model.
        cache_size: Most sessions that are kept; the one that was not asked for longest goes first.
        cache_bytes: Most bytes of the files that they were made of; the last one is kept whatever it has.
        constant_bytes: Most bytes of weights that are kept as arrays.
    """

    def __init__(
        self,
        network: Network,
        catalogue: Catalogue,
        make_session: Callable[[bytes], onnxruntime.InferenceSession],
        cache_size: int = _SESSIONS,
        cache_bytes: int = _SESSION_BYTES,
        constant_bytes: int = _CONSTANT_BYTES,
    ) -> None:
        self._network = network
        self._graph = Graph(network.model, network.input_name)
        self._catalogue = catalogue
        self._make_session = make_session
        self._cache_size = cache_size
        self._cache_bytes = cache_bytes
        self._constant_bytes = constant_bytes
        self._lock = threading.Lock()
        self._parts: OrderedDict[frozenset[str], _Part] = OrderedDict()
        # Held while an array is made, too: those who need the same one would each have a copy.
        self._constants_lock = threading.Lock()
        self._constants: OrderedDict[str, npt.NDArray[Any]] = OrderedDict()

    def resolve(self, layers: Collection[str], kinds: Collection[str], all_layers: bool) -> tuple[Layer, ...]:
        """The layers that a request asks for: the union of the three, in the catalogue's order, each once.

        Among `layers` the name "input" stands for the image after preprocessing, which comes first.

        Raises:
            NotFound: There is no such layer or kind; the text names near matches.
            InvalidRequest: Nothing is asked for.
        """
        if not layers and not kinds and not all_layers:
            raise InvalidRequest(
                "no layers are asked for: give layers, kinds or all_layers", reason="NO_LAYERS", field="layers"
            )
        image = self._catalogue.image
        first = (image,) if image is not None and image.name in layers else ()
        named = {self.layer(name, "layers").name for name in layers if not (first and name == first[0].name)}
        for kind in kinds:
            if kind not in self._catalogue.kinds:
                raise _not_found("kind of layer", kind, self._catalogue.kinds, "kinds")
        return first + tuple(
            layer for layer in self._catalogue.layers if all_layers or layer.name in named or layer.kind in kinds
        )

    def layer(self, name: str, field: str = "layer") -> Layer:
        """The layer of that name.

        Args:
            name: From a request.
            field: Of the request that has the name, for the error.

        Raises:
            NotFound: There is no such layer; the text names near matches.
        """
        layer = self._catalogue.get(name)
        if layer is None:
            image = self._catalogue.image
            if image is not None and name == image.name:
                raise NotFound(
                    f"{name!r} is the image as the network takes it, which no layer computes: ask for its feature maps",
                    reason="LAYER_NOT_FOUND",
                    field=field,
                    metadata={"layer": name},
                )
            raise _not_found("layer", name, self._catalogue.names, field)
        return layer

    def maps(self, images: npt.NDArray[Any], layers: Sequence[Layer]) -> list[npt.NDArray[np.float32]]:
        """Computes feature maps.

        Args:
            images: N of what the network takes, N ≥ 1: uint8 N × height × width × channels.
            layers: Of this network's catalogue, at least one.

        Returns:
            For each layer float32 N × its shape, contiguous; from float16 networks too.

        Raises:
            ModelError: `make_session` refuses the part of the network.
        """
        tensors, session = self._session(frozenset(layer.tensor for layer in layers))
        by_tensor = dict(zip(tensors, self._run(session, images), strict=True))
        return [self._arranged(layer, by_tensor[layer.tensor]) for layer in layers]

    def tensors(self, image: npt.NDArray[Any], names: Collection[str]) -> dict[str, npt.NDArray[Any]]:
        """The values of any tensors of the graph for one image, as the graph has them.

        Args:
            image: One of what the network takes: uint8 1 × height × width × channels.
            names: Of tensors that nodes make, initialisers, or the image itself; at least one.

        Returns:
            By name. Where the file fixes the size of a batch, the image is the first of as many.

        Raises:
            ModelError: `make_session` refuses the part of the network.
        """
        batch = np.pad(image, ((0, (self._network.fixed_batch or 1) - 1), (0, 0), (0, 0), (0, 0)))
        made = {name for name in names if name in self._graph.producers}
        values = {self._network.input_name: batch}
        if made:
            tensors, session = self._session(frozenset(made))
            values |= dict(zip(tensors, session.run(None, {self._network.input_name: batch}), strict=True))
        return {name: values[name] if name in values else self._initial(name) for name in names}

    def constants(self, names: Collection[str]) -> dict[str, npt.NDArray[Any]]:
        """The values of tensors that are the same for every image: initialisers, and what nodes make of such alone."""
        return self.tensors(np.zeros((1, *self._network.input_form[0]), self._network.input_form[1]), names)

    def _run(self, session: onnxruntime.InferenceSession, images: npt.NDArray[Any]) -> list[npt.NDArray[np.floating]]:
        name, size = self._network.input_name, self._network.fixed_batch
        if size is None or len(images) == size:
            return list(session.run(None, {name: images}))
        runs = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            missing = size - len(batch)
            runs.append(session.run(None, {name: np.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))}))
        return [np.concatenate(values)[: len(images)] for values in zip(*runs, strict=True)]

    def _arranged(self, layer: Layer, values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        order = self._catalogue.arrangements.get(layer.name)
        return np.ascontiguousarray(values if order is None else values.transpose(order), np.float32)

    def _initial(self, name: str) -> npt.NDArray[Any]:
        with self._constants_lock:
            values = self._constants.get(name)
            if values is None:
                values = self._constants[name] = self._graph.initial(name)
            self._constants.move_to_end(name)
            while sum(kept.nbytes for kept in self._constants.values()) > self._constant_bytes:
                self._constants.popitem(last=False)
            return values

    def _session(self, tensors: frozenset[str]) -> tuple[Sequence[str], onnxruntime.InferenceSession]:
        """The session that computes some tensors, and these in the order in which it gives them."""
        with self._lock:
            part = self._parts.get(tensors)
            if part is None:
                part = self._parts[tensors] = _Part(sorted(tensors), self._build)
            self._parts.move_to_end(tensors)
            self._drop()
        session = part.session()
        with self._lock:
            # Only now its size is known.
            self._drop()
        return part.tensors, session

    def _drop(self) -> None:
        while len(self._parts) > self._cache_size or (
            len(self._parts) > 1 and sum(part.size for part in self._parts.values()) > self._cache_bytes
        ):
            self._parts.popitem(last=False)

    def _build(self, tensors: Sequence[str]) -> tuple[onnxruntime.InferenceSession, int]:
        content = truncate(self._network.model, self._graph, tensors).SerializeToString()
        return self._make_session(content), len(content)


def check_channels(wanted: Sequence[int], layer: str, size: int) -> list[int]:
    """The channels that a request asks a layer for; empty means all.

    Args:
        wanted: From the request's field `channels`.
        layer: Name of the layer.
        size: Channels that it has.

    Raises:
        InvalidRequest: One is named twice.
        NotFound: The layer does not have one.
    """
    channels = list(wanted)
    if len(set(channels)) != len(channels):
        raise InvalidRequest(
            f"channels has repeats: {channels[:12]}; name each once", reason="REPEATED_CHANNEL", field="channels"
        )
    if channels and max(channels) >= size:
        raise NotFound(
            f"layer {layer!r} has no channel {max(channels)}: it has {size}, counted from 0",
            reason="CHANNEL_NOT_FOUND",
            field="channels",
            metadata={"layer": layer, "channel": max(channels), "channels": size},
        )
    return channels


def _not_found(what: str, name: str, known: Collection[str], field: str) -> NotFound:
    return NotFound(
        f"{what} {shown(name)!r} is not in the model{near(shown(name), known)}",
        reason="LAYER_NOT_FOUND",
        field=field,
        metadata={"kind" if what != "layer" else "layer": shown(name)},
    )


class _Part:
    """A part of a network: its session is built by the first who needs it, while others wait.

    Attributes:
        tensors: That it gives, in this order.
        size: Bytes of the file that its session was made of; 0 until then.
    """

    def __init__(
        self, tensors: Sequence[str], build: Callable[[Sequence[str]], tuple[onnxruntime.InferenceSession, int]]
    ) -> None:
        self.tensors = tensors
        self.size = 0
        self._build = build
        self._lock = threading.Lock()
        self._session: onnxruntime.InferenceSession | None = None

    def session(self) -> onnxruntime.InferenceSession:
        """The session. If building it fails, the next call tries again."""
        with self._lock:
            if self._session is None:
                self._session, self.size = self._build(self.tensors)
            return self._session
