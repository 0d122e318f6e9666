"""Starts TorchServe with the network as its only model."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from network import BATCH, PORT, WAIT_MS, WORKERS

HERE = Path(__file__).parent
if __name__ == "__main__":
    folder = Path(os.environ["BENCH_FOLDER"])
    model = folder / "store" / "network"
    (model / "MAR-INF").mkdir(parents=True)
    shutil.copy(HERE / "handler.py", model)
    manifest = {"model": {"modelName": "network", "handler": "handler.py", "modelVersion": "1.0"}}
    (model / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"createdOn": "", "runtime": "python", **manifest}))
    settings = {
        "1.0": {
            "defaultVersion": True,
            "marName": "network",
            "minWorkers": WORKERS,
            "maxWorkers": WORKERS,
            "batchSize": BATCH,
            # Whole milliseconds.
            "maxBatchDelay": round(WAIT_MS),
            "responseTimeout": 60,
        }
    }
    port_2, port_3, port_4, port_5 = (int(os.environ[f"BENCH_PORT_{n}"]) for n in range(2, 6))
    lines = {
        "model_store": model.parent,
        "load_models": "network",
        "models": json.dumps({"network": settings}),
        "inference_address": f"http://127.0.0.1:{PORT}",
        "management_address": f"http://127.0.0.1:{port_2}",
        "metrics_address": f"http://127.0.0.1:{port_3}",
        "grpc_inference_port": port_4,
        "grpc_management_port": port_5,
        "job_queue_size": 1000,
        "disable_token_authorization": "true",
        # Java's heap would grow to a quarter of the machine's memory before it collects what is not used any more.
        "vmargs": "-Xmx1g",
    }
    config = folder / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    bin_folder = Path(sys.executable).parent
    # Its workers are started as "python", and their sockets lie in Java's temporary folder.
    places = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "TEMP": str(folder)}
    command = [str(bin_folder / "torchserve"), "--start", "--foreground", "--ts-config", str(config)]
    command += ["--log-config", str(HERE / "log4j2.xml"), "--no-config-snapshots", "--disable-token-auth"]
    os.chdir(folder)  # where it puts its logs
    os.execve(command[0], command, {**os.environ, **places})
