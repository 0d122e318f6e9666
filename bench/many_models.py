"""What many models cost, and what a flood to one does to another.

    .venv/bin/python bench/many_models.py

Two hundred models of 64 × 16 weights, loaded at start and on demand: start, index, first requests, memory. Then one
image every 20 ms to a network, with nothing beside it, and beside 128 requests at a time to another model with the same
network.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from answers import METHOD, open_channel
from contenders import is_ready, our_server
from convlens.v1 import convlens_pb2 as pb
from convlens.v1 import convlens_pb2_grpc
from h2load import Load, frame, parse_summary, percentile, run_h2load
from in_process import sample_images
from machine import machine
from processes import free_ports, serving
from tables import table

MODELS = 200
# Of the images that the small models take.
_SIDE, _CLASSES = 8, 16
_FLOOD = Load(4, 32)
_EVERY = 0.02
WAYS = ((), ("--lazy",), ("--lazy", "--max-loaded", "20"))


def small_model(seed: int) -> bytes:
    """A classifier of one layer."""
    weights = np.random.default_rng(seed).standard_normal((_SIDE * _SIDE, _CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, _SIDE, _SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", _CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def classify(name: str, shape: tuple[int, int, int]) -> pb.ClassifyRequest:
    """A request with one image."""
    height, width, channels = shape
    pixels = sample_images(shape, 1).tobytes()
    images = pb.Images(raw=pb.RawImages(pixels=pixels, height=height, width=width, channels=channels))
    return pb.ClassifyRequest(model=name, images=images, top_k=1)


def timed(stub: Any, request: pb.ClassifyRequest) -> float:
    """Milliseconds that a request takes."""
    began = time.perf_counter()
    stub.Classify(request, timeout=60)
    return (time.perf_counter() - began) * 1000


def measure_many(models: Path, flags: tuple[str, ...]) -> dict[str, Any]:
    """One server with many models: its start, its index, the first request to each, and its memory (MB)."""
    port, http_port = free_ports(2)
    command = [*our_server(models, port, http_port, "auto"), *flags]
    with serving(command, lambda: is_ready(http_port)) as server, open_channel(port) as channel:
        stub = convlens_pb2_grpc.ConvLensStub(channel)
        ready_mb = server.memory("VmRSS")
        stub.ListModels(pb.ListModelsRequest(), timeout=60)
        began = time.perf_counter()
        listed = len(stub.ListModels(pb.ListModelsRequest(), timeout=60).models)
        index_ms = (time.perf_counter() - began) * 1000
        assert listed == MODELS, f"{listed} models are listed"
        shape = (_SIDE, _SIDE, 1)
        first = sorted(timed(stub, classify(f"model_{n:03}", shape)) for n in range(MODELS))
        return {
            "flags": " ".join(flags),
            "start_seconds": server.start_seconds,
            "ready_mb": ready_mb,
            "index_ms": index_ms,
            "first_ms": percentile(first, 50),
            "first_p99_ms": percentile(first, 99),
            "after_mb": server.memory("VmRSS"),
        }


def measure_share(network: Path, seconds: float) -> dict[str, Any]:
    """A trickle to one model, alone and beside a flood to another; and the flood alone and beside the trickle."""
    with TemporaryDirectory() as place:
        models = Path(place) / "models"
        for name in ("flooded", "trickled"):
            (models / name / "1").mkdir(parents=True)
            shutil.copy(network, models / name / "1" / "model.onnx")
        port, http_port = free_ports(2)
        command = our_server(models, port, http_port, "auto")
        body, log = Path(place) / "body", Path(place) / "log"
        with serving(command, lambda: is_ready(http_port)), open_channel(port) as channel:
            stub = convlens_pb2_grpc.ConvLensStub(channel)
            described = stub.GetModel(pb.GetModelRequest(model="flooded"), timeout=60)
            shape = (described.height, described.width, described.channels)
            body.write_bytes(frame(classify("flooded", shape).SerializeToString()))
            request = classify("trickled", shape)
            alone = _trickle(stub, request, seconds)
            flood_alone = parse_summary(run_h2load(port, METHOD, body, _FLOOD, seconds, log)).requests_per_second
            flood = _Flood(port, body, seconds + 1, log)
            # Until h2load has opened its connections and its requests stand in the queue.
            time.sleep(0.5)
            beside = _trickle(stub, request, seconds)
            return {
                "alone": alone,
                "beside": beside,
                "flood_alone": flood_alone,
                "flood_beside": flood.requests_per_second(),
            }


class _Flood:
    """h2load, in a thread."""

    def __init__(self, port: int, body: Path, seconds: float, log: Path) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._printed = self._pool.submit(run_h2load, port, METHOD, body, _FLOOD, seconds, log)

    def requests_per_second(self) -> float:
        """What it reached, when it has ended."""
        with self._pool:
            return parse_summary(self._printed.result()).requests_per_second


def _trickle(stub: Any, request: pb.ClassifyRequest, seconds: float) -> dict[str, float]:
    timed(stub, request)
    times = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        times.append(timed(stub, request))
        time.sleep(_EVERY)
    times.sort()
    return {"requests": len(times), "p50_ms": percentile(times, 50), "p99_ms": percentile(times, 99)}


def render(result: dict[str, Any]) -> str:
    """The result as text."""
    many = table(
        ("200 models", "ready s", "MB then", "index ms", "first request p50 ms", "p99 ms", "MB after all"),
        [
            (
                each["flags"] or "at start", f"{each['start_seconds']:.2f}", f"{each['ready_mb']:.0f}",
                f"{each['index_ms']:.1f}", f"{each['first_ms']:.1f}", f"{each['first_p99_ms']:.1f}",
                f"{each['after_mb']:.0f}",
            )
            for each in result["many"]
        ],
    )  # fmt: skip
    share = table(
        ("one image every 20 ms", "p50 ms", "p99 ms", "requests/s of the flood"),
        [
            ("alone", f"{each['alone']['p50_ms']:.2f}", f"{each['alone']['p99_ms']:.2f}", f"{each['flood_alone']:.0f}")
            if which == "alone"
            else (
                "beside the flood", f"{each['beside']['p50_ms']:.2f}", f"{each['beside']['p99_ms']:.2f}",
                f"{each['flood_beside']:.0f}",
            )
            for each in result["share"]
            for which in ("alone", "beside")
        ],
    )  # fmt: skip
    return f"{many}\n\n{share}\n"


def main() -> int:
    """Measures, prints, and stores the result if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    network = here.parent / "models" / "lecture_cnn" / "1" / "model.onnx"
    parser.add_argument("--network", type=Path, default=network, help="model.onnx of the trickle and the flood")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load (5)")
    parser.add_argument("--repeats", type=int, default=3, help="of the trickle and the flood (3)")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    with TemporaryDirectory() as place:
        for n in range(MODELS):
            path = Path(place) / f"model_{n:03}" / "1" / "model.onnx"
            path.parent.mkdir(parents=True)
            path.write_bytes(small_model(n))
        result = {
            "machine": machine("grpcio", "onnxruntime"),
            "many": [measure_many(Path(place), flags) for flags in WAYS],
            "share": [measure_share(arguments.network, arguments.seconds) for _ in range(arguments.repeats)],
        }
    sys.stdout.write(render(result))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
