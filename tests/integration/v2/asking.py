"""Requests and answers of the v2 protocol, as numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from convlens.v1 import convlens_pb2
from convlens_server.v2 import service_pb2 as pb
from support import Served

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]

NAMES = {"uint8": "UINT8", "float32": "FP32", "float16": "FP16"}
DTYPES = {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2"), "UINT8": np.dtype("u1")}


def tensor(name: str, values: np.ndarray) -> dict[str, Any]:
    """The fields of a request with one raw input."""
    given = pb.ModelInferRequest.InferInputTensor(name=name, datatype=NAMES[str(values.dtype)], shape=values.shape)
    return {"inputs": [given], "raw_input_contents": [values.tobytes()]}


def outputs(*names: str, **parameters: int) -> list[pb.ModelInferRequest.InferRequestedOutputTensor]:
    given = {name: pb.InferParameter(int64_param=value) for name, value in parameters.items()}
    return [pb.ModelInferRequest.InferRequestedOutputTensor(name=name, parameters=given) for name in names]


def arrays(response: pb.ModelInferResponse) -> dict[str, Any]:
    """The outputs by name; BYTES as lists of bytes in the shape of the output."""
    assert len(response.outputs) == len(response.raw_output_contents)
    result = {}
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            values: list[bytes] = []
            while content:
                size = int.from_bytes(content[:4], "little")
                values.append(content[4 : 4 + size])
                content = content[4 + size :]
            result[output.name] = np.array(values, object).reshape(output.shape)
        else:
            result[output.name] = np.frombuffer(content, DTYPES[output.datatype]).reshape(output.shape)
    return result


def normalised(images: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """uint8 N × height × width × channels as a foreign network takes them: N × channels × height × width, 0 … 1."""
    factor = np.float32(1 / 255)
    return np.ascontiguousarray((images.transpose(0, 3, 1, 2).astype(np.float32) * factor).astype(dtype))


class Asked(Served):
    """A server, asked by its v2 methods."""

    def ask(self, method: str, request: Any, timeout: float = 20) -> Any:
        kind = pb.DESCRIPTOR.message_types_by_name[SERVICE.methods_by_name[method].output_type.name]._concrete_class
        call = self.channel.unary_unary(
            f"/{SERVICE.full_name}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=kind.FromString,
        )
        return call(request, timeout=timeout)

    def infer(self, timeout: float = 20, **fields: Any) -> pb.ModelInferResponse:
        return self.ask("ModelInfer", pb.ModelInferRequest(**fields), timeout)

    def stream(self, requests: Any, timeout: float = 30) -> Iterator[pb.ModelStreamInferResponse]:
        call = self.channel.stream_stream(
            f"/{SERVICE.full_name}/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        return call(requests, timeout=timeout)

    def classify(self, model: str, images: np.ndarray, version: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Scores and logits of our own service."""
        _, height, width, channels = images.shape
        raw = convlens_pb2.RawImages(pixels=images.tobytes(), height=height, width=width, channels=channels)
        request = convlens_pb2.ClassifyRequest(
            model=model, version=version, images=convlens_pb2.Images(raw=raw), include_scores=True, include_logits=True
        )
        results = self.stub.Classify(request, timeout=20).results
        return (
            np.array([result.scores for result in results], np.float32),
            np.array([result.logits for result in results], np.float32),
        )

    def maps(self, model: str, images: np.ndarray, *layers: str) -> dict[str, np.ndarray]:
        """Feature maps of our own service."""
        _, height, width, channels = images.shape
        raw = convlens_pb2.RawImages(pixels=images.tobytes(), height=height, width=width, channels=channels)
        request = convlens_pb2.GetFeatureMapsRequest(model=model, images=convlens_pb2.Images(raw=raw), layers=layers)
        result: dict[str, tuple[list[int], bytes]] = {}
        for message in self.stub.GetFeatureMaps(request, timeout=20):
            shape, data = result.get(message.layer, (list(message.shape), b""))
            result[message.layer] = (shape, data + message.data)
        return {name: np.frombuffer(data, "<f4").reshape(shape) for name, (shape, data) in result.items()}
