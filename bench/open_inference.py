"""What the Open Inference Protocol costs beside our own: ModelInfer and Classify of one image, at concurrency 32.

python bench/open_inference.py

The network is measured twice: as it is, taking uint8 images, and as a foreign file whose input is float32. Everything
is measured in turn, `--repeats` times, on one server; the medians are printed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from answers import METHOD, open_channel
from contenders import AT_32, OURS, is_ready, our_server
from convlens.manifest import METADATA_KEY
from convlens.v1 import convlens_pb2 as pb
from convlens_server.v2 import service_pb2 as pb2
from h2load import LoadError, frame, parse_summary, percentile, read_latencies, require_h2load, run_h2load
from processes import free_ports, serving

_HERE = Path(__file__).parent
_INFER = "/inference.GRPCInferenceService/ModelInfer"
_FLOAT = "as_float"


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
        "Classify, uint8": (METHOD, own.SerializeToString()),
        "ModelInfer, uint8": (_INFER, infer(name, "UINT8", image).SerializeToString()),
        "ModelInfer, float32": (_INFER, infer(_FLOAT, "FP32", image.astype(np.float32)).SerializeToString()),
    }


def check(port: int, asked: dict[str, tuple[str, bytes]]) -> dict[str, int]:
    """Compares the answers with each other; gives the size of each."""
    sizes = {}
    with open_channel(port) as channel:
        answers = {}
        for name, (method, message) in asked.items():
            answers[name] = channel.unary_unary(method)(message, timeout=60)
            sizes[name] = len(answers[name])
    [prediction] = pb.ClassifyResponse.FromString(answers.pop("Classify, uint8")).results[0].predictions
    for name, answer in answers.items():
        scores = np.frombuffer(pb2.ModelInferResponse.FromString(answer).raw_output_contents[0], "<f4")
        if scores.argmax() != prediction.index or abs(float(scores.max()) - prediction.score) > 1e-5:
            raise LoadError(f"{name} does not answer what Classify does")
    return sizes


def main() -> int:
    """Measures and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=_HERE.parent / "models", help="the repository (models)")
    parser.add_argument("--model", default="lecture_cnn", help="the model that is measured (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each (%(default)g)")
    parser.add_argument("--repeats", type=int, default=5, help="of the whole sequence (%(default)d)")
    arguments = parser.parse_args()
    require_h2load()
    with TemporaryDirectory() as place:
        folder = Path(place)
        source = max((arguments.models / arguments.model).glob("[1-9]*"), key=lambda path: int(path.name))
        shutil.copytree(source, folder / "models" / arguments.model / "1")
        foreign = folder / "models" / _FLOAT / "1" / "model.onnx"
        foreign.parent.mkdir(parents=True)
        onnx.save(with_float_input(source / "model.onnx"), foreign)
        given = onnx.load(foreign).graph.input[0]
        height, width, channels = (dim.dim_value for dim in given.type.tensor_type.shape.dim[1:])
        asked = requests(arguments.model, (height, width, channels), given.name)
        port, http_port = free_ports(2)
        command = our_server(folder / "models", port, http_port, OURS[0])
        points: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in asked}
        with serving(command, lambda: is_ready(http_port)) as server:
            sizes = check(port, asked)
            for _ in range(arguments.repeats):
                for name, (method, message) in asked.items():
                    body, log = folder / "body", folder / "log"
                    body.write_bytes(frame(message))
                    run_h2load(port, method, body, AT_32, 0.5, log)
                    cpu = server.cpu_seconds()
                    summary = parse_summary(run_h2load(port, method, body, AT_32, arguments.seconds, log))
                    cpu = server.cpu_seconds() - cpu
                    expected = summary.requests * (sizes[name] + len(frame(b"")))
                    if summary.data_bytes < expected:
                        raise LoadError(f"{name}: some of the answers were errors")
                    times = read_latencies(log)
                    points[name].append(
                        (
                            summary.requests_per_second,
                            percentile(times, 50),
                            percentile(times, 99),
                            cpu / summary.requests * 1e6,
                        )
                    )
    print("| request | images/s | of Classify | p50 ms | p99 ms | server CPU µs |\n|---|---|---|---|---|---|")
    base = 0.0
    for name, measured in points.items():
        rate, p50, p99, cpu_us = (statistics.median(column) for column in zip(*measured, strict=True))
        base = base or rate
        print(f"| {name} | {rate:,.0f} | {rate / base:.0%} | {p50:.2f} | {p99:.2f} | {cpu_us:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
