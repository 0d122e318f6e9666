"""BentoML with adaptive batching."""

from __future__ import annotations

import os
from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import DType
from network import BATCH, SHAPE, WORKERS, Network
from starlette.requests import Request
from starlette.responses import Response

# Requests that the batcher expects to take longer are refused.
MAX_LATENCY_MS = int(os.environ["BENCH_MAX_LATENCY_MS"])
BATCHES: dict[str, Any] = (
    {"batchable": True, "batch_dim": 0, "max_batch_size": BATCH, "max_latency_ms": MAX_LATENCY_MS} if BATCH > 1 else {}
)


class RawImages(bentoml.IODescriptor):
    """Pixels as they are: what BentoML offers for arrays is JSON, and files go through the disk."""

    images: Any

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> RawImages:
        """Takes the body for the pixels."""
        return cls.model_construct(images=np.frombuffer(await request.body(), np.uint8).reshape(-1, *SHAPE))


class RawScores(bentoml.IODescriptor):
    """Scores as they are."""

    @classmethod
    async def to_http_response(cls, obj: Any, serde: Any) -> Response:
        """Makes the body of them."""
        return Response(obj.tobytes(), media_type="application/octet-stream")


@bentoml.service(name="network", workers=WORKERS, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Classify:
    """Images in, scores out."""

    def __init__(self) -> None:
        self.network = Network()

    @bentoml.api(**BATCHES, input_spec=RawImages, output_spec=RawScores)
    def raw(self, images: Any) -> Any:
        """As bytes."""
        return self.network.scores(images)

    @bentoml.api(**BATCHES)
    def json(self, images: Annotated[np.ndarray, DType("uint8")]) -> np.ndarray:
        """As JSON, as BentoML's documentation has it."""
        return self.network.scores(images)
