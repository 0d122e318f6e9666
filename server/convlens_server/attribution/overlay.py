"""Lays a map over its image, as colour."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

# The most that colour covers of the image.
_OPACITY = 0.8
# Lightness, chroma and hue in degrees at both ends: dark violet to light yellow, by way of red.
_FROM, _TO = (0.28, 0.13, 300.0), (0.95, 0.16, 468.0)
_SIZE = 256

# OKLab to linear sRGB: B. Ottosson, "A perceptual color space for image processing", 2020
# (https://bottosson.github.io/posts/oklab/), by way of the cubes of three cone responses.
_TO_CONES = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
_TO_RGB = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


@functools.cache
def colours() -> npt.NDArray[np.uint8]:
    """The colour map: 256 × RGB, from what says little to what says much.

    Perceptually uniform: neighbours are equally far apart in OKLab, the lightness rises evenly. A way through its
    lightness, chroma and hue, drawn straight and then cut into steps of equal length; chroma that a screen cannot show
    is left out.
    """
    t = np.linspace(0, 1, 4 * _SIZE)
    lightness, chroma, hue = (low + (high - low) * t for low, high in zip(_FROM, _TO, strict=True))
    angle = np.radians(hue)
    for _ in range(60):
        lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], 1)
        outside = ((_linear(lab) < 0) | (_linear(lab) > 1)).any(1)
        if not outside.any():
            break
        chroma = np.where(outside, chroma * 0.97, chroma)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(lab, axis=0), axis=1))])
    even = np.linspace(0, length[-1], _SIZE)
    lab = np.stack([np.interp(even, length, part) for part in lab.T], 1)
    linear = np.clip(_linear(lab), 0, 1)
    gamma = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    table: npt.NDArray[np.uint8] = np.rint(255 * gamma).astype(np.uint8)
    return table


def overlay(image: npt.NDArray[np.uint8], values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The image with a map laid over it: uint8 height × width × RGBA, all opaque.

    The larger a value, compared with the largest, the lighter the colour and the more it covers of the image, up to
    four fifths. What is ≤ 0 leaves the image as it is.

    Args:
        image: uint8 height × width × 1 or 3 channels.
        values: float32 height × width.
    """
    largest = values.max(initial=0)
    share = np.clip(values / largest, 0, 1) if largest > 0 else np.zeros_like(values)
    colour = colours()[np.rint(share * (_SIZE - 1)).astype(np.uint8)]
    opacity = _OPACITY * share[..., None]
    mixed = np.broadcast_to(image, colour.shape) * (1 - opacity) + colour * opacity
    return np.dstack([np.rint(mixed).astype(np.uint8), np.full(values.shape, 255, np.uint8)])


def _linear(lab: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    linear: npt.NDArray[np.float64] = (lab @ np.transpose(_TO_CONES)) ** 3 @ np.transpose(_TO_RGB)
    return linear
