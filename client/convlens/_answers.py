"""Reads the contract's responses into the types of `_types`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from convlens._errors import ServerError, from_status
from convlens._types import Classification, FeatureMap, Layer, Model, ModelVersion, Outcome, Prediction
from convlens.v1 import convlens_pb2 as pb

_DTYPES = {pb.VALUE_TYPE_FLOAT32: "<f4", pb.VALUE_TYPE_FLOAT16: "<f2", pb.VALUE_TYPE_UINT8: "u1"}


def classifications(response: pb.ClassifyResponse, images: pb.Images) -> list[Classification]:
    """One for each image of the request. Raises ServerError."""
    if images.HasField("raw"):
        raw = images.raw
        count = len(raw.pixels) // (raw.height * raw.width * raw.channels)
    else:
        count = len(images.encoded.files)
    if len(response.results) != count or not all(result.predictions for result in response.results):
        raise _broken(f"{len(response.results)} results for {count} images, or one without predictions")
    model, version = response.model, response.version
    queue_ms, compute_ms = response.queue_ms, response.compute_ms
    return [
        Classification(
            tuple(Prediction(p.label, p.index, p.score) for p in result.predictions),
            model,
            version,
            queue_ms,
            compute_ms,
            np.array(result.scores, np.float32) if result.scores else None,
            np.array(result.logits, np.float32) if result.logits else None,
        )
        for result in response.results
    ]


def outcome(response: pb.ClassifyStreamResponse, request: pb.ClassifyRequest | None) -> Outcome:
    """The outcome of one request of a stream, which had one image. Raises ServerError if it was never sent."""
    if request is None or not response.WhichOneof("outcome"):
        raise _broken(f"an empty answer, or one to a request, {response.id}, that is not in flight")
    if response.HasField("error"):
        return Outcome(response.id, from_status(response.error))
    return Outcome(response.id, None, classifications(response.response, request.images)[0])


class MapsReader:
    """Joins the chunks of feature maps.

    Args:
        single: Whether one image was given, so that the first dimension goes.
    """

    def __init__(self, single: bool) -> None:
        self._single = single
        self._maps: list[FeatureMap] = []
        self._head: pb.GetFeatureMapsResponse | None = None
        self._buffer = bytearray()
        self._filled = 0

    def add(self, chunk: pb.GetFeatureMapsResponse) -> None:
        """Takes the next message. Raises ServerError."""
        if self._head is None:
            self._begin(chunk)
        head = self._head or chunk
        end = self._filled + len(chunk.data)
        if chunk.layer != head.layer or chunk.byte_offset != self._filled or end > len(self._buffer):
            raise _broken(
                f"bytes {chunk.byte_offset} … of layer {chunk.layer!r}, where byte {self._filled} of "
                f"{len(self._buffer)} of layer {head.layer!r} was due"
            )
        self._buffer[self._filled : end] = chunk.data
        self._filled = end
        if end == len(self._buffer):
            self._maps.append(self._finish(head))
            self._head = None

    def maps(self) -> list[FeatureMap]:
        """All layers, in the order of the catalogue. Raises ServerError where the last one is not complete."""
        if self._head is not None:
            raise _broken(f"only {self._filled} of {len(self._buffer)} bytes of layer {self._head.layer!r}")
        return self._maps

    def _begin(self, head: pb.GetFeatureMapsResponse) -> None:
        dtype = _DTYPES.get(head.value_type)
        if dtype is None or head.total_bytes != math.prod(head.shape) * np.dtype(dtype).itemsize or not head.shape:
            raise _broken(
                f"layer {head.layer!r} with shape {list(head.shape)}, value type {head.value_type} and "
                f"{head.total_bytes} bytes"
            )
        if head.value_type == pb.VALUE_TYPE_UINT8:
            channels = math.prod(head.shape[:2])
            if len(head.scale) != channels or len(head.offset) != channels:
                raise _broken(f"layer {head.layer!r} with {len(head.scale)} scales for {channels} channels")
        self._head, self._buffer, self._filled = head, bytearray(head.total_bytes), 0

    def _finish(self, head: pb.GetFeatureMapsResponse) -> FeatureMap:
        values = np.frombuffer(self._buffer, _DTYPES[head.value_type]).reshape(tuple(head.shape))
        if head.value_type == pb.VALUE_TYPE_UINT8:
            values = _dequantised(values, head)
        activation: npt.NDArray[np.float32] = values.astype(np.float32, copy=False)
        return FeatureMap(
            layer=head.layer,
            kind=head.kind,
            activation=activation[0] if self._single else activation,
            channels=tuple(head.channels) or tuple(range(head.shape[1] if len(head.shape) > 1 else 0)),
            model=head.model,
            version=head.version,
            queue_ms=head.queue_ms,
            compute_ms=head.compute_ms,
        )


def _dequantised(values: npt.NDArray[Any], head: pb.GetFeatureMapsResponse) -> npt.NDArray[np.float32]:
    shape = (*head.shape[:2], *(1 for _ in head.shape[2:]))
    # In float64: 255 × scale may be no float32. Image by image, which keeps that copy small.
    scale = np.array(head.scale, np.float64).reshape(shape)
    offset = np.array(head.offset, np.float64).reshape(shape)
    result = np.empty(values.shape, np.float32)
    for image, row in enumerate(result):
        np.add(offset[image], scale[image] * values[image], out=row, casting="same_kind")
    return result


def model_versions(response: pb.ListModelsResponse) -> list[ModelVersion]:
    """For `models`."""
    return [
        ModelVersion(
            model=entry.model,
            version=entry.version,
            ready=entry.state == pb.MODEL_STATE_READY,
            error=entry.error,
            is_default=entry.is_default,
            classes=entry.classes,
            height=entry.height,
            width=entry.width,
            channels=entry.channels,
            parameters=entry.parameters,
        )
        for entry in response.models
    ]


def model(response: pb.GetModelResponse) -> Model:
    """For `model`. Raises ServerError."""
    return Model(
        model=response.model,
        version=response.version,
        ready_versions=tuple(response.ready_versions),
        labels=tuple(response.labels),
        height=response.height,
        width=response.width,
        channels=response.channels,
        layers=tuple(_layer(layer) for layer in response.layers),
        parameters=response.parameters,
        multiply_accumulates=response.multiply_accumulates,
        manifest=_manifest(response.manifest_json),
        device=response.device,
        max_batch=response.max_batch,
    )


def _layer(layer: pb.Layer) -> Layer:
    return Layer(
        name=layer.name,
        kind=layer.kind,
        op_type=layer.op_type,
        inputs=tuple(layer.inputs),
        shape=tuple(layer.shape),
        kernel=tuple(layer.kernel),
        stride=tuple(layer.stride),
        padding=tuple(layer.padding),
        dilation=tuple(layer.dilation),
        groups=layer.groups,
        parameters=layer.parameters,
        multiply_accumulates=layer.multiply_accumulates,
        receptive_field=tuple(layer.receptive_field),
        receptive_field_stride=tuple(layer.receptive_field_stride),
        receptive_field_start=tuple(layer.receptive_field_start),
    )


def _manifest(text: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text or "{}")
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise _broken("a manifest that is not a JSON object")
    return document


def _broken(what: str) -> ServerError:
    return ServerError(f"the server's answer breaks the contract: it has {what}", reason="BROKEN_ANSWER")
