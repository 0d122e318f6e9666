"""Triton's metrics, by its names, for the dashboards that query them.

prometheus_client ends a counter's name in `_total`, which those dashboards do not: so each family is made here, of
samples with the exact name, and what Triton calls a counter has no type, with which rate() is as content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from convlens_server.device import GpuFigures
from convlens_server.metrics import Metrics

_COUNTERS = {
    "nv_inference_request_success": "Inference requests that were answered.",
    "nv_inference_request_failure": "Inference requests that failed, by reason.",
    "nv_inference_count": "Images computed.",
    "nv_inference_exec_count": "Batches computed.",
    "nv_inference_request_duration_us": "Microseconds from arrival to answer, of all answered requests.",
    "nv_inference_queue_duration_us": "Microseconds in the queue, of all answered requests.",
    "nv_inference_compute_input_duration_us": "Microseconds of joining a batch's images, for each of its requests.",
    "nv_inference_compute_infer_duration_us": "Microseconds of a batch in the session, for each of its requests.",
    "nv_inference_compute_output_duration_us": "Microseconds of making a batch's answers, for each of its requests.",
}
_PENDING = "nv_inference_pending_request_count"


class TritonMetrics(Collector):
    """A collector of Triton's metrics.

    Args:
        metrics: Where they are counted.
        gpu: Gives the figures of the CUDA device, if the server runs on one.
    """

    def __init__(self, metrics: Metrics, gpu: Callable[[], GpuFigures | None]) -> None:
        self._metrics = metrics
        self._gpu = gpu

    def collect(self) -> Iterable[Metric]:
        """The families of one scrape."""
        families = {name: _Exact(name, text, "unknown") for name, text in _COUNTERS.items()}
        pending = _Exact(_PENDING, "Inference requests that wait in the queue.", "gauge")
        for model in self._metrics.models():
            labels = dict(zip(("model", "version"), model.labels, strict=True))
            counted = model.statistics()
            compute = counted.compute
            for reason, number in counted.failures.items():
                families["nv_inference_request_failure"].add(number, reason=reason, **labels)
            for name, value in (
                ("request_success", counted.success.count),
                ("count", counted.images),
                ("exec_count", counted.runs),
                ("request_duration_us", _micro(counted.success.seconds)),
                ("queue_duration_us", _micro(counted.queue.seconds)),
                ("compute_input_duration_us", _micro(compute.input.seconds)),
                ("compute_infer_duration_us", _micro(compute.infer.seconds)),
                ("compute_output_duration_us", _micro(compute.output.seconds)),
            ):
                families[f"nv_inference_{name}"].add(value, **labels)
            pending.add(model.waiting_requests(), **labels)
        yield from families.values()
        yield pending
        if (figures := self._gpu()) is not None:
            for name, text, figure in (
                ("nv_gpu_utilization", "Share of the time in which the GPU computed, 0 … 1.", figures.utilization),
                ("nv_gpu_memory_total_bytes", "Memory of the GPU.", figures.memory_total),
                ("nv_gpu_memory_used_bytes", "Memory of the GPU that is used.", figures.memory_used),
                ("nv_gpu_power_usage", "Watts that the GPU takes.", figures.power),
                ("nv_gpu_power_limit", "Watts that the GPU may take.", figures.power_limit),
            ):
                if figure is not None:
                    family = _Exact(name, text, "gauge")
                    family.add(figure, gpu_uuid=figures.uuid)
                    yield family


class _Exact(Metric):
    """A family whose samples have just its name."""

    def __init__(self, name: str, text: str, kind: str) -> None:
        super().__init__(name, text, kind)

    def add(self, value: float, **labels: str) -> None:
        """Adds a sample."""
        self.add_sample(self.name, labels, value)


def _micro(seconds: float) -> int:
    return max(int(seconds * 1e6), 0)
