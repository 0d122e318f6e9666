"""What has to be done before the libraries are imported: a signal that ends the process, and its share of the machine.

Imports nothing but the standard library's small parts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

from convlens_server.cgroup import ControlGroups, default_threads

# What no server does with less: interpreter, libraries and one small model take 84 MiB.
_LEAST_MEMORY = 80 * 2**20
_M_ARENA_MAX = -8


def prepare() -> None:
    """Readies the process for being a server.

    Raises:
        SystemExit: Its control group has too little memory even for the libraries; the text names limit and cure.
    """
    # The first process of a container ignores every signal that it does not handle.
    signal.signal(signal.SIGTERM, _end)
    limit = ControlGroups().memory()
    if limit is not None and limit < _LEAST_MEMORY:
        raise SystemExit(
            f"convlens serve: the memory limit is {limit / 2**20:.0f} MiB, but a server takes at least "
            f"{_LEAST_MEMORY / 2**20:.0f} MiB: raise the limit of the container or its control group"
        )
    cores = str(default_threads())
    # Read when they are imported; each would start as many threads as the machine has cores.
    os.environ.setdefault("OMP_NUM_THREADS", cores)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", cores)
    # gRPC's newer way of waiting for sockets hands each event to another thread: without it a call costs 10 µs less.
    # The switch is past its date in gRPC's list; a grpcio that has it no more says so in one line and goes on.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    if "MALLOC_ARENA_MAX" not in os.environ:
        # Not eight for each core of the machine, each of which keeps what was freed in it. No other libc has this.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2 * int(cores) + 2)


def _end(number: int, frame: object) -> None:
    """Ends the process: nothing is served yet."""
    sys.stderr.write("stopped before it was ready\n")
    sys.stderr.flush()
    os._exit(0)
