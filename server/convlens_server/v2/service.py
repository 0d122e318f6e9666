"""inference.GRPCInferenceService: gives the bytes of the Open Inference Protocol their meaning."""

from __future__ import annotations

import importlib.metadata
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message

from convlens.v1 import convlens_pb2 as convlens_pb
from convlens_server.classify import parse
from convlens_server.errors import DeadlineExceeded, InvalidRequest, NotFound, shown
from convlens_server.images import RequestImages
from convlens_server.inference import Inference
from convlens_server.items import Question, gone
from convlens_server.maps import FeatureMaps
from convlens_server.metrics import ModelMetrics
from convlens_server.model import Model, TensorPath
from convlens_server.pool import BoundedPool
from convlens_server.transport.base import Call, Method
from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.describe import configuration, metadata, statistics
from convlens_server.v2.errors import invalid, translated
from convlens_server.v2.face import Faces
from convlens_server.v2.infer import InferItem, InferStream, InferStreamItem, read_input, read_parameters
from convlens_server.v2.shared_memory import SharedMemory

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

EXTENSIONS = (
    "classification",
    "model_repository",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "statistics",
)
SHARED_MEMORY = "system_shared_memory"

# Requests of one stream that are read before the first of them is answered: two full batches' worth.
_STREAM_WINDOW = 128
# A protobuf message is below 2 GiB.
_MAX_ANSWER_BYTES = 2**31 - 2**20

R = TypeVar("R", bound=Message)


class InferenceService:
    """The methods of the Open Inference Protocol.

    Args:
        inference: The core.
        maps: Computes feature maps.
        is_ready: Whether the server takes requests.
        shared_memory: Whether callers may register regions.
    """

    def __init__(
        self, inference: Inference, maps: FeatureMaps, is_ready: Callable[[], bool], shared_memory: bool
    ) -> None:
        self._inference = inference
        self._repository = inference.repository
        self._limits = inference.limits
        self._unknown = inference.metrics.unknown
        self._maps = maps
        self._is_ready = is_ready
        self._memory = SharedMemory() if shared_memory else None
        self._faces = Faces(self._memory, self._limits.images)
        # Loads and unloads models, and builds what takes a model's own tensors.
        self._models = BoundedPool("the loading of models", 2, max_waiting=1024)

    def methods(self) -> tuple[Method, ...]:
        """What a transport has to serve."""
        methods = [
            Method(_path("ModelInfer"), self._infer),
            Method(
                _path("ModelStreamInfer"),
                self._stream_infer,
                streams=True,
                half_close=self._half_close,
                window=_STREAM_WINDOW,
            ),
            self._answering("ServerLive", pb.ServerLiveRequest, lambda _: pb.ServerLiveResponse(live=True)),
            self._answering(
                "ServerReady", pb.ServerReadyRequest, lambda _: pb.ServerReadyResponse(ready=self._is_ready())
            ),
            self._answering("ServerMetadata", pb.ServerMetadataRequest, lambda _: self.server_metadata()),
            self._answering("ModelReady", pb.ModelReadyRequest, self._model_ready),
            self._answering("ModelStatistics", pb.ModelStatisticsRequest, self._model_statistics),
            self._answering("RepositoryIndex", pb.RepositoryIndexRequest, self._index),
            self._describing("ModelMetadata", pb.ModelMetadataRequest, self._model_metadata),
            self._describing("ModelConfig", pb.ModelConfigRequest, self._model_config),
            self._changing("RepositoryModelLoad", pb.RepositoryModelLoadRequest, self._load),
            self._changing("RepositoryModelUnload", pb.RepositoryModelUnloadRequest, self._unload),
        ]
        if self._memory is not None:
            methods += _SharedMemoryMethods(self._memory, self._answering).methods()
        return tuple(methods)

    def server_metadata(self) -> pb.ServerMetadataResponse:
        """What the server is and can do."""
        return pb.ServerMetadataResponse(
            name="convlens",
            version=importlib.metadata.version("convlens"),
            extensions=[*EXTENSIONS, *([SHARED_MEMORY] if self._memory is not None else [])],
        )

    def close(self) -> None:
        """Ends the threads, and forgets the shared memory."""
        self._models.close()
        if self._memory is not None:
            self._memory.close()

    # Inference.

    def _infer(self, data: bytes, call: Call) -> None:
        item = InferItem(call, time.monotonic(), self._unknown)
        try:
            self._begin(parse(pb.ModelInferRequest, data), item)
        except Exception as error:
            item.fail(error)

    def _stream_infer(self, data: bytes, call: Call) -> None:
        stream = InferStream.of(call)
        assert isinstance(stream, InferStream)
        # A message that is no request ends the stream.
        request = parse(pb.ModelInferRequest, data)
        item = InferStreamItem(call, time.monotonic(), self._unknown, stream)
        try:
            stream.began()
            self._begin(request, item)
        except Exception as error:
            item.fail(error)

    def _half_close(self, call: Call) -> None:
        InferStream.of(call).half_close()

    def _begin(self, request: pb.ModelInferRequest, item: InferItem) -> None:
        item.identity = request.id
        item.named = name, version = request.model_name, request.model_version
        number = self._number(name, version)
        self._repository.when_ready(name, number, item, lambda model: self._submit(request, model, item))

    def _submit(self, request: pb.ModelInferRequest, model: Model, item: InferItem) -> None:
        item.metrics = model.metrics
        face = self._faces.of(model)
        if request.parameters:
            read_parameters(request, item)
        count, data, files = read_input(request, face, self._memory)
        item.count = count
        item.plan = plan = face.plan_of(request.outputs)
        images = None
        if files:
            source = convlens_pb.Images(encoded=convlens_pb.EncodedImages(files=files))
            images = RequestImages(source, model.shape, self._limits.images, "--max-images")
        if plan.layers:
            self._look(model, item, data, images)
        elif images is not None:
            self._inference.classify(model, images, item)
        else:
            item.pixels = data
            if face.takes_images:
                model.batcher.submit(item, item.priority, item.timeout)
            elif (tensors := model.tensors_if_built) is not None:
                _submit_tensors(model, tensors, item)
            else:
                self._models.submit(lambda: _build_and_submit(model, item), len(data))

    def _look(self, model: Model, item: InferItem, data: bytes, images: RequestImages | None) -> None:
        """Has the lens compute the layers; if the engine has to give something too, it comes after it."""
        limits = self._limits
        if item.count > limits.feature_map_images:
            raise invalid(
                f"inference request batch-size must be <= {limits.feature_map_images} for {model.name!r} where layers "
                f"are asked for, but it is {item.count}: send several requests, or start the server with a larger "
                "--max-feature-map-images",
                "inputs",
                "TOO_MANY_IMAGES",
                images=item.count,
                limit=limits.feature_map_images,
            )
        size = item.count * item.plan.layer_bytes
        limit = min(limits.feature_map_bytes, _MAX_ANSWER_BYTES)
        if size > limit:
            raise invalid(
                f"the layers that are asked for have {size} bytes, over the limit of {limit}: ask for fewer layers or "
                "images a request, or start the server with a larger --max-feature-map-bytes",
                "outputs",
                "TOO_MANY_BYTES",
                bytes=size,
                limit=limit,
            )
        self._maps.hold(size)
        item.hold(_Held(self._maps, size))
        work = _Look(model, item, data, images, limits.pixels)
        self._maps.pool.submit(work.run, len(data) if images is None else images.size)

    # Models.

    def _number(self, name: str, version: str) -> int:
        if not name:
            raise NotFound("the request names no model", reason="MODEL_NOT_FOUND", field="model_name")
        return self._repository.version_number(name, version) if version else 0

    def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        number = self._number(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._is_ready() and self._repository.is_ready(request.name, number))

    def _model_metadata(self, model: Model) -> pb.ModelMetadataResponse:
        return metadata(model, self._faces.of(model), self._repository.ready_versions(model.name))

    def _model_config(self, model: Model) -> pb.ModelConfigResponse:
        return pb.ModelConfigResponse(config=configuration(model, self._faces.of(model)))

    def _model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        number = self._number(request.name, request.version) if request.name else 0
        response = pb.ModelStatisticsResponse()
        if request.name:
            # Refuses what is not there.
            self._repository.is_ready(request.name, number)
        for version in self._repository.versions:
            if request.name in ("", version.name) and number in (0, version.number) and version.model is not None:
                counted = version.model.metrics.statistics()
                response.model_stats.append(statistics(version.name, version.number, counted))
        return response

    def _index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        response = pb.RepositoryIndexResponse()
        for version in self._repository.versions:
            if version.state == "READY" or not request.ready:
                # Number 0: none of the model's versions can be served.
                number = str(version.number or "")
                response.models.add(name=version.name, version=number, state=version.state, reason=version.error)
        return response

    def _load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        self._repository.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    def _unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    # Ways to answer.

    def _answering(self, name: str, kind: type[R], respond: Callable[[R], Message]) -> Method:
        """A method that is answered at once."""

        def handle(data: bytes, call: Call) -> None:
            ask = _Ask(call, name, self._unknown)
            try:
                request = parse(kind, data)
                ask.named = getattr(request, "name", ""), getattr(request, "version", "")
                response = respond(request)
            except Exception as error:
                ask.fail(error)
                return
            ask.answer(response)

        return Method(_path(name), handle)

    def _describing(self, name: str, kind: type[R], respond: Callable[[Model], Message]) -> Method:
        """A method that needs a model, loaded."""

        def handle(data: bytes, call: Call) -> None:
            ask = _Ask(call, name, self._unknown)
            try:
                request = parse(kind, data)
                ask.named = model, version = str(getattr(request, "name", "")), str(getattr(request, "version", ""))
                number = self._number(model, version)
                self._repository.when_ready(model, number, ask, lambda found: ask.answer(respond(found)))
            except Exception as error:
                ask.fail(error)

        return Method(_path(name), handle)

    def _changing(
        self,
        name: str,
        kind: type[pb.RepositoryModelLoadRequest] | type[pb.RepositoryModelUnloadRequest],
        respond: Callable[..., Message],
    ) -> Method:
        """A method that changes what is loaded, and so takes long."""

        def handle(data: bytes, call: Call) -> None:
            ask = _Ask(call, name, self._unknown)

            def work() -> None:
                try:
                    ask.answer(respond(request))
                except Exception as error:
                    ask.fail(error)

            try:
                request = parse(kind, data)
                ask.named = (request.model_name, "")
                _check_repository(request.repository_name)
                _check_parameters(request)
                self._models.submit(work)
            except Exception as error:
                ask.fail(error)

        return Method(_path(name), handle)


class _Ask(Question):
    """A request that is no inference."""

    def __init__(self, call: Call, method: str, metrics: ModelMetrics) -> None:
        super().__init__(call, method, metrics)
        self.named = ("", "")

    def answer(self, response: Message) -> None:
        """Sends the answer and counts it."""
        content = response.SerializeToString()
        self.metrics.count(self.method, "OK")
        self.call.reply(content)

    def fail(self, error: BaseException) -> None:
        """Sends the error, in the protocol's words, and counts it."""
        super().fail(translated(error, *self.named))


class _Held:
    """Bytes of feature maps that are held for a request until it is called."""

    def __init__(self, maps: FeatureMaps, size: int) -> None:
        self._maps = maps
        self._size = size
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            size, self._size = self._size, 0
        if size:
            self._maps.let_go(size)


class _Look:
    """A request's layers, to be computed by the lens."""

    def __init__(
        self, model: Model, item: InferItem, data: bytes, images: RequestImages | None, max_pixels: int
    ) -> None:
        self._model = model
        self._item = item
        self._data = data
        self._images = images
        self._max_pixels = max_pixels

    def run(self) -> None:
        """Computes them and answers, or hands on to the engine."""
        item = self._item
        try:
            self._run(item, time.monotonic())
        except Exception as error:
            item.fail(error)

    def _run(self, item: InferItem, began: float) -> None:
        model, plan = self._model, item.plan
        queued = began - item.arrived
        if (error := gone(item)) is not None:
            raise error
        if began >= item.deadline or (item.timeout and queued > item.timeout):
            raise DeadlineExceeded(f"deadline passed after {queued * 1000:.0f} ms in the queue; nothing was computed")
        tensors = None
        if self._images is not None:
            data = self._images.decode(self._max_pixels)
        else:
            data = self._data
            tensors = None if model.network.own.takes_images else model.tensors()
        lens = model.lens if tensors is None else tensors.lens
        network = model.network if tensors is None else model.network.for_tensors()
        shape, dtype = network.input_form
        values = np.frombuffer(data, dtype).reshape(-1, *shape)
        maps = lens.maps(values, plan.layers)
        item.maps = {layer.name: each for layer, each in zip(plan.layers, maps, strict=True)}
        if plan.needs_engine:
            item.pixels = data
            if tensors is None:
                model.batcher.submit(item, item.priority, item.timeout)
            else:
                _submit_tensors(model, tensors, item)
        else:
            item.answer(item.written())
            item.metrics.feature_maps(item.method, item.count, queued, time.monotonic() - item.arrived)


class _SharedMemoryMethods:
    """The methods of the shared memory extension."""

    def __init__(self, memory: SharedMemory, answering: Callable[..., Method]) -> None:
        self._memory = memory
        self._answering = answering

    def methods(self) -> Sequence[Method]:
        """What a transport has to serve."""
        return (
            self._answering("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest, self._status),
            self._answering("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest, self._register),
            self._answering("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest, self._unregister),
        )

    def _status(self, request: pb.SystemSharedMemoryStatusRequest) -> pb.SystemSharedMemoryStatusResponse:
        response = pb.SystemSharedMemoryStatusResponse()
        for region in self._memory.regions(request.name):
            status = response.regions[region.name]
            status.name, status.key = region.name, region.key
            status.offset, status.byte_size = region.offset, region.size
        return response

    def _register(self, request: pb.SystemSharedMemoryRegisterRequest) -> pb.SystemSharedMemoryRegisterResponse:
        self._memory.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def _unregister(self, request: pb.SystemSharedMemoryUnregisterRequest) -> pb.SystemSharedMemoryUnregisterResponse:
        self._memory.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()


def _build_and_submit(model: Model, item: InferItem) -> None:
    try:
        _submit_tensors(model, model.tensors(), item)
    except Exception as error:
        item.fail(error)


def _submit_tensors(model: Model, tensors: TensorPath, item: InferItem) -> None:
    item.batch_key = tensors.engines
    model.batcher.submit(item, item.priority, item.timeout)


def _check_repository(name: str) -> None:
    if name:
        text = f"repository_name is {shown(name)!r}, but there is only one repository: leave it empty"
        raise invalid(text, "repository_name")


def _check_parameters(request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> None:
    for name in request.parameters:
        if isinstance(request, pb.RepositoryModelLoadRequest) or name != "unload_dependents":
            raise InvalidRequest(
                f"parameter {shown(name)!r} is not taken: models come from the repository, with its config.pbtxt",
                field="parameters",
            )


def _path(method: str) -> str:
    return f"/{SERVICE}/{method}"
