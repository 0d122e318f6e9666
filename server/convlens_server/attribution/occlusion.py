"""Occlusion sensitivity: how far a class's score falls when a part of the image is covered.

Source: M. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, arXiv 1311.2901.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from convlens_server.background import Background, Image


def starts(size: int, window: int, stride: int) -> list[int]:
    """Where the squares begin along one side, so that the last ends at its end: every pixel is covered."""
    return [*range(0, size - window, stride), size - window]


def mean_colour(image: Image) -> npt.NDArray[np.float32]:
    """The mean of each channel over the image, float32: what covers it says least of anything."""
    mean: npt.NDArray[np.float32] = image.mean((0, 1), dtype=np.float64).astype(np.float32)
    return mean


def occlusion(
    background: Background, image: Image, class_index: int, score: float, window: int, stride: int
) -> npt.NDArray[np.float32]:
    """The mean fall of a class's score over the squares that cover a pixel, float32 height × width.

    Args:
        background: Runs the covered images.
        image: uint8 height × width × channels.
        class_index: The class.
        score: Of the class for the whole image.
        window: Side of the square that is covered by the image's mean colour, pixels.
        stride: Pixels between squares, 1 … window; those at the right and lower edge end with the image.

    Raises:
        ServiceError: As `Background.run`.
    """
    height, width, _ = image.shape
    corners = [(top, left) for top in starts(height, window, stride) for left in starts(width, window, stride)]
    colour = np.rint(mean_colour(image)).astype(np.uint8)

    def covered() -> Iterator[Image]:
        for top, left in corners:
            copy = image.copy()
            copy[top : top + window, left : left + window] = colour
            yield copy

    falls, squares = np.zeros((height, width)), np.zeros((height, width))
    place = iter(corners)
    for outputs in background.run(covered()):
        for covered_score in outputs.scores[:, class_index]:
            top, left = next(place)
            falls[top : top + window, left : left + window] += score - float(covered_score)
            squares[top : top + window, left : left + window] += 1
    return (falls / squares).astype(np.float32)
