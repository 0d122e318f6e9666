"""Loads one version: fetch, check, read, build, warm."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from convlens.manifest import PRECISIONS, file_name
from convlens_server.device import DeviceError
from convlens_server.errors import ModelError
from convlens_server.metrics import Metrics
from convlens_server.model import Model
from convlens_server.repository.memory import NoRoomError, check_fits
from convlens_server.repository.model_config import ModelOptions
from convlens_server.repository.store import RepositoryError, Store
from convlens_server.samples import read_samples
from convlens_server.settings import EngineSettings

log = logging.getLogger(__name__)

# How often a version is read anew whose files change while they are read.
_ATTEMPTS = 3


class LoadError(Exception):
    """A version cannot be served; the text is for callers, who are not told where the server keeps its files.

    Attributes:
        passing: Whether the same files may be served later: memory had no room, or the store did not answer.
    """

    def __init__(self, text: str, passing: bool = False) -> None:
        super().__init__(text)
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Loader:
    """Makes models of what stands in a store.

    Attributes:
        store: Of the files.
        settings: How models run.
        metrics: Of the server.
    """

    store: Store
    settings: EngineSettings
    metrics: Metrics

    def load(self, name: str, number: int, options: ModelOptions) -> tuple[Model, str]:
        """A version, warm, and its stamp.

        Raises:
            LoadError: It cannot be served.
        """
        try:
            return self._load(name, number, options)
        except LoadError:
            raise
        except (RepositoryError, DeviceError) as error:
            log.error("version %d of model %s cannot be served: %s", number, name, error)
            raise LoadError(str(error), passing=isinstance(error, RepositoryError)) from None
        except Exception as error:
            log.exception("version %d of model %s cannot be served: internal error", number, name)
            text = f"internal error ({type(error).__name__}); the server's log has the trace"
            raise LoadError(text) from None

    def _load(self, name: str, number: int, options: ModelOptions) -> tuple[Model, str]:
        for _ in range(_ATTEMPTS):
            stamp = self._stamp(name, number)
            path: Path | None = None
            model: Model | None = None
            reason = ""
            passing = False
            try:
                folder = self.store.fetch(name, number, stamp)
                path, precision = self._variant(name, number, folder / (options.file or file_name(PRECISIONS[0])))
                check_fits(path)
                model = Model(
                    name,
                    number,
                    path,
                    precision,
                    self.settings.threads,
                    options.settings,
                    self.metrics,
                    options.labels,
                    options.config,
                    read_samples(folder),
                )
            except ModelError as error:
                reason = str(error).removeprefix(f"{path}: ")
                passing = isinstance(error, NoRoomError)
                log.error("version %d of model %s cannot be served: %s: %s", number, name, path or self.store, reason)
                reason = reason if path is None or path.name == file_name(PRECISIONS[0]) else f"{path.name}: {reason}"
            if self._stamp(name, number) == stamp:
                if model is None:
                    raise LoadError(reason, passing)
                log.info("version %d of model %s is ready (%s)", number, name, model.manifest.precision)
                _compare(model)
                return model, stamp
            log.info("version %d of model %s has changed while it was read: once more", number, name)
            if model is not None:
                model.close()
        raise LoadError(
            f"its files changed each of the {_ATTEMPTS} times that they were read; publish by renaming a complete "
            "folder into place"
        )

    def _stamp(self, name: str, number: int) -> str:
        found = self.store.model(name)
        if found is None or number not in found.stamps:
            raise LoadError(f"version {number} is asked for, but its folder is not there")
        return found.stamps[number]

    def _variant(self, name: str, number: int, path: Path) -> tuple[Path, str | None]:
        """The file of the precision that is wanted, and that precision; `path` and None where there is none of it."""
        wanted = self.settings.precision
        if wanted == PRECISIONS[0]:
            return path, None
        variant = path.with_name(file_name(wanted))
        if os.path.lexists(variant):
            return variant, wanted
        log.info("version %d of model %s has no %s: it is served as %s", number, name, variant.name, PRECISIONS[0])
        return path, None


def _compare(model: Model) -> None:
    """Warns of a config.pbtxt that names other tensors than the file has: the file's are served."""
    if model.config is None:
        return
    own = model.network.own
    for what, tensors, name in (
        ("input", model.config.input, own.input_name),
        ("output", model.config.output, own.output_name),
    ):
        named = [tensor.name for tensor in tensors if tensor.name]
        if named and named != [name]:
            log.warning("config.pbtxt of model %s: its %s is %s, but the file's is %s", model.name, what, named, name)
