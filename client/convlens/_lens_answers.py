"""Reads the responses that tell of a network's inside into the types of `_lens_types`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from convlens._answers import layer
from convlens._explanation import (
    Arithmetic,
    Elementwise,
    Explanation,
    Function,
    Patch,
    Pooling,
    Region,
    Selection,
    Softmax,
    WeightedSum,
)
from convlens._lens_types import (
    Attribution,
    Comparison,
    Graph,
    GraphBlock,
    GraphLayer,
    Kernels,
    MaximizingImage,
    MaximizingImages,
    Sample,
)
from convlens._tensors import Joiner, broken
from convlens._types import Prediction
from convlens.v1 import convlens_pb2 as pb

_METHOD_PREFIX = "ATTRIBUTION_METHOD_"


def samples(response: pb.GetSamplesResponse) -> list[Sample]:
    """For `samples`."""
    return [Sample(sample.name, sample.file) for sample in response.samples]


def graph(response: pb.GetGraphResponse) -> Graph:
    """For `graph`."""
    return Graph(
        layers=tuple(
            GraphLayer(
                layer=layer(each.layer),
                column=each.column,
                lane=each.lane,
                units=each.units,
                input_units=each.input_units,
                connections=each.connections,
                dense_connections=each.dense_connections,
            )
            for each in response.layers
        ),
        edges=tuple((edge.source, edge.target) for edge in response.edges),
        blocks=tuple(GraphBlock(block.name, tuple(block.layers), block.parent) for block in response.blocks),
        columns=response.columns,
        model=response.model,
        version=response.version,
    )


def attribution(response: pb.AttributeResponse) -> Attribution:
    """For `attribute`. Raises ServerError."""
    height, width = response.height, response.width
    if len(response.map) != 4 * height * width or len(response.overlay) not in (0, 4 * height * width):
        raise broken(
            f"a map of {len(response.map)} and an overlay of {len(response.overlay)} bytes for {height} × {width}"
        )
    overlay = np.frombuffer(bytearray(response.overlay), np.uint8)
    prediction = response.prediction
    return Attribution(
        map=np.frombuffer(bytearray(response.map), "<f4").astype(np.float32, copy=False).reshape(height, width),
        overlay=overlay.reshape(height, width, 4) if overlay.size else None,
        method=pb.AttributionMethod.Name(response.method).removeprefix(_METHOD_PREFIX).lower(),
        layer=response.layer,
        prediction=Prediction(prediction.label, prediction.index, prediction.score),
        images=response.images,
        model=response.model,
        version=response.version,
        compute_ms=response.compute_ms,
    )


def explanation(response: pb.ExplainUnitResponse) -> Explanation:
    """For `explain`. Raises ServerError."""
    unit = response.unit
    return Explanation(
        layer=unit.layer,
        channel=unit.channel,
        row=unit.row,
        column=unit.column,
        kind=response.kind,
        result=response.result,
        activation=response.activation,
        receptive_field=_region(response.receptive_field),
        arithmetic=_arithmetic(response),
        model=response.model,
        version=response.version,
        compute_ms=response.compute_ms,
    )


def _arithmetic(response: pb.ExplainUnitResponse) -> Arithmetic:
    match response.WhichOneof("arithmetic"):
        case "weighted_sum":
            return _weighted_sum(response.weighted_sum)
        case "pooling":
            pooling = response.pooling
            argmax = pooling.argmax if pooling.HasField("argmax") else None
            patch = _patch(pooling.patch)
            _check_index(argmax or 0, patch)
            return Pooling(patch, argmax, pooling.sum, pooling.divisor)
        case "function":
            function = response.function
            # A map of protobuf has no order of its own.
            parameters = dict(sorted(function.parameters.items()))
            return Function(_patch(function.patch), function.formula, parameters)
        case "elementwise":
            elementwise = response.elementwise
            return Elementwise(tuple(map(_patch, elementwise.patches)), elementwise.operation)
        case "selection":
            return Selection(_patch(response.selection.patch))
        case "softmax":
            softmax = response.softmax
            patch = _patch(softmax.patch)
            _check_index(softmax.index, patch)
            if len(softmax.exponentials) != patch.values.size:
                raise broken(f"{len(softmax.exponentials)} exponentials of {patch.values.size} logits")
            return Softmax(patch, np.array(softmax.exponentials, np.float64), softmax.sum, softmax.index)
    raise broken("an explanation without arithmetic")


def _weighted_sum(message: pb.WeightedSum) -> WeightedSum:
    # Some units of a transposed convolution are the bias alone.
    patch = _patch(message.patch, least=0)
    shape = patch.values.shape
    if not len(message.weights) == len(message.products) == patch.values.size:
        raise broken(
            f"{len(message.weights)} weights and {len(message.products)} products of {patch.values.size} values"
        )
    for position in message.largest:
        _check_index(position, patch)
    return WeightedSum(
        patch=patch,
        weights=np.array(message.weights, np.float32).reshape(shape),
        products=np.array(message.products, np.float32).reshape(shape),
        channel_sums=np.array(message.channel_sums, np.float64),
        sum=message.sum,
        bias=message.bias,
        largest=tuple(message.largest),
    )


def _patch(message: pb.Patch, least: int = 1) -> Patch:
    shape = tuple(message.shape)
    if len(shape) != 3 or math.prod(shape) != len(message.values) or len(message.values) < least or not shape[0]:
        raise broken(f"a patch of shape {list(shape)} with {len(message.values)} values")
    rows, columns = message.step if len(message.step) == 2 else (1, 1)
    return Patch(
        layer=message.layer,
        values=np.array(message.values, np.float32).reshape(shape),
        first=(message.first_channel, message.first_row, message.first_column),
        step=(rows, columns),
    )


def _check_index(index: int, patch: Patch) -> None:
    if index >= patch.values.size:
        raise broken(f"position {index} among {patch.values.size} values")


def _region(message: pb.Region) -> Region:
    return Region(message.top, message.left, message.height, message.width)


class KernelsReader:
    """Reads the stream of `kernels`."""

    def __init__(self) -> None:
        self._joiner: Joiner[pb.GetKernelsResponse] = Joiner(scaled=1)
        self._kernels: Kernels | None = None

    def add(self, message: pb.GetKernelsResponse) -> None:
        """Takes the next message. Raises ServerError."""
        if self._kernels is not None:
            raise broken("more than the weights of one layer")
        if (done := self._joiner.add(message)) is None:
            return
        head, weights = done
        assert weights is not None
        self._kernels = Kernels(
            layer=head.layer,
            kind=head.kind,
            weights=weights,
            bias=np.array(head.bias, np.float32) if head.bias else None,
            channels=tuple(head.channels) or tuple(range(len(weights))),
            groups=head.groups,
            model=head.model,
            version=head.version,
        )

    def result(self) -> Kernels:
        """The kernels. Raises ServerError where they are not complete."""
        self._joiner.end()
        if self._kernels is None:
            raise broken("no weights")
        return self._kernels


class ComparisonReader:
    """Reads the stream of `compare`.

    Args:
        single: Whether one image was given, so that the first dimension goes.
    """

    def __init__(self, single: bool) -> None:
        self._single = single
        self._joiner: Joiner[pb.CompareResponse] = Joiner(scaled=2, optional=True)
        self._layers: list[Comparison] = []

    def add(self, message: pb.CompareResponse) -> None:
        """Takes the next message. Raises ServerError."""
        if (done := self._joiner.add(message)) is None:
            return
        head, difference = done
        if len(head.models) != 2 or not head.cosine or len(head.cosine) != len(head.relative_difference):
            raise broken(
                f"layer {head.layer!r} with {len(head.cosine)} cosines, {len(head.relative_difference)} relative "
                f"differences and {len(head.models)} models"
            )
        first, second = ((side.model, side.version) for side in head.models)
        self._layers.append(
            Comparison(
                layer=head.layer,
                kind=head.kind,
                cosine=np.array(head.cosine, np.float32),
                relative_difference=np.array(head.relative_difference, np.float32),
                cka=head.cka if head.HasField("cka") else None,
                difference=difference[0] if difference is not None and self._single else difference,
                models=(first, second),
            )
        )

    def result(self) -> list[Comparison]:
        """All layers, in the order of the catalogue. Raises ServerError where the last one is not complete."""
        self._joiner.end()
        return self._layers


class MaximizingReader:
    """Reads the stream of `maximizing`.

    Args:
        progress: Told how many images are done, and of how many; None tells nobody.
    """

    def __init__(self, progress: Callable[[int, int], object] | None) -> None:
        self._progress = progress
        self._channels: list[MaximizingImages] = []

    def add(self, message: pb.MaximizingImagesResponse) -> None:
        """Takes the next message."""
        if message.HasField("progress"):
            if self._progress is not None:
                self._progress(message.progress.done, message.progress.total)
            return
        images = tuple(
            MaximizingImage(
                file=image.file,
                activation=image.activation,
                row=image.row,
                column=image.column,
                receptive_field=_region(image.receptive_field),
                image=image.image or None,
            )
            for image in message.channel.images
        )
        self._channels.append(
            MaximizingImages(
                layer=message.layer,
                channel=message.channel.channel,
                images=images,
                dataset=message.dataset,
                model=message.model,
                version=message.version,
            )
        )

    def result(self) -> list[MaximizingImages]:
        """One for each channel, in the order asked for."""
        return self._channels
