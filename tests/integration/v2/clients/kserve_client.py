"""kserve's clients against a running server; `kserve_client.py PART ADDRESS FOLDER`, see triton_grpc.py."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(images: np.ndarray, model: str = "native") -> InferRequest:
    given = InferInput("image", list(images.shape), "UINT8")
    given.set_data_from_numpy(images)
    return InferRequest(model_name=model, infer_inputs=[given], request_id="1")


async def over_grpc(address: str, images: np.ndarray, scores: np.ndarray) -> None:
    client = InferenceGRPCClient(address)
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("native")
    response = await client.infer(request(images))
    np.testing.assert_array_equal(response.outputs[0].as_numpy(), scores)
    assert response.id == "1"
    code = None
    try:
        await client.infer(request(images, "none"))
    except grpc.RpcError as error:
        code = error.code()
    assert code == grpc.StatusCode.NOT_FOUND
    await client.close()


async def over_rest(address: str, images: np.ndarray, scores: np.ndarray) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    base = f"http://{address}"
    assert await client.is_server_live(base)
    assert await client.is_server_ready(base)
    assert await client.is_model_ready(base, "native")
    response = await client.infer(base, request(images), model_name="native")
    np.testing.assert_array_equal(response.outputs[0].as_numpy(), scores)
    await client.close()


if __name__ == "__main__":
    stored = np.load(Path(sys.argv[3]) / "expected.npz")
    part = {"grpc": over_grpc, "rest": over_rest}[sys.argv[1]]
    asyncio.run(part(sys.argv[2], stored["images"], stored["scores"]))
