"""Builds the requests that look into a network from the clients' arguments. Everything here raises InvalidRequest."""

from __future__ import annotations

from collections.abc import Iterable

from convlens._errors import InvalidImage, InvalidRequest
from convlens._images import is_many, to_message
from convlens._requests import channel_numbers, integer, name, names, value_type, version_number
from convlens.v1 import convlens_pb2 as pb

_BY_NAME: dict[str, pb.AttributionMethod.ValueType] = {
    "occlusion": pb.ATTRIBUTION_METHOD_OCCLUSION,
    "score_cam": pb.ATTRIBUTION_METHOD_SCORE_CAM,
    "eigen_cam": pb.ATTRIBUTION_METHOD_EIGEN_CAM,
    "grad_cam": pb.ATTRIBUTION_METHOD_GRAD_CAM,
}
METHODS = tuple(_BY_NAME)


def samples(model: str, version: int) -> pb.GetSamplesRequest:
    """The request for `samples`."""
    return pb.GetSamplesRequest(model=name("model", model), version=version_number(version))


def graph(model: str, version: int) -> pb.GetGraphRequest:
    """The request for `graph`."""
    return pb.GetGraphRequest(model=name("model", model), version=version_number(version))


def kernels(layer: str, model: str, version: int, channels: Iterable[int], dtype: str) -> pb.GetKernelsRequest:
    """The request for `kernels`."""
    return pb.GetKernelsRequest(
        model=name("model", model),
        version=version_number(version),
        layer=name("layer", layer),
        channels=channel_numbers(channels),
        value_type=value_type(dtype),
    )


def explain(
    image: object, layer: str, channel: int, row: int, column: int, model: str, version: int
) -> pb.ExplainUnitRequest:
    """The request for `explain`."""
    return pb.ExplainUnitRequest(
        model=name("model", model),
        version=version_number(version),
        images=_single(image),
        unit=pb.Unit(
            layer=name("layer", layer),
            channel=integer("channel", channel, 0, 2**32),
            row=integer("row", row, 0, 2**32),
            column=integer("column", column, 0, 2**32),
        ),
    )


def attribute(
    image: object,
    model: str,
    version: int,
    method: str,
    class_index: int | None,
    layer: str,
    window: int | None,
    stride: int | None,
    overlay: bool,
) -> pb.AttributeRequest:
    """The request for `attribute`."""
    if method not in _BY_NAME:
        raise InvalidRequest(f"method is {method!r}, but must be one of {', '.join(METHODS)}", field="method")
    return pb.AttributeRequest(
        model=name("model", model),
        version=version_number(version),
        images=_single(image),
        method=_BY_NAME[method],
        class_index=None if class_index is None else integer("class_index", class_index, 0, 2**32),
        layer=name("layer", layer),
        window=None if window is None else integer("window", window, 1, 2**32),
        stride=None if stride is None else integer("stride", stride, 1, 2**32),
        include_overlay=bool(overlay),
    )


def maximizing(
    layer: str, model: str, version: int, channels: Iterable[int], dataset: str, count: int | None, images: bool
) -> pb.MaximizingImagesRequest:
    """The request for `maximizing`."""
    return pb.MaximizingImagesRequest(
        model=name("model", model),
        version=version_number(version),
        layer=name("layer", layer),
        channels=channel_numbers(channels),
        dataset=name("dataset", dataset),
        count=None if count is None else integer("count", count, 1, 2**32),
        include_images=bool(images),
    )


def compare(
    images: tuple[object, object],
    model: str,
    version: int,
    other_model: str | None,
    other_version: int | None,
    layers: str | Iterable[str],
    differences: bool,
    dtype: str,
) -> pb.CompareRequest:
    """The request for `compare`; `images` are those of both sides."""
    own, other_images = images
    if other_images is None and other_model is None and other_version is None:
        raise InvalidRequest(
            "there is nothing to compare with: give other_images, other_model or other_version", field="second"
        )
    first = pb.CompareSide(model=name("model", model), version=version_number(version), images=to_message(own))
    if other_version is None:
        # The same one of the same model; of another model its own default.
        other_version = version if other_model is None else 0
    second = pb.CompareSide(
        model=first.model if other_model is None else name("other_model", other_model),
        version=version_number(other_version),
        images=None if other_images is None else to_message(other_images),
    )
    return pb.CompareRequest(
        first=first,
        second=second,
        layers=names("layers", layers),
        include_differences=bool(differences),
        value_type=value_type(dtype),
    )


def _single(image: object) -> pb.Images:
    if is_many(image):
        raise InvalidImage("one image is taken here, but this is a batch: make a call for each", reason="WRONG_TYPE")
    return to_message(image)
