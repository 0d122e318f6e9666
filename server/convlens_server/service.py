"""convlens.v1.ConvLens: gives the bytes of the contract their meaning."""

from __future__ import annotations

import time

from convlens.v1 import convlens_pb2 as pb
from convlens_server.classify import ClassifyItem, StreamItem, parse, read_options
from convlens_server.images import RequestImages
from convlens_server.inference import Inference
from convlens_server.items import Question, Stream, code_name
from convlens_server.maps import METHOD as GET_FEATURE_MAPS
from convlens_server.maps import FeatureMaps
from convlens_server.model import Model
from convlens_server.repository import Version
from convlens_server.transport.base import Call, Method

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["ConvLens"]
SERVICE = DESCRIPTOR.full_name

# Requests of one stream that are read before the first of them is answered: two full batches' worth.
_STREAM_WINDOW = 128


class ConvLensService:
    """The methods of our own service.

    Args:
        inference: The core.
        maps: Answers feature-map requests.
    """

    def __init__(self, inference: Inference, maps: FeatureMaps) -> None:
        self._inference = inference
        self._repository = inference.repository
        self._unknown = inference.metrics.unknown
        self._maps = maps

    def methods(self) -> tuple[Method, ...]:
        """What a transport has to serve."""
        return (
            Method(_path(ClassifyItem.method), self._classify),
            Method(
                _path(StreamItem.method),
                self._classify_stream,
                streams=True,
                half_close=self._half_close,
                window=_STREAM_WINDOW,
            ),
            Method(_path(GET_FEATURE_MAPS), self._maps.handle, streams=True),
            Method(_path("ListModels"), self._list_models),
            Method(_path("GetModel"), self._get_model),
        )

    def _classify(self, data: bytes, call: Call) -> None:
        item = ClassifyItem(call, time.monotonic(), self._unknown)
        try:
            self._take(parse(pb.ClassifyRequest, data), item)
        except Exception as error:
            item.fail(error)

    def _classify_stream(self, data: bytes, call: Call) -> None:
        stream = Stream.of(call)
        # A message that is no request has no id to answer to: it ends the stream.
        message = parse(pb.ClassifyStreamRequest, data)
        item = StreamItem(call, time.monotonic(), self._unknown, stream, message.id)
        try:
            stream.began()
            self._take(message.request, item)
        except Exception as error:
            item.fail(error)

    def _half_close(self, call: Call) -> None:
        Stream.of(call).half_close()

    def _take(self, request: pb.ClassifyRequest, item: ClassifyItem) -> None:
        self._repository.when_ready(
            request.model, request.version, item, lambda model: self._submit(model, request, item)
        )

    def _submit(self, model: Model, request: pb.ClassifyRequest, item: ClassifyItem) -> None:
        item.metrics = model.metrics
        read_options(request, item, model.classes)
        images = RequestImages(request.images, model.shape, self._inference.limits.images, "--max-images")
        self._inference.classify(model, images, item)

    def _list_models(self, data: bytes, call: Call) -> None:
        try:
            parse(pb.ListModelsRequest, data)
            response = pb.ListModelsResponse(models=[_summary(version) for version in self._repository.versions])
        except Exception as error:
            self._unknown.count("ListModels", code_name(error))
            call.fail(error)
            return
        self._unknown.count("ListModels", "OK")
        call.reply(response.SerializeToString())

    def _get_model(self, data: bytes, call: Call) -> None:
        question = Question(call, "GetModel", self._unknown)
        try:
            request = parse(pb.GetModelRequest, data)
            self._repository.when_ready(
                request.model, request.version, question, lambda model: self._describe(model, question)
            )
        except Exception as error:
            question.fail(error)

    def _describe(self, model: Model, question: Question) -> None:
        question.metrics = model.metrics
        response = _description(model, self._repository.ready_versions(model.name))
        question.metrics.count(question.method, "OK")
        question.call.reply(response.SerializeToString())


def _path(method: str) -> str:
    return f"/{SERVICE}/{method}"


def _summary(version: Version) -> pb.ModelVersion:
    summary = pb.ModelVersion(
        model=version.name,
        version=version.number,
        state=pb.MODEL_STATE_FAILED,
        error=version.error,
        is_default=version.is_default,
    )
    if version.model is None and version.state == "READY":
        summary.state = pb.MODEL_STATE_UNLOADED
        summary.error = "not in memory: the first request for it loads it"
    elif version.state == "LOADING":
        summary.state = pb.MODEL_STATE_LOADING
        summary.error = "is being loaded"
    if (model := version.model) is not None:
        summary.state = pb.MODEL_STATE_READY
        summary.classes = model.classes
        summary.height, summary.width, summary.channels = model.shape
        summary.parameters = model.catalogue.parameters
    return summary


def _description(model: Model, ready_versions: list[int]) -> pb.GetModelResponse:
    height, width, channels = model.shape
    return pb.GetModelResponse(
        model=model.name,
        version=model.version,
        ready_versions=ready_versions,
        labels=model.manifest.labels,
        height=height,
        width=width,
        channels=channels,
        layers=model.layer_messages,
        parameters=model.catalogue.parameters,
        multiply_accumulates=model.catalogue.multiply_accumulates,
        manifest_json=model.manifest.to_json(),
        device=model.device,
        max_batch=model.batcher.max_batch,
    )
