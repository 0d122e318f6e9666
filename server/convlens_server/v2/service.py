"""inference.GRPCInferenceService: gives the bytes of the Open Inference Protocol their meaning."""

from __future__ import annotations

import time
from collections.abc import Callable

from convlens.v1 import convlens_pb2 as convlens_pb
from convlens_server.classify import parse
from convlens_server.images import RequestImages
from convlens_server.inference import Inference
from convlens_server.maps import FeatureMaps
from convlens_server.model import Model
from convlens_server.pool import BoundedPool
from convlens_server.transport.base import Call, Method
from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.asking import SERVICE, Asking, asked, path
from convlens_server.v2.face import Faces
from convlens_server.v2.infer import InferItem, InferStream, InferStreamItem, read_input, read_parameters
from convlens_server.v2.layers import Layers, submit_tensors
from convlens_server.v2.models import ModelMethods
from convlens_server.v2.shared_memory import EXTENSION, SharedMemory, SharedMemoryMethods

__all__ = ["SERVICE", "InferenceService"]

# Requests of one stream that are read before the first of them is answered: two full batches' worth.
_STREAM_WINDOW = 128


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
        self._layers = Layers(maps, inference.limits)
        self._memory = SharedMemory() if shared_memory else None
        self._faces = Faces(self._memory, self._limits.images)
        # Loads and unloads models, and builds what takes a model's own tensors.
        self._loading = BoundedPool("the loading of models", 2, max_waiting=1024)
        # Not behind what is loaded: an alias that goes back to a version that is served takes effect at once.
        self._moving = BoundedPool("the change of aliases", 2, max_waiting=1024)
        self._models = ModelMethods(
            self._repository, self._faces, is_ready, (EXTENSION,) if self._memory is not None else ()
        )

    def methods(self) -> tuple[Method, ...]:
        """What a transport has to serve."""
        asking = Asking(self._repository, self._unknown, self._loading)
        return (
            Method(path("ModelInfer"), self._infer),
            Method(
                path("ModelStreamInfer"),
                self._stream_infer,
                streams=True,
                half_close=self._half_close,
                window=_STREAM_WINDOW,
            ),
            *self._models.methods(asking),
            *(SharedMemoryMethods(self._memory).methods(asking) if self._memory is not None else ()),
        )

    def alias_methods(self) -> tuple[Method, ...]:
        """What REST has to serve beside `methods`; `ModelMethods.alias_methods`."""
        return self._models.alias_methods(Asking(self._repository, self._unknown, self._moving))

    def close(self) -> None:
        """Ends the threads, and forgets the shared memory."""
        self._loading.close()
        self._moving.close()
        if self._memory is not None:
            self._memory.close()

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
        self._repository.when_ready(name, asked(name, version), item, lambda model: self._submit(request, model, item))

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
            self._layers.submit(model, item, data, images)
        elif images is not None:
            self._inference.classify(model, images, item)
        else:
            item.pixels = data
            if face.takes_images:
                model.batcher.submit(item, item.priority, item.timeout)
            elif (tensors := model.tensors_if_built) is not None:
                submit_tensors(model, tensors, item)
            else:
                self._loading.submit(lambda: _build_and_submit(model, item), len(data))


def _build_and_submit(model: Model, item: InferItem) -> None:
    try:
        submit_tensors(model, model.tensors(), item)
    except Exception as error:
        item.fail(error)
