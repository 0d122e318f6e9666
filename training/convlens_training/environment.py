"""What a training ran on: releases, commit, processor; nothing that names a person, a machine or a folder."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("convlens", "torch", "torchvision", "lightning-fabric", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy")


def environment() -> dict[str, Any]:
    """The environment of this process, as plain values.

    Returns:
        "python": its release; "packages": releases by name, of those that are installed; "commit": as `commit` gives
        it, or None; "system": e.g. "Linux x86_64"; "cpu": the processor's model; "cores": how many this process may
        use; "gpus": the names of the CUDA devices.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: release for name in _PACKAGES if (release := _release(name))},
        "commit": commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpus(),
    }


def commit() -> str | None:
    """The commit of this code, with "-dirty" behind it where files differ from it; None outside a git checkout."""
    here = Path(__file__)
    # A file that git does not know means an installed package, perhaps below somebody else's repository.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", *arguments), cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _release(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    try:
        cuda = importlib.import_module("torch").cuda  # takes seconds where nothing has imported it yet
    except ImportError:
        return []
    return [cuda.get_device_name(index) for index in range(cuda.device_count())] if cuda.is_available() else []
