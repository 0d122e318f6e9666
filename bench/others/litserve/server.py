"""LitServe with dynamic batching."""

import os
from typing import Annotated, Any

import litserve
from fastapi import Body, Response
from network import BATCH, PORT, WAIT_MS, WORKERS, Network


# Annotations are not put off here ("from __future__"): LitServe gives that of `decode_request` to FastAPI as it is.
class Classify(litserve.LitAPI):
    """Raw pixels in, raw scores out."""

    def setup(self, device: str) -> None:
        """Loads the network, once in each worker."""
        self.network = Network()

    # With this type FastAPI hands over the body as it came. Without a type LitServe would have it parsed as JSON.
    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> bytes:
        """The pixels."""
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """Leaves the requests apart, which `Network.answers` joins: one may have many images."""
        return inputs

    def predict(self, bodies: Any) -> Any:
        """The scores of each request of a batch; with batches of one LitServe hands over that itself."""
        return self.network.answers(bodies) if BATCH > 1 else self.network.answers([bodies])[0]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """They are apart already."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """The scores as they are; without a response of one's own LitServe would make JSON of them."""
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    server = litserve.LitServer(
        Classify(max_batch_size=BATCH, batch_timeout=WAIT_MS / 1000),
        accelerator="cpu",
        workers_per_device=WORKERS,
        fast_queue=bool(os.environ["BENCH_FAST_QUEUE"]),
    )
    front_ends = int(os.environ["BENCH_FRONT_ENDS"])
    server.run("127.0.0.1", PORT, num_api_servers=front_ends, log_level="warning", generate_client_file=False)
