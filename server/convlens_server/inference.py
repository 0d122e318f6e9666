"""The core that every service translates to: a model and checked images in, an item in the batcher out."""

from __future__ import annotations

import time

from convlens_server.images import RequestImages
from convlens_server.items import RequestItem, gone
from convlens_server.metrics import Metrics
from convlens_server.model import Model
from convlens_server.pool import BoundedPool
from convlens_server.repository import Repository
from convlens_server.settings import RequestLimits


class Inference:
    """Classifies images with the models of a repository.

    Args:
        repository: Of the models.
        limits: Of one request.
        metrics: Of the server.
        workers: Threads that decode image files.

    Attributes:
        repository: As given.
        limits: As given.
        metrics: As given.
    """

    def __init__(self, repository: Repository, limits: RequestLimits, metrics: Metrics, workers: int) -> None:
        self.repository = repository
        self.limits = limits
        self.metrics = metrics
        self._decoding = BoundedPool("decoding", workers, max_waiting=1024)

    def classify(self, model: Model, images: RequestImages, item: RequestItem) -> None:
        """Queues an item, its image files decoded first; from then on the item is answered whatever happens.

        Raises:
            QueueFull: Too much waits already.
            Draining: The server is shutting down.
        """
        item.count = images.count
        if images.pixels is not None:
            item.pixels = images.pixels
            model.batcher.submit(item, item.priority, item.timeout)
        else:
            self._decoding.submit(lambda: self._decode(model, images, item), images.size)

    def close(self) -> None:
        """Ends the threads, when everything is answered."""
        self._decoding.close()

    def _decode(self, model: Model, images: RequestImages, item: RequestItem) -> None:
        try:
            if (error := gone(item)) is not None:
                raise error
            began = time.monotonic()
            item.pixels = images.decode(self.limits.pixels)
            if item.trace is not None:
                item.trace.span("decode", began, time.monotonic())
            model.batcher.submit(item, item.priority, item.timeout)
        except Exception as error:
            item.fail(error)
