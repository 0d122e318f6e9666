"""The largest activations of each channel over many images, with their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convlens_server.explain.operands import place_shape

# Images that are kept for a channel.
MOST = 16


@dataclass(frozen=True)
class Ranking:
    """The images that activate each channel of a layer most, highest first.

    Attributes:
        files: Names of the images that are in it.
        index: int32 channels × MOST: positions in `files`; −1 where there were no more images.
        activation: float32, of the same shape: the channel's largest activation in that image.
        row: int32: of the unit that has it, the first of several.
        column: int32.
        total: Images of the dataset.
        skipped: Files that could not be read as images.
    """

    files: Sequence[str]
    index: npt.NDArray[np.int32]
    activation: npt.NDArray[np.float32]
    row: npt.NDArray[np.int32]
    column: npt.NDArray[np.int32]
    total: int
    skipped: int


class Best:
    """Gathers a ranking, some images at a time.

    Args:
        shape: Of the layer's output for one image: channels first.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self._channels = shape[0] if shape else 1
        _, self._rows, self._columns = place_shape(shape)
        self._value = np.full((self._channels, MOST), -np.inf, np.float32)
        self._image = np.full((self._channels, MOST), -1, np.int32)
        self._place = np.zeros((self._channels, MOST), np.int32)

    def add(self, maps: npt.NDArray[np.float32], images: Sequence[int]) -> None:
        """Takes the maps of some images into account.

        Args:
            maps: Images × the layer's shape.
            images: Their numbers, ascending from one call to the next: of equal activations the first image is kept.
        """
        units = np.nan_to_num(maps.reshape(len(maps), self._channels, -1), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        place = units.argmax(2)
        value = np.take_along_axis(units, place[..., None], 2)[..., 0]
        numbers = np.broadcast_to(np.asarray(images, np.int32), (self._channels, len(maps)))
        values = np.concatenate([self._value, value.T], 1)
        order = np.argsort(-values, 1, kind="stable")[:, :MOST]
        self._value = np.take_along_axis(values, order, 1)
        self._image = np.take_along_axis(np.concatenate([self._image, numbers], 1), order, 1)
        self._place = np.take_along_axis(np.concatenate([self._place, place.T.astype(np.int32)], 1), order, 1)

    def ranking(self, files: Sequence[str], skipped: int) -> Ranking:
        """What was gathered; `files` are all of the dataset's."""
        # What is no number, and what was never filled, has no place in a ranking.
        image = np.where(np.isneginf(self._value), -1, self._image)
        used, index = np.unique(image, return_inverse=True)
        index = index.reshape(image.shape)
        if used.size and used[0] == -1:
            used, index = used[1:], index - 1
        row, column = divmod(self._place % (self._rows * self._columns), self._columns)
        names = [files[number] for number in used]
        return Ranking(names, index.astype(np.int32), self._value, row, column, len(files), skipped)
