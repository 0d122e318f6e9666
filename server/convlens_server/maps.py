"""GetFeatureMaps: computed beside the batcher, in a pool of its own, and sent no faster than the caller reads."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from convlens.v1 import convlens_pb2 as pb
from convlens_server.catalogue import Layer
from convlens_server.classify import parse
from convlens_server.encoding import Encoded, check_value_type, encode
from convlens_server.errors import InvalidRequest, QueueFull
from convlens_server.images import RequestImages
from convlens_server.items import Question, check_wanted, code_name
from convlens_server.lens import check_channels
from convlens_server.metrics import ModelMetrics
from convlens_server.model import Model
from convlens_server.paced import Paced, chunks
from convlens_server.pool import BoundedPool
from convlens_server.repository import Repository
from convlens_server.settings import RequestLimits
from convlens_server.transport.base import Call

METHOD = "GetFeatureMaps"

# Requests' maps that are held at the same time, as a multiple of the most that one request may have.
_REQUESTS_HELD = 4


class FeatureMaps:
    """Answers feature-map requests.

    Args:
        repository: Of the models.
        limits: Of one request.
        workers: Threads that compute.
        unknown: Counts requests for no known model.
    """

    def __init__(self, repository: Repository, limits: RequestLimits, workers: int, unknown: ModelMetrics) -> None:
        self.limits = limits
        self._repository = repository
        self._unknown = unknown
        self.pool = BoundedPool("feature maps", workers, max_waiting=256)
        self._lock = threading.Lock()
        self._held = 0

    def handle(self, data: bytes, call: Call) -> None:
        """Takes one request; `Handler` of the transport."""
        arrived = time.monotonic()
        question = Question(call, METHOD, self._unknown)
        try:
            request = parse(pb.GetFeatureMapsRequest, data)
            self._repository.when_ready(
                request.model, request.version, question, lambda model: self._begin(model, request, question, arrived)
            )
        except Exception as error:
            question.fail(error)

    def _begin(self, model: Model, request: pb.GetFeatureMapsRequest, question: Question, arrived: float) -> None:
        question.metrics = model.metrics
        answer = _Answer(self, question.call, arrived, model, request)
        self.hold(answer.bytes)
        Paced(question.call, self.pool, answer.messages(), answer.ended).start(answer.size)

    def close(self) -> None:
        """Ends the threads; what waits is forgotten."""
        self.pool.close()

    def hold(self, size: int) -> None:
        """Counts bytes of maps that are about to be made. Raises QueueFull."""
        limit = _REQUESTS_HELD * self.limits.feature_map_bytes
        with self._lock:
            if self._held + size > limit:
                raise QueueFull(
                    f"feature maps of {self._held} bytes are being computed or read, and {size} more are over the "
                    f"limit of {limit}: try again later, or ask for fewer layers, channels or images",
                    metadata={"held": self._held, "bytes": size, "limit": limit},
                    retry_after=0.1,
                )
            self._held += size

    def let_go(self, size: int) -> None:
        """The maps of a request are held no longer."""
        with self._lock:
            self._held -= size


class _Answer:
    """One request: computed in its first turn, then sent turn by turn."""

    def __init__(
        self, owner: FeatureMaps, call: Call, arrived: float, model: Model, request: pb.GetFeatureMapsRequest
    ) -> None:
        limits = owner.limits
        self._owner = owner
        self._call = call
        self._arrived = arrived
        self._model = model
        self._value_type = check_value_type(request.value_type)
        self._layers = model.lens.resolve(request.layers, request.kinds, request.all_layers)
        self._channels = _channels(request.channels, self._layers)
        limit_name = "--max-feature-map-images"
        self._images = RequestImages(request.images, model.shape, limits.feature_map_images, limit_name)
        self.size = self._images.size
        self.bytes = 4 * self._images.count * sum(math.prod(layer.shape) for layer in self._layers)
        if self.bytes > limits.feature_map_bytes:
            raise InvalidRequest(
                f"the {len(self._layers)} layers of {self._images.count} images have {self.bytes} bytes as float32, "
                f"over the limit of {limits.feature_map_bytes}: ask for fewer layers or images a request, or start "
                "the server with a larger --max-feature-map-bytes",
                reason="TOO_MANY_BYTES",
                field="layers",
                metadata={"bytes": self.bytes, "limit": limits.feature_map_bytes},
            )
        self._queued = 0.0

    def messages(self) -> Iterator[pb.GetFeatureMapsResponse]:
        """Computes the maps, and makes the messages of all layers."""
        began = time.monotonic()
        self._queued = began - self._arrived
        check_wanted(self._call, self._queued)
        pixels = self._images.decode(self._owner.limits.pixels)
        images = np.frombuffer(pixels, np.uint8).reshape(-1, *self._model.shape)
        began = time.monotonic()
        maps = self._model.lens.maps(images, self._layers)
        ended = time.monotonic()
        if (trace := self._call.trace) is not None:
            trace.about(model=self._model.name, version=str(self._model.version), images=len(images))
            trace.span("queue", self._arrived, self._arrived + self._queued)
            trace.span("lens", began, ended, layers=tuple(layer.name for layer in self._layers))
        yield from self._chunks(maps, (ended - began) * 1000)

    def ended(self, error: BaseException | None) -> None:
        """Counts the request and lets its maps go."""
        if error is None:
            total = time.monotonic() - self._arrived
            self._model.metrics.feature_maps(METHOD, self._images.count, self._queued, total)
        else:
            self._model.metrics.count(METHOD, code_name(error))
        self._owner.let_go(self.bytes)

    def _chunks(self, maps: list[npt.NDArray[np.float32]], compute_ms: float) -> Iterator[pb.GetFeatureMapsResponse]:
        """Each layer is encoded when its turn comes, and dropped when it has gone."""
        maps.reverse()
        for layer in self._layers:
            values = maps.pop()
            if self._channels:
                values = values[:, self._channels]
            encoded = encode(values, self._value_type)
            pieces = chunks(encoded.data)
            yield self._first(layer, values.shape, encoded, next(pieces)[1], compute_ms)
            for offset, data in pieces:
                yield pb.GetFeatureMapsResponse(layer=layer.name, byte_offset=offset, data=data)

    def _first(
        self, layer: Layer, shape: Sequence[int], encoded: Encoded, data: bytes, compute_ms: float
    ) -> pb.GetFeatureMapsResponse:
        return pb.GetFeatureMapsResponse(
            layer=layer.name,
            data=data,
            kind=layer.kind,
            shape=shape,
            channels=self._channels,
            value_type=self._value_type,
            scale=encoded.scale,
            offset=encoded.offset,
            total_bytes=len(encoded.data),
            model=self._model.name,
            version=self._model.version,
            queue_ms=self._queued * 1000,
            compute_ms=compute_ms,
        )


def _channels(wanted: Sequence[int], layers: Sequence[Layer]) -> list[int]:
    for layer in layers:
        check_channels(wanted, layer.name, layer.shape[0] if layer.shape else 0)
    return list(wanted)
