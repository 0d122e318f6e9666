"""Changes images at random: each by amounts of its own, which only seed and epoch decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional
from torchvision.transforms import v2

from convlens_training.recipes import Augmentation

# Random numbers that an image needs.
AMOUNTS = 14
_ERASED = (0.15, 0.5)


def augmented(values: torch.Tensor, how: Augmentation, amounts: torch.Tensor) -> torch.Tensor:
    """Turns, moves, enlarges, shears and flips each image of a batch, changes its colours, and erases a part of it.

    All images at once: torchvision's transforms draw one set of amounts for all the images they are given, and one
    call for each image takes 3 to 13 times as long (bench/training.py, docs/decisions/0006).

    Args:
        values: float32 N × channels × height × width, of mean 0 and deviation 1.
        how: By how much at most.
        amounts: float32 N × AMOUNTS, uniform in 0 … 1, on the device of the values.

    Returns:
        float32 of the same shape.
    """
    if replace(how, colour=0, erase=0, mixup=0, cutmix=0) != Augmentation(beyond=how.beyond):
        values = _moved(values, how, amounts[:, :6])
    if how.colour:
        values = _coloured(values, how.colour, amounts[:, 6:9])
    if how.erase:
        values = _erased(values, how.erase, amounts[:, 9:14])
    return values


def mixed(
    values: torch.Tensor, targets: torch.Tensor, how: Augmentation, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes the images of a batch in pairs, or not, by torch's random numbers.

    Args:
        values: float32 N × channels × height × width.
        targets: int64 N, class indices.
        how: How often.
        classes: How many there are.

    Returns:
        The values, and the targets as they were or float32 N × classes.
    """
    chance = float(torch.rand(())) if how.mixup or how.cutmix else 1.0
    if chance >= how.mixup + how.cutmix:
        return values, targets
    mix = v2.MixUp(alpha=0.3, num_classes=classes) if chance < how.mixup else v2.CutMix(num_classes=classes)
    values, targets = mix(values, targets)
    return values, targets


def _moved(values: torch.Tensor, how: Augmentation, amounts: torch.Tensor) -> torch.Tensor:
    turn, grow, lean, side, right, down = amounts.unbind(1)
    angle = (2 * turn - 1) * how.degrees * (math.pi / 180)
    low, high = how.scale
    shrink = 1 / (low + grow * (high - low))
    shear = (2 * lean - 1) * how.shear
    mirror = torch.where(side < how.flip, -1.0, 1.0)
    cos, sin = angle.cos() * shrink, angle.sin() * shrink
    # The grid's coordinates are −1 … 1: a shift by a fraction of the image is twice that.
    x = (cos * mirror, cos * shear - sin, (2 * right - 1) * 2 * how.shift)
    y = (sin * mirror, sin * shear + cos, (2 * down - 1) * 2 * how.shift)
    return functional.grid_sample(values, _grid(x, y, values), padding_mode=how.beyond, align_corners=False)


def _grid(x: Sequence[torch.Tensor], y: Sequence[torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """Where each pixel of each image comes from: functional.affine_grid, which takes longer than the sampling itself.

    Args:
        x: Factors of a pixel's column and row and the term that give the column, for each image.
        y: Those that give the row.
        values: N × channels × height × width.

    Returns:
        N × height × width × 2.
    """
    rows, columns = ((torch.arange(n, device=values.device) * 2 + 1) / n - 1 for n in values.shape[2:])
    along_columns, along_rows, terms = (torch.stack(pair, 1)[:, None, :] for pair in zip(x, y, strict=True))
    return (along_rows * rows[:, None] + terms)[:, :, None] + (along_columns * columns[:, None])[:, None]


def _coloured(values: torch.Tensor, most: float, amounts: torch.Tensor) -> torch.Tensor:
    saturation, contrast, brightness = ((2 * amounts - 1) * most)[:, :, None, None, None].unbind(1)
    grey = values.mean(1, keepdim=True)
    mean = values.mean((1, 2, 3), keepdim=True)
    # Of (grey + (values − grey)(1 + s) − mean)(1 + c) + mean + 2b, in as few passes as there are terms.
    scale = (1 + saturation) * (1 + contrast)
    return (values * scale).add_(grey * (-saturation * (1 + contrast)) + (2 * brightness - contrast * mean))


def _erased(values: torch.Tensor, probability: float, amounts: torch.Tensor) -> torch.Tensor:
    height, width = values.shape[2:]
    low, high = _ERASED
    hit, tall, wide, y, x = amounts[:, :, None, None].unbind(1)
    rows = (torch.arange(height, device=values.device)[:, None] + 0.5) / height
    columns = (torch.arange(width, device=values.device) + 0.5) / width
    inside = ((rows - y).abs() * 2 < low + tall * (high - low)) & ((columns - x).abs() * 2 < low + wide * (high - low))
    return values.masked_fill((inside & (hit < probability))[:, None], 0.0)
