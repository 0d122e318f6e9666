"""The goals of the tracing benchmark are ratios of each repeat, and the report of capacity has every model."""

from __future__ import annotations

import capacity
import tracing

MACHINE = {
    "cpu": "Some CPU", "cores": 2, "memory_gib": 23.5, "load_before": 0.0, "kernel": "Linux 6", "python": "3.11",
    "grpcio": "1.85", "opentelemetry-sdk": "1.45", "onnxruntime": "1.32", "h2load": "nghttp2/1.52.0",
}  # fmt: skip


def turn(off, again, some):
    point = {"p50_ms": 1.0, "p99_ms": 2.0}
    costs = {"off": off, "off, again": again, "1 %": some, "all": 2 * off}
    return {name: {**point, "cpu_us": cpu, "images_per_second": 1e6 / cpu} for name, cpu in costs.items()}


def test_the_goal_is_the_median_of_the_ratios_of_each_repeat():
    result = {
        "settings": {"seconds": 1, "repeats": 3, "load": "32"},
        "machine": MACHINE,
        "repeats": [turn(100.0, 90.0, 101.0), turn(200.0, 200.0, 200.0), turn(100.0, 120.0, 130.0)],
    }
    [cpu] = result["goals"] = tracing.goals(result)
    assert (cpu["median"], cpu["low"], cpu["high"], cpu["reached"]) == (1.01, 1.0, 1.3, True)
    text = tracing.render(result)
    assert "python bench/tracing.py --seconds 1 --repeats 3" in text
    assert "the same ratio is 1 (0.9 – 1.2). A hundredth of what tracing all adds is 1 %." in text
    assert "| all | 5000 (2500 – 5000) | 1 | 2 | 200 (200 – 400) |" in text


def test_the_report_of_capacity_has_every_model_and_the_command():
    points = {title: {"images_per_second": 1000.0, "p99_ms": 5.0} for title in capacity._LOADS}
    measured = {"loaded_mb": 130.0, "busy_mb": 140.0, "maps_ms": 1.5, "points": points}
    result = {
        "settings": {"device": "cpu", "seconds": 2, "repeats": 1},
        "machine": MACHINE,
        "repeats": [{"lecture_cnn, int8": measured, "tiny_vgg, float32": measured}],
    }
    text = capacity.render(result)
    assert "python bench/capacity.py --device cpu --seconds 2 --repeats 1" in text
    for name in ("lecture_cnn, int8", "tiny_vgg, float32"):
        assert f"| {name} | 1000 | 1000 | 1000 | 5 | 1.5 | 130 | 140 |" in text
