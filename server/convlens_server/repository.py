"""The model repository: a folder of `<name>/<version>/model.onnx`, loaded at start.

Beside model.onnx a version may have variants of other precision, e.g. model.int8.onnx.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from convlens.manifest import PRECISIONS, file_name
from convlens_server.device import DeviceError
from convlens_server.errors import InvalidRequest, ModelError, ModelNotReady, NotFound, near, shown
from convlens_server.metrics import Metrics
from convlens_server.model import Model
from convlens_server.settings import EngineSettings

log = logging.getLogger(__name__)

_MODEL_FILE = file_name(PRECISIONS[0])


class RepositoryError(Exception):
    """The repository has nothing to serve; the text names the folder and the cure."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version in the repository.

    Attributes:
        name: Of the model.
        number: Positive.
        model: The loaded model; None if it could not be loaded.
        error: Why not; empty if it was.
        is_default: Whether a request that names no version gets this one.
    """

    name: str
    number: int
    model: Model | None
    error: str
    is_default: bool


class Repository:
    """The versions of the models in a folder. What it holds does not change; thread-safe.

    Args:
        folder: The repository.
        settings: How the models run.
        metrics: Told of every model that was loaded.

    Raises:
        RepositoryError: The folder is not there, holds no models, or none of them could be loaded.
    """

    def __init__(self, folder: Path, settings: EngineSettings, metrics: Metrics) -> None:
        self.versions = tuple(_load(folder, settings))
        # One look-up a request; version 0 stands for the default, and no name for the only model.
        self._ready: dict[tuple[str, int], Model] = {}
        for version in self.versions:
            if version.model is not None:
                self._ready[version.name, version.number] = version.model
                if version.is_default:
                    self._ready[version.name, 0] = version.model
                metrics.add(version.model.metrics)
        if not self._ready:
            failures = "; ".join(
                f"{version.name} version {version.number}: {version.error}" for version in self.versions
            )
            raise RepositoryError(f"no model in {folder} could be loaded: {failures}")
        self._names = tuple(dict.fromkeys(version.name for version in self.versions))
        if len(self._names) == 1:
            self._ready.update({("", number): model for (_, number), model in list(self._ready.items())})

    @property
    def models(self) -> tuple[Model, ...]:
        """The loaded ones."""
        return tuple(version.model for version in self.versions if version.model is not None)

    def resolve(self, name: str, number: int) -> Model:
        """The model that a request asks for.

        Args:
            name: Of the model; may be empty where there is only one.
            number: Version; 0 is the default.

        Raises:
            InvalidRequest: No name, and several models; or a negative version.
            NotFound: No such model or version.
            ModelNotReady: The version could not be loaded.
        """
        model = self._ready.get((name, number))
        if model is None:
            self._refuse(name, number)
        return model

    def ready_versions(self, name: str) -> list[int]:
        """The numbers of a model's loaded versions, ascending."""
        return [version.number for version in self.versions if version.name == name and version.model is not None]

    def close(self) -> None:
        """Lets every engine answer what it has, and ends it."""
        for model in self.models:
            model.close()

    def _refuse(self, name: str, number: int) -> NoReturn:
        if not name:
            if len(self._names) != 1:
                raise InvalidRequest(
                    f"the request names no model, and the server has several: {', '.join(self._names[:12])}",
                    reason="NO_MODEL",
                    field="model",
                )
            name = self._names[0]
        if name not in self._names:
            raise NotFound(
                f"model {shown(name)!r} is not in the repository{near(shown(name), self._names)}",
                reason="MODEL_NOT_FOUND",
                field="model",
                metadata={"model": shown(name)},
            )
        if number < 0:
            raise InvalidRequest(
                f"version is {number}, but must be positive, or 0 for the default",
                reason="VERSION_OUT_OF_RANGE",
                field="version",
                metadata={"version": number},
            )
        versions = [version for version in self.versions if version.name == name]
        for version in versions:
            if number in (version.number, 0):
                failed = version if number else versions[-1]
                raise ModelNotReady(
                    f"version {failed.number} of model {name!r} could not be loaded: {failed.error}",
                    field="model",
                    metadata={"model": name, "version": failed.number},
                )
        known = ", ".join(str(version.number) for version in versions)
        raise NotFound(
            f"model {name!r} has no version {number} (there are {known})",
            reason="VERSION_NOT_FOUND",
            field="version",
            metadata={"model": name, "version": number},
        )


def _load(folder: Path, settings: EngineSettings) -> Iterator[Version]:
    found = _find(folder)
    if not found:
        raise RepositoryError(
            f"no models in {folder}: it must hold <name>/<version>/{_MODEL_FILE}, e.g. digits/1/{_MODEL_FILE}"
        )
    for name, numbers in found.items():
        loaded = [(number, *_try(name, number, path, settings)) for number, path in numbers]
        default = max((number for number, model, _ in loaded if model is not None), default=0)
        for number, model, error in loaded:
            yield Version(name, number, model, error, is_default=number == default)


def _find(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """The ONNX files by model and version, both in order."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise RepositoryError(f"model repository {folder} cannot be read: {error.strerror}; see --models") from None
    found = {}
    for name in names:
        numbers = {}
        for entry in os.scandir(folder / name):
            if entry.is_dir() and re.fullmatch(r"[1-9][0-9]{0,17}", entry.name):
                numbers[int(entry.name)] = Path(entry.path) / _MODEL_FILE
        if numbers:
            found[name] = sorted(numbers.items())
        else:
            log.warning("%s holds no versions: it must hold <version>/%s", folder / name, _MODEL_FILE)
    return found


def _try(name: str, number: int, path: Path, settings: EngineSettings) -> tuple[Model | None, str]:
    """Loads a version; one that fails does not keep the others from being served."""
    path, precision = _variant(name, number, path, settings.precision)
    try:
        model = Model(name, number, path, precision, settings)
    except ModelError as error:
        reason = str(error).removeprefix(f"{path}: ")
        log.error("version %d of model %s cannot be served: %s: %s", number, name, path, reason)
        # Callers are told why, but not where the server keeps its files.
        return None, reason if precision is None else f"{path.name}: {reason}"
    except DeviceError:
        raise
    except Exception as error:
        log.exception("version %d of model %s cannot be served: internal error", number, name)
        return None, f"internal error ({type(error).__name__}); the server's log has the trace"
    log.info("version %d of model %s is ready (%s)", number, name, model.manifest.precision)
    return model, ""


def _variant(name: str, number: int, path: Path, wanted: str) -> tuple[Path, str | None]:
    """The file of the precision that is wanted, and that precision; model.onnx and None where there is none of it."""
    if wanted == PRECISIONS[0]:
        return path, None
    variant = path.with_name(file_name(wanted))
    if os.path.lexists(variant):
        return variant, wanted
    log.info("version %d of model %s has no %s: it is served as %s", number, name, variant.name, PRECISIONS[0])
    return path, None
