"""Labelled images, in memory: sets by name, or a folder of image files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convlens_training.errors import TrainingError
from convlens_training.recipes import ImageSize

# Where a data set has no held-out part of its own, this share of each class is held out.
_HELD_OUT = 0.2
# What is taken from the training images where a validation part is needed, of each class.
_VALIDATION = 0.1


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
    """A training and a held-out part, and perhaps a validation part.

    Attributes:
        name: For people; no path.
        labels: One for each class, by class index.
        train: What networks are trained on.
        test: What they are measured on.
        unreadable: Files that were skipped, each with the reason.
        validation: What the best epoch is chosen on; None where there is no such part.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    test: Split
    unreadable: tuple[str, ...] = ()
    validation: Split | None = None

    @cached_property
    def sha256(self) -> str:
        """Of labels, images and class indices of all parts, in hexadecimal digits."""
        digest = hashlib.sha256("\0".join(self.labels).encode())
        for split in (self.train, self.test, self.validation):
            if split is not None:
                digest.update(f"{split.images.shape}".encode())
                digest.update(np.ascontiguousarray(split.images).data)
                digest.update(np.ascontiguousarray(split.labels).data)
        return digest.hexdigest()

    def with_validation(self, seed: int) -> Dataset:
        """The same with a validation part: its own, or else a tenth of each class of the training images.

        Args:
            seed: Decides which.

        Raises:
            TrainingError: A class has a single training image.
        """
        if self.validation is not None:
            return self
        counts = np.bincount(self.train.labels, minlength=len(self.labels))
        if counts.min() < 2:
            raise TrainingError(
                f"class {self.labels[int(counts.argmin())]!r} has {counts.min()} training images, but needs at least 2 "
                "where the best epoch is chosen on a part of them: add images, give val/ and test/, or leave out "
                "--patience"
            )
        train, validation = split(self.train.images, self.train.labels, seed, _VALIDATION)
        return replace(self, train=train, validation=validation)


def load(
    data: str, size: ImageSize, data_root: Path | None, seed: int, *, strict: bool = False, threads: int = 1
) -> Dataset:
    """Loads a data set.

    Args:
        data: One of named.NAMES, or the path of a folder of images.
        size: Of the images; all are converted to it.
        data_root: Where the files of a set by name are, or are downloaded to. None is the user's cache.
        seed: Decides what is held out where the data does not say.
        strict: Refuse unreadable files instead of skipping them.
        threads: How many images are decoded at a time.

    Raises:
        TrainingError: The data is missing, damaged, or does not fit; the text says what to do.
    """
    from convlens_training import folders, named  # which import this module

    if data in named.NAMES:
        dataset = named.load(data, size, data_root, seed, threads)
    else:
        dataset = folders.load(Path(data), size, seed, threads)
    if strict and dataset.unreadable:
        raise TrainingError(
            f"{len(dataset.unreadable)} files cannot be read, which --strict refuses: repair or remove them"
            + "".join(f"\n  unreadable: {text}" for text in dataset.unreadable)
        )
    return dataset


def split(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], seed: int, share: float = _HELD_OUT
) -> tuple[Split, Split]:
    """Sets apart a share of each class, at least one image and not all, drawn by the seed; both parts keep the order.

    Returns:
        The rest, and what was set apart.
    """
    random = np.random.default_rng(seed)
    apart = np.zeros(len(labels), bool)
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(len(members) * share)), len(members) - 1)
        apart[random.permutation(members)[:count]] = True
    return Split(images[~apart], labels[~apart]), Split(images[apart], labels[apart])
