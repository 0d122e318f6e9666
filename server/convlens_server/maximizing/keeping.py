"""Where rankings are kept: beside the model if its folder can be written, else in the cache folder.

<model>/.convlens/<version>-<dataset>-<layer>.npz: hidden folders beside the versions are no part of what a repository
compares, so that keeping one does not make the model look changed. In the file stand the stamps of the model and of the
dataset that it was made of; one made of others is as good as none, and is replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convlens_server.catalogue import Layer
from convlens_server.maximizing.datasets import Dataset
from convlens_server.maximizing.ranking import Ranking
from convlens_server.model import Model

log = logging.getLogger(__name__)

FOLDER = ".convlens"
_ARRAYS = ("index", "activation", "row", "column")


class Keeping:
    """Keeps rankings. Thread-safe.

    Args:
        cache: Folder for those of models whose own cannot be written.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def read(self, model: Model, layer: Layer, dataset: Dataset) -> Ranking | None:
        """The ranking of a layer's channels over a dataset; None if there is none, or none of them as they are."""
        for folder in self._folders(model):
            path = folder / _name(model, layer, dataset)
            try:
                # Opened here: numpy leaves a file open that it finds to be damaged.
                with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
                    about = json.loads(str(content["about"]))
                    if about["made_of"] == _made_of(model, layer, dataset):
                        arrays = {name: content[name] for name in _ARRAYS}
                        files = [str(file) for file in content["files"]]
                        return Ranking(files, **arrays, total=about["total"], skipped=about["skipped"])
            except FileNotFoundError:
                pass
            except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
                log.warning("%s is damaged and will be made anew: %s", path, error)
        return None

    def write(self, model: Model, layer: Layer, dataset: Dataset, ranking: Ranking) -> None:
        """Keeps a ranking, whole or not at all; where nothing can be written it is made anew each time."""
        about = {
            "made_of": _made_of(model, layer, dataset),
            "total": ranking.total,
            "skipped": ranking.skipped,
        }
        arrays = {name: getattr(ranking, name) for name in _ARRAYS}
        for folder in self._folders(model):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                handle, temporary = tempfile.mkstemp(prefix=".", dir=folder)
                try:
                    with os.fdopen(handle, "wb") as stream:
                        np.savez_compressed(
                            stream, about=np.array(json.dumps(about)), files=np.array(ranking.files, np.str_), **arrays
                        )
                    Path(temporary).chmod(0o644)
                    Path(temporary).replace(folder / _name(model, layer, dataset))
                except BaseException:
                    Path(temporary).unlink(missing_ok=True)
                    raise
            except OSError as error:
                log.info("the images that maximize layers of %s are not kept in %s: %s", model.name, folder, error)
            else:
                return
        log.warning("the images that maximize layers of %s cannot be kept: no folder can be written", model.name)

    def _folders(self, model: Model) -> Iterator[Path]:
        beside = model.folder.parent
        yield beside / FOLDER
        yield self._cache / "maximizing" / hashlib.sha256(str(beside.resolve()).encode()).hexdigest()[:16]


def _made_of(model: Model, layer: Layer, dataset: Dataset) -> list[str]:
    return [model.fingerprint, layer.name, dataset.stamp]


def _name(model: Model, layer: Layer, dataset: Dataset) -> str:
    # Any text may be a layer's name, and of any length.
    readable = urllib.parse.quote(layer.name, safe="")[:80]
    digest = hashlib.sha256(layer.name.encode()).hexdigest()[:8]
    return f"{model.version}-{dataset.name}-{readable}-{digest}.npz"
