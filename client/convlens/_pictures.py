"""Draws feature maps, kernels and attributions as images, with Pillow alone."""

from __future__ import annotations

import io
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
_LARGEST_WEIGHT = 20
# Values that are coloured at a time: those of a dense layer of a VGG would take gigabytes in between.
_BLOCK = 2**20

_PAPER = np.array([36, 36, 40], np.uint8)
# From −1 by 0 to 1: blue, white, red, each step about as different from the last (ColorBrewer's RdBu, reversed).
_DIVERGING = np.array(
    [(5, 48, 97), (33, 102, 172), (67, 147, 195), (146, 197, 222), (209, 229, 240), (247, 247, 247),
     (253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43), (103, 0, 31)]
)  # fmt: skip
# The same for weights: brown, white, green (ColorBrewer's BrBG).
WEIGHTS = np.array(
    [(84, 48, 5), (140, 81, 10), (191, 129, 45), (223, 194, 125), (246, 232, 195), (245, 245, 245),
     (199, 234, 229), (128, 205, 193), (53, 151, 143), (1, 102, 94), (0, 60, 48)]
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
    table = _DIVERGING if (values < 0).any() else None
    if values.ndim != 3 or values.shape[1:] == (1, 1):
        return PIL.Image.fromarray(_strips(_colours(values.reshape(1, -1), table)[0]))
    channels, height, width = values.shape
    tiles: _Bytes = _colours(values.reshape(channels, -1), table).reshape(channels, height, width, 3)
    columns = _columns(channels, height / width)
    # By whole numbers, so that every value keeps its square.
    side = min(max(_WIDTH // columns, _SMALLEST_TILE), _LARGEST_TILE)
    scale = max(1, side // max(height, width))
    tiles = tiles.repeat(scale, 1).repeat(scale, 2)
    return PIL.Image.fromarray(_arranged(tiles, columns))


def kernels(weights: npt.NDArray[np.float32]) -> PIL.Image.Image:
    """The weights of a layer by one range: brown below zero, white at zero, green above.

    Args:
        weights: Output × input channels × rows × columns: a row an output channel, a tile an input channel. Units ×
            input units: a row a unit, as high as there is room for. Any other rank is taken as units.

    Returns:
        RGB; enlarged so that the whole is about 1,024 pixels wide, if it is not wider than that.
    """
    values = np.nan_to_num(weights.astype(np.float32), nan=0.0)
    colours = _colours(values.reshape(1, -1), WEIGHTS).reshape(*values.shape, 3)
    if values.ndim == 2:
        scale = max(1, min(_WIDTH // values.shape[1], _LARGEST_WEIGHT))
        high = max(scale, min(_WIDTH // 2 // len(values), _LARGEST_WEIGHT))
        return PIL.Image.fromarray(colours.repeat(high, 0).repeat(scale, 1))
    if values.ndim != 4:
        return PIL.Image.fromarray(_strips(colours.reshape(-1, 3)))
    _, inputs, height, width = values.shape
    scale = max(1, min((_WIDTH // inputs - _GAP) // width, _LARGEST_WEIGHT))
    tiles = colours.reshape(-1, height, width, 3).repeat(scale, 1).repeat(scale, 2)
    return PIL.Image.fromarray(_arranged(tiles, inputs))


def attribution(values: npt.NDArray[np.float32]) -> PIL.Image.Image:
    """A map of height × width as `grid` draws one channel."""
    return grid(values[None])


def enlarged(overlay: _Bytes) -> PIL.Image.Image:
    """Height × width × channels, each pixel a square, so that the smaller side has about 512 pixels."""
    scale = max(1, 512 // min(overlay.shape[:2]))
    return PIL.Image.fromarray(overlay.repeat(scale, 0).repeat(scale, 1))


def png(image: PIL.Image.Image) -> bytes:
    """A PNG file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _columns(count: int, shape: float) -> int:
    """How many tiles of a shape (height / width) go in a row: about a square, at most twice as wide, few left empty."""
    square = max(1, round(math.sqrt(count * shape)))
    return min(range(square, 2 * square + 1), key=lambda columns: (-count % columns, columns)) if count > 3 else count


def _colours(rows: npt.NDArray[np.float32], table: npt.NDArray[np.int64] | None) -> _Bytes:
    """Each row by its own range: rows × values → rows × values × RGB; without a table, grey from zero up."""
    largest = np.abs(rows).max(1, keepdims=True)
    colours: _Bytes = np.empty((*rows.shape, 3), np.uint8)
    block = max(1, _BLOCK // len(rows))
    for start in range(0, rows.shape[1], block):
        # In float64: a float32 divided by the smallest ones overflows.
        share = rows[:, start : start + block] / np.where(largest > 0, largest, 1).astype(np.float64)
        for channel in range(3):
            if table is None:
                # sRGB's grey levels are about evenly spaced to the eye as they are.
                levels = share * 255
            else:
                levels = np.interp(share, np.linspace(-1, 1, len(table)), table[:, channel])
            colours[:, start : start + block, channel] = np.rint(levels)
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
