"""Writes arrays and pictures to files."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def archive(file: Path, arrays: Iterable[tuple[str, npt.NDArray[Any]]]) -> None:
    """Writes a NumPy archive."""
    # Not numpy.savez: it takes names as keywords, and a layer may be called "file".
    with zipfile.ZipFile(file, "w") as members:
        for name, values in arrays:
            with members.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values)


def safe(name: str, otherwise: str) -> str:
    """A file name like a name that a server gave, which may be any text."""
    return (re.sub(r"[^\w.-]+", "_", name).strip("_.") or otherwise)[:100]
