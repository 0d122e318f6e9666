from __future__ import annotations

from prometheus_client import generate_latest

from convlens_server.device import GpuFigures
from convlens_server.engine import Run
from convlens_server.metrics import Metrics
from convlens_server.v2.metrics import TritonMetrics


def scraped(metrics: Metrics, gpu: GpuFigures | None = None) -> dict[str, float]:
    """Every sample of Triton's, by its line without the value."""
    metrics.registry.register(TritonMetrics(metrics, lambda: gpu))
    lines = generate_latest(metrics.registry).decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("nv_")}


def test_a_version() -> None:
    metrics = Metrics("cpu", lambda: None)
    model = metrics.of("digits", "3")
    model.waiting_requests = lambda: 7
    model.batch(["ModelInfer", "Classify"], 5, Run(0.0, 0.001, 0.004), 0.0005, [0.25, 0.5], [1.0, 2.0])
    model.batch(["ModelInfer"], 1, Run(0.0, 0.001, 0.002), 0.0005, [0.0], [0.5])
    for code, reason_count in (("RESOURCE_EXHAUSTED", 2), ("CANCELLED", 1), ("INTERNAL", 1), ("INVALID_ARGUMENT", 3)):
        for _ in range(reason_count):
            model.count("ModelInfer", code, 0.01)
    model.count("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", 0.01)
    # Is no inference.
    model.count("GetModel", "NOT_FOUND")

    labels = '{model="digits",version="3"}'
    found = scraped(metrics)
    assert found == {
        f"nv_inference_request_success{labels}": 3,
        f"nv_inference_count{labels}": 6,
        f"nv_inference_exec_count{labels}": 2,
        f"nv_inference_pending_request_count{labels}": 7,
        f"nv_inference_request_duration_us{labels}": 3_500_000,
        f"nv_inference_queue_duration_us{labels}": 750_000,
        f"nv_inference_compute_input_duration_us{labels}": 3000,
        f"nv_inference_compute_infer_duration_us{labels}": 7000,
        f"nv_inference_compute_output_duration_us{labels}": 1500,
        'nv_inference_request_failure{model="digits",reason="REJECTED",version="3"}': 3,
        'nv_inference_request_failure{model="digits",reason="CANCELED",version="3"}': 1,
        'nv_inference_request_failure{model="digits",reason="BACKEND",version="3"}': 1,
        'nv_inference_request_failure{model="digits",reason="OTHER",version="3"}': 3,
    }


def test_a_gpu() -> None:
    found = scraped(Metrics("cuda:0", lambda: None), GpuFigures("GPU-1", 3, 10, 0.25, 70.5, None))

    labels = '{gpu_uuid="GPU-1"}'
    assert found == {
        f"nv_gpu_utilization{labels}": 0.25,
        f"nv_gpu_memory_used_bytes{labels}": 3,
        f"nv_gpu_memory_total_bytes{labels}": 10,
        f"nv_gpu_power_usage{labels}": 70.5,
    }
