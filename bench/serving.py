"""Measures this server against onnxruntime alone and against a server written by hand; see README.md.

python bench/serving.py                  # measures, writes bench/results/serving.json, prints the table
python bench/serving.py --table FILE     # prints the table of a stored result
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import feature_maps
import open_inference
from answers import Questions
from command import finish, new_parser, say, say_if_busy
from contenders import OURS, PLAIN, highest_version, is_ready, measure_ours, measure_plain, our_server
from convlens_server.config import parse_config
from convlens_server.settings import MAX_BATCH
from h2load import require_h2load
from machine import machine
from processes import free_ports, run_child, serving
from report import Result, goals, render

_HERE = Path(__file__).parent
_FEATURE_MAPS, _OPEN_INFERENCE = "feature_maps", "open_inference"
_PARTS = (*OURS, PLAIN, _FEATURE_MAPS, _OPEN_INFERENCE)
# There are eight runs of onnxruntime alone, each as long as this part of a server's.
_RAW_SHARE = 0.25
_FEATURE_MAP_SHARE = 0.5


def measure(models: Path, model: str, seconds: float, repeats: int, only: list[str]) -> Result:
    """Measures everything in turn, and that `repeats` times, so that what slows the machine down slows all of it down.

    Args:
        models: The model repository.
        model: Name of the model that is measured; its highest version is.
        seconds: For each server under each load.
        repeats: Of the whole sequence.
        only: Which of the parts; onnxruntime alone is always measured.

    Raises:
        LoadError: A request failed, or h2load is not there.
        AnswerError: A server answered wrongly.
        ProcessError: A server or a measurement failed.
    """
    h2load = require_h2load()
    path = highest_version(models / model)
    described = run_child("in_process.py", "describe", path)
    questions = Questions(model, described["shape"], described["scores"])
    config = parse_config(["--models", str(models)])
    result: Result = {
        "model": model,
        "model_version": int(path.parent.name),
        "served": sorted(each.parent.parent.name for each in models.glob("*/*/model.onnx")),
        "settings": {
            "seconds": seconds,
            "repeats": repeats,
            "parts": only,
            "threads": config.threads,
            "max_batch": config.max_batch or MAX_BATCH["cpu"],
            "max_queue_delay_ms": config.max_queue_delay_ms,
        },
        "machine": {**machine("grpcio"), "onnxruntime": described["onnxruntime"], "h2load": h2load},
        "repeats": [],
    }
    say_if_busy(result["machine"])
    with tempfile.TemporaryDirectory() as folder:
        resnet, skipped = Path(folder), "not asked for"
        expected: list[str] = []
        if _FEATURE_MAPS in only:
            missing = [name for name in ("torch", "torchvision", "onnxscript") if not importlib.util.find_spec(name)]
            skipped = f"{', '.join(missing)} not installed (the training extra)" if missing else ""
            if not skipped:
                say("exporting a ResNet-18")
                expected = run_child("feature_maps.py", "export", resnet)
        if skipped:
            result["feature_maps_skipped"] = skipped
        for n in range(repeats):
            turn: dict[str, Any] = {"servers": {}}
            say(f"repeat {n + 1} of {repeats}: onnxruntime alone")
            turn["raw"] = run_child("in_process.py", "measure", path, seconds * _RAW_SHARE)
            for name in (each for each in (OURS[0], PLAIN, OURS[1]) if each in only):
                say(f"repeat {n + 1} of {repeats}: {name}")
                turn["servers"][name] = (
                    measure_plain(path, model, questions, seconds)
                    if name == PLAIN
                    else measure_ours(models, name, questions, seconds)
                )
            if not skipped:
                say(f"repeat {n + 1} of {repeats}: feature maps")
                turn["feature_maps"] = _feature_maps(resnet, expected, seconds * _FEATURE_MAP_SHARE)
            if _OPEN_INFERENCE in only:
                say(f"repeat {n + 1} of {repeats}: the Open Inference Protocol")
                turn["open_inference"] = open_inference.measure(path, model, seconds)
            result["repeats"].append(turn)
    result["goals"] = goals(result)
    return result


def _feature_maps(models: Path, expected: list[str], seconds: float) -> dict[str, Any]:
    path = highest_version(models / feature_maps.MODEL)
    alone = run_child("feature_maps.py", "measure", path, seconds)
    layers, block = alone.pop("layers"), alone.pop("first_block")
    port, http_port = free_ports(2)
    with serving(our_server(models, port, http_port, OURS[0]), lambda: is_ready(http_port)):
        served = feature_maps.measure_served(port, block, seconds)
    return {
        "layers": len(layers),
        "missing_layers": sorted(set(expected) - set(layers)),
        "first_block_layers": len(block),
        "in_process": alone,
        "served": served,
    }


def main() -> int:
    """Measures or shows; returns the exit code."""
    parser = new_parser("serving", __doc__)
    parser.add_argument("--model", default="lecture_cnn", help="the model that is measured (%(default)s)")
    parser.add_argument("--models", type=Path, default=_HERE.parent / "models", help="the repository (models)")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each server under each load (%(default)g)")
    parser.add_argument("--repeats", type=int, default=3, help="of the whole sequence (%(default)d)")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=list(_PARTS), help="parts to measure (all)")
    arguments = parser.parse_args()
    if arguments.seconds < 1 or arguments.repeats < 1:
        parser.error("--seconds and --repeats must be at least 1")
    return finish(
        "serving",
        arguments,
        lambda: measure(arguments.models, arguments.model, arguments.seconds, arguments.repeats, arguments.only),
        render,
    )


if __name__ == "__main__":
    sys.exit(main())
