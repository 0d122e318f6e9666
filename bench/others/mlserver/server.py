"""Starts MLServer with the network as its only model, over gRPC with adaptive batching."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from network import BATCH, PORT, WAIT_MS, WORKERS

if __name__ == "__main__":
    folder = Path(os.environ["BENCH_FOLDER"])
    settings = {
        # Else it logs a line for each request.
        "debug": False,
        "host": "127.0.0.1",
        "grpc_port": PORT,
        "http_port": int(os.environ["BENCH_PORT_2"]),
        "metrics_port": int(os.environ["BENCH_PORT_3"]),
        # 0: the network runs in the server's own process, whose event loop it then holds up.
        "parallel_workers": WORKERS,
    }
    model = {
        "name": "network",
        "implementation": "runtime.Classify",
        "max_batch_size": BATCH,
        "max_batch_time": WAIT_MS / 1000,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    os.chdir(folder)  # where it puts its metrics
    mlserver = Path(sys.executable).with_name("mlserver")
    os.execv(mlserver, [str(mlserver), "start", str(folder)])
