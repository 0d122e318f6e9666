"""Draws the feature maps of a layer as one image."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import PIL.Image

_Bytes = npt.NDArray[np.uint8]

# Pixels.
_GAP = 2
_WIDTH = 1024
_SMALLEST_TILE, _LARGEST_TILE = 64, 192
_STRIP_HEIGHT = 32

_PAPER = np.array([36, 36, 40], np.uint8)
# From −1 by 0 to 1: blue, white, red, each step about as different from the last (ColorBrewer's RdBu, reversed).
_DIVERGING = np.array(
    [(5, 48, 97), (33, 102, 172), (67, 147, 195), (146, 197, 222), (209, 229, 240), (247, 247, 247),
     (253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43), (103, 0, 31)]
)  # fmt: skip


def grid(activation: npt.NDArray[np.float32]) -> PIL.Image.Image:
    """The feature maps of one image.

    Maps with a negative value anywhere in the layer are blue below zero, white at zero, red above; others go from
    black at zero to white. Each channel is shown by its own range. A layer without positions is a strip of its units,
    shown by one range; more than 1,024 of them go on in further strips.

    Args:
        activation: channels × height × width; any other rank is taken as units.

    Returns:
        RGB; tiles 2 pixels apart, small ones enlarged so that the whole is about 1,024 pixels wide.
    """
    values = np.nan_to_num(activation.astype(np.float32), nan=0.0)
    signed = bool((values < 0).any())
    if values.ndim != 3 or values.shape[1:] == (1, 1):
        return PIL.Image.fromarray(_strips(_colours(values.reshape(1, -1), signed)[0]))
    channels, height, width = values.shape
    tiles: _Bytes = _colours(values.reshape(channels, -1), signed).reshape(channels, height, width, 3)
    columns = _columns(channels, height / width)
    # By whole numbers, so that every value keeps its square.
    side = min(max(_WIDTH // columns, _SMALLEST_TILE), _LARGEST_TILE)
    scale = max(1, side // max(height, width))
    tiles = tiles.repeat(scale, 1).repeat(scale, 2)
    return PIL.Image.fromarray(_arranged(tiles, columns))


def _columns(count: int, shape: float) -> int:
    """How many tiles of a shape (height / width) go in a row: about a square, at most twice as wide, few left empty."""
    square = max(1, round(math.sqrt(count * shape)))
    return min(range(square, 2 * square + 1), key=lambda columns: (-count % columns, columns)) if count > 3 else count


def _colours(rows: npt.NDArray[np.float32], signed: bool) -> _Bytes:
    """Each row by its own range: rows × values → rows × values × RGB."""
    # In float64: a float32 divided by the smallest ones overflows.
    largest = np.abs(rows.astype(np.float64)).max(1, keepdims=True)
    share = rows / np.where(largest > 0, largest, 1)
    if not signed:
        # sRGB's grey levels are about evenly spaced to the eye as they are.
        channels = [share * 255] * 3
    else:
        stops = np.linspace(-1, 1, len(_DIVERGING))
        channels = [np.interp(share, stops, _DIVERGING[:, channel]) for channel in range(3)]
    colours: _Bytes = np.rint(np.stack(channels, -1)).astype(np.uint8)
    return colours


def _strips(units: _Bytes) -> _Bytes:
    cell = max(1, min(_STRIP_HEIGHT, _WIDTH // len(units)))
    per_strip = min(len(units), _WIDTH)
    strips = []
    for start in range(0, len(units), per_strip):
        strip = _paper(_STRIP_HEIGHT, per_strip * cell)
        part = units[start : start + per_strip].repeat(cell, 0)
        strip[:, : len(part)] = part
        strips.append(strip)
    return _arranged(np.stack(strips), 1)


def _arranged(tiles: _Bytes, columns: int) -> _Bytes:
    """Tiles in rows, with gaps between and around them."""
    count, height, width, _ = tiles.shape
    rows = math.ceil(count / columns)
    image = _paper(rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP)
    for index, tile in enumerate(tiles):
        top = _GAP + index // columns * (height + _GAP)
        left = _GAP + index % columns * (width + _GAP)
        image[top : top + height, left : left + width] = tile
    return image


def _paper(height: int, width: int) -> _Bytes:
    return np.full((height, width, 3), _PAPER)
