"""Writes files so that a reader, or a process after a kill, never sees half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from convlens_training.errors import TrainingError

# What a kill leaves of a file that was being written; no reader looks for it.
UNFINISHED = ".*.part"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` at the end, on disk; after an exception it is gone.

    Raises:
        TrainingError: The file system refuses.
    """
    # Of two writers at once the later one wins.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with writing(path):
        try:
            with unfinished.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the file system refuses while `path` is written into an error for people.

    Raises:
        TrainingError: Instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written ({error.strerror or error}): make room or change permissions there, "
            "or choose another folder"
        ) from None
