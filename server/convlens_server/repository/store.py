"""Where a repository stands: what models and versions are there, and a version's files on the local disk."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from convlens_server.errors import ModelError
from convlens_server.repository import aliases

log = logging.getLogger(__name__)

_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


class RepositoryError(Exception):
    """The repository cannot be read, or has nothing to serve; the text names it and the cure."""


@dataclass(frozen=True)
class Found:
    """A model as it stands in the repository.

    Attributes:
        name: Of its folder.
        stamps: By version; another one means that a file of the version has changed.
        stamp: Of the files beside the versions that hold for all of them: config.pbtxt, labels.
        aliases: Of aliases.json.
        error: Why nothing of it can be served; empty if it can.
        ignored: Folders in it that are no versions.
    """

    name: str
    stamps: dict[int, str] = field(default_factory=dict)
    stamp: str = ""
    aliases: str = ""
    error: str = ""
    ignored: tuple[str, ...] = ()


class Store(Protocol):
    """A place that holds <name>/<version>/model.onnx. Thread-safe."""

    def models(self) -> dict[str, Found]:
        """Every model, by name, in order. Raises RepositoryError if the place cannot be read."""

    def model(self, name: str) -> Found | None:
        """One model; None if it is not there. Raises RepositoryError if the place cannot be read."""

    def read(self, name: str, file: str) -> bytes | None:
        """A file in a model's folder; None if it is not there. Raises ModelError, RepositoryError."""

    def write(self, name: str, file: str, content: bytes) -> None:
        """Replaces a file in a model's folder, at once. Raises ModelError."""

    def fetch(self, name: str, number: int, stamp: str) -> Path:
        """A version's folder on the local disk, with this stamp if it is still there.

        Raises:
            ModelError: Something is wrong with the version.
            RepositoryError: It cannot be read now, but perhaps later.
        """


class LocalStore:
    """A folder of this machine. What leads out of it, by a symbolic link or by its name, is refused.

    Args:
        folder: The repository.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def models(self) -> dict[str, Found]:
        """`Store.models`."""
        try:
            names = sorted(each.name for each in os.scandir(self._folder) if each.is_dir())
        except OSError as error:
            raise RepositoryError(
                f"model repository {self._folder} cannot be read: {error.strerror}; see --models"
            ) from None
        found = {name: self.model(name) for name in names if is_name(name)}
        return {name: each for name, each in found.items() if each is not None}

    def model(self, name: str) -> Found | None:
        """`Store.model`."""
        folder = self._folder / name
        if not folder.is_dir():
            return None
        try:
            self._inside(folder)
            stamps, ignored, beside = {}, [], []
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    beside.append(Path(entry.path))
                elif _NUMBER.fullmatch(entry.name):
                    stamps[int(entry.name)] = _stamp(_files(Path(entry.path)))
                else:
                    ignored.append(entry.name)
        except ModelError as error:
            return Found(name, error=str(error))
        except OSError as error:
            return Found(name, error=f"its folder cannot be read: {error.strerror}")
        named = [file for file in beside if file.name == aliases.FILE]
        return found(name, stamps, _stamp(file for file in beside if file not in named), _stamp(named), ignored)

    def read(self, name: str, file: str) -> bytes | None:
        """`Store.read`."""
        path = self._folder / name / file
        try:
            # A name from a configuration may lead anywhere.
            _below(path, self._folder / name, f"{file!r} leads out of the model's folder")
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ModelError(f"{file} cannot be read: {error.strerror}") from None

    def write(self, name: str, file: str, content: bytes) -> None:
        """`Store.write`."""
        folder = self._folder / name
        try:
            self._inside(folder)
            handle, temporary = tempfile.mkstemp(prefix=".", dir=folder)
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(folder / file)
        except OSError as error:
            raise ModelError(f"{file} cannot be written: {error.strerror}") from None

    def fetch(self, name: str, number: int, stamp: str) -> Path:
        """`Store.fetch`."""
        folder = self._folder / name / str(number)
        try:
            self._inside(folder)
            for file in _files(folder):
                self._inside(file)
        except OSError as error:
            raise ModelError(f"its folder cannot be read: {error.strerror}") from None
        return folder

    def _inside(self, path: Path) -> None:
        _below(path, self._folder, f"{path.name!r} is a symbolic link out of the repository; copy the files into it")


def found(name: str, stamps: dict[int, str], stamp: str, aliases: str, ignored: Iterable[str]) -> Found:
    """What was found of a model, with the reason if there is nothing to serve."""
    ignored = tuple(ignored)
    error = ""
    if not stamps:
        error = "holds no versions: it must hold <version>/model.onnx, the version a positive whole number"
        if ignored:
            error += f"; there is {', '.join(repr(each) for each in ignored[:5])}"
    return Found(name, dict(sorted(stamps.items())), stamp, aliases, error, ignored)


def is_name(name: str) -> bool:
    """Whether a folder of this name holds a model."""
    try:
        name.encode()
    except UnicodeEncodeError:
        log.warning("%a is not served: the name of the folder is not UTF-8", name)
        return False
    return not name.startswith(".")


def is_version(name: str) -> bool:
    """Whether a folder of this name holds a version."""
    return _NUMBER.fullmatch(name) is not None


def stamp(parts: Iterable[object]) -> str:
    """A short text that is another one for other parts."""
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:16]


def _below(path: Path, folder: Path, text: str) -> None:
    """Raises ModelError if a path that is there leads, links resolved, to somewhere else than below a folder."""
    try:
        inside = path.resolve(strict=True).is_relative_to(folder.resolve())
    except RuntimeError:
        raise ModelError(
            f"{path.name!r} is a symbolic link that leads to itself; copy the files in its place"
        ) from None
    if not inside:
        raise ModelError(text)


def _files(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(where) / name for name in sorted(names))


def _stamp(files: Iterable[Path]) -> str:
    parts: list[object] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            parts.append((str(file), None))
        else:
            parts.append((str(file), status.st_size, status.st_mtime_ns, status.st_ino))
    return stamp(parts)
