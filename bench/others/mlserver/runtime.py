"""MLServer's inference runtime for the network. MLServer has none for ONNX of its own."""

from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from network import SHAPE, Network


class Classify(MLModel):
    """Images in, as an UINT8 tensor or as one element of type BYTES for each; scores out."""

    async def load(self) -> bool:
        """Loads the network."""
        self._network = Network()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Scores of a request, or of several that the adaptive batcher has made one of."""
        given = payload.inputs[0]
        data = given.data.root
        # A tensor arrives as a list of Python's integers, whatever came over the wire; bytes arrive as they are.
        pixels = np.frombuffer(b"".join(data), np.uint8) if given.datatype == "BYTES" else np.array(data, np.uint8)
        scores = self._network.scores(pixels.reshape(-1, *SHAPE))
        output = ResponseOutput(name="scores", datatype="FP32", shape=list(scores.shape), data=scores.ravel().tolist())
        return InferenceResponse(model_name=self.name, outputs=[output])
