"""Measures what one core serves of each shipped model, and the memory that it takes: the figures to size by.

python bench/capacity.py                  # measures, writes bench/results/capacity.json, prints the table
python bench/capacity.py --table FILE     # prints the table of a stored result
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from answers import METHOD, Questions
from command import finish, new_parser, say, say_if_busy
from contenders import OURS, check_sizes, is_ready, our_server
from convlens.v1 import convlens_pb2 as pb
from h2load import Load, frame, parse_summary, percentile, read_latencies, require_h2load, run_h2load
from in_process import sample_images
from machine import machine
from processes import ProcessError, ServerProcess, free_ports, run_child, serving
from tables import spread, table

_HERE = Path(__file__).parent
_ONE, _FILE, _MANY, _MAPS = "one image", "one PNG file", "32 images", "all feature maps of one image"
_LOADS = {_ONE: Load(4, 8), _FILE: Load(4, 8), _MANY: Load(4, 1, images=32)}
_WARM_UP_SECONDS = 0.5
_MAP_REQUESTS = 100


def measure(models: Path, device: str, seconds: float, repeats: int) -> dict[str, Any]:
    """Serves each file of each model alone, on one core, while the load comes from the others.

    Args:
        models: The model repository.
        device: "cpu", or a GPU beside the core.
        seconds: For each load.
        repeats: Of the whole sequence.

    Raises:
        LoadError: A request failed, or h2load is not there.
        AnswerError: A server answered wrongly.
        ProcessError: A server failed, or there is but one core.
    """
    h2load = require_h2load()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or shutil.which("taskset") is None:
        raise ProcessError("one core is for the server and others are for the load: this needs two, and taskset")
    os.sched_setaffinity(0, cores[1:])
    result: dict[str, Any] = {
        "settings": {"device": device, "seconds": seconds, "repeats": repeats},
        "machine": {**machine("grpcio", "onnxruntime"), "cores": len(cores), "h2load": h2load},
        "repeats": [],
    }
    say_if_busy(result["machine"])
    files = sorted(models.glob("*/*/model*.onnx"))
    with TemporaryDirectory() as folder:
        for n in range(repeats):
            turn = {}
            for path in files:
                name, precision = path.parent.parent.name, path.suffixes[0][1:] if len(path.suffixes) > 1 else "float32"
                if precision == "float16" or (precision == "int8" and device != "cpu"):
                    # For GPUs, where answers differ by more than they are compared to; and for CPUs.
                    continue
                say(f"repeat {n + 1} of {repeats}: {name}, {precision}")
                alone = Path(folder) / f"{name}-{precision}"
                if not alone.exists():
                    shutil.copytree(path.parent, alone / name / path.parent.name)
                turn[f"{name}, {precision}"] = _measure(alone, name, precision, device, path, cores[0], seconds)
            result["repeats"].append(turn)
    return result


def _measure(
    models: Path, name: str, precision: str, device: str, path: Path, core: int, seconds: float
) -> dict[str, Any]:
    described = run_child("in_process.py", "describe", path)
    questions = Questions(name, described["shape"], described["scores"])
    port, http_port = free_ports(2)
    command = ["taskset", "--cpu-list", str(core), *our_server(models, port, http_port, OURS[0])]
    command += ["--precision", precision, "--device", device]
    with serving(command, lambda: is_ready(http_port)) as server, TemporaryDirectory() as folder:
        loaded = server.memory("VmRSS")
        sizes = questions.check(port)
        points = {}
        for title, load in _LOADS.items():
            request = _file(name, described["shape"]) if title == _FILE else questions.classify(0, load.images)
            points[title] = _point(server, port, request, load, sizes[load.images], Path(folder), seconds)
        busy = server.memory("VmHWM")
        before = server.cpu_seconds()
        questions.ask_for_maps(port, _MAP_REQUESTS)
        maps_ms = (server.cpu_seconds() - before) / _MAP_REQUESTS * 1000
        return {"loaded_mb": loaded, "busy_mb": busy, "points": points, "maps_ms": maps_ms}


def _point(
    server: ServerProcess,
    port: int,
    request: pb.ClassifyRequest,
    load: Load,
    answer_bytes: int,
    folder: Path,
    seconds: float,
) -> dict[str, float]:
    body, log = folder / "request", folder / "latencies"
    body.write_bytes(frame(request.SerializeToString()))
    run_h2load(port, METHOD, body, load, _WARM_UP_SECONDS, log)
    summary = parse_summary(run_h2load(port, METHOD, body, load, seconds, log))
    check_sizes(summary.data_bytes, summary.requests, answer_bytes + len(frame(b"")), load)
    return {
        "images_per_second": summary.requests_per_second * load.images,
        "p99_ms": percentile(read_latencies(log), 99),
    }


def _file(model: str, shape: list[int]) -> pb.ClassifyRequest:
    """The first image of the questions, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(sample_images(shape, 1)[0].squeeze()).save(buffer, "PNG")
    files = pb.EncodedImages(files=[buffer.getvalue()])
    return pb.ClassifyRequest(model=model, images=pb.Images(encoded=files), top_k=1)


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    where, settings, repeats = result["machine"], result["settings"], result["repeats"]
    rows = []
    for name in repeats[0]:
        found = [turn[name] for turn in repeats]
        rates = [spread([each["points"][title]["images_per_second"] for each in found]) for title in _LOADS]
        late = spread([each["points"][_ONE]["p99_ms"] for each in found])
        others = [spread([each[key] for each in found]) for key in ("maps_ms", "loaded_mb", "busy_mb")]
        rows.append((name, *rates, late, *others))
    titles = (
        "model",
        *(f"images/s, {title} a request" for title in _LOADS),
        "p99 ms, one image, concurrency 32",
        f"CPU ms for {_MAPS}",
        "memory MB, loaded",
        "most MB under load",
    )
    machine_line = (
        f"Machine: {where['cpu']}, one of {where['cores']} cores, the load on the others; {where['kernel']}, "
        f"Python {where['python']}, grpcio {where['grpcio']}, onnxruntime {where['onnxruntime']}, h2load "
        f"{where['h2load']}; load average before: {where['load_before']:.2f}."
    )
    command = (
        f"Command: `python bench/capacity.py --device {settings['device']} --seconds {settings['seconds']:g} --repeats "
        f"{settings['repeats']}`. Figures are medians of {settings['repeats']} (lowest – highest)."
    )
    return "\n\n".join((machine_line, command, table(titles, rows)))


def main() -> int:
    """Measures or shows; returns the exit code."""
    parser = new_parser("capacity", __doc__)
    parser.add_argument("--models", type=Path, default=_HERE.parent / "models", help="the repository (models)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<index> (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each load (%(default)g)")
    parser.add_argument("--repeats", type=int, default=3, help="of the whole sequence (%(default)d)")
    arguments = parser.parse_args()
    if arguments.seconds < 1 or arguments.repeats < 1:
        parser.error("--seconds and --repeats must be at least 1")
    return finish(
        "capacity",
        arguments,
        lambda: measure(arguments.models, arguments.device, arguments.seconds, arguments.repeats),
        render,
    )


if __name__ == "__main__":
    sys.exit(main())
