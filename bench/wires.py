"""How the other servers are asked and how they answer: protocols, messages, and whether an answer is the network's."""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import BytesValue

from answers import METHOD, AnswerError, open_channel
from convlens.v1 import convlens_pb2 as pb
from convlens_server.v2 import service_pb2 as pb2
from h2load import Load, frame

Images: TypeAlias = npt.NDArray[np.uint8]
Scores: TypeAlias = npt.NDArray[np.float32]

_TOLERANCE = 1e-4
_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Wire:
    """A way to ask a server for the scores of images.

    Attributes:
        name: For the table.
        path: Of the gRPC method or of the HTTP resource.
        encode: Makes the message of images, N × height × width × channels.
        decode: Reads an answer's scores, N × classes; NaN for those that it does not tell.
        http1: The message's type where it goes by HTTP/1.1; None for gRPC.
        sized: Whether all answers to one request have the same number of bytes.
    """

    name: str
    path: str
    encode: Callable[[Images], bytes]
    decode: Callable[[bytes, int], Scores]
    http1: str | None = None
    sized: bool = True

    def load(self, load: Load) -> Load:
        """The same load as the protocol can have it: by HTTP/1.1 a connection has one request open."""
        return load if self.http1 is None else Load(load.concurrency, 1, load.images)

    def body(self, images: Images) -> bytes:
        """What h2load sends."""
        return frame(self.encode(images)) if self.http1 is None else self.encode(images)

    def ask(self, port: int, images: Images) -> bytes:
        """The message of the answer.

        Raises:
            AnswerError: There is none, or it is an error.
        """
        message = self.encode(images)
        if self.http1 is None:
            with open_channel(port) as channel:
                try:
                    return bytes(channel.unary_unary(self.path, bytes, bytes)(message, timeout=_TIMEOUT))
                except grpc.RpcError as error:
                    raise AnswerError(f"{self.path} answers {error}") from None
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
        try:
            connection.request("POST", self.path, message, {"Content-Type": self.http1})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise AnswerError(f"{self.path} answers nothing: {error!r}") from None
        finally:
            connection.close()
        if response.status != 200:
            raise AnswerError(f"{self.path} answers status {response.status}: {answer[:500]!r}")
        return answer

    def check(self, port: int, images: Images, scores: Scores) -> int:
        """Asks, and compares with the network's own scores; gives the size of the answer in bytes.

        Raises:
            AnswerError: The answer is an error, or another than the network's.
        """
        answer = self.ask(port, images)
        try:
            found = self.decode(answer, len(images))
        except (ValueError, IndexError, DecodeError) as error:
            raise AnswerError(f"{self.path} answers what is no scores: {error}; {answer[:200]!r}") from None
        if found.shape != scores.shape:
            raise AnswerError(f"{self.path} answers scores of shape {found.shape} instead of {scores.shape}")
        told = ~np.isnan(found)
        # Where two classes are as good as equal, either may come first.
        best = np.where(told, scores, -1).max(axis=1)
        if (best < scores.max(axis=1) - _TOLERANCE).any() or np.abs(found - scores)[told].max() > _TOLERANCE:
            raise AnswerError(f"{self.path} answers other scores than the network's: {found[0]} for {scores[0]}")
        return len(answer)


def classify(model: str, classes: int) -> Wire:
    """This project's own method; it tells the best class of each image only."""

    def encode(images: Images) -> bytes:
        _, height, width, channels = images.shape
        raw = pb.RawImages(pixels=images.tobytes(), height=height, width=width, channels=channels)
        return pb.ClassifyRequest(model=model, images=pb.Images(raw=raw), top_k=1).SerializeToString()

    def decode(answer: bytes, count: int) -> Scores:
        scores = np.full((count, classes), np.nan, np.float32)
        for row, result in zip(scores, pb.ClassifyResponse.FromString(answer).results, strict=True):
            for prediction in result.predictions:
                row[prediction.index] = prediction.score
        return scores

    return Wire("gRPC, Classify", METHOD, encode, decode)


def model_infer(model: str, tensor: str, form: str = "UINT8") -> Wire:
    """The Open Inference Protocol over gRPC, with the images as one tensor, or as an element of type BYTES each."""

    def encode(images: Images) -> bytes:
        if form == "BYTES":
            shape, raw = [len(images)], b"".join(struct.pack("<I", each.nbytes) + each.tobytes() for each in images)
        else:
            shape, raw = list(images.shape), images.tobytes()
        given = pb2.ModelInferRequest.InferInputTensor(name=tensor, datatype=form, shape=shape)
        return pb2.ModelInferRequest(model_name=model, inputs=[given], raw_input_contents=[raw]).SerializeToString()

    def decode(answer: bytes, count: int) -> Scores:
        response = pb2.ModelInferResponse.FromString(answer)
        return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(count, -1)

    return Wire(
        f"gRPC, ModelInfer, {form}", "/inference.GRPCInferenceService/ModelInfer", encode, decode
    )  # fmt: skip


def bytes_over_http(path: str) -> Wire:
    """The pixels as they are, for the scores as they are."""
    return Wire("HTTP/1.1, bytes", path, _pixels, _raw_scores, "application/octet-stream")


def json_over_http(path: str, field: str) -> Wire:
    """Numbers as JSON."""

    def encode(images: Images) -> bytes:
        return json.dumps({field: images.tolist()}, separators=(",", ":")).encode()

    def decode(answer: bytes, count: int) -> Scores:
        return np.array(json.loads(answer), np.float32).reshape(count, -1)

    # The last digits of a score, and so their number, may depend on the batch that it was computed in.
    return Wire("HTTP/1.1, JSON", path, encode, decode, "application/json", sized=False)


def bytes_value(path: str) -> Wire:
    """Protobuf's own message of nothing but bytes, both ways."""
    return Wire("gRPC, bytes", path, lambda images: _message(1, images.tobytes()), _bytes_value_scores)


def torchserve_predictions(model: str) -> Wire:
    """TorchServe's contract: the model's name, and inputs by name; its answer has one field of bytes."""

    def encode(images: Images) -> bytes:
        given = _message(1, b"body") + _message(2, images.tobytes())
        return _message(1, model.encode()) + _message(3, given)

    path = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
    return Wire("gRPC, Predictions", path, encode, _bytes_value_scores)


def _pixels(images: Images) -> bytes:
    return images.tobytes()


def _raw_scores(answer: bytes, count: int) -> Scores:
    return np.frombuffer(answer, "<f4").reshape(count, -1)


def _bytes_value_scores(answer: bytes, count: int) -> Scores:
    return _raw_scores(BytesValue.FromString(answer).value, count)


def _message(number: int, content: bytes) -> bytes:
    """A field of a protobuf message: its number and its kind, its length, itself."""
    head, length = [number << 3 | 2], len(content)
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes((*head, length)) + content
