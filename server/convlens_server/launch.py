"""`convlens serve`: puts the server's process in the place of the command's."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

# What the extra [server] brings.
_NEEDED = (
    "configargparse", "grpc_health", "grpc_reflection", "onnx", "onnxruntime", "prometheus_client", "starlette",
    "uvicorn",
)  # fmt: skip


def main(argv: Sequence[str]) -> NoReturn:
    """Becomes `python -m convlens_server` with these arguments.

    gRPC reads its switches when it is imported, which the command has done; `__main__` sets them first.

    Raises:
        ModuleNotFoundError: The extra [server] is not installed.
    """
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "convlens_server", *argv])
