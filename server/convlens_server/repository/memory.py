"""Refuses what does not fit into memory before it is read."""

from __future__ import annotations

import contextlib
from pathlib import Path

from convlens_server.errors import ModelError

# Memory that loading takes at most, as a multiple of the files' size: the graph, the graph serialised for onnxruntime,
# and a session's weights are there at the same time. Measured with a file of 97 MiB: 4.2 on one core, 5.2 on several,
# where one more session runs what runs alone.
_FACTOR = 5
# Of a protobuf message.
_MAX_FILE = 2**31
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def check_fits(path: Path) -> None:
    """Compares an ONNX file and what lies beside it with the memory that is available.

    Raises:
        ModelError: They would not fit, or no ONNX file can be that large; the text names the sizes.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_FILE:
            raise ModelError(
                f"the file has {_shown(size)}, but an ONNX file has {_shown(_MAX_FILE)} at most; export it with its "
                "weights as external data"
            )
        # External data has any name; variants of other precision and what is not the model's own has these.
        size += sum(
            file.stat().st_size
            for file in path.parent.rglob("*")
            if file.suffix not in (".onnx", ".json", ".txt") and file.is_file()
        )
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}; a version's folder must hold {path.name}") from None
    available = available_memory()
    if available is not None and size * _FACTOR > available:
        raise ModelError(
            f"its files have {_shown(size)}, loading them takes about {_shown(size * _FACTOR)} of memory, and "
            f"{_shown(available)} are available: unload other models, or give the server more memory"
        )


def available_memory() -> int | None:
    """Bytes that this process may still take, by the machine and by its control group; None where nothing says."""
    limits: list[int] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for maximum, current in _CGROUPS:
        # Not there, or "max".
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(maximum.read_text()) - int(current.read_text()))
    return min(limits, default=None)


def _shown(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
