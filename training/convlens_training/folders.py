"""Reads a folder of image files, one folder for each label."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from convlens_training.datasets import Dataset, Split, split
from convlens_training.errors import TrainingError
from convlens_training.recipes import ImageSize

_TRAIN, _VALIDATION, _TEST = "train", "val", "test"
_LABELS = "labels.txt"


def load(path: Path, size: ImageSize, seed: int, threads: int) -> Dataset:
    """Reads <path>/train/<label>/* with <path>/val, <path>/test or both, or <path>/<label>/*.

    Labels are in the order of <path>/labels.txt, which has one folder's name a line, or else in order of name. Where
    there are both val and test, the first is for validation and the second is held out; one alone is held out.

    Raises:
        TrainingError: Something does not fit; the text says what to do.
    """
    try:
        if not path.is_dir():
            raise TrainingError(
                f"--data {path} is not a folder: give the name of a data set, such as mnist5k, or a folder "
                "with one folder a label"
            )
        return _load(path, size, seed, threads)
    except OSError as error:
        # Those of images are among the unreadable files.
        raise TrainingError(
            f"{error.filename or path} cannot be read ({error.strerror or error}): change its permissions or repair it"
        ) from None


def _load(path: Path, size: ImageSize, seed: int, threads: int) -> Dataset:
    train_path = path / _TRAIN if (path / _TRAIN).is_dir() else path
    classes = _class_folders(train_path)
    if len(classes) < 2:
        raise TrainingError(
            f"{train_path} has {len(classes)} class folders ({', '.join(classes) or 'none'}), but a classifier needs "
            "at least 2: give a folder that has one folder of images for each label"
        )
    others = [path / name for name in (_VALIDATION, _TEST) if train_path != path and (path / name).is_dir()]
    for other in others:
        if difference := sorted(set(_class_folders(other)) ^ set(classes)):
            raise TrainingError(
                f"{train_path} and {other} have different class folders ({', '.join(difference)} is only in one of "
                "them): both must have the same"
            )
    for name in classes:
        if name.encode("utf-8", "replace").decode() != name:
            raise TrainingError(f"the name of the class folder {name!a} in {train_path} is no UTF-8 text: rename it")
    classes = _ordered(path / _LABELS, classes)
    labels = tuple(name.replace("_", " ") for name in classes)
    if len(set(labels)) < len(labels):
        raise TrainingError(f"two class folders in {train_path} differ only by _ and space: rename one of them")
    unreadable: list[str] = []
    train = read(train_path, classes, size, unreadable, least=1 if others else 2, threads=threads)
    parts = [read(other, classes, size, unreadable, least=1, threads=threads) for other in others]
    if not parts:
        train, test = split(train.images, train.labels, seed)
        parts = [test]
    dataset = Dataset(path.resolve().name, labels, train, parts[-1], tuple(unreadable))
    return replace(dataset, validation=parts[0]) if len(parts) == 2 else dataset


def read(
    path: Path, classes: Sequence[str], size: ImageSize, unreadable: list[str], *, least: int, threads: int
) -> Split:
    """Decodes the images of the folders of `path`.

    Args:
        path: Has a folder for each class.
        classes: The folders' names, in the order of class indices.
        size: Of the images.
        unreadable: Gets a line for each file that is no image.
        least: How many images each class must have.
        threads: How many images are decoded at a time.

    Raises:
        TrainingError: A class has fewer, or there is not enough memory for all of them.
    """
    files = {
        name: sorted(file for file in (path / name).iterdir() if not file.name.startswith(".") and not file.is_dir())
        for name in classes
    }
    images = _room(path, files, size)
    labels: list[int] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Pillow warns of images of 90 million pixels, and refuses those of the double; and of what it can mend.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for label, name in enumerate(classes):
            before, skipped = len(labels), len(unreadable)
            for file, made in zip(files[name], pool.map(lambda file: _decoded(file, size), files[name]), strict=True):
                if isinstance(made, str):
                    unreadable.append(os.fsencode(f"{file}: {made}").decode("utf-8", "backslashreplace"))
                else:
                    images[len(labels)] = made
                    labels.append(label)
            if (count := len(labels) - before) < least:
                reasons = unreadable[skipped:]
                raise TrainingError(
                    f"class folder {path / name} has {count} readable images, but needs at least {least}: add images "
                    "or remove the folder" + "".join(f"\n  unreadable: {text}" for text in reasons[:5])
                )
    return Split(images[: len(labels)], np.array(labels, np.int64))


def resized(images: npt.NDArray[np.uint8], size: ImageSize) -> npt.NDArray[np.uint8]:
    """Images (uint8 N × height × width × channels) converted to another size, as those of files are."""
    if images.shape[1:] == (size.height, size.width, size.channels):
        return images
    made = _room(Path("the data set"), {"": range(len(images))}, size)
    for n, image in enumerate(images):
        made[n] = _fitted(Image.fromarray(image.squeeze()), size)
    return made


def _class_folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _ordered(file: Path, classes: list[str]) -> list[str]:
    if not file.is_file():
        return classes
    try:
        # Editors of some systems put a mark in front.
        order = [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise TrainingError(f"{file} cannot be read as UTF-8 text ({error}): write it anew or remove it") from None
    if sorted(order) != classes:
        difference = sorted(set(order) ^ set(classes)) or [name for name in order if order.count(name) > 1]
        raise TrainingError(
            f"{file} and the class folders do not match ({', '.join(difference[:5])}): it must have the name of each "
            "class folder once, one a line; or remove it, and they are in order of name"
        )
    return order


def _room(path: Path, files: Mapping[str, Sequence[object]], size: ImageSize) -> npt.NDArray[np.uint8]:
    """Memory for the images of all files, or TrainingError before hours of decoding have filled it."""
    count = sum(map(len, files.values()))
    needed = count * size.height * size.width * size.channels
    available = _available_memory()
    if needed > available:
        raise TrainingError(
            f"the {count} images of {path} at {size} need {needed / 2**30:.1f} GiB of memory, but only "
            f"{available / 2**30:.1f} GiB are free: give a smaller --image-size, or fewer images"
        )
    return np.empty((count, size.height, size.width, size.channels), np.uint8)


def _available_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _decoded(file: Path, size: ImageSize) -> npt.NDArray[np.uint8] | str:
    """The pixels, or why there are none."""
    try:
        if not file.is_file():
            return "is no file, or a link to none"
        with Image.open(file) as opened:
            opened.load()
            return _fitted(_upright(opened), size)
    except UnidentifiedImageError:
        return "is no image"
    except Exception as error:
        # Pillow raises what its parsers raise: OSError, ValueError, SyntaxError, struct.error …
        return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Damaged EXIF says nothing of the pixels.
        return image


def _fitted(image: Image.Image, size: ImageSize) -> npt.NDArray[np.uint8]:
    """One image, as the server decodes it: upright, on black where transparent, resized bilinearly."""
    mode = "L" if size.channels == 1 else "RGB"
    if image.mode != mode:
        image = _converted(image, mode)
    if image.size != (size.width, size.height):
        image = image.resize((size.width, size.height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(size.height, size.width, size.channels)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # 16-bit grey: Pillow would clip at 255.
        grey = np.asarray(image.convert("I"))
        shown = np.where(grey == image.info.get("transparency"), 0, grey >> 8)
        image = Image.fromarray(shown.clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image.convert(mode)
