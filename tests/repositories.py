"""What tests of a repository that changes while it is served share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from convlens.v1 import convlens_pb2 as pb
from support import Failure, expected_logits, linear_model, own_weights, pixels, put, raw


class Publisher:
    """Puts linear models into a repository, complete, by one rename; each has weights that no other has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights: dict[tuple[str, int], list[np.ndarray]] = {}
        self._made = 0

    def __call__(self, name: str, version: int, content: bytes | None = None) -> Path:
        """A new model, or any content, in the place of what there was of this version."""
        self._made += 1
        if content is None:
            weights = own_weights(self._made)
            content = linear_model(weights).SerializeToString()
            self.weights.setdefault((name, version), []).append(weights)
        place = self.folder / name / str(version)
        temporary = put(self.folder / ".new", str(self._made), version, content).parent
        place.parent.mkdir(exist_ok=True)
        if place.exists():
            (temporary / "model.onnx").replace(place / "model.onnx")
        else:
            temporary.rename(place)
        return place

    def made_by(self, response: pb.ClassifyResponse, images: np.ndarray) -> int:
        """Which of the models that this version was, first to last, made an answer; fails if none did."""
        logits = np.array([result.logits for result in response.results])
        for index, weights in enumerate(self.weights[response.model, response.version]):
            if np.allclose(logits, expected_logits(images, weights), rtol=1e-4, atol=1e-3):
                return index
        raise AssertionError(f"no model made this answer of version {response.version} of {response.model}")


def request(name: str = "", version: int = 0, count: int = 1, seed: int = 0) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(
        model=name, version=version, images=raw(pixels(count, seed)), top_k=1, include_logits=True
    )


@contextlib.contextmanager
def fails(code: grpc.StatusCode) -> Iterator[list[Failure]]:
    """The calls in it must fail; gives what they failed with."""
    failures: list[Failure] = []
    with pytest.raises(grpc.RpcError) as caught:
        yield failures
    failures.append(Failure(caught.value))
    assert failures[0].code is code
