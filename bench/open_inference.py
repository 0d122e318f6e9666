"""What the Open Inference Protocol costs beside our own: ModelInfer and Classify of one image, at concurrency 32.

The network is measured twice: as it is, taking uint8 images, and as a foreign file whose input is float32. Everything
is measured in turn on one server.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from answers import METHOD, open_channel
from contenders import AT_32, OURS, check_sizes, is_ready, our_server
from convlens.manifest import METADATA_KEY
from convlens.v1 import convlens_pb2 as pb
from convlens_server.v2 import service_pb2 as pb2
from h2load import LoadError, frame, parse_summary, percentile, read_latencies, run_h2load
from processes import free_ports, serving

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_FLOAT = "as_float"
CLASSIFY, INFER_UINT8, INFER_FLOAT32 = "Classify, uint8", "ModelInfer, uint8", "ModelInfer, float32"


def with_float_input(path: Path) -> onnx.ModelProto:
    """The network of a file that takes uint8 images, as a file that takes the same values as float32."""
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


def requests(name: str, shape: tuple[int, int, int], input_name: str) -> dict[str, tuple[str, bytes]]:
    """By what they are called, the method and the message of each request."""
    image = np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8)
    height, width, channels = shape
    raw = pb.RawImages(pixels=image.tobytes(), height=height, width=width, channels=channels)
    own = pb.ClassifyRequest(model=name, images=pb.Images(raw=raw), top_k=1)

    def infer(model: str, datatype: str, values: np.ndarray) -> pb2.ModelInferRequest:
        given = pb2.ModelInferRequest.InferInputTensor(name=input_name, datatype=datatype, shape=values.shape)
        return pb2.ModelInferRequest(model_name=model, inputs=[given], raw_input_contents=[values.tobytes()])

    return {
        CLASSIFY: (METHOD, own.SerializeToString()),
        INFER_UINT8: (_INFER, infer(name, "UINT8", image).SerializeToString()),
        INFER_FLOAT32: (_INFER, infer(_FLOAT, "FP32", image.astype(np.float32)).SerializeToString()),
    }


def check(port: int, asked: dict[str, tuple[str, bytes]]) -> dict[str, int]:
    """Compares the answers with each other; gives the size of each."""
    sizes = {}
    with open_channel(port) as channel:
        answers: dict[str, bytes] = {}
        for name, (method, message) in asked.items():
            answers[name] = channel.unary_unary(method, bytes, bytes)(message, timeout=60)
            sizes[name] = len(answers[name])
    [prediction] = pb.ClassifyResponse.FromString(answers.pop(CLASSIFY)).results[0].predictions
    for name, answer in answers.items():
        scores = np.frombuffer(pb2.ModelInferResponse.FromString(answer).raw_output_contents[0], "<f4")
        if scores.argmax() != prediction.index or abs(float(scores.max()) - prediction.score) > 1e-5:
            raise LoadError(f"{name} does not answer what Classify does")
    return sizes


def measure(path: Path, model: str, seconds: float) -> dict[str, dict[str, float]]:
    """Starts a server and measures each kind of request in turn, after half a second that is not counted.

    Args:
        path: Of the network's file, which takes uint8 images.
        model: What it is called.
        seconds: For each kind.

    Returns:
        By what the requests are called: images_per_second, p50_ms, p99_ms and the server's cpu_us a request.

    Raises:
        LoadError: A request failed, or was answered otherwise than by Classify.
    """
    with TemporaryDirectory() as place:
        folder = Path(place)
        own = folder / "models" / model / "1" / "model.onnx"
        foreign = folder / "models" / _FLOAT / "1" / "model.onnx"
        for file in (own, foreign):
            file.parent.mkdir(parents=True)
        shutil.copy(path, own)
        onnx.save(with_float_input(path), foreign)
        given = onnx.load(foreign).graph.input[0]
        height, width, channels = (dim.dim_value for dim in given.type.tensor_type.shape.dim[1:])
        asked = requests(model, (height, width, channels), given.name)
        port, http_port = free_ports(2)
        body, log = folder / "body", folder / "log"
        measured = {}
        with serving(our_server(folder / "models", port, http_port, OURS[0]), lambda: is_ready(http_port)) as server:
            sizes = check(port, asked)
            for name, (method, message) in asked.items():
                body.write_bytes(frame(message))
                run_h2load(port, method, body, AT_32, 0.5, log)
                cpu = server.cpu_seconds()
                summary = parse_summary(run_h2load(port, method, body, AT_32, seconds, log))
                cpu = server.cpu_seconds() - cpu
                check_sizes(summary.data_bytes, summary.requests, sizes[name] + len(frame(b"")), AT_32)
                times = read_latencies(log)
                measured[name] = {
                    "images_per_second": summary.requests_per_second,
                    "p50_ms": percentile(times, 50),
                    "p99_ms": percentile(times, 99),
                    "cpu_us": cpu / summary.requests * 1e6,
                }
        return measured
