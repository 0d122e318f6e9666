"""The network as every one of the other servers runs it. They have Python environments of their own, without convlens.

What they are told by the environment:
    BENCH_NETWORK   the ONNX file: uint8 N × 28 × 28 × 1 in, scores and logits out, preprocessing in the graph
    BENCH_THREADS   of one run
    BENCH_WORKERS   processes or instances that run it
    BENCH_BATCH     most requests of a batch
    BENCH_WAIT_MS   that an incomplete batch may wait for more
    BENCH_PORT_1    to listen on; BENCH_PORT_2 … are free for what else the server wants
    BENCH_FOLDER    for its files
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

THREADS = int(os.environ["BENCH_THREADS"])
WORKERS = int(os.environ["BENCH_WORKERS"])
BATCH = int(os.environ["BENCH_BATCH"])
WAIT_MS = float(os.environ.get("BENCH_WAIT_MS", "0"))
PORT = int(os.environ["BENCH_PORT_1"])
SHAPE = (28, 28, 1)


class Network:
    """An onnxruntime session with the options that convlens gives its own."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin while they wait would take the cores from the server's other threads and processes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.environ["BENCH_NETWORK"]
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._scores = self._session.get_outputs()[0].name
        for images in (1, BATCH):
            self.scores(np.zeros((images, *SHAPE), np.uint8))

    def scores(self, images: Any) -> Any:
        """Scores, float32 N × classes, of images, uint8 N × 28 × 28 × 1."""
        return self._session.run([self._scores], {self._input: images})[0]

    def answers(self, bodies: Sequence[bytes]) -> list[bytes]:
        """The scores of each of several requests as bytes, all computed at once. A request is any number of images."""
        images = np.frombuffer(b"".join(bodies), np.uint8).reshape(-1, *SHAPE)
        scores, one, answers, first = self.scores(images), images[0].nbytes, [], 0
        for body in bodies:
            count = len(body) // one
            answers.append(scores[first : first + count].tobytes())
            first += count
        return answers
