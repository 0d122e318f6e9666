"""The network as a model of Triton's Python backend."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

# The backend leaves a model to find what lies beside it; server.py has put there what this one needs.
sys.path.insert(0, str(Path(__file__).parent))
import triton_python_backend_utils as pb_utils
from network import Network


class TritonPythonModel:
    """Images in, scores out."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the network, once in each instance."""
        self.network = Network()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers the requests that the dynamic batcher hands over together, with one run of the network."""
        given = [pb_utils.get_input_tensor_by_name(request, "images").as_numpy() for request in requests]
        scores = self.network.scores(np.concatenate(given))
        parts = np.split(scores, np.cumsum([len(images) for images in given])[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("scores", part)]) for part in parts]
