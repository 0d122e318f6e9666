"""Puts model files into a model repository, as the next version, all at once."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convlens.manifest import PRECISIONS, file_name
from convlens_training.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Published:
    """Where the float32 file went: <models>/<name>/<version>/model.onnx; its variants are beside it."""

    version: int
    path: Path


def check_repository(models: Path, name: str) -> None:
    """Finds out before a long training whether its result could be published.

    Raises:
        TrainingError: It could not.
    """
    folder = models / name
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder, so nothing can be published in {models / name}: move it away")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise TrainingError(
            f"{folder} cannot be written to: change its permissions, or give another folder by --models"
        )


def publish(files: Mapping[str, bytes], models: Path, name: str) -> Published:
    """Publishes a model's files as the version after the highest there is, beginning with 1.

    The version's folder appears with all of them whole in it, on disk, or not at all. It is made under a name that
    begins with a dot, which readers ignore; what an interruption leaves there can be deleted. Of several that publish
    at once each gets a version of its own.

    Args:
        files: By name: model.onnx, and variants as `Exports.files` names them; in folders as `samples` does.
        models: The repository; made if missing.
        name: The model's name.

    Raises:
        TrainingError: The file system refuses.
    """
    folder = models / name
    unfinished = models / f".publish-{name}-{secrets.token_hex(8)}"
    try:
        models.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
        for file, content in files.items():
            (unfinished / file).parent.mkdir(exist_ok=True)
            _write(unfinished / file, content)
        for entry in unfinished.iterdir():
            if entry.is_dir():
                _sync(entry)
        _sync(unfinished)
        # Not before: a model without versions is nothing either.
        folder.mkdir(exist_ok=True)
        version = _move(unfinished, folder)
        _sync(folder)
        _sync(models)
    except OSError as error:
        raise TrainingError(
            f"the model could not be published in {folder} ({error.strerror or error}): make room or change "
            "permissions there, or give another folder by --models"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Published(version, folder / str(version) / file_name(PRECISIONS[0]))


def _write(path: Path, content: bytes) -> None:
    """Writes a file to disk, not only to the system's memory."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _move(unfinished: Path, folder: Path) -> int:
    """Renames a folder to the next version. A rename fails where a folder with something in it is already there."""
    while True:
        taken = [int(entry.name) for entry in folder.iterdir() if entry.name.isascii() and entry.name.isdecimal()]
        version = max(taken, default=0) + 1
        try:
            unfinished.rename(folder / str(version))
        except OSError:
            if not (folder / str(version)).exists():
                raise
            # Another publisher was faster: take the version after.
            continue
        return version


def _sync(folder: Path) -> None:
    """Makes sure that a folder's entries are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
