"""tritonclient's HTTP client against a running server: what its simple_http_* and image_client examples do.

Run in a process of its own by test_clients.py: `triton_http.py PART ADDRESS FOLDER`; see triton_grpc.py.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as httpclient
import tritonclient.http.aio as aioclient
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException


class Asked:
    """What the server must answer."""

    def __init__(self, folder: Path) -> None:
        stored = np.load(folder / "expected.npz")
        self.images = stored["images"]
        self.scores = stored["scores"]
        self.floats = stored["floats"]
        self.logits = stored["logits"]
        self.layer = stored["layer"]
        self.files = [path.read_bytes() for path in sorted(folder.glob("*.png"))]


def image_input(images: np.ndarray, binary: bool = True) -> list[httpclient.InferInput]:
    given = httpclient.InferInput("image", images.shape, "UINT8")
    given.set_data_from_numpy(images, binary_data=binary)
    return [given]


def infer(client: httpclient.InferenceServerClient, asked: Asked) -> None:
    """simple_http_infer_client.py, in JSON, in binary, compressed both ways"""
    for binary in (True, False):
        for compression in (None, "gzip", "deflate"):
            wanted = [httpclient.InferRequestedOutput(name, binary_data=binary) for name in ("scores", "output")]
            result = client.infer(
                "native",
                image_input(asked.images, binary),
                outputs=wanted,
                request_id="1",
                request_compression_algorithm=compression,
                response_compression_algorithm=compression,
            )
            np.testing.assert_array_equal(result.as_numpy("scores"), asked.scores)
            np.testing.assert_array_equal(result.as_numpy("output"), asked.layer)
            assert result.get_response()["id"] == "1"
    given = httpclient.InferInput("x", asked.floats.shape, "FP32")
    given.set_data_from_numpy(asked.floats)
    result = client.infer("linear", [given], timeout=10_000_000, priority=1)
    np.testing.assert_array_equal(result.as_numpy("y"), asked.logits)


def string(client: httpclient.InferenceServerClient, asked: Asked) -> None:
    """simple_http_string_infer_client.py: here the strings are image files."""
    given = httpclient.InferInput("image", [len(asked.files), 1], "BYTES")
    given.set_data_from_numpy(np.array(asked.files, dtype=np.object_).reshape(-1, 1), binary_data=True)
    np.testing.assert_array_equal(client.infer("native", [given]).as_numpy("scores"), asked.scores)


def async_infer(client: httpclient.InferenceServerClient, asked: Asked) -> None:
    """simple_http_async_infer_client.py"""
    requests = [client.async_infer("native", image_input(asked.images)) for _ in range(8)]
    for request in requests:
        np.testing.assert_allclose(request.get_result().as_numpy("scores"), asked.scores, rtol=1e-5)


def image(client: httpclient.InferenceServerClient, asked: Asked) -> None:
    """image_client.py: what it demands of metadata and configuration, and classification."""
    metadata, config = client.get_model_metadata("native"), client.get_model_config("native")
    assert len(metadata["inputs"]) == len(metadata["outputs"]) == len(config["input"]) == 1
    assert config["input"][0]["format"] == "FORMAT_NHWC"
    assert config["max_batch_size"] >= len(asked.images)
    wanted = [httpclient.InferRequestedOutput(metadata["outputs"][0]["name"], binary_data=True, class_count=3)]
    lines = client.infer("native", image_input(asked.images), outputs=wanted).as_numpy("scores")
    assert lines.shape == (len(asked.images), 3)
    for line, row in zip(lines, asked.scores, strict=True):
        value, index, label = line[0].decode().split(":")
        assert (int(index), label) == (row.argmax(), f"class_{row.argmax()}")
        assert abs(float(value) - row.max()) < 1e-5


def shared_memory(client: httpclient.InferenceServerClient, asked: Asked) -> None:
    """simple_http_shm_client.py"""
    client.unregister_system_shared_memory()
    size_in, size_out = asked.images.nbytes, asked.scores.nbytes
    inputs = shm.create_shared_memory_region("inputs", f"/convlens-{os.getpid()}-in", size_in)
    outputs = shm.create_shared_memory_region("outputs", f"/convlens-{os.getpid()}-out", size_out)
    try:
        shm.set_shared_memory_region(inputs, [asked.images])
        client.register_system_shared_memory("inputs", f"/convlens-{os.getpid()}-in", size_in)
        client.register_system_shared_memory("outputs", f"/convlens-{os.getpid()}-out", size_out)
        assert len(client.get_system_shared_memory_status()) == 2
        given = httpclient.InferInput("image", asked.images.shape, "UINT8")
        given.set_shared_memory("inputs", size_in)
        wanted = httpclient.InferRequestedOutput("scores")
        wanted.set_shared_memory("outputs", size_out)
        output = client.infer("native", [given], outputs=[wanted]).get_output("scores")
        values = shm.get_contents_as_numpy(outputs, np.float32, output["shape"])
        np.testing.assert_array_equal(values, asked.scores)
        client.unregister_system_shared_memory()
        assert not client.get_system_shared_memory_status()
    finally:
        shm.destroy_shared_memory_region(inputs)
        shm.destroy_shared_memory_region(outputs)


def health(client: httpclient.InferenceServerClient, asked: Asked) -> None:
    """simple_http_health_metadata.py and simple_http_model_control.py"""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("native", "3")
    assert not client.is_model_ready("broken")
    assert client.get_server_metadata()["name"] == "convlens"
    assert {"name": "native", "version": "3", "state": "READY", "reason": ""} in client.get_model_repository_index()
    assert client.get_inference_statistics("native")["model_stats"][0]["name"] == "native"
    for wrong, text in (
        (lambda: client.get_model_metadata("wrong"), "Request for unknown model: 'wrong' is not found"),
        (lambda: client.infer("wrong", image_input(asked.images)), "Request for unknown model: 'wrong' is not found"),
        (lambda: client.load_model("native"), "explicit"),
        (lambda: client.unload_model("native"), "explicit"),
    ):
        try:
            wrong()
        except InferenceServerException as error:
            message = error.message()
        else:
            raise AssertionError("no error")
        assert text in message, message


def asyncio_client(client: httpclient.InferenceServerClient, asked: Asked) -> None:
    """simple_http_aio_infer_client.py"""

    async def main() -> None:
        async with aioclient.InferenceServerClient(sys.argv[2]) as aio:
            assert await aio.is_server_ready()
            results = await asyncio.gather(*(aio.infer("native", image_input(asked.images)) for _ in range(8)))
            for result in results:
                np.testing.assert_allclose(result.as_numpy("scores"), asked.scores, rtol=1e-5)

    asyncio.run(main())


PARTS = {part.__name__: part for part in (infer, string, async_infer, image, shared_memory, health, asyncio_client)}

if __name__ == "__main__":
    with httpclient.InferenceServerClient(sys.argv[2], concurrency=4) as client:
        PARTS[sys.argv[1]](client, Asked(Path(sys.argv[3])))
