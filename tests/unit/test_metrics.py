from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from convlens_server.engine import Run
from convlens_server.metrics import IMAGES, SECONDS, Histogram, Metrics, ModelMetrics

LABELS = ("model", "version", "method", "code", "device", "state", "le")


def scraped(metrics: Metrics) -> dict[str, Any]:
    text = generate_latest(metrics.registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(metrics: Metrics, family: str, name: str = "") -> dict[tuple[str, ...], float]:
    """The samples of a family, by the values of their labels."""
    samples = scraped(metrics)[family].samples
    return {
        tuple(s.labels[key] for key in LABELS if key in s.labels): s.value
        for s in samples
        if s.name == (name or family)
    }


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("cpu", lambda: None)


@pytest.fixture
def model(metrics: Metrics) -> ModelMetrics:
    model = metrics.of("digits", "3")
    model.waiting = lambda: 17
    metrics.loaded = lambda: 1
    return model


def test_a_batch(metrics: Metrics, model: ModelMetrics) -> None:
    run = Run(began=0.0, input_seconds=0.001, seconds=0.004)
    methods = ["Classify", "ClassifyStream", "Classify"]
    model.batch(methods, 5, run, 0.0005, [0.0002, 0.03, 0.0], [0.005, 0.04, 0.0045])
    model.count("Classify", "INVALID_ARGUMENT")
    labels = ("digits", "3")
    assert values(metrics, "convlens_requests", "convlens_requests_total") == {
        (*labels, "Classify", "OK"): 2,
        (*labels, "ClassifyStream", "OK"): 1,
        (*labels, "Classify", "INVALID_ARGUMENT"): 1,
    }
    assert values(metrics, "convlens_images", "convlens_images_total") == {labels: 5}
    assert values(metrics, "convlens_queue_images") == {labels: 17}
    assert values(metrics, "convlens_models_loaded") == {(): 1}
    for name, count, total in (
        ("convlens_request_seconds", 3, 0.0495),
        ("convlens_queue_seconds", 3, 0.0302),
        ("convlens_compute_seconds", 1, 0.004),
        ("convlens_batch_images", 1, 5.0),
    ):
        assert values(metrics, name, f"{name}_count") == {labels: count}
        assert values(metrics, name, f"{name}_sum") == {labels: pytest.approx(total)}
    buckets = values(metrics, "convlens_batch_images", "convlens_batch_images_bucket")
    assert {le: n for (*_, le), n in buckets.items()} == {
        **{str(bound): float(bound >= 8) for bound in IMAGES},
        "+Inf": 1.0,
    }


def test_feature_maps(metrics: Metrics, model: ModelMetrics) -> None:
    model.feature_maps("GetFeatureMaps", 2, 0.001, 0.02)
    labels = ("digits", "3")
    assert values(metrics, "convlens_feature_map_requests", "convlens_feature_map_requests_total") == {labels: 1}
    assert values(metrics, "convlens_requests", "convlens_requests_total") == {(*labels, "GetFeatureMaps", "OK"): 1}
    assert values(metrics, "convlens_images", "convlens_images_total") == {labels: 0}


def test_requests_for_no_model(metrics: Metrics, model: ModelMetrics) -> None:
    metrics.unknown.count("Classify", "NOT_FOUND")
    requests = values(metrics, "convlens_requests", "convlens_requests_total")
    assert requests == {("", "", "Classify", "NOT_FOUND"): 1}
    assert values(metrics, "convlens_images", "convlens_images_total") == {("digits", "3"): 0}


def test_several_models(metrics: Metrics) -> None:
    for name, version in (("a", "1"), ("a", "2"), ("b", "1")):
        metrics.of(name, version).count("Classify", "OK")
    assert set(values(metrics, "convlens_requests", "convlens_requests_total")) == {
        (name, version, "Classify", "OK") for name, version in (("a", "1"), ("a", "2"), ("b", "1"))
    }
    metrics.forget("b", "1")
    assert ("b", "1", "Classify", "OK") not in values(metrics, "convlens_requests", "convlens_requests_total")
    metrics.loaded = lambda: 3
    assert values(metrics, "convlens_models_loaded") == {(): 3}


def test_names_that_need_escaping(metrics: Metrics) -> None:
    name = 'a "quoted"\\name\nover two lines ü'
    metrics.of(name, "1")
    assert values(metrics, "convlens_queue_images") == {(name, "1"): 0}


def test_device_memory() -> None:
    metrics = Metrics("cuda:0", lambda: (3, 8))
    memory = values(metrics, "convlens_device_memory_bytes")
    assert memory == {("cuda:0", "used"): 3, ("cuda:0", "total"): 8}
    assert "convlens_device_memory_bytes" not in scraped(Metrics("cpu", lambda: None))


def test_the_process_is_there(metrics: Metrics) -> None:
    assert scraped(metrics)["process_resident_memory_bytes"].samples[0].value > 0


def test_every_family_has_a_help_text_and_a_type(metrics: Metrics, model: ModelMetrics) -> None:
    families = {name: family for name, family in scraped(metrics).items() if name.startswith("convlens_")}
    assert {name: family.type for name, family in families.items()} == {
        "convlens_requests": "counter",
        "convlens_images": "counter",
        "convlens_feature_map_requests": "counter",
        "convlens_queue_images": "gauge",
        "convlens_request_seconds": "histogram",
        "convlens_queue_seconds": "histogram",
        "convlens_compute_seconds": "histogram",
        "convlens_batch_images": "histogram",
        "convlens_models_loaded": "gauge",
    }
    assert all(family.documentation.endswith(".") for family in families.values())


@given(st.lists(st.floats(0, 100)))
def test_histogram_counts_each_observation_once(observations: list[float]) -> None:
    histogram = Histogram(SECONDS)
    for value in observations:
        histogram.observe(value)
    buckets = histogram.buckets()
    assert [float(bound) for bound, _ in buckets] == [*SECONDS, float("inf")]
    for bound, count in buckets:
        assert count == sum(value <= float(bound) for value in observations)
    assert histogram.sum == pytest.approx(sum(observations))


def test_counting_from_several_threads(metrics: Metrics, model: ModelMetrics) -> None:
    def work() -> None:
        for _ in range(500):
            model.batch(["Classify"], 2, Run(0.0, 0.0, 0.001), 0.0, [0.0], [0.001])
            model.count("Classify", "CANCELLED")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        scraped(metrics)
    labels = ("digits", "3", "Classify")
    assert values(metrics, "convlens_requests", "convlens_requests_total") == {
        (*labels, "OK"): 2000,
        (*labels, "CANCELLED"): 2000,
    }
    assert values(metrics, "convlens_images", "convlens_images_total") == {("digits", "3"): 4000}
