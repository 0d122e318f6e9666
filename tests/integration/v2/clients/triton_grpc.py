"""tritonclient's gRPC clients against a running server: what its simple_grpc_* and grpc_image_client examples do.

Run in a process of its own by test_clients.py: `triton_grpc.py PART ADDRESS FOLDER`. FOLDER holds what the server's own
service answered (expected.npz) and the image files.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as aioclient
import tritonclient.utils.shared_memory as shm
from tritonclient.grpc import model_config_pb2
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


def image_input(images: np.ndarray) -> list[grpcclient.InferInput]:
    given = grpcclient.InferInput("image", images.shape, "UINT8")
    given.set_data_from_numpy(images)
    return [given]


def float_input(floats: np.ndarray) -> list[grpcclient.InferInput]:
    given = grpcclient.InferInput("x", floats.shape, "FP32")
    given.set_data_from_numpy(floats)
    return [given]


def refused(call: Callable[[], object]) -> InferenceServerException:
    """Makes a call that must fail."""
    try:
        call()
    except InferenceServerException as error:
        return error
    raise AssertionError("no error")


def infer(client: grpcclient.InferenceServerClient, asked: Asked) -> None:
    """simple_grpc_infer_client.py"""
    result = client.infer(
        "native", image_input(asked.images), outputs=[grpcclient.InferRequestedOutput("scores")], request_id="1"
    )
    np.testing.assert_array_equal(result.as_numpy("scores"), asked.scores)
    assert result.get_response().id == "1"
    result = client.infer("linear", float_input(asked.floats), timeout=10_000_000, priority=1, client_timeout=10)
    np.testing.assert_array_equal(result.as_numpy("y"), asked.logits)
    # A layer that no metadata lists.
    wanted = [grpcclient.InferRequestedOutput(name) for name in ("output", "scores")]
    result = client.infer("native", image_input(asked.images), outputs=wanted)
    np.testing.assert_array_equal(result.as_numpy("output"), asked.layer)
    np.testing.assert_array_equal(result.as_numpy("scores"), asked.scores)


def string(client: grpcclient.InferenceServerClient, asked: Asked) -> None:
    """simple_grpc_string_infer_client.py: here the strings are image files."""
    given = grpcclient.InferInput("image", [len(asked.files), 1], "BYTES")
    given.set_data_from_numpy(np.array(asked.files, dtype=np.object_).reshape(-1, 1))
    result = client.infer("native", [given])
    np.testing.assert_array_equal(result.as_numpy("scores"), asked.scores)


def async_infer(client: grpcclient.InferenceServerClient, asked: Asked) -> None:
    """simple_grpc_async_infer_client.py"""
    answers: queue.Queue[tuple[int, object, object]] = queue.Queue()
    for n in range(20):
        one = asked.images[n % len(asked.images)][None]
        client.async_infer("native", image_input(one), lambda result, error, n=n: answers.put((n, result, error)))
    for _ in range(20):
        n, result, error = answers.get(timeout=20)
        assert error is None, error
        np.testing.assert_allclose(result.as_numpy("scores")[0], asked.scores[n % len(asked.scores)], rtol=1e-5)
    context = client.async_infer(
        "none", image_input(asked.images), lambda result, error: answers.put((0, result, error))
    )
    assert context is not None
    _, _, error = answers.get(timeout=20)
    assert "Request for unknown model: 'none' is not found" in str(error)


def stream(client: grpcclient.InferenceServerClient, asked: Asked) -> None:
    """simple_grpc_sequence_stream_infer_client.py, without sequences, which no model here has."""
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for n in range(50):
        one = asked.images[n % len(asked.images)][None]
        client.async_stream_infer(
            "native" if n != 25 else "none", image_input(one), request_id=str(n), enable_empty_final_response=True
        )
    seen, errors = set(), []
    for _ in range(50):
        result, error = answers.get(timeout=20)
        if error is not None:
            errors.append(str(error))
            continue
        response = result.get_response()
        assert response.parameters["triton_final_response"].bool_param
        n = int(response.id)
        np.testing.assert_allclose(result.as_numpy("scores")[0], asked.scores[n % len(asked.scores)], rtol=1e-5)
        seen.add(n)
    client.stop_stream()
    assert seen == set(range(50)) - {25}
    assert len(errors) == 1
    assert "is not found" in errors[0]


def shared_memory(client: grpcclient.InferenceServerClient, asked: Asked) -> None:
    """simple_grpc_shm_client.py and simple_grpc_shm_string_client.py"""
    client.unregister_system_shared_memory()
    size_in, size_out = asked.images.nbytes, asked.scores.nbytes
    inputs = shm.create_shared_memory_region("inputs", f"/convlens-{os.getpid()}-in", size_in)
    outputs = shm.create_shared_memory_region("outputs", f"/convlens-{os.getpid()}-out", size_out)
    try:
        shm.set_shared_memory_region(inputs, [asked.images])
        client.register_system_shared_memory("inputs", f"/convlens-{os.getpid()}-in", size_in)
        client.register_system_shared_memory("outputs", f"/convlens-{os.getpid()}-out", size_out)
        assert set(client.get_system_shared_memory_status().regions) == {"inputs", "outputs"}
        given = grpcclient.InferInput("image", asked.images.shape, "UINT8")
        given.set_shared_memory("inputs", size_in)
        wanted = grpcclient.InferRequestedOutput("scores")
        wanted.set_shared_memory("outputs", size_out)
        result = client.infer("native", [given], outputs=[wanted])
        output = result.get_output("scores")
        values = shm.get_contents_as_numpy(outputs, np.float32, list(output.shape))
        np.testing.assert_array_equal(values, asked.scores)
        client.unregister_system_shared_memory("inputs")
        client.unregister_system_shared_memory("outputs")
        assert not client.get_system_shared_memory_status().regions
    finally:
        shm.destroy_shared_memory_region(inputs)
        shm.destroy_shared_memory_region(outputs)


def image(client: grpcclient.InferenceServerClient, asked: Asked) -> None:
    """grpc_image_client.py: what it demands of metadata and configuration, and classification."""
    for model, data in (("native", asked.images), ("linear", asked.floats)):
        metadata = client.get_model_metadata(model)
        config = client.get_model_config(model).config
        assert len(metadata.inputs) == len(metadata.outputs) == len(config.input) == 1
        [given], [output] = metadata.inputs, metadata.outputs
        assert output.datatype == "FP32"
        assert config.max_batch_size >= len(data)
        # One dimension, beside the batch, that is not 1.
        assert sum(dim > 1 for dim in output.shape[1:]) == 1
        assert len(given.shape) == 4
        formats = model_config_pb2.ModelInput
        last = config.input[0].format == formats.FORMAT_NHWC
        assert last or config.input[0].format == formats.FORMAT_NCHW
        height, width, channels = given.shape[1:] if last else (*given.shape[2:], given.shape[1])
        assert (height, width, channels) == (8, 8, 1)
        inputs = [grpcclient.InferInput(given.name, data.shape, given.datatype)]
        inputs[0].set_data_from_numpy(data)
        wanted = [grpcclient.InferRequestedOutput(output.name, class_count=3)]
        lines = client.infer(model, inputs, outputs=wanted).as_numpy(output.name)
        assert lines.shape == (len(data), 3)
        for line, row in zip(lines, asked.scores, strict=True):
            value, index, label = "".join(chr(x) for x in line[0]).split(":")
            assert int(index) == row.argmax()
            assert label == f"class_{index}"
            assert float(value) > 0


def health(client: grpcclient.InferenceServerClient, asked: Asked) -> None:
    """simple_grpc_health_metadata.py"""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("native")
    assert client.is_model_ready("native", "3")
    assert not client.is_model_ready("broken")
    metadata = client.get_server_metadata()
    assert metadata.name == "convlens"
    assert "statistics" in metadata.extensions
    assert client.get_model_metadata("native").versions == ["3"]
    for wrong in (lambda: client.get_model_metadata("wrong_model_name"), lambda: client.is_model_ready("wrong")):
        error = refused(wrong)
        assert "Request for unknown model" in error.message()
        assert error.status() == "StatusCode.NOT_FOUND"
    statistics = client.get_inference_statistics("native").model_stats
    assert statistics[0].name == "native"
    assert len(client.get_inference_statistics().model_stats) >= 2


def index(client: grpcclient.InferenceServerClient, asked: Asked) -> None:
    """simple_grpc_model_control.py, of a server whose models are fixed"""
    models = {(model.name, model.version): model.state for model in client.get_model_repository_index().models}
    assert models["native", "3"] == "READY"
    assert models["broken", "1"] == "UNAVAILABLE"
    for wrong in (client.load_model, client.unload_model):
        error = refused(lambda: wrong("native"))  # noqa: B023
        assert error.status() == "StatusCode.FAILED_PRECONDITION"
        assert "explicit" in error.message()


def asyncio_client(client: grpcclient.InferenceServerClient, asked: Asked) -> None:
    """simple_grpc_aio_infer_client.py and simple_grpc_aio_sequence_stream_infer_client.py"""
    asyncio.run(_asyncio_client(sys.argv[2], asked))


async def _asyncio_client(address: str, asked: Asked) -> None:
    async with aioclient.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        results = await asyncio.gather(*(client.infer("native", image_input(asked.images)) for _ in range(8)))
        for result in results:
            np.testing.assert_allclose(result.as_numpy("scores"), asked.scores, rtol=1e-5)

        async def requests():
            for n in range(len(asked.images)):
                yield {"model_name": "native", "inputs": image_input(asked.images[n][None]), "request_id": str(n)}

        seen = set()
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            n = int(result.get_response().id)
            np.testing.assert_allclose(result.as_numpy("scores")[0], asked.scores[n], rtol=1e-5)
            seen.add(n)
        assert seen == set(range(len(asked.images)))


PARTS = {
    part.__name__: part
    for part in (infer, string, async_infer, stream, shared_memory, image, health, index, asyncio_client)
}

if __name__ == "__main__":
    with grpcclient.InferenceServerClient(sys.argv[2]) as client:
        PARTS[sys.argv[1]](client, Asked(Path(sys.argv[3])))
