"""Asks a server with a real gRPC client, and checks that it answers what the network says."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import numpy as np

from convlens.v1 import convlens_pb2 as pb
from convlens.v1 import convlens_pb2_grpc
from in_process import CHECKED_IMAGES, sample_images

METHOD = "/convlens.v1.ConvLens/Classify"
_TOLERANCE = 1e-4


class AnswerError(Exception):
    """A server answered wrongly; the text says what."""


class Questions:
    """The requests of the benchmark: images of noise, each with its own answer.

    Args:
        model: Name of the model.
        shape: Height, width and channels of its image.
        scores: Of each of the sample images, by class index, as the network gives them.
    """

    def __init__(self, model: str, shape: Sequence[int], scores: Sequence[Sequence[float]]) -> None:
        self._model = model
        self._shape = shape
        self._scores = np.array(scores, np.float32)
        self._images = sample_images(shape, CHECKED_IMAGES)

    def classify(self, first: int, count: int) -> pb.ClassifyRequest:
        """A request for the best class of some of the images."""
        return pb.ClassifyRequest(model=self._model, images=self._raw(first, count), top_k=1)

    def check(self, port: int) -> dict[int, int]:
        """Sends every image alone, then all together, and compares.

        Returns:
            The size of the answer to requests of 1 and of 32 images, in bytes without gRPC's frame.

        Raises:
            AnswerError: An answer is an error, or is not the network's.
        """
        sizes = {}
        with open_channel(port) as channel:
            stub = convlens_pb2_grpc.ConvLensStub(channel)
            for first, count in (*((n, 1) for n in range(CHECKED_IMAGES)), (0, CHECKED_IMAGES)):
                try:
                    response = stub.Classify(self.classify(first, count), timeout=30)
                except grpc.RpcError as error:
                    raise AnswerError(f"the server answers {error}") from None
                self._compare(response, first, count)
                sizes[count] = response.ByteSize()
        return sizes

    def ask_for_maps(self, port: int, times: int) -> None:
        """Fetches the feature maps of every layer of one image, some times."""
        request = pb.GetFeatureMapsRequest(model=self._model, images=self._raw(0, 1), all_layers=True)
        with open_channel(port) as channel:
            stub = convlens_pb2_grpc.ConvLensStub(channel)
            for _ in range(times):
                if not list(stub.GetFeatureMaps(request, timeout=30)):
                    raise AnswerError("the server answers GetFeatureMaps with no layer")

    def _raw(self, first: int, count: int) -> pb.Images:
        height, width, channels = self._shape
        pixels = self._images[first : first + count].tobytes()
        return pb.Images(raw=pb.RawImages(pixels=pixels, height=height, width=width, channels=channels))

    def _compare(self, response: pb.ClassifyResponse, first: int, count: int) -> None:
        if len(response.results) != count:
            raise AnswerError(f"the server answers {len(response.results)} results for {count} images")
        for scores, result in zip(self._scores[first : first + count], response.results, strict=True):
            (prediction,) = result.predictions
            expected = float(scores[prediction.index])
            # Where two classes are as good as equal, either may come first.
            if abs(prediction.score - expected) > _TOLERANCE or expected < float(scores.max()) - _TOLERANCE:
                raise AnswerError(
                    f"the server says class {prediction.index} with score {prediction.score}, but the network says "
                    f"class {int(scores.argmax())} with {float(scores.max())}"
                )


def open_channel(port: int) -> grpc.Channel:
    """A channel to a port of 127.0.0.1, past the proxy that the environment may name."""
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)])
