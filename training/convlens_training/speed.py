"""Times model files beside each other."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from convlens_training.export import INPUT
from convlens_training.parity import make_session

# A sample is at least this many seconds of runs: far more than the clock's and the scheduler's grain.
_SAMPLE = 0.01
_ROUNDS, _LEAST_ROUNDS = 31, 5
# Of one comparison: a network that takes long gets fewer rounds.
_SECONDS = 10.0


def images_per_second(
    contents: Sequence[bytes], images: npt.NDArray[np.uint8], batch: int, threads: int
) -> list[float]:
    """The rates at which onnxruntime runs models on this machine's CPU, with the settings of the server.

    The models take turns, so that what else the machine does meets all of them; the median of each one's turns counts.

    Args:
        contents: The models.
        images: uint8 N × height × width × channels, N ≥ 1; the first ones make the batch, repeated where too few.
        batch: Images in a batch, ≥ 1.
        threads: Of one run, ≥ 1.

    Returns:
        Images a second of each model.
    """
    feed = {INPUT: np.resize(images[:batch], (batch, *images.shape[1:]))}
    sessions = [make_session(content, threads) for content in contents]
    repetitions = []
    for session in sessions:
        session.run(None, feed)
        start = time.perf_counter()
        session.run(None, feed)
        repetitions.append(max(1, math.ceil(_SAMPLE / (time.perf_counter() - start))))
    seconds: list[list[float]] = [[] for _ in sessions]
    began = time.perf_counter()
    for done in range(_ROUNDS):
        if done >= _LEAST_ROUNDS and time.perf_counter() - began > _SECONDS:
            break
        for session, count, samples in zip(sessions, repetitions, seconds, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                session.run(None, feed)
            samples.append((time.perf_counter() - start) / count)
    return [batch / statistics.median(samples) for samples in seconds]
