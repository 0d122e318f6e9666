"""Goals and tables are made of the medians of what was measured; what was not is said so."""

from __future__ import annotations

import copy

import pytest

from contenders import LOADS
from open_inference import CLASSIFY, INFER_FLOAT32
from report import goals, render


def points(rate):
    return [
        {"load": load.name, "images_per_second": rate, "p50_ms": 0.5, "p99_ms": 1.0, "cpu_us": 100.0} for load in LOADS
    ]


def turn(rate):
    server = {"start_seconds": 1.5, "loaded_mb": 200.0, "peak_mb": 220.0, "points": points(rate)}
    ours = {**server, "after_feature_maps": points(rate * 0.99)[0]}
    return {
        "raw": [
            {"threads": 1, "batch": 1, "images_per_second": 5000.0, "p50_ms": 0.2},
            {"threads": 2, "batch": 1, "images_per_second": 4000.0, "p50_ms": 0.3},
            {"threads": 2, "batch": 8, "images_per_second": 10_000.0, "p50_ms": 0.8},
        ],
        "servers": {"completion_queue": ours, "aio": server, "plain": {**server, "points": points(2000.0)}},
        "feature_maps": {
            "layers": 50,
            "missing_layers": [],
            "first_block_layers": 8,
            "in_process": {"forward_ms": 16.0, "first_block_ms": 4.0, "first_block_output_ms": 3.0},
            "served": {"classify_ms": 17.0, "first_block_ms": 9.0, "first_block_output_ms": 4.0},
        },
        "open_inference": {CLASSIFY: points(rate)[0], INFER_FLOAT32: points(rate * 0.95)[0]},
    }


@pytest.fixture
def result():
    return {
        "model": "lecture_cnn",
        "model_version": 1,
        "served": ["lecture_cnn", "tiny_vgg"],
        "settings": {
            "seconds": 4.0,
            "repeats": 3,
            "parts": ["completion_queue", "aio", "plain", "feature_maps", "open_inference"],
            "threads": 2,
            "max_batch": 32,
            "max_queue_delay_ms": 0.0,
        },
        "machine": {
            "cpu": "Some CPU",
            "cores": 2,
            "memory_gib": 23.5,
            "load_before": 0.0,
            "kernel": "Linux 6",
            "python": "3.11",
            "grpcio": "1.85",
            "onnxruntime": "1.32",
            "h2load": "nghttp2/1.52.0",
        },
        "repeats": [turn(7000.0), turn(9000.0), turn(8000.0)],
    }


def by_name(result, text):
    return next(goal for goal in goals(result) if text in goal["what"])


def test_goals_are_medians_of_ratios(result):
    goal = by_name(result, "concurrency 32 ÷ best raw")
    assert (goal["median"], goal["low"], goal["high"], goal["reached"]) == (0.8, 0.7, 0.9, True)
    assert by_name(result, "4 × 32 images ÷ best raw")["reached"] is False
    assert by_name(result, "plain")["median"] == 4
    assert by_name(result, "single-image latency")["median"] == pytest.approx(0.3)
    assert by_name(result, "single-image latency")["reached"] is False
    assert by_name(result, "forward pass")["median"] == 0.25


def test_cost_of_feature_maps_is_judged_by_what_can_be_measured(result):
    assert by_name(result, "feature-map requests")["reached"] is True
    for each in result["repeats"]:
        each["servers"]["completion_queue"]["after_feature_maps"]["images_per_second"] *= 0.95
    assert by_name(result, "feature-map requests")["reached"] is False


def test_a_layer_missing_once_is_shown(result):
    result["repeats"][2]["feature_maps"]["missing_layers"] = ["conv1"] * 3
    goal = by_name(result, "missing from the catalogue")
    assert (goal["median"], goal["goal"], goal["reached"]) == (3, "none", False)


def test_table(result):
    table = render(result)
    assert "| images/s at concurrency 32 ÷ best raw onnxruntime | ≥ 0.75 | 0.8 (0.7 – 0.9) | yes |" in table
    assert "| 4 × 32 images | convlens | 8000 (7000 – 9000) | 0.8 (0.7 – 0.9) | 0.5 | 1 | 100 |" in table
    assert "`python bench/serving.py --seconds 4 --repeats 3`" in table
    assert all(line.count("|") == 5 for line in table.split("\n\n")[3].splitlines())


def test_parts_that_were_not_measured_are_said_so(result):
    partial = copy.deepcopy(result)
    partial["settings"]["parts"] = ["completion_queue"]
    partial["feature_maps_skipped"] = "torch not installed (the training extra)"
    for each in partial["repeats"]:
        del each["feature_maps"], each["servers"]["plain"], each["servers"]["aio"]
    assert by_name(partial, "plain")["reached"] is None
    table = render(partial)
    assert "| ≥ 3 | not measured | – |" in table
    assert "not measured, torch not installed (the training extra)." in table
    assert "--only completion_queue`" in table
