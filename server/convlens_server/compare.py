"""Compare: two images, or two models or versions, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from convlens.v1 import convlens_pb2 as pb
from convlens_server.aside import Aside
from convlens_server.catalogue import Layer
from convlens_server.encoding import check_value_type, encode
from convlens_server.errors import InvalidRequest
from convlens_server.items import check_wanted
from convlens_server.maps import FeatureMaps
from convlens_server.model import Model
from convlens_server.paced import chunks
from convlens_server.transport.base import Call

Maps = npt.NDArray[np.float32]


class Comparison:
    """Answers Compare.

    Args:
        aside: Decodes the images and knows the models.
        feature_maps: Bounds the bytes of maps that all callers together hold.
    """

    def __init__(self, aside: Aside, feature_maps: FeatureMaps) -> None:
        self._aside = aside
        self._feature_maps = feature_maps

    def answer(self, first: Model, request: pb.CompareRequest, call: Call) -> Iterator[pb.CompareResponse]:
        """The messages of the answer, layer by layer."""
        value_type = check_value_type(request.value_type)
        second = self._second(first, request.second, call)
        own_images = request.second.HasField("images")
        if second is first and not own_images:
            raise InvalidRequest(
                f"both sides are version {first.version} of model {first.name!r} with the same images: give the second "
                "side another model, version or images",
                reason="SAME_SIDES",
                field="second",
            )
        layers = _layers(first, second, request.layers)
        most, limit_name = self._aside.limits.feature_map_images, "--max-feature-map-images"
        images = [self._aside.decoded(request.first.images, first, most, limit_name)]
        theirs = request.second.images if own_images else request.first.images
        images.append(self._aside.decoded(theirs, second, most, limit_name))
        if len(images[0]) != len(images[1]):
            raise InvalidRequest(
                f"the first side has {len(images[0])} images and the second {len(images[1])}, but image i of one is "
                "compared with image i of the other: send as many for both",
                reason="DIFFERENT_NUMBERS_OF_IMAGES",
                field="second.images",
                metadata={"first": len(images[0]), "second": len(images[1])},
            )
        size = 4 * len(images[0]) * sum(math.prod(layer.shape) for layer, _ in layers)
        self._check_size(size, len(images[0]), len(layers))
        self._feature_maps.hold(2 * size)
        try:
            sides = [
                model.lens.maps(pixels, [pair[n] for pair in layers])[::-1]
                for n, (model, pixels) in enumerate(zip((first, second), images, strict=True))
            ]
            models = [pb.ModelRef(model=model.name, version=model.version) for model in (first, second)]
            for layer, _ in layers:
                check_wanted(call, 0.0)
                # Dropped when their turn is over.
                yield from _messages(layer, sides[0].pop(), sides[1].pop(), request, value_type, models)
        finally:
            self._feature_maps.let_go(2 * size)

    def _second(self, first: Model, side: pb.CompareSide, call: Call) -> Model:
        """The model of the second side, loaded if need be; what it does not name is the first's."""
        if not side.model and not side.version:
            return first
        waiting = _Waiting(call)
        self._aside.repository.when_ready(side.model or first.name, side.version, waiting, waiting.future.set_result)
        return waiting.future.result()

    def _check_size(self, size: int, images: int, layers: int) -> None:
        limit = self._aside.limits.feature_map_bytes
        if size > limit:
            raise InvalidRequest(
                f"the {layers} layers of {images} images have {size} bytes as float32 on each side, over the limit of "
                f"{limit}: ask for fewer layers or images a request, or start the server with a larger "
                "--max-feature-map-bytes",
                reason="TOO_MANY_BYTES",
                field="layers",
                metadata={"bytes": size, "limit": limit},
            )


class _Waiting:
    """The call, while it waits for the second side's model; `Waiting` of repository/on_demand.py."""

    def __init__(self, call: Call) -> None:
        self.deadline = call.deadline
        self.future: Future[Model] = Future()
        self._call = call

    @property
    def gone(self) -> bool:
        return self._call.cancelled

    def fail(self, error: BaseException) -> None:
        self.future.set_exception(error)


class Likeness(NamedTuple):
    """How alike two sides' maps are.

    Attributes:
        cosine: Of the angle between them, image by image; 0 where one is all 0.
        relative_difference: Their distance divided by the first's norm, image by image; infinite where only the first
            is all 0.
        cka: Over the images; None for a single one.
    """

    cosine: list[float]
    relative_difference: list[float]
    cka: float | None


def likeness(first: Maps, second: Maps) -> Likeness:
    """Compares two sides' maps, images × anything, of the same shape."""
    a, b = (side.reshape(len(side), -1).astype(np.float64) for side in (first, second))
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = norms[0] * norms[1]
    cosine = np.divide((a * b).sum(1), product, out=np.zeros_like(product), where=product > 0)
    distance = np.linalg.norm(b - a, axis=1)
    relative = np.where(distance > 0, np.inf, 0.0)
    np.divide(distance, norms[0], out=relative, where=norms[0] > 0)
    return Likeness(np.clip(cosine, -1, 1).tolist(), relative.tolist(), _cka(a, b) if len(a) > 1 else None)


def _cka(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Linear centred kernel alignment, 0 … 1; 0 where a side is the same for all images.

    Source: S. Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, arXiv 1905.00414.
    The plain estimate, as there, which is too high where images are few: of two it is always 1. By the products of the
    images with each other, which are few, not of the units.
    """
    kernels = []
    for side in (a, b):
        centred = side - side.mean(0)
        kernels.append(centred @ centred.T)
    norm = float(np.linalg.norm(kernels[0]) * np.linalg.norm(kernels[1]))
    return min(max(float((kernels[0] * kernels[1]).sum()) / norm, 0.0), 1.0) if norm > 0 else 0.0


def _layers(first: Model, second: Model, names: Sequence[str]) -> list[tuple[Layer, Layer]]:
    """The layers to compare, of the first side and of the second."""
    if not names:
        pairs = [(layer, second.catalogue.get(layer.name)) for layer in first.catalogue.layers]
        found = [(ours, theirs) for ours, theirs in pairs if theirs is not None and theirs.shape == ours.shape]
        if not found:
            raise InvalidRequest(
                f"models {first.name!r} and {second.name!r} have no layer of the same name and shape: there is nothing "
                "to compare",
                reason="NOTHING_TO_COMPARE",
                field="layers",
            )
        return found
    pairs_by_name = []
    for ours in first.lens.resolve(names, (), all_layers=False):
        (theirs,) = second.lens.resolve([ours.name], (), all_layers=False)
        if ours.shape != theirs.shape:
            shapes = [" × ".join(map(str, layer.shape)) for layer in (ours, theirs)]
            raise InvalidRequest(
                f"layer {ours.name!r} is {shapes[0]} in the first model and {shapes[1]} in the second: only layers of "
                "one shape can be compared",
                reason="DIFFERENT_SHAPES",
                field="layers",
                metadata={"layer": ours.name},
            )
        pairs_by_name.append((ours, theirs))
    return pairs_by_name


def _messages(
    layer: Layer,
    first: Maps,
    second: Maps,
    request: pb.CompareRequest,
    value_type: pb.ValueType.ValueType,
    models: list[pb.ModelRef],
) -> Iterator[pb.CompareResponse]:
    """One layer, its differences in chunks."""
    like = likeness(first, second)
    message = pb.CompareResponse(
        layer=layer.name,
        kind=layer.kind,
        cosine=like.cosine,
        relative_difference=like.relative_difference,
        cka=like.cka,
        shape=first.shape,
        models=models,
    )
    if not request.include_differences:
        yield message
        return
    encoded = encode(second - first, value_type)
    pieces = chunks(encoded.data)
    message.data = next(pieces)[1]
    message.value_type = value_type
    message.scale.extend(encoded.scale)
    message.offset.extend(encoded.offset)
    message.total_bytes = len(encoded.data)
    yield message
    for offset, data in pieces:
        yield pb.CompareResponse(layer=layer.name, byte_offset=offset, data=data)
