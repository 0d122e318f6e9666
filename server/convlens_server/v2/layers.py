"""Layers among a request's outputs: the lens computes them, beside the batches."""

from __future__ import annotations

import threading
import time

import grpc
import numpy as np

from convlens_server.errors import DeadlineExceeded
from convlens_server.images import RequestImages
from convlens_server.items import gone
from convlens_server.maps import FeatureMaps
from convlens_server.model import Model, TensorPath
from convlens_server.settings import RequestLimits
from convlens_server.v2.errors import invalid
from convlens_server.v2.infer import InferItem

# A protobuf message is below 2 GiB.
_MAX_ANSWER_BYTES = 2**31 - 2**20


class Layers:
    """Has layers computed.

    Args:
        maps: Has the threads, and the bound on the bytes that are held.
        limits: Of one request.
    """

    def __init__(self, maps: FeatureMaps, limits: RequestLimits) -> None:
        self._maps = maps
        self._limits = limits

    def submit(self, model: Model, item: InferItem, data: bytes, images: RequestImages | None) -> None:
        """Has the lens compute a request's layers; if the engine has to give something too, it comes after it.

        Args:
            model: That is asked.
            item: The request, with its plan.
            data: The input's bytes, if it is no image files.
            images: The image files.

        Raises:
            InvalidRequest: The layers are more than a request may ask for.
            QueueFull, Draining: As `BoundedPool.submit`.
        """
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


def submit_tensors(model: Model, tensors: TensorPath, item: InferItem) -> None:
    """Queues a request with a network's own float tensors. Raises as `Batcher.submit`."""
    item.batch_key = tensors.engines
    model.batcher.submit(item, item.priority, item.timeout)


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
        ready = time.monotonic()
        maps = lens.maps(values, plan.layers)
        if item.trace is not None:
            item.trace.about(model=model.name, version=str(model.version), images=item.count)
            item.trace.span("queue", item.arrived, began)
            item.trace.span("lens", ready, time.monotonic(), layers=tuple(layer.name for layer in plan.layers))
        item.maps = {layer.name: each for layer, each in zip(plan.layers, maps, strict=True)}
        if plan.needs_engine:
            item.pixels = data
            if tensors is None:
                model.batcher.submit(item, item.priority, item.timeout)
            else:
                submit_tensors(model, tensors, item)
        else:
            item.answer(item.written())
            if item.trace is not None:
                item.trace.end(grpc.StatusCode.OK)
            item.metrics.feature_maps(item.method, item.count, queued, time.monotonic() - item.arrived)
