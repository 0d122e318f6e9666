"""onnxruntime alone, without a server: what serving is measured against. Run by serving.py, in a process of its own."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from convlens_server.cgroup import default_threads
from convlens_server.device import Device, make_session
from convlens_server.network import Network, load_network

BATCHES = (1, 8, 16, 32)
CHECKED_IMAGES = 32


def sample_images(shape: Sequence[int], count: int) -> npt.NDArray[np.uint8]:
    """Images of noise, the same ones in every process: uint8 N × height × width × channels, 0 … 255."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds that each of as many calls take as fit into some seconds, after a few that do not count."""
    for _ in range(3):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end or not times:
        call()
        times.append(time.perf_counter() - began)
    return times


def _session(network: Network, threads: int) -> onnxruntime.InferenceSession:
    return make_session(network.model.SerializeToString(), Device("cpu"), threads)


def describe(path: Path) -> dict[str, Any]:
    """The image's height, width and channels, and the scores of the sample images."""
    network = load_network(path)
    image = network.manifest.input
    shape = (image.height, image.width, image.channels)
    images = sample_images(shape, CHECKED_IMAGES)
    (scores,) = _session(network, 1).run([network.scores_name], {network.input_name: images})
    return {"shape": shape, "scores": scores.tolist(), "onnxruntime": onnxruntime.__version__}


def measure(path: Path, seconds: float) -> list[dict[str, float]]:
    """Images a second and the median time of a run, for each batch size, with one thread and with all cores.

    The graph and the session are the server's own: scores and logits of uint8 images, preprocessing included.

    Args:
        path: The ONNX file.
        seconds: For each batch size and number of threads.
    """
    network = load_network(path)
    image = network.manifest.input
    outputs = [network.scores_name, network.logits_name]
    runs = []
    for threads in sorted({1, default_threads()}):
        session = _session(network, threads)
        for batch in BATCHES:
            feed = {network.input_name: sample_images((image.height, image.width, image.channels), batch)}
            times = timed(lambda session=session, feed=feed: session.run(outputs, feed), seconds)  # type: ignore[misc]
            runs.append(
                {
                    "threads": threads,
                    "batch": batch,
                    "images_per_second": batch * len(times) / sum(times),
                    "p50_ms": statistics.median(times) * 1000,
                }
            )
    return runs


if __name__ == "__main__":
    what, file, *rest = sys.argv[1:]
    print(json.dumps(describe(Path(file)) if what == "describe" else measure(Path(file), float(rest[0]))))
