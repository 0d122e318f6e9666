"""Starts BentoML with the service beside this file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from network import PORT

if __name__ == "__main__":
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "1", "BENTOML_HOME": os.environ["BENCH_FOLDER"]}
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", "service:Classify", "--host", "127.0.0.1"]
    command += ["--port", str(PORT), "--working-dir", str(Path(__file__).parent)]
    os.execve(command[0], command, environment)
