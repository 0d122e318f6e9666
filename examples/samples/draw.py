"""Draws the images that stand beside the shipped models as their samples.

    python examples/samples/draw.py models

writes lecture_cnn's digits, and ten things for tiny_vgg and tiny_vgg_bn. None of them comes from a data set. The same
release of Pillow draws the same files.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from picture import Point
from things import THINGS

_DIGIT_SIDE = 28
# Drawn larger and reduced: a pen has soft edges.
_SCALE = 16
_PEN = 2.3

# The way of the pen, stroke by stroke, in pixels from the top left corner; each stroke is made round.
_DIGITS: Mapping[int, Sequence[Sequence[Point]]] = {
    0: [[(15, 5), (10, 7), (8, 14), (10, 21), (14, 23), (18, 21), (20, 14), (18, 7), (14, 5)]],
    1: [[(16, 5), (15, 10), (14, 16), (13, 23)]],
    2: [[(8.5, 9), (10, 6), (14, 5), (18, 7), (18, 11), (14, 16), (8, 22.5)], [(8, 22.5), (13, 21.6), (20, 22)]],
    3: [
        [(9, 6.5), (13, 5), (17.5, 7), (17, 11), (12.5, 13)],
        [(12.5, 13), (18, 15), (18.5, 19), (15, 22.5), (8.5, 21)],
    ],
    4: [[(10, 5.5), (9, 10), (8.5, 14.5), (13, 14.5), (20, 13.5)], [(18.5, 6), (17.5, 14), (16.5, 23)]],
    5: [[(19, 5.5), (15, 6), (10.5, 6)], [(10.5, 6), (9.5, 12.5), (15, 12), (19, 16), (17, 21), (12.5, 23), (8, 21)]],
    6: [[(17, 5), (12, 10), (9, 17), (11, 22), (15.5, 23), (18.5, 19.5), (16.5, 15.5), (12, 16), (9.6, 19)]],
    7: [[(8, 6.5), (13, 6.5), (20, 6)], [(20, 6), (16, 13), (13, 23)]],
    8: [
        [(18, 7), (13.5, 5), (10, 8), (13, 12.5), (18, 17), (16.5, 22)],
        [(16.5, 22), (12, 22.8), (9.5, 19), (13, 14), (18, 9.5), (18, 7)],
    ],
    9: [[(18, 9), (14.5, 5.5), (10, 8), (10.5, 12.5), (15, 13), (18.3, 8)], [(18.3, 8), (17.5, 15), (16, 23)]],
}


def main() -> None:
    """Reads the command line and writes the files."""
    parser = argparse.ArgumentParser(description="Draws the samples of the shipped models.")
    parser.add_argument("models", type=Path, help="the model repository")
    models = parser.parse_args().models
    write(models / "lecture_cnn", {str(number): digit(number) for number in _DIGITS})
    things = {draw.__name__: draw() for draw in THINGS}
    for name in ("tiny_vgg", "tiny_vgg_bn"):
        write(models / name, things)


def digit(number: int) -> Image.Image:
    """A digit as MNIST has them: white on black, grey at the edges, 28 × 28 pixels."""
    image = Image.new("L", (_DIGIT_SIDE * _SCALE, _DIGIT_SIDE * _SCALE))
    draw = ImageDraw.Draw(image)
    radius = _PEN / 2 * _SCALE
    for stroke in _DIGITS[number]:
        for x, y in _rounded(stroke):
            x, y = (x + 0.5) * _SCALE, (y + 0.5) * _SCALE
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], 255)
    return image.resize((_DIGIT_SIDE, _DIGIT_SIDE), Image.Resampling.BOX)


def write(model: Path, images: Mapping[str, Image.Image]) -> None:
    """Writes images as the samples of a model's first version."""
    folder = model / "1" / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        image.save(folder / f"{name}.png", optimize=True)


def _rounded(points: Sequence[Point], steps: int = 60) -> list[Point]:
    """Points close to each other on the Catmull-Rom curve through the given ones."""
    ends = [points[0], *points, points[-1]]
    curve = []
    for before, start, end, after in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        for step in range(steps + 1):
            part = step / steps
            curve.append((
                _between(before[0], start[0], end[0], after[0], part),
                _between(before[1], start[1], end[1], after[1], part),
            ))  # fmt: skip
    return curve


def _between(before: float, start: float, end: float, after: float, part: float) -> float:
    slope = (end - before) / 2
    last_slope = (after - start) / 2
    change = end - start
    cubic = slope + last_slope - 2 * change
    return start + part * (slope + part * (3 * change - 2 * slope - last_slope + part * cubic))


if __name__ == "__main__":
    main()
