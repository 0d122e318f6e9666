"""What a competent engineer writes by hand: grpc.aio, protobuf, onnxruntime in a thread pool; no batching.

The measure of what the server's transport and batcher are worth. It answers `convlens.v1.ConvLens/Classify` for raw
pixels and computes the same graph.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import onnxruntime

from convlens.v1 import convlens_pb2 as pb
from convlens.v1 import convlens_pb2_grpc
from convlens_server.network import load_network


class PlainServer(convlens_pb2_grpc.ConvLensServicer):
    """Classifies each request alone, in a thread pool with a thread for each core."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._network = load_network(path)
        image = self._network.manifest.input
        self._shape = (image.height, image.width, image.channels)
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        options = onnxruntime.SessionOptions()
        # The pool's threads are as many as there are cores; more for each run would only get in each other's way.
        options.intra_op_num_threads = 1
        content = self._network.model.SerializeToString()
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._run(np.zeros((1, *self._shape), np.uint8))

    async def Classify(  # noqa: N802 - the contract's name
        self, request: pb.ClassifyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ClassifyResponse:
        """Answers one request."""
        raw = request.images.raw
        size = raw.height * raw.width * raw.channels
        if (raw.height, raw.width, raw.channels) != self._shape or not raw.pixels or len(raw.pixels) % size:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"images must be {self._shape}")
        images = np.frombuffer(raw.pixels, np.uint8).reshape(-1, *self._shape)
        began = time.monotonic()
        scores = await asyncio.get_running_loop().run_in_executor(self._pool, self._run, images)
        response = pb.ClassifyResponse(model=self._name, version=1, compute_ms=(time.monotonic() - began) * 1000)
        labels = self._network.manifest.labels
        for row, best in zip(scores, np.argsort(-scores, 1)[:, : request.top_k or 5], strict=True):
            predictions = response.results.add().predictions
            for index in best.tolist():
                predictions.add(label=labels[index], index=index, score=row[index])
        return response

    def _run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        scores: npt.NDArray[np.float32] = self._session.run(
            [self._network.scores_name], {self._network.input_name: images}
        )[0]
        return scores


async def _serve(name: str, path: Path, port: int) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 * 2**20)])
    # The other methods stay as generated: unimplemented.
    servicer = PlainServer(name, path)  # type: ignore[abstract]
    convlens_pb2_grpc.add_ConvLensServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="name to answer with")
    parser.add_argument("--file", type=Path, required=True, help="the ONNX file")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.model, arguments.file, arguments.port))
