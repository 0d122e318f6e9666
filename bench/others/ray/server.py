"""Ray Serve with dynamic batching."""

from __future__ import annotations

import asyncio
import os

import ray
from google.protobuf.wrappers_pb2 import BytesValue
from network import BATCH, PORT, WAIT_MS, WORKERS, Network
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

GRPC_PORT = int(os.environ["BENCH_PORT_2"])


@serve.deployment(
    num_replicas=WORKERS,
    # More than the load ever has open. The default, 5, would leave nothing to batch.
    max_ongoing_requests=256,
    # Ray's own shares of the machine: nothing but this deployment runs here.
    ray_actor_options={"num_cpus": 0},
    # A line of log for each request costs throughput, says Ray Serve's performance guide.
    logging_config=LoggingConfig(enable_access_log=False),
)
class Classify:
    """Raw pixels in, raw scores out."""

    def __init__(self) -> None:
        self.network = Network()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_MS / 1000, max_concurrent_batches=1)
    async def answers(self, bodies: list[bytes]) -> list[bytes]:
        """The scores of several requests."""
        # In a thread: onnxruntime lets the others run meanwhile, and the replica's event loop is one of them.
        return await asyncio.to_thread(self.network.answers, bodies)

    async def __call__(self, request: Request) -> Response:
        """Over HTTP."""
        return Response(await self.answers(await request.body()), media_type="application/octet-stream")

    async def Classify(self, request: BytesValue) -> BytesValue:  # noqa: N802 - the method's name in the contract
        """Over gRPC."""
        return BytesValue(value=await self.answers(request.value))


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=PORT),
        grpc_options=gRPCOptions(port=GRPC_PORT, grpc_servicer_functions=["contract.add_to_server"]),
    )
    serve.run(Classify.bind(), name="network", route_prefix="/", blocking=True)
