"""What tests of a running server share: models, servers, and ways to ask them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from onnx import TensorProto, helper, numpy_helper

from convlens.v1 import convlens_pb2 as pb
from convlens.v1 import convlens_pb2_grpc
from convlens_server.app import Running, running
from convlens_server.config import Config

TRANSPORTS = ("completion_queue", "aio")
SIDE = 8
CLASSES = 16
WEIGHTS = np.random.default_rng(7).integers(-3, 4, (SIDE * SIDE, CLASSES)).astype(np.float32)


def linear_model(weights: np.ndarray = WEIGHTS) -> onnx.ModelProto:
    """Takes 8 × 8 grey images; its logits are the pixels (0 … 1) times WEIGHTS, so each image has logits of its own."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"], "flatten"),
            helper.make_node("MatMul", ["flat", "w"], ["y"], "output"),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def conv_model() -> onnx.ModelProto:
    """Takes 16 × 12 RGB images: conv_1, relu_1, pool_1, conv_2, relu_2, flatten, output."""
    random = np.random.default_rng(3)
    initializers: list[TensorProto] = []

    def weights(*shape: int) -> str:
        name = f"weights_{len(initializers)}"
        initializers.append(numpy_helper.from_array((random.standard_normal(shape) * 0.3).astype(np.float32), name))
        return name

    node = helper.make_node
    nodes = [
        node("Conv", ["x", weights(6, 3, 3, 3), weights(6)], ["c1"], "conv_1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], "relu_1"),
        node("MaxPool", ["r1"], ["p1"], "pool_1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", weights(4, 6, 3, 3), weights(4)], ["c2"], "conv_2"),
        node("Relu", ["c2"], ["r2"], "relu_2"),
        node("Flatten", ["r2"], ["f"], "flatten"),
        node("Gemm", ["f", weights(96, 5), weights(5)], ["y"], "output"),
    ]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def put(folder: Path, name: str, version: int | str, content: onnx.ModelProto | bytes) -> Path:
    path = folder / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 1), np.uint8)


def raw(images: np.ndarray) -> pb.Images:
    _, height, width, channels = images.shape
    return pb.Images(raw=pb.RawImages(pixels=images.tobytes(), height=height, width=width, channels=channels))


def expected_logits(images: np.ndarray, weights: np.ndarray = WEIGHTS) -> np.ndarray:
    return (images.reshape(len(images), -1).astype(np.float32) / np.float32(255)) @ weights


def own_weights(seed: int) -> np.ndarray:
    """Weights of a linear model that no other seed gives, so that an answer tells which model made it."""
    return np.random.default_rng(seed).integers(-3, 4, (SIDE * SIDE, CLASSES)).astype(np.float32)


class Served:
    """A running server and ways to ask it."""

    def __init__(self, state: Running) -> None:
        self.state = state
        self.address = f"127.0.0.1:{state.port}"
        self.channel = self.connect()
        self.stub = convlens_pb2_grpc.ConvLensStub(self.channel)

    def connect(self, **options: Any) -> grpc.Channel:
        return grpc.insecure_channel(
            self.address, [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1), *options.items()]
        )

    def http(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.state.http_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        total = 0.0
        for line in self.http("/metrics")[1].splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total


@contextlib.contextmanager
def serving(models: Path, **options: Any) -> Iterator[Served]:
    """A server in a thread of this process, on ports that the system chooses."""
    config = replace(Config(models=models, port=0, http_port=0, threads=1, device="cpu", drain_timeout=10.0), **options)
    ready = threading.Event()
    box: dict[str, Any] = {}

    async def run() -> None:
        stop = asyncio.Event()
        async with running(config) as state:
            box.update(state=state, loop=asyncio.get_running_loop(), stop=stop)
            ready.set()
            await stop.wait()

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            box["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="server")
    thread.start()
    ready.wait()
    if "error" in box:
        thread.join()
        raise box["error"]
    served = Served(box["state"])
    try:
        yield served
    finally:
        served.channel.close()
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join()
    if "error" in box:
        raise box["error"]


class Process:
    """A server in a process of its own, started as users start it."""

    def __init__(self, models: Path, *flags: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "convlens_server", "--models", str(models), "--port", "0", "--http-port", "0"]
        command += ["--device", "cpu", "--log-format", "json", *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(env or {})}
        )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        for line in self.process.stdout:
            self.lines.append(line)
            if ready := re.search(r'"ready: gRPC on port (\d+) .*HTTP on port (\d+)', line):
                self.port, self.http_port = map(int, ready.groups())
                return
        raise AssertionError(f"the server ended with {self.process.wait()}: {self.lines}")

    def connect(self) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.enable_http_proxy", 0)])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits for the end; gives the exit code."""
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=40)
        self.lines += output.splitlines()
        return self.process.returncode


def free_port() -> int:
    """A port that nobody gets who asks the system for any, as tests of another process do meanwhile."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.SystemRandom().randrange(20_000, 32_768)))
            return int(probe.getsockname()[1])


class Failure:
    """What a failed call carried."""

    def __init__(self, error: grpc.RpcError) -> None:
        self.code = error.code()
        self.text = error.details()
        self.status = status_pb2.Status()
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        self.status.MergeFromString(details)
        self.info = error_details_pb2.ErrorInfo()
        self._unpack(self.info)

    @property
    def reason(self) -> str:
        return self.info.reason

    @property
    def field(self) -> str:
        bad = error_details_pb2.BadRequest()
        return bad.field_violations[0].field if self._unpack(bad) else ""

    @property
    def retry_seconds(self) -> float | None:
        retry = error_details_pb2.RetryInfo()
        return retry.retry_delay.ToTimedelta().total_seconds() if self._unpack(retry) else None

    def _unpack(self, message: Message) -> bool:
        return any(detail.Unpack(message) for detail in self.status.details)
