"""A picture to draw on, with light, fur and blur. Coordinates are 0 … 128 from the top left corner."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFilter

Colour: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]

SIDE = 128
# Drawn larger and reduced: Pillow's shapes have hard edges.
_SCALE = 4


class Picture:
    """A square picture.

    Args:
        background: Its colour.
        seed: Of what is strewn.
    """

    def __init__(self, background: Colour, seed: int) -> None:
        self._image = Image.new("RGB", (SIDE * _SCALE, SIDE * _SCALE), background)
        self._draw = ImageDraw.Draw(self._image)
        self.random = random.Random(seed)

    def oval(self, x: float, y: float, across: float, down: float, colour: Colour, turned: float = 0) -> None:
        """An ellipse with its centre at (x, y) and two radii, turned clockwise by degrees."""
        self.shape(_oval(x, y, across, down, turned), colour)

    def ball(self, x: float, y: float, across: float, down: float, dark: Colour, light: Colour) -> None:
        """An ellipse that is lit from the upper left."""
        steps = 40
        for step in range(steps):
            part = step / (steps - 1)
            size = 1 - 0.92 * part
            place = x - 0.38 * across * part, y - 0.42 * down * part
            self.oval(*place, across * size, down * size, _between(dark, light, part**0.8))

    def shape(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon([(x * _SCALE, y * _SCALE) for x, y in points], colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A line with round ends."""
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, colour, round(width * _SCALE), joint="curve")
        for x, y in (points[0], points[-1]):
            self.oval(x, y, width / 2, width / 2, colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour, round_by: float = 0) -> None:
        """A rectangle, perhaps with rounded corners."""
        corners = [value * _SCALE for value in (left, top, right, bottom)]
        self._draw.rounded_rectangle(corners, round_by * _SCALE, colour)

    def fade(self, top: float, bottom: float, first: Colour, last: Colour) -> None:
        """Rows from one colour to another, over the whole width."""
        for row in range(round(top * _SCALE), round(bottom * _SCALE)):
            part = (row / _SCALE - top) / (bottom - top)
            self._draw.line([(0, row), (SIDE * _SCALE, row)], _between(first, last, part))

    def fur(self, x: float, y: float, across: float, down: float, colours: Sequence[Colour], length: float = 5) -> None:
        """Hairs that fill an ellipse and point away from its centre."""
        for _ in range(round(across * down * 4)):
            angle, far = self.random.uniform(0, 2 * math.pi), math.sqrt(self.random.random())
            root = x + across * far * math.cos(angle), y + down * far * math.sin(angle)
            lean = angle + self.random.gauss(0, 0.5)
            tip = root[0] + length * math.cos(lean), root[1] + length * math.sin(lean)
            self.line([root, tip], 0.7, self.varied(self.random.choice(colours), 14))

    def strew(
        self,
        count: int,
        within: tuple[float, float, float, float],
        size: tuple[float, float],
        colours: Sequence[Colour],
        flat: float = 1.0,
    ) -> None:
        """Ovals at random places of a rectangle (left, top, right, bottom), each `flat` times as high as wide."""
        left, top, right, bottom = within
        for _ in range(count):
            radius = self.random.uniform(*size)
            place = self.random.uniform(left, right), self.random.uniform(top, bottom)
            colour = self.varied(self.random.choice(colours), 12)
            self.oval(*place, radius, radius * flat, colour, self.random.uniform(0, 180) if flat != 1 else 0)

    def blur(self, radius: float) -> None:
        """Puts what has been drawn so far out of focus."""
        self._image = self._image.filter(ImageFilter.GaussianBlur(radius * _SCALE))
        self._draw = ImageDraw.Draw(self._image)

    def varied(self, colour: Colour, by: int) -> Colour:
        """A colour a little lighter or darker."""
        change = self.random.randint(-by, by)
        red, green, blue = (min(255, max(0, value + change)) for value in colour)
        return red, green, blue

    def done(self) -> Image.Image:
        """The picture, SIDE × SIDE pixels, RGB."""
        return self._image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _oval(x: float, y: float, across: float, down: float, turned: float) -> list[Point]:
    turn = math.radians(turned)
    points = []
    for number in range(48):
        angle = number * math.pi / 24
        along, aside = across * math.cos(angle), down * math.sin(angle)
        points.append(
            (x + along * math.cos(turn) - aside * math.sin(turn), y + along * math.sin(turn) + aside * math.cos(turn))
        )
    return points


def _between(first: Colour, last: Colour, part: float) -> Colour:
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(first, last, strict=True))
    return red, green, blue
