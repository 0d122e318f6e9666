"""The images that a search goes through: a folder of the server's, or a model's own samples."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from convlens_server.codec import ENDINGS
from convlens_server.errors import NotFound, near, shown
from convlens_server.model import Model
from convlens_server.samples import FOLDER as SAMPLES

# Larger files are taken for what they hardly are: images. Only the pixels are limited by the configuration.
_MOST_BYTES = 256 * 2**20


class Dataset(Protocol):
    """Images by name.

    Attributes:
        name: As requests call it.
        files: Names of the images, in order.
        stamp: Another one for other images.
    """

    @property
    def name(self) -> str:
        """As described."""

    @property
    def files(self) -> Sequence[str]:
        """As described."""

    @property
    def stamp(self) -> str:
        """As described."""

    def read(self, file: str) -> bytes:
        """The content of a file. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Folder:
    """`Dataset` of a folder as it was when it was looked at.

    Attributes:
        name: As requests call it.
        folder: Where it is.
        files: Paths of the JPEG, PNG and WebP files below it, with "/" between folders, sorted; hidden ones are none.
        stamp: Changes with the files' paths, sizes and times.
    """

    name: str
    folder: Path
    files: Sequence[str]
    stamp: str

    @classmethod
    def look(cls, name: str, folder: Path) -> Folder:
        """Looks at a folder; one that cannot be read has no files."""
        found: list[tuple[str, int, int]] = []
        for where, folders, names in os.walk(folder):
            folders[:] = [each for each in folders if not each.startswith(".")]
            for file in names:
                path = Path(where, file)
                if file.startswith(".") or path.suffix.lower() not in ENDINGS:
                    continue
                try:
                    status = path.stat()
                    relative = path.relative_to(folder).as_posix()
                    relative.encode()
                except (OSError, UnicodeEncodeError):
                    # What cannot be looked at, or be named in a message, cannot be shown either.
                    continue
                found.append((relative, status.st_size, status.st_mtime_ns))
        found.sort()
        return cls(name, folder, [path for path, _, _ in found], _digest(repr(found).encode()))

    def read(self, file: str) -> bytes:
        """`Dataset.read`."""
        path = self.folder / file
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise OSError(f"{file} has {size} bytes, over the limit of {_MOST_BYTES}")
        return path.read_bytes()


class Samples:
    """`Dataset` of a model's own samples; a file is called by its sample's name.

    Args:
        model: The model.
    """

    name = SAMPLES

    def __init__(self, model: Model) -> None:
        self._contents = {sample.name: sample.file for sample in model.samples}
        self.files: Sequence[str] = list(self._contents)
        self.stamp = _digest(b"".join(name.encode() + _digest(file).encode() for name, file in self._contents.items()))

    def read(self, file: str) -> bytes:
        """`Dataset.read`."""
        return self._contents[file]


def dataset_of(name: str, model: Model, folders: Sequence[tuple[str, Path]]) -> Dataset:
    """The dataset that a request asks for.

    Args:
        name: From the request; empty where there is only one.
        model: Whose samples are meant by "samples".
        folders: Names and places of the server's datasets.

    Raises:
        NotFound: There is no such dataset, or not just one where none is named.
    """
    known = dict(folders)
    if not name and len(known) <= 1:
        name = next(iter(known), SAMPLES)
    if name in known:
        return Folder.look(name, known[name])
    if name == SAMPLES and model.samples:
        return Samples(model)
    names = [*known, *([SAMPLES] if model.samples else [])]
    if not name:
        text = f"no dataset is named, and there are several: {', '.join(known)}"
    elif names:
        text = f"dataset {shown(name)!r} is not known{near(shown(name), names)}"
    else:
        text = (
            f"dataset {shown(name)!r} is not known: model {model.name!r} has no samples, and the server was started "
            "without --dataset NAME=FOLDER"
        )
    raise NotFound(text, reason="DATASET_NOT_FOUND", field="dataset", metadata={"dataset": shown(name)})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
