"""Reads the contract's responses into the types of `_types`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from convlens._errors import from_status
from convlens._tensors import Joiner, broken
from convlens._types import Classification, FeatureMap, Layer, Model, ModelState, ModelVersion, Outcome, Prediction
from convlens.v1 import convlens_pb2 as pb

_STATES: Mapping[int, ModelState] = {
    pb.MODEL_STATE_READY: "ready",
    pb.MODEL_STATE_LOADING: "loading",
    pb.MODEL_STATE_UNLOADED: "unloaded",
}


def classifications(response: pb.ClassifyResponse, images: pb.Images) -> list[Classification]:
    """One for each image of the request. Raises ServerError."""
    if images.HasField("raw"):
        raw = images.raw
        count = len(raw.pixels) // (raw.height * raw.width * raw.channels)
    else:
        count = len(images.encoded.files)
    if len(response.results) != count or not all(result.predictions for result in response.results):
        raise broken(f"{len(response.results)} results for {count} images, or one without predictions")
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
        raise broken(f"an empty answer, or one to a request, {response.id}, that is not in flight")
    if response.HasField("error"):
        return Outcome(response.id, from_status(response.error))
    return Outcome(response.id, None, classifications(response.response, request.images)[0])


class MapsReader:
    """Reads the stream of `maps`.

    Args:
        single: Whether one image was given, so that the first dimension goes.
    """

    def __init__(self, single: bool) -> None:
        self._single = single
        self._joiner: Joiner[pb.GetFeatureMapsResponse] = Joiner(scaled=2)
        self._maps: list[FeatureMap] = []

    def add(self, message: pb.GetFeatureMapsResponse) -> None:
        """Takes the next message. Raises ServerError."""
        if (done := self._joiner.add(message)) is None:
            return
        head, activation = done
        assert activation is not None
        self._maps.append(
            FeatureMap(
                layer=head.layer,
                kind=head.kind,
                activation=activation[0] if self._single else activation,
                channels=tuple(head.channels) or tuple(range(head.shape[1] if len(head.shape) > 1 else 0)),
                model=head.model,
                version=head.version,
                queue_ms=head.queue_ms,
                compute_ms=head.compute_ms,
            )
        )

    def result(self) -> list[FeatureMap]:
        """All layers, in the order of the catalogue. Raises ServerError where the last one is not complete."""
        self._joiner.end()
        return self._maps


def model_versions(response: pb.ListModelsResponse) -> list[ModelVersion]:
    """For `models`."""
    return [
        ModelVersion(
            model=entry.model,
            version=entry.version,
            state=_STATES.get(entry.state, "failed"),
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
        layers=tuple(layer(each) for each in response.layers),
        parameters=response.parameters,
        multiply_accumulates=response.multiply_accumulates,
        manifest=_manifest(response.manifest_json),
        device=response.device,
        max_batch=response.max_batch,
    )


def layer(message: pb.Layer) -> Layer:
    """One layer of a catalogue."""
    return Layer(
        name=message.name,
        kind=message.kind,
        op_type=message.op_type,
        inputs=tuple(message.inputs),
        shape=tuple(message.shape),
        kernel=tuple(message.kernel),
        stride=tuple(message.stride),
        padding=tuple(message.padding),
        dilation=tuple(message.dilation),
        groups=message.groups,
        parameters=message.parameters,
        multiply_accumulates=message.multiply_accumulates,
        receptive_field=tuple(message.receptive_field),
        receptive_field_stride=tuple(message.receptive_field_stride),
        receptive_field_start=tuple(message.receptive_field_start),
    )


def _manifest(text: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text or "{}")
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise broken("a manifest that is not a JSON object")
    return document
