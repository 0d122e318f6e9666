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


class Lens:
    """Looks into a network.

    Each set of layers has a session of its own, built when it is first asked for; the session that classifies is never
    touched. Thread-safe; maps of different requests are computed at the same time.

    Args:
        network: The network.
        catalogue: Of its layers.
        make_session: Makes a session of a serialised model.
        cache_size: Most sessions that are kept; the one that was not asked for longest goes first.
    """

    def __init__(
        self,
        network: Network,
        catalogue: Catalogue,
        make_session: Callable[[bytes], onnxruntime.InferenceSession],
        cache_size: int = 8,
    ) -> None:
        self._network = network
        self._graph = Graph(network.model, network.input_name)
        self._catalogue = catalogue
        self._make_session = make_session
        self._cache_size = cache_size
        self._lock = threading.Lock()
        self._parts: OrderedDict[frozenset[str], _Part] = OrderedDict()

    def resolve(self, layers: Collection[str], kinds: Collection[str], all_layers: bool) -> tuple[Layer, ...]:
        """The layers that a request asks for: the union of the three, in the catalogue's order, each once.

        Raises:
            NotFound: There is no such layer or kind; the text names near matches.
            InvalidRequest: Nothing is asked for.
        """
        if not layers and not kinds and not all_layers:
            raise InvalidRequest(
                "no layers are asked for: give layers, kinds or all_layers", reason="NO_LAYERS", field="layers"
            )
        for field, wanted, known in (
            ("layers", layers, self._catalogue.names),
            ("kinds", kinds, self._catalogue.kinds),
        ):
            for name in wanted:
                if name not in known:
                    what = "layer" if field == "layers" else "kind of layer"
                    raise NotFound(
                        f"{what} {shown(name)!r} is not in the model{near(shown(name), known)}",
                        reason="LAYER_NOT_FOUND",
                        field=field,
                        metadata={field[:-1]: shown(name)},
                    )
        names, wanted_kinds = set(layers), set(kinds)
        return tuple(
            layer for layer in self._catalogue.layers if all_layers or layer.name in names or layer.kind in wanted_kinds
        )

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
        part = self._part(frozenset(layer.tensor for layer in layers))
        by_tensor = dict(zip(part.tensors, self._run(part.session(), images), strict=True))
        return [self._arranged(layer, by_tensor[layer.tensor]) for layer in layers]

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

    def _part(self, tensors: frozenset[str]) -> _Part:
        with self._lock:
            part = self._parts.get(tensors)
            if part is None:
                part = self._parts[tensors] = _Part(sorted(tensors), self._build)
                if len(self._parts) > self._cache_size:
                    self._parts.popitem(last=False)
            self._parts.move_to_end(tensors)
            return part

    def _build(self, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
        return self._make_session(truncate(self._network.model, self._graph, tensors).SerializeToString())


class _Part:
    """A part of a network: its session is built by the first who needs it, while others wait."""

    def __init__(self, tensors: Sequence[str], build: Callable[[Sequence[str]], onnxruntime.InferenceSession]) -> None:
        self.tensors = tensors
        self._build = build
        self._lock = threading.Lock()
        self._session: onnxruntime.InferenceSession | None = None

    def session(self) -> onnxruntime.InferenceSession:
        """The session. If building it fails, the next call tries again."""
        with self._lock:
            if self._session is None:
                self._session = self._build(self.tensors)
            return self._session
