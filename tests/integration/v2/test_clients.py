"""Other people's clients against a running server, each in a process of its own.

A process can hold the messages of `inference` only once, and the clients' packages want other versions than ours: they
live in an environment of their own, which scripts/clients makes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from integration.v2.asking import normalised
from support import pixels

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
CLIENTS = Path(__file__).parent / "clients"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="scripts/clients has not been run")

HTTP = ("infer", "string", "async_infer", "image", "shared_memory", "health", "asyncio_client")
GRPC = ("infer", "string", "async_infer", "stream", "shared_memory", "image", "health", "index", "asyncio_client")


@pytest.fixture(scope="session")
def expected(server, tmp_path_factory):
    """A folder with what our own service answers, and with image files."""
    folder = tmp_path_factory.mktemp("expected")
    images = pixels(5, seed=5)
    np.savez(
        folder / "expected.npz",
        images=images,
        scores=server.classify("native", images)[0],
        floats=normalised(images),
        logits=server.classify("linear", images)[1],
        layer=server.maps("native", images, "output")["output"],
    )
    for n, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{n}.png")
    return folder


@pytest.fixture
def client(server, expected):
    def run(script: str, part: str) -> None:
        over_http = script == "triton_http.py" or part == "rest"
        address = f"127.0.0.1:{server.state.http_port}" if over_http else server.address
        command = [str(PYTHON), "-W", "ignore", str(CLIENTS / script), part, address, str(expected)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.mark.parametrize("part", GRPC)
def test_tritonclient_grpc(client, part):
    client("triton_grpc.py", part)


@pytest.mark.parametrize("part", HTTP)
def test_tritonclient_http(client, part):
    client("triton_http.py", part)


@pytest.mark.parametrize("part", ["grpc", "rest"])
def test_kserve(client, part):
    client("kserve_client.py", part)
