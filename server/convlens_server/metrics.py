"""Metrics: counted cheaply on the request path, given to Prometheus when it asks.

prometheus_client's own histograms cost 1–2 µs an observation, which five times a request would be 6 % of a small
network's time; these cost 0.2 µs, and its exposition format does the rest.
"""

from __future__ import annotations

import bisect
import copy
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from convlens_server.engine import Run
from convlens_server.statistics import Statistics

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
        waiting_requests: Tells how many requests are in the queue.
    """

    def __init__(
        self,
        model: str,
        version: str,
        waiting: Callable[[], int] = lambda: 0,
        waiting_requests: Callable[[], int] = lambda: 0,
    ) -> None:
        self.labels = [model, version]
        self.waiting = waiting
        self.waiting_requests = waiting_requests
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str], int] = {}
        self._images = 0
        self._feature_map_requests = 0
        self._total = Histogram(SECONDS)
        self._queue = Histogram(SECONDS)
        self._compute = Histogram(SECONDS)
        self._batch = Histogram(IMAGES)
        self._statistics = Statistics()

    def count(self, method: str, code: str, seconds: float | None = None) -> None:
        """Counts a request that ended without being computed.

        Args:
            method: Its method.
            code: Its status code.
            seconds: From its arrival to its end, of an inference; None for any other request.
        """
        with self._lock:
            key = (method, code)
            self._requests[key] = self._requests.get(key, 0) + 1
            if seconds is not None:
                self._statistics.fail(code, seconds)

    def statistics(self) -> Statistics:
        """A copy of what was counted as Triton counts."""
        with self._lock:
            return copy.deepcopy(self._statistics)

    def batch(
        self,
        methods: Iterable[str],
        images: int,
        run: Run,
        output_seconds: float,
        queued: Sequence[float],
        totals: Sequence[float],
    ) -> None:
        """Counts a batch that was computed and answered.

        Args:
            methods: Of each request.
            images: Of all requests together.
            run: The engine's.
            output_seconds: That making and sending the answers took.
            queued: Seconds each request waited.
            totals: Seconds each request took from arrival to answer.
        """
        with self._lock:
            for method in methods:
                key = (method, "OK")
                self._requests[key] = self._requests.get(key, 0) + 1
            self._images += images
            self._batch.observe(images)
            self._compute.observe(run.seconds)
            self._statistics.batch(images, run, output_seconds, queued, totals, time.time())
            for seconds in queued:
                self._queue.observe(seconds)
            for seconds in totals:
                self._total.observe(seconds)

    def feature_maps(self, method: str, images: int, queued: float, total: float) -> None:
        """Counts a feature-map request that was answered; its images, seconds it waited, and took in all."""
        with self._lock:
            key = (method, "OK")
            self._requests[key] = self._requests.get(key, 0) + 1
            self._feature_map_requests += 1
            self._queue.observe(queued)
            self._total.observe(total)
            self._statistics.beside(images, queued, total, time.time())

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

    Attributes:
        loaded: Tells how many versions of models are loaded.
    """

    def __init__(self, device: str, device_memory: Callable[[], tuple[int, int] | None]) -> None:
        self._device = device
        self._device_memory = device_memory
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        self.loaded: Callable[[], int] = lambda: 0
        self.unknown = ModelMetrics("", "")
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def of(self, model: str, version: str) -> ModelMetrics:
        """The counts of a version; they go on where it was loaded before."""
        return self._models.setdefault((model, version), ModelMetrics(model, version))

    def forget(self, model: str, version: str) -> None:
        """Reports a version no longer; it has left the repository."""
        self._models.pop((model, version), None)

    def models(self) -> tuple[ModelMetrics, ...]:
        """Those of all versions that are reported."""
        return tuple(self._models.values())

    def collect(self) -> Iterable[Metric]:
        """The families of one scrape."""
        families = Families()
        self.unknown.collect(families)
        for metrics in self.models():
            metrics.collect(families)
        yield from families.all()
        yield GaugeMetricFamily("convlens_models_loaded", "Versions of models that are loaded.", self.loaded())
        if (memory := self._device_memory()) is not None:
            family = GaugeMetricFamily(
                "convlens_device_memory_bytes", "Memory of the device.", labels=["device", "state"]
            )
            family.add_metric([self._device, "used"], memory[0])
            family.add_metric([self._device, "total"], memory[1])
            yield family
