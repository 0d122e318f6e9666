"""Refuses what does not fit into memory before it is read."""

from __future__ import annotations

import contextlib
from pathlib import Path

from convlens.manifest import PRECISIONS, file_name
from convlens_server.cgroup import ControlGroups
from convlens_server.errors import ModelError
from convlens_server.repository.store import RepositoryError, is_name, is_version

# Memory that loading takes at most, as a multiple of the files' size: the graph, the graph serialised for onnxruntime,
# and a session's weights are there at the same time. Measured with a file of 97 MiB: 4.2 on one core, 5.2 on several,
# where one more session runs what runs alone.
_FACTOR = 5
# Of a protobuf message.
_MAX_FILE = 2**31
# What else a version takes: its sessions, their threads, and the batches that they have run. Measured: 8 MiB.
_EACH = 8 * 2**20
# What is imported for the first version, and what the first requests need.
_ONCE = 48 * 2**20
# What a loaded version keeps, as a multiple of its files' size. Measured with 4.6 MiB: 3.0.
_KEPT = 3


def check_room(folder: Path, precision: str) -> None:
    """Compares what the models of a folder take, the highest version of each, with the memory that is available.

    To be called before the first is loaded: a server that is killed when the last one no longer fits says nothing.

    Raises:
        RepositoryError: They would not fit; the text names the sizes.
    """
    sizes = []
    # What cannot be read is for others to say.
    with contextlib.suppress(OSError):
        for model in folder.iterdir():
            numbers = [int(each.name) for each in model.iterdir() if is_version(each.name)] if model.is_dir() else []
            if is_name(model.name) and numbers:
                version = model / str(max(numbers))
                path = version / file_name(precision)
                with contextlib.suppress(OSError, ModelError):
                    sizes.append(_size(path if path.exists() else version / file_name(PRECISIONS[0])))
    available = available_memory()
    if not sizes or available is None:
        return
    # One that is too large by itself is refused by itself, if there are others.
    sizes = [size for size in sizes if size * _FACTOR + _EACH <= available] or sizes
    need = _ONCE + sum(_EACH + _KEPT * size for size in sizes) + (_FACTOR - _KEPT) * max(sizes)
    if need > available:
        raise RepositoryError(
            f"the models in {folder} ({len(sizes)}) take about {_shown(need)} of memory, and {_shown(available)} are "
            "available: raise the limit, serve fewer models, or load them on demand (--lazy --max-loaded)"
        )


class NoRoomError(ModelError):
    """There is no room for it now; there may be later."""


def check_fits(path: Path) -> None:
    """Compares an ONNX file and what lies beside it with the memory that is available.

    Raises:
        NoRoomError: They would not fit now; the text names the sizes.
        ModelError: No ONNX file can be that large.
    """
    try:
        size = _size(path)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}; a version's folder must hold {path.name}") from None
    available = available_memory()
    if available is not None and size * _FACTOR + _EACH > available:
        raise NoRoomError(
            f"its files have {_shown(size)}, loading them takes about {_shown(size * _FACTOR + _EACH)} of memory, and "
            f"{_shown(available)} are available: unload other models, or give the server more memory"
        )


def available_memory() -> int | None:
    """Bytes that this process may still take, by the machine and by its control group; None where nothing says."""
    limits: list[int] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    if (allowed := ControlGroups().available()) is not None:
        limits.append(allowed)
    return min(limits, default=None)


def _size(path: Path) -> int:
    """Bytes of an ONNX file and of its external data. Raises OSError and ModelError."""
    size = path.stat().st_size
    if size > _MAX_FILE:
        raise ModelError(
            f"the file has {_shown(size)}, but an ONNX file has {_shown(_MAX_FILE)} at most; export it with its "
            "weights as external data"
        )
    # External data has any name; variants of other precision and what is not the model's own has these.
    return size + sum(
        file.stat().st_size
        for file in path.parent.rglob("*")
        if file.suffix not in (".onnx", ".json", ".txt") and file.is_file()
    )


def _shown(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
