"""Metrics: counted cheaply on the request path, given to Prometheus when it asks.

prometheus_client's own histograms cost 1–2 µs an observation, which five times a request would be 6 % of a small
network's time; these cost 0.2 µs, and its exposition format does the rest.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
IMAGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Histogram:
    """Counts of observations by upper bound. Not thread-safe: its owner locks."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one observation."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, as Prometheus wants them."""
        result, total = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            result.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
        return result

    @property
    def sum(self) -> float:
        """Sum of all observations."""
        return self._sum


class ModelMetrics:
    """What is counted for one version of a model. Thread-safe.

    Attributes:
        waiting: Tells how many images are in the queue.
    """

    def __init__(self, model: str, version: str, waiting: Callable[[], int] = lambda: 0) -> None:
        self.labels = [model, version]
        self.waiting = waiting
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str], int] = {}
        self._images = 0
        self._feature_map_requests = 0
        self._total = Histogram(SECONDS)
        self._queue = Histogram(SECONDS)
        self._compute = Histogram(SECONDS)
        self._batch = Histogram(IMAGES)

    def count(self, method: str, code: str) -> None:
        """Counts a request that ended without being computed."""
        with self._lock:
            key = (method, code)
            self._requests[key] = self._requests.get(key, 0) + 1

    def batch(
        self, methods: Iterable[str], images: int, compute: float, queued: Iterable[float], totals: Iterable[float]
    ) -> None:
        """Counts a batch that was computed and answered.

        Args:
            methods: Of each request.
            images: Of all requests together.
            compute: Seconds the batch took in the engine.
            queued: Seconds each request waited.
            totals: Seconds each request took from arrival to answer.
        """
        with self._lock:
            for method in methods:
                key = (method, "OK")
                self._requests[key] = self._requests.get(key, 0) + 1
            self._images += images
            self._batch.observe(images)
            self._compute.observe(compute)
            for seconds in queued:
                self._queue.observe(seconds)
            for seconds in totals:
                self._total.observe(seconds)

    def feature_maps(self, method: str, queued: float, total: float) -> None:
        """Counts a feature-map request that was answered; seconds it waited, and took in all."""
        with self._lock:
            key = (method, "OK")
            self._requests[key] = self._requests.get(key, 0) + 1
            self._feature_map_requests += 1
            self._queue.observe(queued)
            self._total.observe(total)

    def collect(self, families: Families) -> None:
        """Adds this model's samples."""
        with self._lock:
            for (method, code), number in self._requests.items():
                families.requests.add_metric([*self.labels, method, code], number)
            if not self.labels[0]:
                return
            families.images.add_metric(self.labels, self._images)
            families.feature_maps.add_metric(self.labels, self._feature_map_requests)
            families.waiting.add_metric(self.labels, self.waiting())
            for family, histogram in (
                (families.total, self._total),
                (families.queue, self._queue),
                (families.compute, self._compute),
                (families.batch, self._batch),
            ):
                family.add_metric(self.labels, histogram.buckets(), histogram.sum)


class Families:
    """The metric families of one scrape; their names are part of the contract (docs/operations.md)."""

    def __init__(self) -> None:
        model = ["model", "version"]
        self.requests = CounterMetricFamily(
            "convlens_requests", "Requests ended, by method and gRPC status code.", labels=[*model, "method", "code"]
        )
        self.images = CounterMetricFamily("convlens_images", "Images classified.", labels=model)
        self.feature_maps = CounterMetricFamily(
            "convlens_feature_map_requests", "Feature-map requests answered.", labels=model
        )
        self.waiting = GaugeMetricFamily("convlens_queue_images", "Images waiting in the queue.", labels=model)
        self.total = HistogramMetricFamily(
            "convlens_request_seconds", "From a request's arrival to its answer.", labels=model
        )
        self.queue = HistogramMetricFamily(
            "convlens_queue_seconds", "From a request's arrival in the queue to the start of its batch.", labels=model
        )
        self.compute = HistogramMetricFamily("convlens_compute_seconds", "A batch's time in the engine.", labels=model)
        self.batch = HistogramMetricFamily("convlens_batch_images", "Images of a batch.", labels=model)

    def all(self) -> tuple[Metric, ...]:
        """Every family."""
        return (
            self.requests, self.images, self.feature_maps, self.waiting,
            self.total, self.queue, self.compute, self.batch,
        )  # fmt: skip


class Metrics(Collector):
    """All metrics of a server, as a collector of its registry.

    Args:
        device: The device's name.
        device_memory: Gives used and total bytes of the device's memory, or None where it has none of its own.
    """

    def __init__(self, device: str, device_memory: Callable[[], tuple[int, int] | None]) -> None:
        self._device = device
        self._device_memory = device_memory
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        self.unknown = ModelMetrics("", "")
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def add(self, metrics: ModelMetrics) -> None:
        """Begins to report a loaded version."""
        self._models[metrics.labels[0], metrics.labels[1]] = metrics

    def collect(self) -> Iterable[Metric]:
        """The families of one scrape."""
        families = Families()
        self.unknown.collect(families)
        for metrics in list(self._models.values()):
            metrics.collect(families)
        yield from families.all()
        yield GaugeMetricFamily("convlens_models_loaded", "Versions of models that are loaded.", len(self._models))
        if (memory := self._device_memory()) is not None:
            family = GaugeMetricFamily(
                "convlens_device_memory_bytes", "Memory of the device.", labels=["device", "state"]
            )
            family.add_metric([self._device, "used"], memory[0])
            family.add_metric([self._device, "total"], memory[1])
            yield family
