"""Starts Triton, the program itself that nvidia-pytriton brings, with the network as a model of its Python backend."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytriton
from network import BATCH, PORT, WAIT_MS, WORKERS

# Of the dynamic batcher the batch's size is the model's. A request may have 32 images, and so several make more.
CONFIG = f"""\
backend: "python"
max_batch_size: {max(BATCH, 32)}
input {{ name: "images" data_type: TYPE_UINT8 dims: [ 28, 28, 1 ] }}
output {{ name: "scores" data_type: TYPE_FP32 dims: [ 10 ] }}
instance_group {{ count: {WORKERS} kind: KIND_CPU }}
dynamic_batching {{ max_queue_delay_microseconds: {round(WAIT_MS * 1000)} }}
"""

if __name__ == "__main__":
    here, folder = Path(__file__).parent, Path(os.environ["BENCH_FOLDER"])
    packages = Path(pytriton.__file__).parents[1]
    triton = packages / "pytriton" / "tritonserver"
    model = folder / "models" / "network"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(CONFIG)
    for file in (here / "model.py", here.parent / "network.py"):
        shutil.copy(file, model / "1")
    # The backend runs models in a program that is made for one version of Python, and must lie beside its library.
    shutil.copytree(triton / "backends", folder / "backends")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, folder / "backends" / "python")
    libraries = [str(packages / "nvidia_pytriton.libs"), str(Path(sys.base_prefix) / "lib")]
    paths = {
        "LD_LIBRARY_PATH": ":".join((*libraries, os.environ.get("LD_LIBRARY_PATH", ""))).rstrip(":"),
        # The Python in that program finds its packages by the first "python3" here.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [str(triton / "bin" / "tritonserver"), f"--model-repository={model.parent}"]
    command += [f"--backend-directory={folder / 'backends'}", f"--grpc-port={PORT}", "--grpc-address=127.0.0.1"]
    for what, port in (("http", os.environ["BENCH_PORT_2"]), ("metrics", os.environ["BENCH_PORT_3"])):
        command += [f"--{what}-port={port}", f"--{what}-address=127.0.0.1"]
    os.execve(command[0], [*command, "--log-info=false"], {**os.environ, **paths})
