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
from convlens_server.encoding import Encoded, encode
from convlens_server.errors import OK, Cancelled, DeadlineExceeded, InvalidRequest, NotFound, QueueFull, ServiceError
from convlens_server.images import RequestImages
from convlens_server.items import Question, code_name
from convlens_server.metrics import ModelMetrics
from convlens_server.model import Model
from convlens_server.pool import BoundedPool
from convlens_server.repository import Repository
from convlens_server.settings import RequestLimits
from convlens_server.transport.base import Call

METHOD = "GetFeatureMaps"

# A caller's own limit is 4 MiB unless it sets another.
_CHUNK_BYTES = 2**20
# Sent before the caller has to have read: enough that the pool is not asked for each chunk.
_AHEAD_BYTES = 4 * _CHUNK_BYTES
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
        call = question.call
        answer = _Answer(self, call, arrived, model, request)
        self.hold(answer.bytes)
        call.on_close = answer.closed
        try:
            self.pool.submit(answer.begin, answer.size)
        except ServiceError as error:
            answer.end(error)

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
                    f"limit of {limit}: try again later, or ask for fewer layers or images",
                    metadata={"held": self._held, "bytes": size, "limit": limit},
                    retry_after=0.1,
                )
            self._held += size

    def let_go(self, size: int) -> None:
        """The maps of a request are held no longer."""
        with self._lock:
            self._held -= size


class _Answer:
    """One request on its way through the pool: computed once, then sent turn by turn.

    A turn sends what the caller may have unread, and `Call.on_writable` asks for the next one. It may come while a turn
    is still sending, since part of what the turn sent has left; then that turn goes on for another round.
    """

    def __init__(
        self, owner: FeatureMaps, call: Call, arrived: float, model: Model, request: pb.GetFeatureMapsRequest
    ) -> None:
        limits = owner.limits
        self._owner = owner
        self._call = call
        self._arrived = arrived
        self._model = model
        self._value_type = request.value_type or pb.VALUE_TYPE_FLOAT32
        self._layers = model.lens.resolve(request.layers, request.kinds, request.all_layers)
        self._channels = _channels(request.channels, self._layers)
        if self._value_type not in pb.ValueType.values():
            raise InvalidRequest(
                f"value_type is {self._value_type}, but must be one of {', '.join(pb.ValueType.keys()[1:])}",
                reason="UNKNOWN_VALUE_TYPE",
                field="value_type",
            )
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
        self._lock = threading.Lock()
        self._running = False
        self._again = False
        self._held = True
        self._ended = False
        self._messages: Iterator[pb.GetFeatureMapsResponse] = iter(())
        self._queued = 0.0

    def begin(self) -> None:
        """Computes the maps and sends the first of them."""
        began = time.monotonic()
        self._queued = began - self._arrived
        try:
            if self._call.cancelled:
                raise Cancelled("the caller left; nothing was computed")
            if began >= self._call.deadline:
                raise DeadlineExceeded(
                    f"deadline passed after {self._queued * 1000:.0f} ms in the queue; nothing was computed"
                )
            pixels = self._images.decode(self._owner.limits.pixels)
            images = np.frombuffer(pixels, np.uint8).reshape(-1, *self._model.shape)
            began = time.monotonic()
            maps = self._model.lens.maps(images, self._layers)
            self._messages = self._chunks(maps, (time.monotonic() - began) * 1000)
        except Exception as error:
            self.end(error)
            return
        self._call.on_writable = self._writable
        self._writable()

    def closed(self) -> None:
        """The call is over; if we did not end it, its caller left."""
        if not self._ended:
            self._ended = True
            self._model.metrics.count(METHOD, "CANCELLED")
        with self._lock:
            idle = not self._running
        if idle:
            self.release()

    def release(self) -> None:
        """Lets the maps go, once."""
        with self._lock:
            held, self._held = self._held, False
            self._messages = iter(())
        if held:
            self._owner.let_go(self.bytes)

    def _writable(self) -> None:
        with self._lock:
            if self._running:
                self._again = True
                return
            self._running = True
        self._owner.pool.resume(self._turn)

    def _turn(self) -> None:
        while True:
            if self._ended or not self._send():
                break
            with self._lock:
                if not self._again:
                    self._running = False
                    break
                self._again = False
        if self._ended:
            self.release()

    def _send(self) -> bool:
        """Sends messages until enough are on the way. Whether there may be more."""
        sent = 0
        try:
            while sent < _AHEAD_BYTES:
                message = next(self._messages, None)
                if message is None:
                    self.end(None)
                    return False
                sent += len(message.data)
                self._call.send(message.SerializeToString())
        except Exception as error:
            self.end(error)
            return False
        return True

    def end(self, error: Exception | None) -> None:
        """Finishes the call, with OK if there is no error, counts it, and lets the maps go."""
        if not self._ended:
            self._ended = True
            if error is None:
                total = time.monotonic() - self._arrived
                self._model.metrics.feature_maps(METHOD, self._images.count, self._queued, total)
                self._call.finish(OK)
            else:
                self._model.metrics.count(METHOD, code_name(error))
                self._call.fail(error)
        self.release()

    def _chunks(self, maps: list[npt.NDArray[np.float32]], compute_ms: float) -> Iterator[pb.GetFeatureMapsResponse]:
        """The messages of all layers; each layer is encoded when its turn comes, and dropped when it has gone."""
        maps.reverse()
        for layer in self._layers:
            values = maps.pop()
            if self._channels:
                values = values[:, self._channels]
            encoded = encode(values, self._value_type)
            yield self._first(layer, values.shape, encoded, compute_ms)
            for offset in range(_CHUNK_BYTES, len(encoded.data), _CHUNK_BYTES):
                data = bytes(encoded.data[offset : offset + _CHUNK_BYTES])
                yield pb.GetFeatureMapsResponse(layer=layer.name, byte_offset=offset, data=data)

    def _first(
        self, layer: Layer, shape: Sequence[int], encoded: Encoded, compute_ms: float
    ) -> pb.GetFeatureMapsResponse:
        return pb.GetFeatureMapsResponse(
            layer=layer.name,
            data=bytes(encoded.data[:_CHUNK_BYTES]),
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
    channels = list(wanted)
    if len(set(channels)) != len(channels):
        raise InvalidRequest(
            f"channels has repeats: {channels[:12]}; name each once", reason="REPEATED_CHANNEL", field="channels"
        )
    if channels:
        for layer in layers:
            size = layer.shape[0] if layer.shape else 0
            if max(channels) >= size:
                raise NotFound(
                    f"layer {layer.name!r} has no channel {max(channels)}: it has {size}, counted from 0",
                    reason="CHANNEL_NOT_FOUND",
                    field="channels",
                    metadata={"layer": layer.name, "channel": max(channels), "channels": size},
                )
    return channels
