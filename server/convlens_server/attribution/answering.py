"""Attribute: checks what is asked for, and answers it by one of the methods."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from convlens.v1 import convlens_pb2 as pb
from convlens_server.aside import Aside
from convlens_server.attribution.cams import eigen_cam, grad_cam, normalised, score_cam
from convlens_server.attribution.occlusion import occlusion
from convlens_server.attribution.overlay import overlay
from convlens_server.attribution.placing import Placing, default_layer, has_positions
from convlens_server.background import Background, Image
from convlens_server.catalogue import Layer
from convlens_server.errors import InvalidRequest, NotApplicable, NotFound
from convlens_server.model import Model
from convlens_server.transport.base import Call

_OCCLUSION = pb.ATTRIBUTION_METHOD_OCCLUSION
_SQUARE: tuple[Literal["window", "stride"], ...] = ("window", "stride")


class Attribution:
    """Answers Attribute.

    Args:
        aside: Decodes the images.
    """

    def __init__(self, aside: Aside) -> None:
        self._aside = aside

    def answer(self, model: Model, request: pb.AttributeRequest, call: Call) -> Iterator[pb.AttributeResponse]:
        """The only message of the answer."""
        method = _method(request)
        layer = None if method == _OCCLUSION else _layer(model, request)
        window, stride = _squares(model, request) if method == _OCCLUSION else (0, 0)
        image = self._aside.decoded(request.images, model)[0]
        began = time.monotonic()
        background = Background.of(model, call)
        prediction = _prediction(model, request, background, image)
        index = prediction.index
        if layer is None:
            values = occlusion(background, image, index, prediction.score, window, stride)
        else:
            values = _cam(method, model, background, image, index, layer)
        yield pb.AttributeResponse(
            map=values.astype("<f4", copy=False).tobytes(),
            height=values.shape[0],
            width=values.shape[1],
            overlay=overlay(image, values).tobytes() if request.include_overlay else b"",
            method=method,
            layer=layer.name if layer else "",
            prediction=prediction,
            # A layer's maps are those of one more run.
            images=background.done + (layer is not None),
            model=model.name,
            version=model.version,
            compute_ms=(time.monotonic() - began) * 1000,
        )


def _cam(
    method: int, model: Model, background: Background, image: Image, class_index: int, layer: Layer
) -> npt.NDArray[np.float32]:
    placing = Placing(layer, model.shape[:2])
    if method == pb.ATTRIBUTION_METHOD_GRAD_CAM:
        values = grad_cam(*model.gradients.of(layer, image, class_index))
    else:
        (maps,) = model.lens.maps(image[None], [layer])
        if method == pb.ATTRIBUTION_METHOD_EIGEN_CAM:
            values = eigen_cam(maps[0])
        else:
            values = score_cam(background, image, class_index, maps[0], placing)
    background.check()
    return normalised(placing.spread(values))


def _prediction(model: Model, request: pb.AttributeRequest, background: Background, image: Image) -> pb.Prediction:
    """The class that is asked for, with its score for the image."""
    index = request.class_index if request.HasField("class_index") else None
    if index is not None and index >= model.classes:
        raise NotFound(
            f"class {index} is not in the model: it has {model.classes} classes, counted from 0",
            reason="CLASS_NOT_FOUND",
            field="class_index",
            metadata={"class": index, "classes": model.classes},
        )
    scores = next(background.run([image])).scores[0]
    if index is None:
        index = int(scores.argmax())
    return pb.Prediction(label=model.manifest.labels[index], index=index, score=scores[index])


def _method(request: pb.AttributeRequest) -> pb.AttributionMethod.ValueType:
    method = request.method or _OCCLUSION
    if method not in pb.AttributionMethod.values():
        raise InvalidRequest(
            f"method is {method}, but must be one of {', '.join(pb.AttributionMethod.keys()[1:])}",
            reason="UNKNOWN_ATTRIBUTION_METHOD",
            field="method",
        )
    if method == _OCCLUSION:
        given = ["layer"] if request.layer else []
    else:
        given = [name for name in _SQUARE if request.HasField(name)]
    if given:
        raise InvalidRequest(
            f"{given[0]} is given, but {pb.AttributionMethod.Name(method)} has none: leave it out",
            reason="NOT_OF_THE_METHOD",
            field=given[0],
        )
    return method


def _layer(model: Model, request: pb.AttributeRequest) -> Layer:
    if not request.layer:
        return default_layer(model.catalogue)
    layer = model.lens.layer(request.layer)
    if not has_positions(layer):
        shape = " × ".join(map(str, layer.shape)) or "a single number"
        raise NotApplicable(
            f"layer {layer.name!r} is {shape}: its maps cannot be laid over the image, for which it must have channels "
            f"of more than one position; take a layer before it, such as {default_layer(model.catalogue).name!r}",
            field="layer",
            metadata={"layer": layer.name},
        )
    return layer


def _squares(model: Model, request: pb.AttributeRequest) -> tuple[int, int]:
    """The side of the covering square, and the distance between squares."""
    side = min(model.shape[:2])
    window = request.window if request.HasField("window") else max(side // 8, 1)
    if not 1 <= window <= side:
        raise _out_of_range("window", window, side, "the image's smaller side")
    stride = request.stride if request.HasField("stride") else max(window // 2, 1)
    if not 1 <= stride <= window:
        raise _out_of_range("stride", stride, window, "the window, so that every pixel is covered")
    return window, stride


def _out_of_range(field: str, value: int, limit: int, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field} is {value} pixels, but must be 1 … {limit}, {what}",
        reason=f"{field.upper()}_OUT_OF_RANGE",
        field=field,
        metadata={field: value, "limit": limit},
    )
